"""TensorBoard's event files, in the run directory: `tensorboard --logdir runs` finds those of all runs.

TensorBoard's own writer is used; neither TensorFlow nor torch is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from easydistill.contracts.sink import Figures, SinkConfig, SinkContext

NEEDS = ("tensorboard",)


class Config(SinkConfig):
    """TensorBoard's event files, in the run directory."""


class TensorBoard:
    """One event file."""

    def __init__(self, context: SinkContext) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events, self._summaries = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(context.directory))
        # Of an earlier file, which a running TensorBoard may have read, nothing stands.
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=0, session_log=started))
        self._write(summary_v2.hparams_pb(dict(context.settings), trial_id=context.id), 0, time.time())
        self._write(self._table(context.settings), 0, time.time())
        self._writer.flush()

    def _write(self, summary: Any, step: int, at: float) -> None:
        self._writer.add_event(self._events.Event(wall_time=at, step=step, summary=summary))

    def _table(self, settings: Mapping[str, Any]) -> Any:
        """The settings as a page of text."""
        from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2
        from tensorboard.plugins.text import metadata

        lines = ["| setting | value |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in settings.items())]
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            string_val=["\n".join(lines).encode()],
            tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]),
        )
        value = self._summaries.Summary.Value(
            tag="config", tensor=tensor, metadata=metadata.create_summary_metadata("config", "")
        )
        return self._summaries.Summary(value=[value])

    def log(self, figures: Sequence[Figures]) -> None:
        for item in figures:
            values = [
                self._summaries.Summary.Value(tag=f"{item.group}/{name}", simple_value=value)
                for name, value in item.values.items()
            ]
            self._write(self._summaries.Summary(value=values), item.step, item.time)
        self._writer.flush()

    def close(self, status: str) -> None:
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        ended = plugin_data_pb2.SessionEndInfo(
            end_time_secs=time.time(), status=api_pb2.STATUS_SUCCESS if status == "done" else api_pb2.STATUS_FAILURE
        )
        value = self._summaries.Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=ended)),
        )
        self._write(self._summaries.Summary(value=[value]), 0, time.time())
        self._writer.close()


def make(config: SinkConfig, context: SinkContext) -> TensorBoard:
    return TensorBoard(context)
