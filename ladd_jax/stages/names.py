"""Names by which a command is asked for a network of a run."""

STUDENTS = {"ema": "ema", "student": "params"}
"""The two students of a run, its average and the one in training: their trees in the state."""

MODELS = (*STUDENTS, "generator")
"""All networks that can be sampled."""
