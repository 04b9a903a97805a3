"""Data synthesis: the stage that runs an operator, the operators, and what they share."""
