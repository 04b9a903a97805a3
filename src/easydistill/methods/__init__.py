"""Training methods, a folder each: its config, its stage, its trainer and what it overrides in TRL."""
