"""The stages of a run, one file each, and what is made of its results."""
