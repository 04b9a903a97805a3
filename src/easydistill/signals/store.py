"""The store of teacher signals: immutable shards on disk, memory-mapped, found by sample id.

    <directory>/store.json            settings, teachers and totals; written last, so it exists only in complete stores
    <directory>/shard-00000.safetensors …

A shard holds flat ragged tensors with offsets. It is written under a temporary name and renamed, so it exists only
when complete. Every sample carries its token ids and their hash: reading a signal requires the tokens it is meant for,
and a signal of other tokens is refused, never trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easydistill.data.files import read_json, replacing, write_json
from easydistill.data.tokens import Bools, Mask, TokenIds
from easydistill.errors import DataError
from easydistill.signals.codec import Bytes, Codec, EncodedSignal, bits_for, decode_words, pack, unpack
from easydistill.signals.signal import Ints, TeacherSignal

NAME = "store.json"
FORMAT = 1
HASH_BYTES = 16
_ROW_ARRAYS = ("log_rest", "realised", "entropy", "head_counts", "draw_counts")
_PACKED = ("tokens", "learned", "present", "head", "draws")


@dataclass(frozen=True)
class ReadTokens:
    """A row as its teacher reads it, where that is not as the student does."""

    ids: TokenIds
    learned: Mask
    """For each token, whether it is one of those that the student learns: the same ones in the same order."""


@dataclass(frozen=True)
class ScoredSample:
    """A sample's tokens and the teacher's signal for them."""

    id: str
    token_ids: TokenIds
    learned: Mask
    """For each token, whether the student learns it; never true for the first, which nothing predicts."""
    signal: TeacherSignal
    """A row for every learned token that is present, in order."""
    present: Bools
    """For each learned token, whether it has a signal (with an aligned teacher, some may have none)."""
    images: tuple[str, ...] = ()
    """The digests of the images that the teacher was shown, in the order of their tokens."""
    read: ReadTokens | None = None
    """The tokens that it read, if these are others than the student's."""


def token_hash(token_ids: TokenIds, learned: Mask, images: Sequence[str] = ()) -> bytes:
    """A hash of ids and mask, which ties a signal to its tokens; and of the images behind them, if there are any."""
    digest = hashlib.sha256(np.asarray(token_ids, "<i8").tobytes())
    digest.update(np.asarray(learned, np.uint8).tobytes())
    for image in images:
        digest.update(image.encode("ascii"))
    return digest.digest()[:HASH_BYTES]


