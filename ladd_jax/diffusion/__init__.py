"""Rectified flow: interpolation, time distributions, samplers."""
