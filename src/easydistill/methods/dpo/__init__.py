"""Direct preference optimisation on pairs of answers."""
