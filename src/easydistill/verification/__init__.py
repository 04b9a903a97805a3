"""Checks of model output: final answers against known ones, quotations against their source, and structured replies."""
