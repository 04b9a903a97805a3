"""Shared by the training and evaluation stages: where rows come from, their held-out split, their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import tee
from typing import TYPE_CHECKING, Any, ClassVar

from easydistill.asking.outputs import LABELED_PARQUET
from easydistill.config.dataset import DatasetConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.models import ModelsConfig
from easydistill.config.pipeline import Citation
from easydistill.contracts.teacher import TEMPLATE_REFUSED
from easydistill.data.images import ImageStore
from easydistill.data.messages import have_images
from easydistill.data.records import Rejection, Sample, count_reasons, is_cut, split_heldout
from easydistill.data.row_files.identity import hash_rows
from easydistill.data.spool import Rows
from easydistill.engine.stage import FORETOLD, StageContext
from easydistill.errors import DataError, EasyDistillError
from easydistill.methods.shared.foretelling import FirstRows
from easydistill.methods.shared.row_reading import first_rows, one_writer, read_file, read_made
from easydistill.methods.shared.sight import ImageSizes, blindness
from easydistill.models.limits import Limits
from easydistill.teachers.sizes import BYTES_A_TOKEN, chat_bytes

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Rendered

UNLIMITED = Limits()
UNKNOWN_TOKEN = "unknown_token"
"""Reason of the rejection of a row with a token that the model's embedding has no row for."""
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
    awaits_thoughts: bool = field(default=False, kw_only=True)
    """Whether a teacher is yet to give the answers, whose thoughts, if it has any, will stand apart."""
    shown_to: ModelsConfig | None = field(default=None, kw_only=True)
    """The student that is shown the images of rows, if it sees any; without one such rows are refused."""
    answer_tokens: int | None = field(default=None, kw_only=True)
    """Most tokens of an answer that a teacher is yet to give."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("label",) if self.from_stage else ()

    @property
    def are_cited(self) -> bool:
        """Whether another job of a pipeline is yet to make them."""
        return not self.from_stage and Citation.read(self.dataset.labeled_path) is not None

    @property
    def refuses_images(self) -> str | None:
        """Why rows with images are refused; None if they are not."""
        return blindness(self.shown_to)

    def show_images(self) -> bool:
        """Whether the first rows show any."""
        try:
            return any(have_images(chat.messages) for chat in self.preview(FORETOLD, ImageSizes()).chats)
        except (EasyDistillError, OSError):
            # Told by the stage that reads them.
            return False

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

    def read(self, context: StageContext) -> tuple[Rows[Sample], list[Sample], list[Rejection]]:
        """(training rows, held-out rows, rejected rows of the file)."""
        with one_writer(context, may_have_images=self.refuses_images is None):
            if self.from_stage:
                samples, rejected = read_made(context.input_path("label", LABELED_PARQUET), context)
            else:
                given = self.dataset.labeled_path
                samples, rejected = read_file(self.dataset, given, True, context, self.refuses_images)
        train, heldout = split_heldout(samples, self.heldout_rows(len(samples)), self.dataset.seed)
        return train, heldout, rejected

    def preview(self, most: int, store: ImageStore) -> FirstRows:
        """The first rows, as far as they are known before anything runs: prompts, if a stage makes their answers.

        Args:
            store: their images are looked at in it.
        """
        path = self.dataset.instruction_path if self.from_stage else self.dataset.labeled_path
        return first_rows(self.dataset, path, not self.from_stage, most, store, self.refuses_images)

    def preview_prompts(self, most: int, store: ImageStore) -> FirstRows:
        """The first rows without their answers."""
        path = self.dataset.instruction_path or self.dataset.labeled_path
        return first_rows(self.dataset, path, False, most, store, self.refuses_images)

    def sizes_ahead(self, longest: int) -> tuple[int, int]:
        """(rows, tokens of all of them), by the bytes of the first ones: about, and without a tokenizer.

        Args:
            longest: tokens after which rows are cut off.
        """
        try:
            first = self.preview(FORETOLD, ImageSizes())
        except (EasyDistillError, OSError):
            # Told by the stage that reads them.
            return 0, 0
        answer = self.answer_tokens or longest if self.from_stage else 0
        each = [min(longest, chat_bytes(chat.messages) // BYTES_A_TOKEN + answer) for chat in first.chats]
        rows = len(each) if first.total is None else first.total
        return rows, round(sum(each) * rows / max(1, len(each)))

    def heldout_rows(self, total: int) -> int:
        """The number of `total` rows to hold out."""
        return heldout_rows(self.evaluation, total)


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
    renderer: ChatRenderer, samples: Sequence[Sample], max_length: int, stage: str, limits: Limits = UNLIMITED
) -> tuple[list[tuple[Sample, Rendered]], list[Rejection]]:
    """Tokenise samples, cut after `max_length` tokens or at the model's end, whichever comes first.

    Rejected are those that the template refuses, with no answer token within that length, or with a token that the
    model does not know.
    """
    rendered: list[tuple[Sample, Rendered]] = []
    rejected: list[Rejection] = []
    for item in rendered_one_by_one(renderer, samples, max_length, stage, limits):
        if isinstance(item, Rejection):
            rejected.append(item)
        else:
            rendered.append(item)
    return rendered, rejected


def rendered_one_by_one(
    renderer: ChatRenderer, samples: Sequence[Sample], max_length: int, stage: str, limits: Limits
) -> Iterator[tuple[Sample, Rendered] | Rejection]:
    """What `render_all` returns, in the order of the samples, of which few are under way at a time."""
    entering, waiting = tee(samples)
    for sample, found in zip(waiting, renderer.render_many(entering, limits.within(max_length)), strict=True):
        if isinstance(found, DataError):
            yield Rejection(sample.id, stage, refusal_reason(found), str(found))
        elif (token := limits.stranger(found.ids_T)) is not None:
            yield unknown_token(sample.id, stage, token, limits)
        elif (row := without_end(found, sample, renderer.eos_ids)).learned.any():
            yield sample, row
        else:
            detail = f"the prompt alone fills {length_words(max_length, limits)}"
            yield Rejection(sample.id, stage, "no_trainable_tokens", detail)


def refusal_reason(error: DataError) -> str:
    """The reason for which a row is rejected that cannot be rendered."""
    from easydistill.data.chat import ImageRefused

    return error.reason if isinstance(error, ImageRefused) else TEMPLATE_REFUSED


def unknown_token(row: str, stage: str, token: int, limits: Limits) -> Rejection:
    """The rejection of a row with a token that has no row in the model's embedding."""
    detail = f"token {token} has no row in the student's embedding, which has {limits.tokens}"
    return Rejection(row, stage, UNKNOWN_TOKEN, detail)


