"""Teacher signals: a teacher's distributions over the tokens of a sample, in memory and on disk."""
