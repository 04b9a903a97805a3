"""Teacher signals: what a teacher said about the tokens of a sample, in memory and on disk."""
