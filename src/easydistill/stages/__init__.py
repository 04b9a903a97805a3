"""Stages: the glue that makes teachers, trainers and evaluators into resumable steps."""
