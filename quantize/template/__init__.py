"""A model as its target's own tools write it, in floats: what is not quantized is taken from there as it is."""
