"""Targets, one per file. `easydistill.cloud.target` says what each declares."""
