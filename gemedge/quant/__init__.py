"""Integer inference: the ranges of a model's tensors, its integers, and their simulation."""
