"""The machine that a run is on, where it sets limits: room for files, memory, the errors that say it was too little."""

from easydistill.engine.machine.explain import machine_error as machine_error
