"""Score: the teacher reads the training rows, token for token as the student will, and what it thinks is kept.

Labelled rows in; a store of teacher signals out (see `signals/store.py`). The student then trains without the teacher.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.config.distillation import DistillationConfig
from easydistill.config.models import ModelsConfig
from easydistill.config.signals import SignalsConfig
from easydistill.data.files import hash_file, link_or_copy
from easydistill.data.manifest import RowCounts
from easydistill.data.records import Rejection, content_hash, count_reasons
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigIssue, DataError
from easydistill.models.reference import resolve
from easydistill.models.size import model_parameters
from easydistill.models.student import student_references
from easydistill.stages.checks import model_issues, needs_extra
from easydistill.stages.label import missing_file
from easydistill.stages.rows import LabelledRows, render_all

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer
    from easydistill.models.compatibility import Difference, Side
    from easydistill.signals.codec import Codec
    from easydistill.signals.score import Scorer
    from easydistill.signals.store import SignalStore

SIGNALS = "signals"
STORE = "store.json"
MARK = "for.txt"
"""Names the config that the shards beside it belong to."""


@dataclass(frozen=True)
class Scoring:
    """What a score stage needs to know beside the rows."""

    models: ModelsConfig
    signals: SignalsConfig
    distillation: DistillationConfig
    max_length: int
    logits_path: str | None = None
    """Where the store is shown to the user, beside the run directory."""

    @property
    def teachers(self) -> list[tuple[str, float]]:
        """(reference, weight) of each teacher."""
        if self.signals.teachers is not None:
            return [(teacher.model, teacher.weight) for teacher in self.signals.teachers]
        assert self.models.teacher is not None
        return [(self.models.teacher, 1.0)]


class ScoreStage:
    """Teacher signals of the training rows."""

    name = "score"

    def __init__(self, rows: LabelledRows, scoring: Scoring) -> None:
        self._rows = rows
        self._scoring = scoring
        self.inputs = rows.inputs

    # --- before anything runs -------------------------------------------------------------------------------

    def preflight(self) -> list[ConfigIssue]:
        scoring = self._scoring
        issues = needs_extra("train", "torch", "transformers", "safetensors")
        if scoring.signals.backend == "vllm":
            issues += needs_extra("vllm", "vllm")
        if not self._rows.from_stage:
            issues += missing_file("dataset.labeled_path", self._rows.dataset.labeled_path)
        key = "models.teacher" if scoring.signals.teachers is None else "signals.teachers"
        for reference, _ in scoring.teachers:
            issues += model_issues(key, reference)
        for reference in student_references(scoring.models):
            issues += model_issues("models.student", reference)
        return issues

    def examine(self) -> list[ConfigIssue]:
        """Compare the tokenizers and templates of teacher and student, before the first stage starts."""
        from easydistill.models.compatibility import fatal

        return [
            ConfigIssue("config", "models", f"{reference}: {difference.problem}", difference.mend)
            for reference, found in self._differences().items()
            for difference in fatal(found)
        ]

    def _student(self) -> Side:
        from dataclasses import replace

        from easydistill.models.compatibility import student_side

        template = self._rows.dataset.template
        side = student_side(self._scoring.models)
        return replace(side, template=Path(template).read_text(encoding="utf-8") if template else None)

    def _differences(self) -> dict[str, list[Difference]]:
        from easydistill.models.compatibility import compare, side_of

        student = self._student()
        return {
            reference: compare(student, side_of(reference, "teacher", trust_remote_code=self._trust))
            for reference, _ in self._scoring.teachers
        }

    @property
    def _trust(self) -> bool:
        return self._scoring.models.trust_remote_code

    def fingerprint(self) -> dict[str, Any]:
        scoring = self._scoring
        template = self._rows.dataset.template
        # Of the student only how it tokenises matters; its files' hash stands for that.
        students = [resolve(reference).identity() for reference in student_references(scoring.models)]
        return {
            "rows": self._rows.fingerprint(),
            "signals": scoring.signals.identity(),
            "teachers": [[resolve(reference).identity(), weight] for reference, weight in scoring.teachers],
            "tokenizer": students,
            "template": hash_file(Path(template)) if template else None,
            "temperature": scoring.distillation.temperature,
            "align": scoring.distillation.align,
            "max_length": scoring.max_length,
        }

    def estimate(self, directory: Path) -> Estimate:
        sizes = [model_parameters(reference) for reference, _ in self._scoring.teachers]
        each = 4 if self._scoring.signals.dtype == "float32" else 2
        known = [size for size in sizes if size is not None]
        return Estimate(memory_bytes=sum(known) * each if len(known) == len(sizes) else None)

    # --- the work -------------------------------------------------------------------------------------------

    def run(self, context: StageContext) -> StageResult:
        from easydistill.data.chat import ChatRenderer
        from easydistill.signals.score import RowToScore, score_rows
        from easydistill.signals.store import SignalStore, StoreManifest

        samples, _, _ = self._rows.read(context)
        student = self._student()
        renderer = ChatRenderer(student.tokenizer, student.eos_ids, student.template)
        rendered, rejected = render_all(renderer, samples, self._scoring.max_length, self.name)
        rows = [RowToScore(sample.id, row.ids, [False, *row.mask[1:]]) for sample, row in rendered]
        directory = self._directory(context)
        vocabulary = self._vocabulary(student)
        codec = self._codec(vocabulary)
        with context.reporter.task("Scoring", len(rows)) as task:
            shards = score_rows(
                rows,
                self._scoring.signals,
                codec,
                directory,
                lambda: self._scorer(vocabulary),
                lambda count, tokens: task.advance(count, tokens),
                context.stop,
            )
        context.stop.raise_if_requested()
        StoreManifest.of(directory, codec, self._about(student, vocabulary, renderer), shards).write(directory)
        self._publish(directory)
        return self._result(SignalStore(directory), len(samples), len(rows), rejected, context)

    def _directory(self, context: StageContext) -> Path:
        """Where the store is made; shards that an earlier config left are removed."""
        directory = context.directory / SIGNALS
        mark = directory / MARK
        if not mark.is_file() or mark.read_text(encoding="utf-8") != context.fingerprint:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            mark.write_text(context.fingerprint, encoding="utf-8")
        return directory

    def _vocabulary(self, student: Side) -> int:
        from easydistill.models.compatibility import real_vocabulary, shared_ids, side_of

        if self._scoring.distillation.align == "bytes":
            return real_vocabulary(student.tokenizer)
        teachers = [side_of(reference, "teacher") for reference, _ in self._scoring.teachers]
        shared = [shared_ids(student.tokenizer, teacher.tokenizer) for teacher in teachers]
        return min(count for count in shared if count is not None)

    def _codec(self, vocabulary: int) -> Codec:
        from easydistill.signals.extract import SignalShape

        return SignalShape.of(self._scoring.signals, vocabulary).codec(vocabulary)

    def _scorer(self, vocabulary: int) -> Scorer:
        from easydistill.signals.score import ModelScorer

        scoring = self._scoring
        references, weights = zip(*scoring.teachers, strict=True)
        temperature = scoring.distillation.temperature
        return ModelScorer(references, weights, scoring.signals, vocabulary, temperature, trust_remote_code=self._trust)

    def _about(self, student: Side, vocabulary: int, renderer: ChatRenderer) -> dict[str, Any]:
        """What decided these signals, by name: for people, for `verify`, and to tell what differs."""
        scoring = self._scoring
        return {
            "teachers": [
                {"model": reference, "weight": weight, "identity": resolve(reference).identity()}
                for reference, weight in scoring.teachers
            ],
            "tokenizer": content_hash(student.tokenizer.get_vocab()),
            "template": content_hash(renderer.template),
            "vocabulary": vocabulary,
            "signals": scoring.signals.identity(),
            "temperature": scoring.distillation.temperature,
            "align": scoring.distillation.align,
            "max_length": scoring.max_length,
            "trust_remote_code": self._trust,
        }

    def _publish(self, directory: Path) -> None:
        """Show the store where the user wants it: hard links (copies across file systems), never over other files."""
        if self._scoring.logits_path is None:
            return
        target = Path(self._scoring.logits_path)
        if target.exists() and not (target / STORE).is_file():
            number = 1
            while (backup := target.with_name(f"{target.name}.{number}.bak")).exists():
                number += 1
            target.rename(backup)
            LOGGER.warning("%s was there before; it is kept as %s", target, backup)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for path in directory.iterdir():
            if path.name != MARK:
                link_or_copy(path, temporary / path.name)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)

    def _result(
        self, store: SignalStore, entered: int, rows: int, rejected: list[Rejection], context: StageContext
    ) -> StageResult:
        manifest = store.manifest
        notes = [
            f"{reference}: {difference.problem}; {difference.mend}"
            for reference, found in self._differences().items()
            for difference in found
        ]
        for note in notes:
            LOGGER.info("%s", note)
        outputs = sorted(path.name for path in store.directory.iterdir() if path.name != MARK)
        return StageResult(
            outputs=[f"{SIGNALS}/{name}" for name in outputs],
            rows=RowCounts(entered, rows, count_reasons(rejected)),
            rejected=rejected,
            tokens={"scored": manifest.tokens},
            metrics={
                "bytes_per_token": round(manifest.bytes_per_token, 3),
                "bytes": manifest.bytes,
                "signal": manifest.about["signals"]["kind"],
                **{name: round(value, 6) for name, value in store.figures().items()},
                "notes": notes,
            },
        )


def scorer_of_store(store: SignalStore, teacher: str | None = None) -> tuple[Scorer, float]:
    """The teacher that a store's signals came from, ready to score again, and the usual tolerance in nats.

    `teacher` names it where it has moved.

    Raises:
        DataError: the weights are not those that made the store, or it cannot be told.
        ModelError: the teacher is not there.
    """
    from pydantic import TypeAdapter

    from easydistill.models.loading import choose_dtype, device
    from easydistill.signals.score import ModelScorer
    from easydistill.signals.verify import BF16_TOLERANCE

    about = store.manifest.about
    try:
        signals: SignalsConfig = TypeAdapter(SignalsConfig).validate_python(about["signals"])
        teachers = [(item["model"], item["weight"], item["identity"]) for item in about["teachers"]]
        vocabulary, temperature = about["vocabulary"], about["temperature"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{store.directory}: the store does not say how it was made: {error}") from None
    if teacher is not None:
        if len(teachers) != 1:
            raise DataError(f"{store.directory}: {len(teachers)} teachers made it; one name does not tell which")
        teachers = [(teacher, 1.0, teachers[0][2])]
    for reference, _, identity in teachers:
        if resolve(reference).identity() != identity:
            raise DataError(
                f"{reference}: these are not the weights that made {store.directory}\n"
                "    → name the right teacher with --teacher, or score again"
            )
    scorer = ModelScorer(
        [reference for reference, _, _ in teachers],
        [weight for _, weight, _ in teachers],
        signals,
        vocabulary,
        temperature,
        trust_remote_code=bool(about.get("trust_remote_code", False)),
    )
    exact = str(choose_dtype(signals.dtype, device())) in {"torch.float32", "torch.float64"}
    return scorer, 5e-3 if exact else BF16_TOLERANCE
