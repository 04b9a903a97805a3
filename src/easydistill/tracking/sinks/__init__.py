"""Sinks, one per file. The file's name is the sink's key in `track`; see `contracts.sink.SinkModule`."""
