"""Meshes, sharding rules, processes."""
