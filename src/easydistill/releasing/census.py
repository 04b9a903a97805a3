"""What the rows of a dataset hold, counted in one pass: lengths, tasks, teachers, licences, scores, repetitions.

In memory are some 30 bytes a row. Lengths are characters of all that messages say, thoughts and calls included; tokens
are those of a tokenizer, without the marks that a chat template adds.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from easydistill.data.messages import Chat, full_text, identity_of
from easydistill.data.records import Sample, canonical_json
from easydistill.mixing.pool import INPUT
from easydistill.synthesis.text import language_of

_FIELDS = {
    "tasks": ("task", "category", "task_type", "ability"),
    "domains": ("domain", "subject", "topic"),
    "teachers": ("model", "teacher", "generator", "model_name"),
    "licences": ("license", "licence"),
    "inputs": (INPUT,),
    "correct": ("correct",),
}
"""What is counted → the fields of a row that may say it; the first that is there counts."""
_SCORES = ("rv", "cd")
_LONGEST = 80
"""Characters of a value that is counted; a longer one is a text, not a label."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BATCH = 256
Counted = Callable[[list[str]], list[int]]
"""Texts → their numbers of tokens."""


class Census:
    """Counts rows as they are added.

    Args:
        tokens: counts tokens, if there is a tokenizer.
    """

    def __init__(self, tokens: Counted | None = None) -> None:
        self.rows = 0
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in _FIELDS}
        self.scores: dict[str, Counter[float]] = {name: Counter() for name in _SCORES}
        self.languages: Counter[str] = Counter()
        self.having: Counter[str] = Counter()
        """Rows with a system prompt, several turns, thoughts, tools, calls, images."""
        self.turns = 0
        self._tokens = tokens
        self._lengths = {name: array("L") for name in ("prompt", "answer")}
        self._token_lengths = {name: array("L") for name in ("prompt", "answer")}
        self._waiting: list[tuple[str, str]] = []
        self._prompts, self._chats = array("Q"), array("Q")

    def add(self, rows: Iterable[Sample]) -> None:
        """Count rows."""
        for row in rows:
            self._add(row)
        self._flush()

    def _add(self, row: Sample) -> None:
        self.rows += 1
        prompt = row.prompt
        asked = "\n".join(map(full_text, prompt))
        said = "\n".join(map(full_text, row.messages[len(prompt) :]))
        for name, text in (("prompt", asked), ("answer", said)):
            self._lengths[name].append(len(text))
        if self._tokens is not None:
            self._waiting.append((asked, said))
            if len(self._waiting) == _BATCH:
                self._flush()
        self.turns += sum(message["role"] == "assistant" for message in row.messages)
        self.languages[language_of(asked[:2000])] += 1
        self._count_fields(row)
        self.having.update(name for name, has in _traits(row) if has)
        self._prompts.append(_eight_bytes(row.prompt_hash))
        self._chats.append(_eight_bytes(canonical_json(identity_of(row.messages, Chat.of(row)))))

    def _count_fields(self, row: Sample) -> None:
        for name, fields in _FIELDS.items():
            value = next((row.meta[field] for field in fields if row.meta.get(field) is not None), None)
            if isinstance(value, str | int) and len(str(value)) <= _LONGEST:
                self.counts[name][str(value)] += 1
        for name in _SCORES:
            value = row.meta.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.scores[name][value] += 1

    def _flush(self) -> None:
        if self._tokens is None or not self._waiting:
            return
        for at, name in enumerate(("prompt", "answer")):
            self._token_lengths[name].extend(self._tokens([pair[at] for pair in self._waiting]))
        self._waiting = []

    # --- figures ----------------------------------------------------------------------------------------------

    def lengths(self) -> dict[str, dict[str, float]]:
        """Mean, quantiles and sum of the lengths of prompts and answers, in characters and perhaps in tokens."""
        found = {f"{name}, characters": _spread(values) for name, values in self._lengths.items()}
        if self._tokens is not None:
            found |= {f"{name}, tokens": _spread(values) for name, values in self._token_lengths.items()}
        return found

    def repetition(self) -> dict[str, int]:
        """How many prompts and chats are different from each other."""
        return {"different prompts": _different(self._prompts), "different chats": _different(self._chats)}

    def histogram(self, score: str) -> dict[str, int]:
        """How often a chain has each level of a score, from 0 to 9; empty if none has it."""
        found = self.scores[score]
        if not found:
            return {}
        levels = {float(level) for level in range(10)} | set(map(float, found))
        return {f"{level:g}": found[level] for level in sorted(levels)}


def _traits(row: Sample) -> Sequence[tuple[str, bool]]:
    assistant = [message for message in row.messages if message["role"] == "assistant"]
    return (
        ("a system prompt", row.messages[0]["role"] in {"system", "developer"}),
        ("several turns", len(assistant) > 1),
        ("no answer", row.answer is None),
        ("thoughts", any("reasoning_content" in item or "<think>" in full_text(item) for item in assistant)),
        ("tools", bool(row.tools)),
        ("calls", any("tool_calls" in item for item in assistant)),
        ("images", bool(row.images)),
    )


def _spread(values: array[int]) -> dict[str, float]:
    import numpy

    if not values:
        return {}
    found = numpy.asarray(values)
    marks = numpy.quantile(found, _QUANTILES, method="inverted_cdf")
    names = [f"{share:.0%}" for share in _QUANTILES[:-1]] + ["longest"]
    return {
        "mean": round(float(found.mean()), 1),
        **{name: int(mark) for name, mark in zip(names, marks, strict=True)},
        "sum": int(found.sum()),
    }


def _different(keys: array[int]) -> int:
    import numpy

    return len(numpy.unique(numpy.asarray(keys, dtype=numpy.uint64)))


def _eight_bytes(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def counter_of(reference: str) -> Counted:
    """Counts tokens with the tokenizer of a model.

    Raises:
        ModelError: it cannot be loaded.
    """
    from easydistill.models.loading import load_tokenizer

    tokenizer = load_tokenizer(reference)

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    return count
