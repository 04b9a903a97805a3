"""Trainers: what turns tokenised rows and a student into a trained student."""
