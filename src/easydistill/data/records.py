"""The records that flow between stages. Each carries the id that its row got when it was read.

Nothing is joined by position: every artifact is keyed by these ids.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from easydistill.data.messages import Chat, Message, Tool, as_context, identity_of, images_of, text_of
from easydistill.data.spool import Rows, like


def canonical_json(value: Any) -> str:
    """A unique spelling of a JSON value, so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def content_hash(value: Any) -> str:
    """SHA-256 of a JSON value's canonical spelling, in hex."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Sample:
    """A chat. Its last message is the assistant's if it is labelled; otherwise it is a prompt."""

    id: str
    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = field(default=(), kw_only=True)
    """The tools that the assistant may call."""
    template_kwargs: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """The row's own variables of the chat template."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages up to and including the last one that is not the assistant's."""
        end = len(self.messages)
        while end and self.messages[end - 1]["role"] == "assistant":
            end -= 1
        return as_context(self.messages[:end])

    @property
    def prompt_chat(self) -> Chat:
        """The prompt, with the chat's tools and variables."""
        return Chat(self.prompt, self.tools, self.template_kwargs)

    @property
    def answer(self) -> str | None:
        """The text of the final assistant message, if there is one; empty if it only calls tools."""
        last = self.messages[-1] if self.messages else None
        return text_of(last) if last is not None and last["role"] == "assistant" else None

    @property
    def prompt_hash(self) -> str:
        return content_hash(identity_of(self.prompt, self))

    @property
    def images(self) -> tuple[str, ...]:
        """The digests of the chat's images, in order."""
        return images_of(*self.messages)


FINISH_REASON, CUT = "finish_reason", "length"
"""Key and value in `Sample.meta` of a row whose final answer was cut off: it has no end that could be learned. The
spelling is that of OpenAI's protocol, which many published sets of answers kept."""


def is_cut(sample: Sample) -> bool:
    """Whether a row's final answer was cut off."""
    return sample.meta.get(FINISH_REASON) == CUT


def marked(sample: Sample, *, cut: bool) -> Sample:
    """A row with a new answer, marked if the answer was cut off; a mark of an earlier answer is removed."""
    if not cut and FINISH_REASON not in sample.meta:
        return sample
    meta = {name: value for name, value in sample.meta.items() if name != FINISH_REASON}
    return replace(sample, meta=meta | ({FINISH_REASON: CUT} if cut else {}))


def cut_key(side: str) -> str:
    """Key of the same mark in a pair, for its `chosen` or its `rejected` answer."""
    return f"{side}_{FINISH_REASON}"


def cut_marks(**sides: bool) -> dict[str, str]:
    """The marks of a pair whose answers were cut off or not."""
    return {cut_key(side): CUT for side, cut in sides.items() if cut}


@dataclass(frozen=True)
class Rejection:
    """A rejected row, and why. `raw` is what was received, if anything."""

    id: str
    stage: str
    reason: str
    detail: str = ""
    attempts: int = 1
    raw: Any = None
    requests: tuple[str, ...] = ()
    """Keys of the requests whose answers decided it; empty if no model was asked."""

    def as_row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "stage": self.stage,
            "reason": self.reason,
            "detail": self.detail,
            "attempts": self.attempts,
            "raw": self.raw,
            **({"requests": list(self.requests)} if self.requests else {}),
        }


def count_reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    """How many rows were rejected for each reason, most frequent first."""
    return dict(Counter(rejection.reason for rejection in rejections).most_common())


class IdAssigner:
    """Assigns each row of one source its id: the hash of its content, numbered if the content repeats."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def assign(self, content: Any, preferred: str | None = None) -> str:
        """The id of a row. `preferred`, an id found in the row itself, is used as long as it is unique."""
        base = preferred if preferred is not None else content_hash(content)[:16]
        self._seen[base] += 1
        count = self._seen[base]
        return base if count == 1 else self.assign(content, f"{base}-{count}")


class SameIds(IdAssigner):
    """Gives rows of equal content, and rows that bring the same id, the same id: who asks tells them apart."""

    def assign(self, content: Any, preferred: str | None = None) -> str:
        return preferred if preferred is not None else content_hash(content)[:16]


def draw_key(seed: int, identity: str) -> bytes:
    """Sort key for random choices of rows: it depends on the seed and the row alone."""
    return hashlib.sha256(f"{seed}:{identity}".encode()).digest()


class Prompted(Protocol):
    """A row that has a prompt."""

    @property
    def prompt_hash(self) -> str: ...

    @property
    def images(self) -> tuple[str, ...]: ...


Row = TypeVar("Row", bound=Prompted)


def _joined_by_images(prompts: list[str], images: Sequence[tuple[str, ...]]) -> list[str]:
    """For each row the smallest of the prompts that are joined with its own by images which rows share."""
    if not any(images):
        return prompts
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = name = parents[parent]
        return name

    for prompt, shown in zip(prompts, images, strict=True):
        for image in shown:
            parents[root(image)] = root(prompt)
    smallest: dict[str, str] = {}
    for prompt in prompts:
        at = root(prompt)
        smallest[at] = min(prompt, smallest.get(at, prompt))
    return [smallest[root(prompt)] for prompt in prompts]


def _drawn(prompts: Sequence[str], shown: Container[str], heldout: int, seed: int) -> set[str]:
    """The prompts, or what they are joined to, of which at least `heldout` rows are held out.

    Args:
        shown: those with images, which may join any number of rows.
    """
    rows_of = Counter(prompts)
    drawn = sorted(rows_of, key=lambda prompt: draw_key(seed, prompt))
    too_many = {prompt for prompt in drawn if prompt in shown and rows_of[prompt] > heldout}
    if heldout and len(too_many) == len(drawn) > 1:
        return {min(drawn, key=rows_of.__getitem__)}
    held: set[str] = set()
    count = 0
    for prompt in drawn[:-1]:
        if count >= heldout:
            break
        if prompt not in too_many:
            held.add(prompt)
            count += rows_of[prompt]
    return held


def split_heldout(samples: Sequence[Row], heldout: int, seed: int) -> tuple[Rows[Row], list[Row]]:
    """Split rows into (train, held out) by hash, so that the split does not depend on their order.

    Rows with the same prompt stay on one side, and so do rows that share an image. At least one prompt always stays in
    training, and so do rows that share images and are more than are to be held out; of such rows alone, the fewest are
    held out. Training rows are on disk if `samples` are.
    """
    prompts = [sample.prompt_hash for sample in samples]
    images = [sample.images for sample in samples]
    prompts = _joined_by_images(prompts, images)
    held = _drawn(prompts, {prompt for prompt, shown in zip(prompts, images, strict=True) if shown}, heldout, seed)
    train: Rows[Row] = like(samples)
    out: list[Row] = []
    for sample, prompt in zip(samples, prompts, strict=True):
        (out if prompt in held else train).append(sample)
    return train, out
