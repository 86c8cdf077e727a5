"""Networks. Only this package uses Flax NNX; the rest sees functions of parameter trees."""
