"""Jobs on machines that are elsewhere: `submit`, `status`, `logs`, `cancel`, `fetch`, and `deploy` for a student.

A config and a target's settings (`settings.py`) become one `JobSpec` (`spec.py`); a target's module (`targets/`)
renders it, purely, into the document that is sent, and talks to what runs it. What was submitted is recorded in the run
directory (`records.py`). Nothing here is part of a job's identity: where it runs does not change what it learns.
"""
