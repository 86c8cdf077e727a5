"""Training targets: one file each, one signature (see `base`)."""
