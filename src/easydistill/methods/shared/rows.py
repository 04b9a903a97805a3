"""Shared by the training and evaluation stages: where rows come from, their held-out split, their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from easydistill.asking.outputs import LABELED_PARQUET
from easydistill.config.dataset import DatasetConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.contracts.teacher import TEMPLATE_REFUSED
from easydistill.data.formats import read_samples
from easydistill.data.messages import Chat
from easydistill.data.records import Rejection, Sample, count_reasons, is_cut, split_heldout
from easydistill.data.row_files.identity import hash_rows
from easydistill.engine.stage import StageContext
from easydistill.errors import DataError

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Rendered

NOT_SHOWN, LOST_TURNS = "not_shown", "lost_turns"
"""Metrics of a stage: rows by the kind of part that the template leaves out, and answers that are not learned."""
_HINTS = {
    TEMPLATE_REFUSED: "\n    → set dataset.template to a chat template that takes these chats, or change the rows",
    "no_trainable_tokens": "\n    → raise training.max_length, or shorten the prompts",
}
MIN_ROWS_FOR_SHARE = 10
"""With fewer rows than this, a `heldout` given as a share holds out nothing."""


@dataclass(frozen=True)
class LabelledRows:
    """Labelled rows from the label stage or from the user's file."""

    dataset: DatasetConfig
    evaluation: HeldoutConfig
    from_stage: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("label",) if self.from_stage else ()

    def fingerprint(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "seed": self.dataset.seed,
            "heldout": self.evaluation.heldout if self.evaluation.enabled else 0,
            "max_heldout": self.evaluation.max_heldout,
        }
        if not self.from_stage:
            assert self.dataset.labeled_path is not None
            found |= {
                "labels": hash_rows(self.dataset.labeled_path),
                "max_samples": self.dataset.max_samples,
            }
        return found

    def read(self, context: StageContext) -> tuple[list[Sample], list[Sample], list[Rejection]]:
        """(training rows, held-out rows, rejected rows of the file)."""
        if self.from_stage:
            samples, rejected = read_samples(context.input_path("label", LABELED_PARQUET), labelled=True)
        else:
            assert self.dataset.labeled_path is not None
            path = self.dataset.labeled_path
            samples, rejected = read_samples(path, labelled=True, limit=self.dataset.max_samples)
        train, heldout = split_heldout(samples, self.heldout_rows(len(samples)), self.dataset.seed)
        return train, heldout, rejected

    def preview(self, most: int) -> list[Chat]:
        """The first rows, as far as they are known before anything runs: prompts, if a stage makes their answers."""
        path = self.dataset.instruction_path if self.from_stage else self.dataset.labeled_path
        return _chats(path, None if self.from_stage else True, self.dataset.max_samples, most)

    def heldout_rows(self, total: int) -> int:
        """The number of `total` rows to hold out."""
        return heldout_rows(self.evaluation, total)


def _chats(path: str | None, labelled: bool | None, limit: int | None, most: int) -> list[Chat]:
    if path is None:
        return []
    samples, _ = read_samples(path, labelled=labelled, limit=min(most, limit or most))
    return [Chat.of(sample) for sample in samples]


def heldout_rows(config: HeldoutConfig, total: int) -> int:
    """The number of `total` rows to hold out."""
    if not config.enabled or config.heldout == 0:
        return 0
    if config.heldout >= 1:
        return int(config.heldout)
    if total < MIN_ROWS_FOR_SHARE:
        return 0
    return min(config.max_heldout, max(1, round(config.heldout * total)))


