"""What the training methods share."""
