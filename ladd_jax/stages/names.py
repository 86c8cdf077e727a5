"""The names of a run's networks in flags of commands."""

STUDENTS = {"ema": "ema", "student": "params"}
"""The two students of a run, the moving average and the trained parameters, as in the state."""

MODELS = (*STUDENTS, "generator")
"""All networks that can be sampled."""
