"""Servers of a local teacher (`inference.replicas`): started, watched and ended by the run that asks them."""
