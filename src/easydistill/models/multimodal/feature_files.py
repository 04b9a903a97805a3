"""Features of images on disk, by digest, so that what is held in memory does not grow with their number.

    features/<key>/values.bin     the tensors' bytes, one image after another
    features/<key>/index.jsonl    a line for each group of images that were computed together: it is written after their
                                  bytes, so a group is there or not

Whoever is killed goes on with the groups that are missing. What is here can be computed again, and may be deleted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easydistill.errors import EasyDistillError

FOLDER = "features"
"""In the run directory."""
_VALUES, _INDEX = "values.bin", "index.jsonl"


@dataclass(frozen=True)
class Features:
    """What a model makes of an image."""

    values: Tensor
    """[r, …]: the rows of its tiles or patches."""
    told: Mapping[str, Tensor]
    """What the model takes of the image besides, [1, …] each."""


class FeatureFiles:
    """The features of one model's images.

    The first process writes; others read what was there when they came.

    Args:
        folder: `features/<key>`, where the key says which model in which number type; made with the first image.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, dict[str, Any]] = {}
        self._end = 0
        self._whole = 0
        self._read: int | None = None
        if (folder / _INDEX).is_file():
            self._recover()

    def _recover(self) -> None:
        """Read the index as far as its lines and their bytes are complete."""
        found = (self._folder / _INDEX).read_bytes()
        size = (self._folder / _VALUES).stat().st_size if (self._folder / _VALUES).is_file() else 0
        for line in found.splitlines(keepends=True):
            group = _group(line)
            if group is None or group["end"] > size:
                break
            self._places |= group["images"]
            self._end = group["end"]
            self._whole += len(line)

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def add(self, group: Mapping[str, Features]) -> None:
        """Write the features of images that were computed together; those that are here already stay."""
        self._folder.mkdir(parents=True, exist_ok=True)
        places: dict[str, dict[str, Any]] = {}
        end = self._end
        with (self._folder / _VALUES).open("ab") as values:
            # What an attempt that was killed has left.
            values.truncate(end)
            for digest, features in group.items():
                if digest in self._places:
                    continue
                data = features.values.cpu().contiguous()
                values.write(data.view(torch.uint8).numpy().data if data.numel() else b"")
                told = {name: value.tolist() for name, value in features.told.items()}
                kind = str(data.dtype).removeprefix("torch.")
                places[digest] = {"at": end, "shape": list(data.shape), "dtype": kind, "told": told}
                end += data.numel() * data.element_size()
            values.flush()
            # A power cut must not leave a line about bytes that are not there.
            os.fsync(values.fileno())
        with (self._folder / _INDEX).open("ab") as index:
            index.truncate(self._whole)
            line = json.dumps({"end": end, "images": places}, separators=(",", ":")).encode() + b"\n"
            index.write(line)
        self._whole += len(line)
        self._places |= places
        self._end = end

    def get(self, digest: str) -> Features:
        """
        Raises:
            EasyDistillError: the files were shortened or deleted while they were used.
        """
        place = self._places[digest]
        dtype = getattr(torch, place["dtype"])
        size = math.prod(place["shape"]) * dtype.itemsize
        if self._read is None:
            self._read = os.open(self._folder / _VALUES, os.O_RDONLY)
        data = bytearray(os.pread(self._read, size, place["at"]))
        if len(data) != size:
            raise EasyDistillError(
                f"{self._folder / _VALUES} is incomplete\n    → delete {self._folder}, and start again"
            )
        values = torch.frombuffer(data, dtype=dtype).view(place["shape"])
        return Features(values, {name: torch.tensor(value) for name, value in place["told"].items()})

    @property
    def bytes(self) -> int:
        """What they take on disk."""
        return self._end

    def __getstate__(self) -> dict[str, Any]:
        # A process that prepares batches opens the file itself.
        return {**self.__dict__, "_read": None}


def _group(line: bytes) -> dict[str, Any] | None:
    """A line of the index; None if it is not whole: what a machine that lost its power has left may be anything."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"end", "images"} <= found.keys() else None


def together(features: Sequence[Features]) -> tuple[Tensor, dict[str, Tensor]]:
    """The features [R, …] of a batch of images, and what the model takes of them besides."""
    told = {name: torch.cat([each.told[name] for each in features]) for name in features[0].told}
    return torch.cat([each.values for each in features]), told
