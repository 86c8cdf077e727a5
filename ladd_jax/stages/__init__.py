"""The stages of a run, one file each, and what is made from a run's results."""
