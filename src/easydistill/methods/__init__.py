"""Training methods, one folder each: config, stage, trainer, and its overrides of TRL; shared/ is used by several."""