def render_all(
    renderer: ChatRenderer, samples: Sequence[Sample], max_length: int, stage: str
) -> tuple[list[tuple[Sample, Rendered]], list[Rejection]]:
    """Tokenise samples; those that the template refuses, or with no answer token within `max_length`, are rejected."""
    rendered: list[tuple[Sample, Rendered]] = []
    rejected: list[Rejection] = []
    for sample, found in zip(samples, renderer.render_many(samples, max_length), strict=True):
        if isinstance(found, DataError):
            rejected.append(Rejection(sample.id, stage, TEMPLATE_REFUSED, str(found)))
            continue
        row = without_end(found, sample, renderer.eos_ids)
        if any(row.mask[1:]):
            rendered.append((sample, row))
        else:
            detail = f"the prompt alone fills max_length ({max_length} tokens)"
            rejected.append(Rejection(sample.id, stage, "no_trainable_tokens", detail))
    return rendered, rejected


def without_end(row: Rendered, sample: Sample, eos_ids: frozenset[int]) -> Rendered:
    """The row without the end of an answer that was cut off: no model is to learn to stop in mid-sentence."""
    last = max((t for t, on in enumerate(row.mask) if on), default=None)
    if not is_cut(sample) or row.truncated or last is None or row.ids[last] not in eos_ids:
        return row
    return replace(row, ids=row.ids[:last], mask=row.mask[:last])


def rendering_metrics(rows: Iterable[Rendered]) -> dict[str, Any]:
    """What the template left out of the rows: nothing where it shows them whole."""
    from easydistill.data.chat import count_kinds

    rows = list(rows)
    not_shown = count_kinds(row.missing for row in rows)
    lost = sum(row.lost_turns for row in rows)
    return {**({NOT_SHOWN: not_shown} if not_shown else {}), **({LOST_TURNS: lost} if lost else {})}


def nothing_left(purpose: str, rejected: Sequence[Rejection]) -> DataError:
    """The error for a stage without rows: the reasons for rejection, with an example of each."""
    examples = {rejection.reason: rejection.detail for rejection in reversed(rejected)}
    reasons = "".join(
        f"\n    {reason}, {count} of {len(rejected)}: {examples[reason]}"
        for reason, count in count_reasons(rejected).items()
    )
    hint = _HINTS.get(next(iter(count_reasons(rejected)), ""), "")
    # The template's own words may end with a hint.
    hint = "" if "→" in reasons else hint
    return DataError(f"there is nothing to {purpose}: no row is left{reasons}{hint}")


class PromptRows(LabelledRows):
    """Prompts without answers, for training on the student's own text."""

    labelled: ClassVar[bool | None] = False
    """Passed to `read_samples`: whether rows have answers; None keeps answers where there are any."""

    def fingerprint(self) -> dict[str, Any]:
        assert self.dataset.instruction_path is not None
        return {
            "seed": self.dataset.seed,
            "prompts": hash_rows(self.dataset.instruction_path),
            "max_samples": self.dataset.max_samples,
        }

    def preview(self, most: int) -> list[Chat]:
        return _chats(self.dataset.instruction_path, self.labelled, self.dataset.max_samples, most)

    def read(self, context: StageContext) -> tuple[list[Sample], list[Sample], list[Rejection]]:
        assert self.dataset.instruction_path is not None
        path = self.dataset.instruction_path
        samples, rejected = read_samples(path, labelled=self.labelled, limit=self.dataset.max_samples)
        train, heldout = split_heldout(samples, self.heldout_rows(len(samples)), self.dataset.seed)
        return train, heldout, rejected


def fitting_prompt(
    renderer: ChatRenderer, sample: Sample, max_length: int, max_new_tokens: int, stage: str
) -> list[int] | Rejection:
    """The prompt's tokens, or a rejection if they leave no room for an answer."""
    try:
        prompt = renderer.prompt_ids(sample.prompt_chat)
    except DataError as error:
        return Rejection(sample.id, stage, TEMPLATE_REFUSED, str(error))
    room = max_length - max_new_tokens
    if len(prompt) > room:
        detail = f"the prompt has {len(prompt)} tokens; max_length − max_new_tokens leaves {room}"
        return Rejection(sample.id, stage, "prompt_too_long", detail)
    return prompt
