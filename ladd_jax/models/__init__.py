"""Networks. Only this package knows Flax NNX; the rest sees functions of parameter trees."""
