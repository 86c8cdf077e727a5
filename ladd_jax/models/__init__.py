"""Networks. The only package that knows Flax NNX; everything else sees functions of parameter trees."""