@dataclass(frozen=True)
class StoreManifest:
    """The description of a store."""

    codec: Codec
    about: dict[str, Any]
    """What determines the signals (group → facts): teachers, tokenizer, template, temperature, kind, seed, dtype."""
    shards: int
    samples: int
    tokens: int
    """Tokens with a signal."""
    bytes: int
    """Size of the shards; token ids, offsets and hashes included."""
    format: int = FORMAT

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    @classmethod
    def of(cls, directory: Path, codec: Codec, about: dict[str, Any], shards: int) -> StoreManifest:
        """The manifest of a complete set of shards."""
        paths = [shard_path(directory, number) for number in range(shards)]
        opened = [_Shard(path) for path in paths]
        return cls(
            codec=codec,
            about=about,
            shards=shards,
            samples=sum(len(shard.ids) for shard in opened),
            tokens=sum(shard.rows for shard in opened),
            bytes=sum(path.stat().st_size for path in paths),
        )

    def write(self, directory: Path) -> None:
        write_json(directory / NAME, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> StoreManifest:
        """
        Raises:
            DataError: there is no complete store in `directory`.
        """
        try:
            values = read_json(directory / NAME)
            if values["format"] != FORMAT:
                raise DataError(
                    f"{directory}: a signal store of format {values['format']}, this release reads {FORMAT}\n"
                    "    → let the teacher score again"
                )
            return cls(**{**values, "codec": Codec(**values["codec"])})
        except FileNotFoundError:
            raise DataError(
                f"{directory}: there is no complete signal store here (no {NAME})\n"
                "    → name the directory that a white_box_kd_local job wrote, usually …/stages/2-score/signals"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{directory / NAME}: cannot be read: {error}") from None


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"shard-{number:05d}.safetensors"


@dataclass(frozen=True)
class EncodedSample:
    """A sample as its shard stores it."""

    id: str
    hash: bytes
    tokens: int
    learned: int
    rows: int
    """Rows of its signal."""
    packed: dict[str, Bytes]
    """The `_PACKED` arrays."""
    signal: EncodedSignal
    images: tuple[str, ...] = ()
    read: ReadTokens | None = None

    @classmethod
    def of(cls, sample: ScoredSample, codec: Codec) -> EncodedSample:
        signal = codec.encode(sample.signal)
        learned = np.asarray(sample.learned, bool)
        return cls(
            id=sample.id,
            hash=token_hash(sample.token_ids, sample.learned, sample.images),
            tokens=len(sample.token_ids),
            learned=int(learned.sum()),
            rows=len(sample.signal),
            packed={
                "tokens": pack(np.asarray(sample.token_ids, np.int64), bits_for(codec.vocabulary)),
                "learned": np.packbits(learned),
                "present": np.packbits(sample.present),
                "head": signal.head,
                "draws": signal.draws,
            },
            signal=signal,
            images=sample.images,
            read=sample.read,
        )


def write_shard(path: Path, samples: Sequence[ScoredSample], codec: Codec) -> int:
    """Write one shard; returns its size in bytes."""
    return write_encoded(path, [EncodedSample.of(sample, codec) for sample in samples])


def write_encoded(path: Path, samples: Sequence[EncodedSample]) -> int:
    """`write_shard` of samples that are already encoded."""
    from safetensors.numpy import save_file

    hashes = b"".join(sample.hash for sample in samples)
    tensors: dict[str, NDArray[Any]] = {
        "hash": np.frombuffer(hashes, np.uint8).reshape(-1, HASH_BYTES),
        "token_offsets": _offsets(sample.tokens for sample in samples),
        "learned_counts": np.array([sample.learned for sample in samples], np.int64),
        "row_offsets": _offsets(sample.rows for sample in samples),
    }
    for name in _PACKED:
        parts = [sample.packed[name] for sample in samples]
        tensors[name] = np.concatenate(parts)
        tensors[f"{name}_at"] = _offsets(map(len, parts))
    for name in _ROW_ARRAYS:
        tensors[name] = np.concatenate([getattr(sample.signal, name) for sample in samples])
    if any(sample.read is not None for sample in samples):
        tensors |= _read_tensors(samples)
    if any(sample.images for sample in samples):
        # As a tensor: safetensors writes several metadata in any order, and equal shards would not be equal files.
        tensors["images"] = np.frombuffer(json.dumps([sample.images for sample in samples]).encode(), np.uint8)
    metadata = {"ids": json.dumps([sample.id for sample in samples], ensure_ascii=True)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)
    return path.stat().st_size


def _read_tensors(samples: Sequence[EncodedSample]) -> dict[str, NDArray[Any]]:
    """What teachers read that have forms of their own: ids one after the other, and where the learned ones stand."""
    read = [sample.read for sample in samples]
    ids = [np.zeros(0, np.int32) if one is None else np.asarray(one.ids, np.int32) for one in read]
    places = [np.zeros(0, np.int64) if one is None else np.flatnonzero(np.asarray(one.learned)) for one in read]
    return {
        "read_ids": np.concatenate(ids),
        "read_offsets": _offsets(map(len, ids)),
        "read_places": np.concatenate(places).astype(np.int32),
        "read_place_offsets": _offsets(map(len, places)),
    }


def remove_shards_from(directory: Path, number: int) -> None:
    """Remove shards with this number or a higher one, which a plan with smaller shards left."""
    for path in directory.glob("shard-*.safetensors"):
        if int(path.stem.removeprefix("shard-")) >= number:
            path.unlink()


def shard_ids(path: Path) -> list[str]:
    """The ids of a shard's samples, in order.

    Raises:
        DataError: the file is no shard.
    """
    return _Shard(path).ids


def shard_hashes(path: Path) -> list[bytes]:
    """The hashes of the tokens of a shard's samples, in order.

    Raises:
        DataError: the file is no shard.
    """
    shard = _Shard(path)
    return [shard.hash(at) for at in range(len(shard.ids))]


def _offsets(lengths: Iterable[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.int64)


class _Shard:
    """One memory-mapped file: small index tensors in memory, the rest read by slices."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="numpy")
            self._names = frozenset(self._file.keys())
            metadata = self._file.metadata()
            self.ids: list[str] = json.loads(metadata["ids"])
            self.images = self._images(metadata)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a readable shard of a signal store: {error}") from None
        names = ["hash", "token_offsets", "learned_counts", "row_offsets", *(f"{name}_at" for name in _PACKED)]
        self._index = {name: self._file.get_tensor(name) for name in names}
        self._slices = {name: self._file.get_slice(name) for name in (*_PACKED, *_ROW_ARRAYS)}
        self._reads = "read_ids" in self._names
        self._row_arrays = [name for name in _ROW_ARRAYS if self._slices[name].get_shape()[0]]

    def _images(self, metadata: dict[str, str]) -> list[tuple[str, ...]]:
        """The digests of each sample's images. Earlier versions had them in the metadata."""
        text = metadata.get("images", "[]")
        if "images" in self._names:
            text = self._file.get_tensor("images").tobytes().decode()
        found = json.loads(text)
        return [tuple(images) for images in found] if found else [()] * len(self.ids)

    def hash(self, at: int) -> bytes:
        return bytes(self._index["hash"][at].tobytes())

    def read_tokens(self, at: int) -> ReadTokens | None:
        """What the teacher read of a sample, if it had a form of its own."""
        if not self._reads:
            return None
        own = slice(*self._file.get_tensor("read_offsets")[at : at + 2].tolist())
        if own.start == own.stop:
            return None
        ids = self._file.get_slice("read_ids")[own]
        places = self._file.get_slice("read_places")[
            slice(*self._file.get_tensor("read_place_offsets")[at : at + 2].tolist())
        ]
        learned = np.zeros(len(ids), bool)
        learned[places] = True
        return ReadTokens(ids.tolist(), learned.tolist())

    def token_count(self, at: int) -> int:
        return int(self._index["token_offsets"][at + 1] - self._index["token_offsets"][at])

    def learned_count(self, at: int) -> int:
        return int(self._index["learned_counts"][at])

    @property
    def rows(self) -> int:
        """Total rows of its signals."""
        return int(self._index["row_offsets"][-1])

    def row_array(self, name: str) -> NDArray[np.uint16]:
        """A whole array with one number per row."""
        array: NDArray[np.uint16] = self._file.get_tensor(name)
        return array

    def packed(self, name: str, at: int) -> Bytes:
        offsets = self._index[f"{name}_at"]
        start, stop = int(offsets[at]), int(offsets[at + 1])
        return self._slices[name][start:stop] if stop > start else np.zeros(0, np.uint8)

    def encoded(self, at: int) -> EncodedSignal:
        start, stop = int(self._index["row_offsets"][at]), int(self._index["row_offsets"][at + 1])
        rows = {
            name: self._slices[name][start:stop] if name in self._row_arrays and stop > start else np.zeros(0, "u2")
            for name in _ROW_ARRAYS
        }
        return EncodedSignal(head=self.packed("head", at), draws=self.packed("draws", at), **rows)


class SignalStore:
    """Reads a complete store.

    Raises:
        DataError: there is no complete store, or a shard is missing or broken.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = StoreManifest.read(directory)
        self._shards = [_Shard(shard_path(directory, number)) for number in range(self.manifest.shards)]
        self._at = {
            sample_id: (number, position)
            for number, shard in enumerate(self._shards)
            for position, sample_id in enumerate(shard.ids)
        }

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._at

    @property
    def ids(self) -> list[str]:
        return list(self._at)

    def tokens(self, sample_id: str) -> tuple[list[int], list[bool]]:
        """A sample's token ids, and for each whether it is learned."""
        number, position = self._at[sample_id]
        shard = self._shards[number]
        count = shard.token_count(position)
        ids = unpack(shard.packed("tokens", position), count, bits_for(self.manifest.codec.vocabulary))
        learned = np.unpackbits(shard.packed("learned", position), count=count)
        return ids.tolist(), learned.astype(bool).tolist()

    def images(self, sample_id: str) -> tuple[str, ...]:
        """The digests of the images that the teacher was shown with a sample."""
        number, position = self._at[sample_id]
        return self._shards[number].images[position]

    def read_tokens(self, sample_id: str) -> ReadTokens | None:
        """The tokens that the teacher read of a sample, if these are others than the student's."""
        number, position = self._at[sample_id]
        return self._shards[number].read_tokens(position)

    @property
    def has_images(self) -> bool:
        """Whether the teacher was shown images with some sample."""
        return any(any(shard.images) for shard in self._shards)

    def read(
        self, sample_id: str, token_ids: TokenIds, learned: Mask, images: Sequence[str] = ()
    ) -> tuple[TeacherSignal, Bools]:
        """The signal of a sample, and for each learned token whether it has a row in it.

        Args:
            token_ids, learned: the caller's tokens; the signal must have been made for exactly these.
            images: the digests of the images behind them.

        Raises:
            DataError: there is no such sample, or its signal is for other tokens; the message says what differs.
        """
        self.check(sample_id, token_ids, learned, images)
        number, position = self._at[sample_id]
        shard = self._shards[number]
        signal = self.manifest.codec.decode(shard.encoded(position))
        present = np.unpackbits(shard.packed("present", position), count=shard.learned_count(position))
        return signal, present.astype(bool)

    def check(self, sample_id: str, token_ids: TokenIds, learned: Mask, images: Sequence[str] = ()) -> None:
        """Refuse a sample whose tokens are not those that the teacher scored.

        Raises:
            DataError: as `read` does.
        """
        if sample_id not in self._at:
            raise DataError(
                f"{self.directory}: no signal for row {sample_id}\n    → let the teacher score the rows again"
            )
        number, position = self._at[sample_id]
        if self._shards[number].hash(position) != token_hash(token_ids, learned, images):
            if self.tokens(sample_id) == (list(token_ids), list(learned)) and self.images(sample_id) != tuple(images):
                raise DataError(
                    f"{self.directory}: the signal of row {sample_id} was made for other images\n"
                    "    → the row's images changed: score again"
                )
            raise DataError(
                f"{self.directory}: the signal of row {sample_id} was made for other tokens: "
                f"{self._difference(sample_id, token_ids, learned)}\n"
                "    → the rows, the tokenizer, the chat template or the maximum length changed: score again"
            )

    def _difference(self, sample_id: str, token_ids: TokenIds, learned: Mask) -> str:
        scored, scored_learned = self.tokens(sample_id)
        if len(scored) != len(token_ids):
            return f"{len(scored)} tokens were scored, the row has {len(token_ids)}"
        for place, (old, new) in enumerate(zip(scored, token_ids, strict=True)):
            if old != new:
                return f"token {place} was id {old} and is id {new}"
        if list(scored_learned) != list(learned):
            return f"{sum(scored_learned)} tokens were learned, and now {sum(learned)} or others are"
        return "the stored hash does not match the stored tokens: the shard is damaged"

    def figures(self) -> dict[str, float]:
        """Means over all scored tokens: the head's mass, and the teacher's cross-entropy on the labels in nats."""
        log_rest = np.concatenate([shard.row_array("log_rest") for shard in self._shards])
        logprobs = decode_words(np.concatenate([shard.row_array("realised") for shard in self._shards]), np.nan)
        # An aligned teacher may lack the student's token.
        known = logprobs[np.isfinite(logprobs)]
        return {
            "head_mass": float(1 - np.exp(decode_words(log_rest, -np.inf)).mean(dtype=np.float64)),
            "teacher_cross_entropy": float(-known.mean(dtype=np.float64)) if len(known) else 0.0,
        }
