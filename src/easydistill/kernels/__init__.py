"""Kernels: an output layer and a loss in one, slice by slice, so that the logits of all rows never exist."""
