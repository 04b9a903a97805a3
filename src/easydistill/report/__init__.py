"""The report of a run: what is on disk, made readable. Nothing here runs or decides anything."""
