"""The job `evaluate`: models answer tasks; scores with intervals, paired comparisons, speed; contaminated rows."""
