"""Teacher forcing: one forward pass over exactly the tokens that the student will train on, stored as signals.

Each row's draws depend on its own id. Which rows are scored together is decided in `shards.py`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from easydistill.data.tokens import Mask, TokenIds
from easydistill.errors import DataError
from easydistill.models.flat_rows import FlatRows, flat_rows
from easydistill.models.head import Head, body_of
from easydistill.models.loading import choose_dtype, device, is_multimodal
from easydistill.models.spread import Spread, head_of, input_device, load_placed
from easydistill.signals.config import SignalsConfig
from easydistill.signals.extract import SignalShape, TeacherRows, start_extracting
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import ReadTokens, ScoredSample

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision
    from easydistill.models.multimodal.vision import ImageFiles

BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class RowToScore:
    """A tokenised row; `learned[t]` says whether token t is learned (never the first)."""

    id: str
    ids: TokenIds
    learned: Mask
    images: tuple[str, ...] = field(default=(), kw_only=True)
    """The digests of its images, in the order of their tokens."""
    read: ReadTokens | None = field(default=None, kw_only=True)
    """What the teacher reads, if it reads the chat in its own form; see `answers.py`."""

    @property
    def read_ids(self) -> TokenIds:
        """The tokens that the teacher reads."""
        return self.ids if self.read is None else self.read.ids

    @property
    def read_learned(self) -> Mask:
        """For each of them, whether it is one of the learned tokens, which are the same in the same order."""
        return self.learned if self.read is None else self.read.learned

    @property
    def length(self) -> int:
        """Tokens of the teacher's forward pass; at least one."""
        return len(self.read_ids)

    @property
    def learned_tokens(self) -> int:
        return int(np.count_nonzero(self.learned))


RowT = TypeVar("RowT", bound=RowToScore)
ReadT = TypeVar("ReadT", bound=RowToScore, contravariant=True)


class Scorer(Protocol[ReadT]):
    """Computes the signals of a batch of rows."""

    def score(self, rows: Sequence[ReadT]) -> list[ScoredSample]: ...

    def close(self) -> None: ...


Found = Callable[[], list[ScoredSample]]
"""Waits for the signals of a batch; may be called in another thread."""


@runtime_checkable
class RunsAhead(Protocol):
    """A scorer that can start a batch before earlier ones are finished."""

    ahead: int
    """How many batches may be unfinished when the next is started."""

    def start(self, rows: Sequence[Any]) -> Found: ...


def uniform_numbers(seed: int, row_id: str, count: int) -> list[float]:
    """A number in [0, 1) for each token's draws, which depends only on the seed and the row's id."""
    digest = hashlib.sha256(f"{seed}:{row_id}".encode("utf-8", "surrogatepass")).digest()
    stream = random.Random(int.from_bytes(digest[:8], "big"))
    return [stream.random() for _ in range(count)]


@dataclass(frozen=True)
class Batch:
    """Rows on a device, padded on the right, where causal attention does not look."""

    ids_BT: Tensor
    place_N: Tensor
    """Where, in the flattened [B, T], each learned token is predicted."""
    target_N: Tensor
    uniform_N: Tensor

    @classmethod
    def of(cls, rows: Sequence[RowToScore], seed: int, on: torch.device) -> Batch:
        """One copy brings a batch to its device, and on a GPU the host does not wait for it."""
        width = max(row.length for row in rows)
        ids_BT = np.zeros((len(rows), width), np.int64)
        places, targets, uniform = [], [], []
        for at, row in enumerate(rows):
            ids_T, learned = np.asarray(row.read_ids, np.int64), np.flatnonzero(row.read_learned)
            ids_BT[at, : len(ids_T)] = ids_T
            places.append(at * width + learned - 1)
            targets.append(ids_T[learned])
            uniform.append(np.array(uniform_numbers(seed, row.id, len(learned)), np.float64))
        uniform_N = np.concatenate(uniform)
        words = torch.from_numpy(np.concatenate([ids_BT.ravel(), *places, *targets, uniform_N.view(np.int64)]))
        if on.type == "cuda":
            words = words.pin_memory()
        words = words.to(on, non_blocking=True)
        count = len(uniform_N)
        ids, place_N, target_N, uniform_bits_N = words.split([ids_BT.size, count, count, count])
        return cls(ids.view(ids_BT.shape), place_N, target_N, uniform_bits_N.view(torch.float64))


def _samples(rows: Sequence[RowToScore], signal: TeacherSignal) -> list[ScoredSample]:
    scored: list[ScoredSample] = []
    at = 0
    for row in rows:
        count = row.learned_tokens
        found, present = signal.rows(at, at + count), np.ones(count, bool)
        scored.append(ScoredSample(row.id, row.ids, row.learned, found, present, row.images, row.read))
        at += count
    return scored


def vision_of_teacher(reference: str, model: Any, images: ImageFiles | None, trust_remote_code: bool) -> Vision | None:
    """What a teacher sees of images; None for a model of text."""
    if not is_multimodal(model.config):
        return None
    from easydistill.models.multimodal import Vision, load_processor

    processor = load_processor(reference, trust_remote_code=trust_remote_code)
    return Vision(processor, images or _no_images)


