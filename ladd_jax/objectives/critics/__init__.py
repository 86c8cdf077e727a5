"""Critics: what tells real from fake."""
