"""Published weights: into the parameter trees of `models/`, and out of them."""
