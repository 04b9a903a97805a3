"""The report on a run, made only from the files in its directory."""
