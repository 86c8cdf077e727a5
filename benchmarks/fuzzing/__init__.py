"""Seeds, mutations and readers of `benchmarks.fuzz`."""
