"""Judging samples, and reporting it."""
