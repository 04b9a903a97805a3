"""Distillation from stored signals of a teacher."""
