"""`easydistill sweep`: one config in several variants, on labels and signals that are paid for once.

`variants.py` makes them from a grid, `sweep.py` runs each in a process of its own (`child.py`), `plan.py` tells what
that would take, `table.py` shows what came of it.
"""

from easydistill.sweeping.sweep import SweepResult, sweep
from easydistill.sweeping.variants import Variant, variants_of

__all__ = ["SweepResult", "Variant", "sweep", "variants_of"]
