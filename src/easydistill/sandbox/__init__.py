"""Runs programs that a language model wrote; see `runner.py`."""

from .runner import Limits, Outcome, Ran, Sandbox, protections, run_program

__all__ = ["Limits", "Outcome", "Ran", "Sandbox", "protections", "run_program"]
