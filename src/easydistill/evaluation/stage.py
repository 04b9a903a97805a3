"""Evaluate: measure the student before and after training, on prompts that it was not trained on.

Metrics are one file each in `metrics/`. The untrained student's figures do not depend on the training, so they are kept
and reused when only the training changes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.asking.row_teachers import RowTeachers
from easydistill.config.device_map import DeviceMap
from easydistill.config.evaluation import EvaluationConfig
from easydistill.config.models import FreshStudent, ModelsConfig
from easydistill.contracts.metric import MetricConfig
from easydistill.data.files import read_json, show_directory, write_json, write_jsonl
from easydistill.data.manifest import RowCounts
from easydistill.data.records import content_hash, count_reasons
from easydistill.engine.checks import needs_extra
from easydistill.engine.devices import answering_bytes, kind_of_device
from easydistill.engine.stage import Estimate, StageContext, StageResult, Work
from easydistill.errors import ConfigIssue
from easydistill.evaluation.config import answer_names, chosen_metrics, image_names, metrics_identity
from easydistill.evaluation.measurement import Heldout, Measurement, TeachersForm
from easydistill.evaluation.seeing import teachers_sight
from easydistill.evaluation.swapping import swapped
from easydistill.methods.distil.forms import Forms, read_by_teacher
from easydistill.methods.shared.rendering import student_renderer, template_identity, template_shows_date
from easydistill.methods.shared.rows import LabelledRows, nothing_left, render_all
from easydistill.methods.shared.sight import sees_images, vision_of
from easydistill.methods.shared.student import MODEL
from easydistill.models.checks import model_issues
from easydistill.models.limits import Limits
from easydistill.models.reference import resolve
from easydistill.models.size import model_parameters, student_parameters
from easydistill.models.student import student_identity, student_references

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Rendered
    from easydistill.data.records import Rejection, Sample
    from easydistill.models.multimodal import Vision

ANSWERS = "answers.jsonl"
METRICS_FILE = "metrics.json"
DISAGREEMENT = "disagreement.json"
BEFORE = "before.json"
BEFORE_HOLDS = ("metrics", "answers", "scores", "disagreement")
"""Contents of the untrained student's figures; files of an earlier version that lack some of them are not reused."""


