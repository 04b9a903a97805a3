"""`easydistill doctor`: what is installed, what this machine has and how fast it is, and what to expect of it."""