def length_words(max_length: int, limits: Limits) -> str:
    """What ends a row, in words."""
    longest = limits.within(max_length)
    return f"max_length ({max_length} tokens)" if longest == max_length else f"the student's {longest} positions"


def without_end(row: Rendered, sample: Sample, eos_ids: frozenset[int]) -> Rendered:
    """The row without the end of an answer that was cut off: no model is to learn to stop in mid-sentence."""
    return endless(row, eos_ids) if is_cut(sample) else row


def endless(row: Rendered, eos_ids: frozenset[int]) -> Rendered:
    """A row without the token that ends it, and what follows that."""
    if row.truncated:
        return row
    learned = row.mask_T.nonzero()[0]
    if not len(learned) or int(row.ids_T[learned[-1]]) not in eos_ids:
        return row
    return row.first(int(learned[-1]), truncated=False)


def keep_rejected(
    rejected: Sequence[Rejection], rows: Sequence[Any], context: StageContext, purpose: str = "train on"
) -> None:
    """Record a stage's rejected rows.

    Raises:
        DataError: no row is left.
    """
    context.keep_rejected(rejected)
    if not rows:
        raise nothing_left(purpose, rejected)


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
            **self.dataset.reading_identity(),
        }

    def preview(self, most: int, store: ImageStore) -> FirstRows:
        return first_rows(self.dataset, self.dataset.instruction_path, self.labelled, most, store, self.refuses_images)

    def read(self, context: StageContext) -> tuple[Rows[Sample], list[Sample], list[Rejection]]:
        with one_writer(context, may_have_images=self.refuses_images is None):
            path = self.dataset.instruction_path
            samples, rejected = read_file(self.dataset, path, self.labelled, context, self.refuses_images)
        train, heldout = split_heldout(samples, self.heldout_rows(len(samples)), self.dataset.seed)
        return train, heldout, rejected


def fitting_prompt(
    renderer: ChatRenderer,
    sample: Sample,
    max_length: int,
    max_new_tokens: int,
    stage: str,
    limits: Limits = UNLIMITED,
) -> list[int] | Rejection:
    """The prompt's tokens; or a rejection if they leave no room for an answer, or the model does not know one."""
    try:
        prompt = renderer.prompt_ids(sample.prompt_chat)
    except DataError as error:
        return Rejection(sample.id, stage, refusal_reason(error), str(error))
    if (token := limits.stranger(prompt)) is not None:
        return unknown_token(sample.id, stage, token, limits)
    room = limits.within(max_length) - max_new_tokens
    if len(prompt) > room:
        end = length_words(max_length, limits)
        detail = f"the prompt has {len(prompt)} tokens; {end} − max_new_tokens leaves {max(0, room)}"
        return Rejection(sample.id, stage, "prompt_too_long", detail)
    return prompt