def _no_images(digest: str) -> Path:
    raise DataError(f"the image {digest} is not at hand")


def _seen(vision: Vision | None, rows: Sequence[RowToScore], ids_BT: Tensor) -> dict[str, Tensor]:
    """What a teacher is given beside the ids of rows."""
    if vision is None:
        assert not any(row.images for row in rows), "rows with images are refused for a teacher of text"
        return {}
    return vision.inputs(ids_BT, [(row.read_ids, row.images) for row in rows])


class ModelScorer:
    """Scores rows with models loaded into this process.

    Args:
        references: the teachers, all with the student's vocabulary.
        weights: their shares in the mixture.
        vocabulary: token ids below this are real for teacher and student.
        temperature: of the kept distribution.
        models: the teachers themselves, on this machine's device, if they are loaded.
        spread: how each lies on several devices.
        images: gives the file of an image by its digest, for rows with images.
    """

    def __init__(
        self,
        references: Sequence[str],
        weights: Sequence[float],
        config: SignalsConfig,
        vocabulary: int,
        temperature: float,
        *,
        trust_remote_code: bool = False,
        models: Sequence[Any] | None = None,
        spread: Spread | None = None,
        images: ImageFiles | None = None,
    ) -> None:
        dtype = choose_dtype(config.dtype, device())
        self._models = list(models or ()) or [
            load_placed(reference, dtype, spread, trust_remote_code=trust_remote_code) for reference in references
        ]
        self._device = input_device(self._models[0])
        self._visions = [
            vision_of_teacher(reference, model, images, trust_remote_code)
            for reference, model in zip(references, self._models, strict=True)
        ]
        total = sum(weights)
        self._log_weights = [float(np.log(weight / total)) for weight in weights]
        self._seed = config.seed
        self._shape = SignalShape.of(config, vocabulary)
        self._vocabulary = vocabulary
        self._temperature = temperature

    @property
    def ahead(self) -> int:
        return 2 if self._device.type == "cuda" else 0

    def score(self, rows: Sequence[RowToScore]) -> list[ScoredSample]:
        return self.start(rows)()

    def start(self, rows: Sequence[RowToScore]) -> Found:
        batch = Batch.of(rows, self._seed, self._device)
        with torch.inference_mode(), ExitStack() as held:
            hidden_ND = self._hidden(rows, batch)
            heads = [held.enter_context(head_of(model)) for model in self._models]
            on = heads[0].weight_VD.device
            signal_of_batch = start_extracting(
                TeacherRows(_beside(hidden_ND, heads), heads, self._log_weights),
                batch.target_N.to(on),
                batch.uniform_N.to(on),
                self._shape,
                self._vocabulary,
                self._temperature,
            )
        return lambda: _samples(rows, signal_of_batch())

    def _hidden(self, rows: Sequence[RowToScore], batch: Batch) -> list[Tensor]:
        """Each teacher's hidden states [N, D] from which the learned tokens are predicted."""
        flat = flat_rows([row.read_ids for row in rows], self._device)
        found = []
        for model, vision in zip(self._models, self._visions, strict=True):
            hidden_ND = None if vision is not None or flat is None else _flat_hidden(model, batch, flat)
            found.append(_hidden(model, batch, _seen(vision, rows, batch.ids_BT)) if hidden_ND is None else hidden_ND)
        return found

    def close(self) -> None:
        self._models = []


def _hidden(model: Any, batch: Batch, seen: Mapping[str, Tensor]) -> Tensor:
    """The hidden states [N, D] that predict the learned tokens, on the device of the model's last layer.

    Args:
        seen: what it is given beside the ids.
    """
    on = input_device(model)
    given = {name: value.to(on) for name, value in {"input_ids": batch.ids_BT, **seen}.items()}
    hidden_BTD: Tensor = body_of(model)(**given, use_cache=False).last_hidden_state
    return hidden_BTD.flatten(0, 1).index_select(0, batch.place_N.to(hidden_BTD.device))


def _flat_hidden(model: Any, batch: Batch, flat: FlatRows) -> Tensor | None:
    """The same from rows in one sequence; None if the model needs padded rows."""
    hidden_ND = flat.hidden(model)
    if hidden_ND is None:
        return None
    width = batch.ids_BT.shape[1]
    return hidden_ND.index_select(0, flat.layout.places(batch.place_N // width, batch.place_N % width))


def _beside(hidden_ND: Sequence[Tensor], heads: Sequence[Head]) -> list[Tensor]:
    """Hidden states where the output layers are."""
    return [hidden.to(head.weight_VD.device) for hidden, head in zip(hidden_ND, heads, strict=True)]


def batch_tokens(config: SignalsConfig) -> int:
    """Most tokens of one forward pass on this machine."""
    if config.max_batch_tokens is not None:
        return config.max_batch_tokens
    return GPU_BATCH_TOKENS if device().type == "cuda" else BATCH_TOKENS
