"""Critics, which tell real from fake."""
