"""Measurements: most modules are commands that print a table and write JSON."""
