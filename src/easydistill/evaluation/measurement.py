"""Measures models on held-out rows: on the tokens of the reference answers, and by their own answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from easydistill.config.evaluation import EvaluationConfig
from easydistill.contracts.metric import MetricConfig
from easydistill.data.answers import split_thoughts
from easydistill.data.messages import Message, said, text_of
from easydistill.data.records import Sample
from easydistill.engine.progress import Task
from easydistill.engine.stage import StageContext
from easydistill.evaluation.config import answer_names

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Rendered
    from easydistill.data.tokens import Mask, TokenIds
    from easydistill.evaluation.measure import Measured
    from easydistill.evaluation.swapping import CrossEntropies
    from easydistill.models.multimodal import Vision


@dataclass(frozen=True)
class TeachersForm:
    """Held-out rows as a teacher reads them that has a form of its own."""

    rows: list[tuple[TokenIds, Mask]]
    """Its tokens of each row, and the mask of the answer tokens, which are the student's."""
    shared: int
    """Token ids below this mean the same token to both."""


@dataclass(frozen=True)
class Heldout:
    """Held-out rows, tokenised for the student."""

    samples: list[Sample]
    rows: list[Rendered]
    prompts: list[list[int]]
    swapped: dict[int, Rendered] = field(default_factory=dict)
    """Rows with other rows' images, by their number; only if a metric compares them."""
    teachers_form: TeachersForm | None = None
    """By default the teacher reads the student's tokens."""
    taught_by: Sequence[str] = ()
    """The name of each row's teacher, if there are several."""

    @property
    def images(self) -> list[tuple[str, ...]]:
        """The digests of each row's images."""
        return [row.images for row in self.rows]

    def passes(self, config: EvaluationConfig) -> int:
        """How many rows one model is shown in all."""
        return len(self.samples) * (2 if config.generate else 1) + len(self.swapped)

    @property
    def references(self) -> list[str]:
        """What the teacher says, calls included and thoughts not; the same is read of the student."""
        return [_spoken(sample.messages[-1]) if sample.answer is not None else "" for sample in self.samples]


def _spoken(answer: Message) -> str:
    """What an answer says beside its thoughts, wherever they are."""
    return said({**answer, "content": split_thoughts(text_of(answer))[1]})


