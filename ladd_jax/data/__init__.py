"""Latent shards: buckets, writing and reading, the training pipeline, sources of raw data."""
