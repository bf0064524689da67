"""Tensors in, tensors out: the parts models are made of. Torch only."""