class Measurement:
    """Measures models, one after the other, on the same held-out rows."""

    def __init__(
        self,
        config: EvaluationConfig,
        metrics: Mapping[str, MetricConfig],
        heldout: Heldout,
        teachers: Mapping[str, tuple[Any, Vision | None]],
        renderer: ChatRenderer,
        task: Task,
        context: StageContext,
        vision: Vision | None = None,
    ) -> None:
        """
        Args:
            teachers: the models by the names that rows are `taught_by`, or one without a name, or none; and what each
                sees of images, if it sees any.
            vision: what the student sees of them.
        """
        from easydistill.models.loading import device
        from easydistill.teachers.parsing import AnswerReader

        self._config = config
        self._metrics = metrics
        self._heldout = heldout
        self._device = device()
        # They are on their devices.
        self._teachers = dict(teachers)
        self.renderer = renderer
        self._reader = AnswerReader(renderer)
        self._task = task
        self._context, self._stop = context, context.stop
        self._sight = self._vision = vision

    def skip(self) -> None:
        """Advance the progress bar over the passes of a model whose figures are known."""
        self._task.advance(self._heldout.passes(self._config))

    def run(self, model: Any, eos_ids: frozenset[int]) -> dict[str, Any]:
        """`metrics`; `answers` and `scores`, lists in row order; `disagreement` with the teacher, or None."""
        model = model.to(self._device).eval()
        with self._seen_once(model, self._sight) as self._vision, ExitStack() as stack:
            teachers = {
                name: (teacher, stack.enter_context(self._seen_once(teacher, vision)))
                for name, (teacher, vision) in self._teachers.items()
            }
            return self._measured(model, eos_ids, teachers)

    def _seen_once(self, model: Any, vision: Vision | None) -> AbstractContextManager[Vision | None]:
        """A context in which a model is shown features of the held-out images in the place of their pixels."""
        if vision is None:
            return nullcontext()
        from easydistill.methods.sft.image_features import seen_once
        from easydistill.models.multimodal.feature_files import FOLDER

        rows = (*self._heldout.rows, *self._heldout.swapped.values())
        images = [image for row in rows for image in row.images]
        context = self._context
        return seen_once(model, vision, images, context.run_directory / FOLDER, context.reporter, context.stop)

    def _measured(
        self, model: Any, eos_ids: frozenset[int], teachers: Mapping[str, tuple[Any, Vision | None]]
    ) -> dict[str, Any]:
        metrics, disagreement = self._token_pass(model, min(eos_ids, default=0), teachers)
        texts = self._answers(model, eos_ids) if self._config.generate else None
        scores: dict[str, list[float]] = {}
        if texts is None:
            metrics |= dict.fromkeys(answer_names(self._metrics))
        else:
            from easydistill.evaluation.measure import answer_metrics

            scores = answer_metrics(texts, self._heldout.references, self._metrics)
            metrics |= {name: fmean(values) for name, values in scores.items()}
        return {"metrics": metrics, "answers": texts, "scores": scores, "disagreement": disagreement}

    def _token_pass(
        self, model: Any, pad: int, teachers: Mapping[str, tuple[Any, Vision | None]]
    ) -> tuple[dict[str, float | None], dict[str, Any] | None]:
        """Metrics over the tokens of the teacher's answers, and the disagreement of the two models on them."""
        from easydistill.evaluation.disagreement import Disagreement
        from easydistill.evaluation.measure import Measured, OwnTeacher, image_metrics, token_metrics
        from easydistill.evaluation.swapping import CrossEntropies
        from easydistill.evaluation.token_text import TokenText, described
        from easydistill.models.head import body_of

        tokenizer, heldout = self.renderer.tokenizer, self._heldout
        form = heldout.teachers_form
        shared = max(tokenizer.get_vocab().values()) + 1 if form is None else form.shared
        watch = Disagreement(shared) if teachers else None
        student = Measured(model, body_of(model), self._vision)
        readers = {name: Measured(teacher, body_of(teacher), vision) for name, (teacher, vision) in teachers.items()}
        several = [
            OwnTeacher(name, reader, [at for at, own in enumerate(heldout.taught_by) if own == name])
            for name, reader in readers.items()
            if heldout.taught_by
        ]
        own = CrossEntropies()
        metrics = token_metrics(
            student,
            None if several else next(iter(readers.values()), None),
            shared,
            [(row.ids_T, row.mask_T) for row in heldout.rows],
            pad,
            self._config.batch_size,
            self._task,
            self._stop,
            [*([watch] if watch is not None else []), *([own] if heldout.swapped else [])],
            self._metrics,
            heldout.images,
            None if form is None else form.rows,
            several,
        )
        metrics |= image_metrics(self._cross_entropies(student, own, pad), self._metrics)
        figures = watch.figures() if watch is not None else None
        if figures is None:
            return metrics, None
        row_ids = [sample.id for sample in heldout.samples]
        return metrics, described(figures, row_ids, [row.ids for row in heldout.rows], TokenText(tokenizer))

    def _cross_entropies(self, student: Measured, own: CrossEntropies, pad: int) -> tuple[float, float] | None:
        """The student's means with the rows' own images and with those of others; None if there are no such rows.

        Args:
            own: of all rows as they are.
        """
        from easydistill.evaluation.measure import token_metrics
        from easydistill.evaluation.swapping import CrossEntropies

        swapped = self._heldout.swapped
        if not swapped:
            return None
        other, rows = CrossEntropies(), list(swapped.values())
        ids = [(row.ids_T, row.mask_T) for row in rows]
        images, shown = [row.images for row in rows], self._config.batch_size
        token_metrics(student, None, 0, ids, pad, shown, self._task, self._stop, [other], {}, images)
        return own.mean(swapped), other.mean(range(len(rows)))

    def _said(self, index: int, ids: list[int]) -> str:
        """What a student said in answer to a row's prompt: its text and its calls, without its thoughts."""
        heldout = self._heldout
        written = self._reader.read(ids, heldout.prompts[index], heldout.samples[index].tools)
        return said(written.message)

    def _answers(self, model: Any, eos_ids: frozenset[int]) -> list[str]:
        from easydistill.evaluation.measure import answers

        return answers(
            model,
            self._heldout.prompts,
            eos_ids,
            self._config.max_new_tokens,
            self._config.batch_size,
            self._said,
            self._task,
            self._stop,
            self._vision,
            self._heldout.images,
        )
