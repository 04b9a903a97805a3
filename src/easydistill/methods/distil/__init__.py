"""Distillation from a teacher's stored signals."""
