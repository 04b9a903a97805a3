"""On-policy distillation: the student writes, the teacher scores."""
