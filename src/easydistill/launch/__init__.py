"""Stages in several processes: the parent's side. A process's own side is `easydistill/rank.py`."""
