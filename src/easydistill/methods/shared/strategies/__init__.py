"""How the processes of a training share the model (`launch.strategy`): one strategy per file; base.py says when."""
