"""Checkpoints of a sharded training: each rank writes the parts that it holds, and reads them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils._pytree import tree_map

_PART = "part"


class PartCheckpoints:
    """What a trainer does for checkpoints of its model, optimiser and schedule, where ranks hold parts of them.

    The rest of a checkpoint (random states, the trainer's own state) stays the trainer's.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def attach(self) -> None:
        """Take these methods' places in the trainer."""
        self._trainer.save_model = self.save_model
        self._trainer._load_from_checkpoint = self.load_model
        self._trainer._save_optimizer_and_scheduler = self.save_optimizer
        self._trainer._load_optimizer_and_scheduler = self.load_optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write this rank's part of what is trained."""
        folder = Path(output_dir or self._trainer.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: _local(value) for name, value in self._learned().items()}, _file(folder, "model"))

    def load_model(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Read it again, in place."""
        saved = _read(_file(Path(resume_from_checkpoint), "model"))
        with torch.no_grad():
            for name, value in self._learned().items():
                _local(value).copy_(saved[name])

    def _learned(self) -> dict[str, Tensor]:
        """The trained parameters, and the buffers that belong to the model's state."""
        model = self._trainer.model
        state = model.state_dict().keys()
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        return trained | {name: value for name, value in model.named_buffers() if name in state}

    def save_optimizer(self, output_dir: str) -> None:
        """Write this rank's part of the optimiser's state; the first rank writes the schedule too."""
        folder = Path(output_dir)
        torch.save(tree_map(_packed, self._trainer.optimizer.state_dict()), _file(folder, "optimizer"))
        if self._trainer.args.should_save:
            torch.save(self._trainer.lr_scheduler.state_dict(), folder / "scheduler.pt")

    def load_optimizer(self, checkpoint: str | None) -> None:
        """Read them again."""
        if checkpoint is None:
            return
        mesh = next(value.device_mesh for value in self._trainer.model.parameters())
        saved = _read(_file(Path(checkpoint), "optimizer"))
        state = tree_map(lambda value: _unpacked(value, mesh), saved, is_leaf=_is_packed)
        self._trainer.optimizer.load_state_dict(state)
        self._trainer.lr_scheduler.load_state_dict(_read(Path(checkpoint) / "scheduler.pt"))


def _file(folder: Path, kind: str) -> Path:
    return folder / f"{kind}-{dist.get_rank()}.pt"


def _read(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _local(value: Tensor) -> Tensor:
    return value.to_local().detach() if isinstance(value, DTensor) else value


def _packed(value: Any) -> Any:
    """A distributed tensor as this rank's part of it, and how it is a part."""
    if not isinstance(value, DTensor):
        return value
    (placement,) = value.placements
    assert isinstance(placement, Shard | Replicate), "an optimiser's state is a part or a copy"
    dim = placement.dim if isinstance(placement, Shard) else None
    return {_PART: value.to_local(), "dim": dim, "shape": list(value.shape), "stride": list(value.stride())}


def _is_packed(value: Any) -> bool:
    return isinstance(value, dict) and _PART in value


def _unpacked(value: Any, mesh: Any) -> Any:
    if not _is_packed(value):
        return value
    placement = Replicate() if value["dim"] is None else Shard(value["dim"])
    shape, stride = torch.Size(value["shape"]), tuple(value["stride"])
    return DTensor.from_local(value[_PART], mesh, [placement], run_check=False, shape=shape, stride=stride)
