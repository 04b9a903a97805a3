"""How a config is read: from a file in one of four notations, or a mapping, to one typed job.

A value's way: `syntax` (file → tree of nodes) → `aliases` (current names) → `overrides` → `pipelines` (shared
sections) → `resolve` (plain data, environment filled in) → `load` (typed by pydantic; `diagnose` explains what does
not fit). `template` writes a config to start from. The typed sections import none of this.
"""

from easydistill.config.reading.load import LoadedConfig, load_config

__all__ = ["LoadedConfig", "load_config"]
