"""Cheap checks that stages make before anything heavy starts; they are in `models/checks.py`, for teachers too."""

from easydistill.models.checks import model_issues as model_issues
from easydistill.models.checks import needs_extra as needs_extra
from easydistill.models.checks import reference_issues as reference_issues
from easydistill.models.checks import student_issues as student_issues
