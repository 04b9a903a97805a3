"""Losses: pure functions on tensors that return sums; whoever calls divides once."""
