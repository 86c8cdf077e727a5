"""State, loop, checkpoints, metrics."""
