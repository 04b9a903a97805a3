"""Decoding without `generate`: a cache that is written in place, and one pass per token over the rows not yet ended."""
