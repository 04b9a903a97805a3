"""A row a sample: chats, and the paper's `instruction`, `input`, `output` (DistilQwen_100K)."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from easydistill.data.images import ImageStore
from easydistill.data.records import Sample
from easydistill.data.tables import IMAGES, TEXT_KEYS, Columns
from easydistill.data.writing import BLOCK, chat_row, parts_message, written_meta

_OWN = frozenset({"instruction", "input", "output", "system", "reasoning_content"})


class Plain(ABC):
    """What both have in common."""

    unit = "rows"

    def __init__(self, chats: Sequence[str]) -> None:
        self._columns = Columns(chats)

    @abstractmethod
    def rows(self, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
        """The rows of a file."""

    def fit(self, parts: Sequence[Sequence[Sample]]) -> None:
        for part in parts:
            for block in batched(self.rows(part)):
                self._columns.fit(block)

    def table(self, rows: Sequence[dict[str, Any]]) -> Any:
        return self._columns.table(rows)

    def loosen(self, column: str) -> None:
        self._columns.as_json(column)


class Chats(Plain):
    """`id`, `messages`, the chat's tools, variables and images, and the row's other fields.

    Args:
        images: holds those of the rows.
    """

    def __init__(self, images: ImageStore) -> None:
        super().__init__(("messages",))
        self._images = images

    def why_not(self, sample: Sample) -> str | None:
        return None

    def rows(self, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            if not sample.images:
                yield chat_row(sample)
                continue
            row = chat_row(sample, lambda _: [], parts_message)
            yield {**row, IMAGES: [self._image(digest) for digest in sample.images]}

    def _image(self, digest: str) -> dict[str, Any]:
        """An image as `datasets` stores one: with a name, for a column of nulls would have another type."""
        path = self._images.path(digest)
        return {"bytes": path.read_bytes(), "path": path.name}


class Instructions(Plain):
    """`id`, `instruction`, `input` (empty), `output`, perhaps `system` and `reasoning_content`, and other fields."""

    def __init__(self) -> None:
        super().__init__(())

    def why_not(self, sample: Sample) -> str | None:
        return single_turn_problem(sample, "instruction") or _taken(sample)

    def rows(self, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            *before, question, answer = sample.messages
            yield {
                "id": sample.id,
                **({"system": before[0]["content"]} if before else {}),
                "instruction": question["content"],
                "input": "",
                "output": answer["content"],
                **({"reasoning_content": answer["reasoning_content"]} if "reasoning_content" in answer else {}),
                **written_meta(sample),
            }


def _taken(sample: Sample) -> str | None:
    both = next((name for name in sample.meta if name in _OWN), None)
    return None if both is None else f"it has a field {both!r} of its own, which is a column of the schema"


def single_turn_problem(sample: Sample, schema: str, *, system: bool = True) -> str | None:
    """Why a schema of one question and one answer, both texts, cannot hold a row; None if it can."""
    roles = [message["role"] for message in sample.messages]
    if system and roles[:1] == ["system"]:
        roles = roles[1:]
    if roles != ["user", "assistant"]:
        return f"the schema {schema} holds one question and its answer, and its chat is {', '.join(roles) or 'empty'}"
    beside = [name for name, held in (("tools", sample.tools), ("template variables", sample.template_kwargs)) if held]
    if sample.images:
        beside.append("images")
    if any(message.keys() - TEXT_KEYS for message in sample.messages):
        beside.append("calls, names or weights in its messages")
    return f"the schema {schema} does not hold its {beside[0]}" if beside else None


def batched(rows: Iterable[dict[str, Any]], size: int = BLOCK) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of a size."""
    iterator = iter(rows)
    while block := list(itertools.islice(iterator, size)):
        yield block
