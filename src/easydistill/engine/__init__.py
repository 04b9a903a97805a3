"""Stages, the runner that orders and resumes them, and the run directory they write to."""
