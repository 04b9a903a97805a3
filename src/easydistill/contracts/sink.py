"""What a sink of a run's figures is, and what it receives: defined in `config`, whose top level names sinks."""

from easydistill.config.sink import Figures as Figures
from easydistill.config.sink import Sink as Sink
from easydistill.config.sink import SinkConfig as SinkConfig
from easydistill.config.sink import SinkContext as SinkContext
from easydistill.config.sink import SinkDefaults as SinkDefaults
from easydistill.config.sink import SinkModule as SinkModule
