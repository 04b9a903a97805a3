"""The job `export`: a model written in formats that other programs run, read back, and compared with what it was."""
