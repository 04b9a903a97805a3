"""Models: where a reference points, how weights are loaded, how a student is made."""
