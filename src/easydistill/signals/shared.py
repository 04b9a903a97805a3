"""Shards of teacher signals that runs share through the folder of an answers cache.

    <folder>/signals/<key>.safetensors    a shard
    <folder>/signals/<key>.sha256         its hash; written last, so a shard without one does not count

A shard's key covers everything that decides its content: the teachers' weights, what is stored of their distributions
and how it is encoded, the temperature, and of each row in it the id, the tokens that are learned and read, and the
images. A shard is linked into a store (copied across file systems) once its bytes have their hash; a store's reader
then checks the tokens of every row besides.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.data.files import hash_file, link_or_copy, write_text
from easydistill.data.records import content_hash

if TYPE_CHECKING:
    from easydistill.signals.codec import Codec
    from easydistill.signals.score import RowToScore

LOGGER = logging.getLogger(__name__)

SHARDS = "signals"
FORMAT = 1
"""Raise it when the same settings and tokens come to give other signals."""
_FILE = re.compile(r"[0-9a-f]{32}\.(safetensors|sha256)")


def shard_key(about: Mapping[str, Any], codec: Codec, rows: Sequence[RowToScore]) -> str:
    """The key of a shard with these rows.

    Args:
        about: teachers, settings and tokenizer, as JSON; without paths of a machine.
    """
    return content_hash([FORMAT, dict(about), asdict(codec), list(map(_facts, rows))])[:32]


def _facts(row: RowToScore) -> list[Any]:
    """What decides a row's signal, as JSON."""
    from easydistill.signals.aligned import AlignedRow
    from easydistill.signals.store import token_hash

    found: list[Any] = [row.id, token_hash(row.ids, row.learned, row.images).hex()]
    if row.read is not None:
        found.append(token_hash(row.read.ids, row.read.learned).hex())
    if isinstance(row, AlignedRow):
        import numpy as np

        digest = hashlib.sha256(np.asarray(row.teacher_ids, "<i8").tobytes())
        digest.update(np.asarray(row.pairs, "<i8").tobytes())
        found.append([digest.hexdigest(), row.refused])
    return found


class SharedShards:
    """The shards in a folder.

    Args:
        directory: the answers cache.
        flat: whether the files are in it directly.
    """

    def __init__(self, directory: Path, *, flat: bool = False) -> None:
        self.directory = directory if flat else directory / SHARDS

    @staticmethod
    def is_file_name(name: str) -> bool:
        """Whether this is the name of one of its files."""
        return _FILE.fullmatch(name) is not None

    def files(self, key: str) -> tuple[Path, Path]:
        """(shard, file with its hash), in the order in which they are to be written."""
        return self.directory / f"{key}.safetensors", self.directory / f"{key}.sha256"

    def sizes(self) -> dict[str, int]:
        """Key → bytes of each complete shard."""
        found = (path.stem for path in sorted(self.directory.glob("*.sha256")) if self.is_file_name(path.name))
        shards = ((key, self.files(key)[0]) for key in found)
        return {key: path.stat().st_size for key, path in shards if path.is_file()}

    def is_whole(self, key: str) -> bool:
        """Whether a shard is there and has its hash. Reads all of it."""
        shard, mark = self.files(key)
        try:
            return hash_file(shard) == mark.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return False

    def fetch(self, key: str, target: Path) -> bool:
        """Put a shard at `target`; False if it is not here, or is damaged."""
        if not self.is_whole(key):
            return False
        temporary = target.with_name(f".{target.name}.{os.getpid()}.shared")
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(self.files(key)[0], temporary)
        temporary.replace(target)
        return True

    def keep(self, key: str, source: Path) -> None:
        """Keep a complete shard for others. If the folder cannot be written, they miss it, and this run goes on."""
        if self.is_whole(key):
            return
        try:
            self._write(key, source)
        except OSError as error:
            LOGGER.warning("%s: signals cannot be kept here for other runs: %s", self.directory, error)

    def _write(self, key: str, source: Path) -> None:
        shard, mark = self.files(key)
        self.directory.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)
        temporary = shard.with_name(f".{shard.name}.{os.getpid()}.tmp")
        link_or_copy(source, temporary)
        digest = hash_file(temporary)
        temporary.replace(shard)
        write_text(mark, digest + "\n")

    def take(self, key: str, other: SharedShards) -> bool:
        """Take a shard from another folder; False if it is here, or damaged there."""
        if self.is_whole(key) or not other.is_whole(key):
            return False
        self._write(key, other.files(key)[0])
        return True


class SharedStore:
    """The shards of one store, as other runs know them.

    Args:
        shards: where they are shared.
        about, codec: as in `shard_key`.
    """

    def __init__(self, shards: SharedShards, about: Mapping[str, Any], codec: Codec) -> None:
        self._shards, self._about, self._codec = shards, about, codec

    def fetch(self, rows: Sequence[RowToScore], target: Path) -> bool:
        """Put the shard with these rows at `target`; False if nobody has scored them."""
        return self._shards.fetch(shard_key(self._about, self._codec, rows), target)

    def keep(self, rows: Sequence[RowToScore], source: Path) -> None:
        """Keep the shard with these rows for others."""
        self._shards.keep(shard_key(self._about, self._codec, rows), source)
