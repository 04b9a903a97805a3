"""Held-out evaluation: the stage, its measurements, and the metrics."""
