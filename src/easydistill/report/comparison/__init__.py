"""Runs side by side: `easydistill compare`. Reads only the files of the runs, as a report does."""
