"""Metrics of samples, and the report."""