class EvaluateStage:
    """Held-out metrics before and after training."""

    name = "evaluate"
    offers: tuple[str, ...] = ()
    classifies = False

    def __init__(
        self,
        rows: LabelledRows,
        models: ModelsConfig,
        evaluation: EvaluationConfig,
        max_length: int,
        *,
        trained: str = "train",
        device_map: DeviceMap | None = None,
        forms: Forms | None = None,
    ) -> None:
        """
        Args:
            forms: of a teacher that reads chats in its own form, with the student's tokens of answers.
            device_map: where the teacher's layers lie, if it is too large for one device.
            trained: name of the last stage that trained the student.
        """
        self._rows = rows
        self._models = models
        self._own = RowTeachers.of(models)
        self._config = evaluation
        self._max_length = max_length
        self._trained = trained
        self._device_map = device_map
        self._forms = forms if models.teacher is not None else None
        self.inputs = (*rows.inputs, trained)

    @cached_property
    def _metrics(self) -> dict[str, MetricConfig]:
        # Whether the student sees images is found in its files, which are not looked for while a job is planned.
        return chosen_metrics(self._config, sees_images=sees_images(self._models))

    def preflight(self) -> list[ConfigIssue]:
        issues = needs_extra("train", "rapidfuzz")
        return issues + [issue for named in self._models.teachers_by_key.items() for issue in model_issues(*named)]

    def fingerprint(self) -> dict[str, Any]:
        return {**self._before_fingerprint(), "after": True}

    def _before_fingerprint(self) -> dict[str, Any]:
        teacher = resolve(self._models.teacher).identity() if self._models.teacher else None
        if self._own is not None:
            teacher = self._own.identity()
        metrics = metrics_identity(self._metrics)
        return {
            "rows": self._rows.fingerprint(),
            "student": student_identity(self._models),
            "teacher": teacher,
            "evaluation": self._config.identity(),
            "max_length": self._max_length,
            **template_identity(self._rows.dataset),
            **({"metrics": metrics} if metrics else {}),
            **({"align": "answers", **self._forms.identity()} if self._forms is not None else {}),
        }

    def shows_date(self) -> bool:
        if template_shows_date(self._rows.dataset, student_references(self._models)):
            return True
        return self._forms is not None and self._forms.shows_date(str(self._models.teacher))

    def estimate(self, directory: Path) -> Estimate:
        """Memory: the student, before or after training, and the teachers, to answer and to score with."""
        sizes = [student_parameters(self._models)]
        sizes += [model_parameters(name) for name in set(self._models.teachers_by_key.values())]
        known = [size for size in sizes if size is not None]
        return Estimate(memory_bytes=answering_bytes(2 * sum(known)) if len(known) == len(sizes) else None)

    def work(self) -> Work | None:
        """Held-out rows are answered and scored by the student before and after, and scored by the teacher."""
        rows, tokens = self._rows.sizes_ahead(self._max_length)
        held, student = self._rows.heldout_rows(rows), student_parameters(self._models)
        if student is None or not rows:
            return None
        teacher = model_parameters(self._models.teacher) if self._models.teacher is not None else None
        scored = held * tokens / rows
        written = held * self._config.max_new_tokens if self._config.generate else 0
        return Work("evaluate", 2 * (2 * student * (scored + written) + (teacher or 0) * scored), kind_of_device())

    def run(self, context: StageContext) -> StageResult:
        from easydistill.models.allocation import reused_memory
        from easydistill.models.loading import choose_dtype, device, load_model, load_tokenizer
        from easydistill.models.student import build_student

        # Files that an earlier config left are not outputs of this one.
        for name in (METRICS_FILE, ANSWERS, DISAGREEMENT):
            (context.directory / name).unlink(missing_ok=True)
        _, samples, _ = self._rows.read(context)
        trained = context.input_path(self._trained, MODEL)
        # Show the student that is measured: `student/` may be from a later round that the config no longer has.
        show_directory(trained, context.run_directory / "student")
        dtype = choose_dtype("auto", device())
        start = build_student(self._models, dtype)
        vision = vision_of(start, context)
        renderer = student_renderer(self._rows.dataset, start.tokenizer, start.eos_ids, context, vision)
        teachers, why_not = self._teachers(start.tokenizer, dtype, load_tokenizer, samples)
        # A student made by other layers or a later stage has the same positions and tokens.
        reads_ours = bool(teachers) and self._forms is None
        limits = start.limits
        for model in teachers.values() if reads_ours else ():
            limits = limits.joined(Limits.of(model))
        rendered, rejected = render_all(renderer, samples, self._max_length, self.name, limits)
        form, sights = None, dict[str, Any].fromkeys(teachers)
        if teachers and self._forms is not None:
            rendered, unlike, form, sights[""] = self._in_teachers_form(self._forms, rendered, context)
            rejected += unlike
        heldout = self._heldout(renderer, rendered, form)
        for name, model in teachers.items() if reads_ours else ():
            sights[name], blind = teachers_sight(self._reference(name), model, vision, heldout.rows, context)
            if blind:
                teachers, why_not = {}, blind
                break
        if not heldout.samples:
            write_json(context.directory / METRICS_FILE, {})
            notes = {"evaluation": str(nothing_left("evaluate", rejected)) if rejected else "no rows were held out"}
            return StageResult((METRICS_FILE,), RowCounts(), rejected, metrics={"notes": notes})
        passes = 2 * heldout.passes(self._config)
        with reused_memory(device()), context.reporter.task("Evaluating", passes) as task:
            seeing = {name: (model, sights[name]) for name, model in teachers.items()}
            measure = Measurement(self._config, self._metrics, heldout, seeing, renderer, task, context, vision)
            before = self._before(measure, start.model, heldout.images, context)
            start.model = None
            gc.collect()
            after = measure.run(load_model(str(trained), dtype), start.eos_ids)
        return self._result(heldout, before, after, why_not, rejected, context)

    def _reference(self, name: str) -> str:
        """The model of a teacher."""
        reference = self._models.teacher if self._own is None else self._own.references[name]
        assert reference is not None
        return reference

    def _teachers(
        self, tokenizer: Any, dtype: Any, load_tokenizer: Any, samples: Sequence[Sample]
    ) -> tuple[dict[str, Any], str]:
        """(the teachers' models by name, or the only one's without a name, ""), or (none, why the student cannot be
        compared with them). A model that has several names is loaded once."""
        from easydistill.models.spread import load_placed, spread_of

        if not self._models.teachers_by_key:
            return {}, "the teacher is not on this machine"
        names = [""] if self._own is None else sorted(self._own.counts(samples))
        references = {name: self._reference(name) for name in names}
        own_tokenizer = self._models.student.tokenizer if isinstance(self._models.student, FreshStudent) else True
        for reference in dict.fromkeys(references.values()):
            given = own_tokenizer is None and reference == self._models.teacher
            if not given and not self._alike(tokenizer, load_tokenizer(reference)):
                return {}, "teacher and student have different vocabularies"
        spread = spread_of(self._device_map)
        models = {reference: load_placed(reference, dtype, spread) for reference in set(references.values())}
        return {name: models[reference] for name, reference in references.items()}, ""

    def _alike(self, student: Any, teacher: Any) -> bool:
        """Whether two tokenizers number what answers hold alike."""
        from easydistill.models.compatibility import answer_ids
        from easydistill.models.loading import same_vocabulary

        return same_vocabulary(student, teacher) if self._forms is None else answer_ids(student, teacher) is not None

    def _in_teachers_form(
        self, forms: Forms, rendered: Sequence[tuple[Sample, Rendered]], context: StageContext
    ) -> tuple[list[tuple[Sample, Rendered]], list[Rejection], TeachersForm, Vision | None]:
        """(rows whose answers are the same tokens to the teacher, the others, what it reads, what it sees)."""
        from easydistill.models.compatibility import answer_ids

        assert self._models.teacher is not None
        vision = forms.vision(self._models.teacher, context.images.path)
        aligner = forms.aligner(self._models.teacher, context.started, vision)
        kept, read, unlike = read_by_teacher(aligner, rendered, self.name)
        shared = answer_ids(forms.student.tokenizer, aligner.teacher.tokenizer)
        assert shared is not None, "such a teacher is not loaded"
        return kept, unlike, TeachersForm([(row.read_ids, row.read_learned) for row in read], shared), vision

    def _heldout(
        self, renderer: ChatRenderer, rendered: Sequence[tuple[Sample, Rendered]], form: TeachersForm | None
    ) -> Heldout:
        samples, rows = [sample for sample, _ in rendered], [row for _, row in rendered]
        prompts = [renderer.prompt_ids(sample.prompt_chat) for sample in samples]
        compares = any(row.images for row in rows) and image_names(self._metrics)
        others = swapped(samples, rows, renderer) if compares else {}
        taught_by = [] if self._own is None else [self._own.name_of(sample) for sample in samples]
        return Heldout(samples, rows, prompts, others, form, taught_by)

    def _before(
        self, measure: Measurement, model: Any, images: Sequence[Sequence[str]], context: StageContext
    ) -> dict[str, Any]:
        """The untrained student's figures, reused from an earlier run of this stage if they still apply."""
        path = context.directory / BEFORE
        inputs = {name: context.inputs[name].manifest.output_hash() for name in self._rows.inputs}
        # Files of images are not part of the fingerprint.
        key = content_hash([self._before_fingerprint(), inputs, BEFORE_HOLDS, *([images] if any(images) else [])])
        if path.is_file():
            saved: dict[str, Any] = read_json(path)
            if saved.get("key") == key:
                measure.skip()
                return saved
        from easydistill.models.loading import eos_ids

        found = {
            "key": key,
            **measure.run(model, eos_ids(measure.renderer.tokenizer, model.generation_config)),
        }
        write_json(path, found)
        return found

    def _result(
        self,
        heldout: Heldout,
        before: dict[str, Any],
        after: dict[str, Any],
        why_not: str,
        rejected: Sequence[Any],
        context: StageContext,
    ) -> StageResult:
        notes = {name: why_not for name, value in after["metrics"].items() if value is None and why_not}
        if not self._config.generate:
            notes |= dict.fromkeys(answer_names(self._metrics), "evaluation.generate is off")
        if not heldout.swapped:
            notes |= dict.fromkeys(image_names(self._metrics), "no two of the rows have different images")
        metrics = {"before": before["metrics"], "after": after["metrics"], "notes": notes}
        write_json(context.directory / METRICS_FILE, metrics)
        sides = {"before": before, "after": after}
        write_jsonl(context.directory / ANSWERS, _answer_rows(heldout, sides))
        compared = {when: side["disagreement"] for when, side in sides.items() if side["disagreement"] is not None}
        if compared:
            write_json(context.directory / DISAGREEMENT, compared)
        return StageResult(
            outputs=(METRICS_FILE, ANSWERS, *([DISAGREEMENT] if compared else [])),
            rows=RowCounts(len(heldout.samples) + len(rejected), len(heldout.samples), count_reasons(rejected)),
            rejected=rejected,
            tokens={"answer": sum(sum(row.mask[1:]) for row in heldout.rows)},
            metrics=metrics,
        )


def _answer_rows(heldout: Heldout, sides: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each held-out sample: its prompt, the reference, and the answers of both sides with their scores."""
    for index, (sample, reference) in enumerate(zip(heldout.samples, heldout.references, strict=True)):
        row = {"id": sample.id, "prompt": list(sample.prompt), "teacher": reference}
        for when, side in sides.items():
            row |= {f"{name}{when}": value for name, value in _answer_columns(side, index)}
        yield row


def _answer_columns(side: dict[str, Any], index: int) -> list[tuple[str, Any]]:
    """One answer's text and scores, as (column prefix, value)."""
    if side["answers"] is None:
        return [("", None)]
    return [
        ("", side["answers"][index]),
        *((f"{name}_", scores[index]) for name, scores in side["scores"].items()),
    ]
