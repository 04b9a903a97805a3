"""Shared by the training and evaluation stages: where rows come from, their held-out split, their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from easydistill.asking.outputs import LABELED_PARQUET
from easydistill.config.dataset import DatasetConfig, RowsConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.contracts.teacher import TEMPLATE_REFUSED
from easydistill.data.reading import read_rows, read_samples
from easydistill.data.records import Rejection, Sample, split_heldout
from easydistill.data.row_files.identity import hash_rows
from easydistill.engine.stage import StageContext
from easydistill.errors import DataError

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Rendered

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
                **self.dataset.reading_identity(),
            }
        return found

    def read(self, context: StageContext) -> tuple[list[Sample], list[Sample], list[Rejection]]:
        """(training rows, held-out rows, rejected rows of the file)."""
        if self.from_stage:
            samples, rejected = read_samples(context.input_path("label", LABELED_PARQUET), labelled=True)
        else:
            samples, rejected = read_file(self.dataset, self.dataset.labeled_path, True, context)
        train, heldout = split_heldout(samples, self.heldout_rows(len(samples)), self.dataset.seed)
        return train, heldout, rejected

    def heldout_rows(self, total: int) -> int:
        """The number of `total` rows to hold out."""
        return heldout_rows(self.evaluation, total)


def read_file(
    dataset: RowsConfig, path: str | None, labelled: bool | None, context: StageContext
) -> tuple[list[Sample], list[Rejection]]:
    """The rows of the user's file, read as the `dataset` section says. What is not read of them is told."""
    assert path is not None, "checked by the job's validators"
    found = read_rows(path, labelled=labelled, limit=dataset.max_samples, columns=dataset.column_names)
    context.notice(found.notices)
    return found.samples, found.rejected


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
    for sample in samples:
        try:
            row = renderer.render(sample, max_length)
        except DataError as error:
            rejected.append(Rejection(sample.id, stage, TEMPLATE_REFUSED, str(error)))
            continue
        if any(row.mask[1:]):
            rendered.append((sample, row))
        else:
            detail = f"the prompt alone fills max_length ({max_length} tokens)"
            rejected.append(Rejection(sample.id, stage, "no_trainable_tokens", detail))
    return rendered, rejected


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
            **self.dataset.reading_identity(),
        }

    def read(self, context: StageContext) -> tuple[list[Sample], list[Sample], list[Rejection]]:
        samples, rejected = read_file(self.dataset, self.dataset.instruction_path, self.labelled, context)
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
