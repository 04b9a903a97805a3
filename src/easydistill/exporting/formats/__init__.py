"""Formats of exported models, one per file. The file's name is the format's name in `formats`.

A module follows `contracts.export_format.FormatModule`.
"""

from easydistill.contracts.export_format import FORMAT
from easydistill.registry import Registry

FORMATS = Registry("formats", __name__, FORMAT)
