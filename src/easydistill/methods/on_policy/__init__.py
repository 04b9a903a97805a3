"""On-policy distillation: the student generates, the teacher scores."""
