"""Score: the teacher's token distributions on the training rows, tokenised exactly as the student will read them.

Labelled rows in; a store of teacher signals out (see `signals/store.py`). The student then trains without the teacher.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from easydistill.config.models import ModelsConfig
from easydistill.contracts.loss import DistillationConfig
from easydistill.data.files import hash_file, link_or_copy, set_aside, write_text
from easydistill.data.manifest import RowCounts
from easydistill.data.records import Rejection, Sample, content_hash, count_reasons, is_cut
from easydistill.engine.checks import missing_file, needs_extra, unreadable_rows, unwritable_issues
from easydistill.engine.devices import answering_bytes, kind_of_device
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.stage import Estimate, StageContext, StageResult, Work
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.methods.distil.forms import Forms, read_by_teacher, rows_to_score
from easydistill.methods.shared.rendering import LostThoughts, template_identity, template_shows_date
from easydistill.methods.shared.rows import LabelledRows, keep_rejected, render_all
from easydistill.methods.shared.sight import other_sight, sight_of
from easydistill.models.checks import model_issues, student_issues
from easydistill.models.limits import Limits
from easydistill.models.reference import resolve
from easydistill.models.size import model_parameters
from easydistill.models.spread import Spread, spread_note, visible_gpus
from easydistill.models.student import student_references
from easydistill.signals.config import SignalsConfig, TopKSignals

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Rendered
    from easydistill.models.compatibility import Difference
    from easydistill.models.multimodal import Vision
    from easydistill.signals.codec import Codec
    from easydistill.signals.score import RowToScore, Scorer
    from easydistill.signals.shared import SharedStore
    from easydistill.signals.sharing import SharedWork
    from easydistill.signals.store import SignalStore

SIGNALS = "signals"
STORE = "store.json"
SHARED = "processes/score"
"""Folder for what the processes that score tell each other."""
MARK = "for.txt"
"""File with the fingerprint of the config that the shards belong to."""

_FIGURES_BYTES = 8
"""Of a token's signal beside the tokens that are kept."""
_ENTRY_BYTES = 3.25
"""Of a kept token: 16 bits name it, 10 are its log-probability."""


@dataclass(frozen=True)
class Scoring:
    """Settings of a score stage."""

    models: ModelsConfig
    signals: SignalsConfig
    distillation: DistillationConfig
    max_length: int
    logits_path: str | None = None
    """Where the store also appears, outside the run directory."""
    teacher_template: str | None = None
    teacher_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """As in `Forms`, for a teacher that reads chats in its own form."""
    processes: int | Literal["auto"] = 1
    """How many score, unless vLLM does."""
    spread: Spread | None = None
    """Where the copies of each teacher lie, if they are not on one device each."""
    gpu_memory_gb: float | None = None
    """Memory of a GPU where the run will take place, if that is known."""

    @property
    def teachers(self) -> list[tuple[str, float]]:
        """(reference, weight) of each teacher."""
        if self.signals.teachers is not None:
            return [(teacher.model, teacher.weight) for teacher in self.signals.teachers]
        assert self.models.teacher is not None
        return [(self.models.teacher, 1.0)]

    @property
    def aligned(self) -> bool:
        """Whether the teacher has a different tokenizer, with which the student's is aligned."""
        return self.distillation.align == "bytes"

    @property
    def answers(self) -> bool:
        """Whether the teacher has the student's tokenizer and reads chats in its own form."""
        return self.distillation.align == "answers"

    @property
    def own_form(self) -> bool:
        """Whether the teacher reads chats in its own form, instead of the student's tokens."""
        return self.aligned or self.answers

    @property
    def by_rank(self) -> bool:
        """Whether an aligned teacher's probabilities are stored by rank, without their tokens (for `uld`)."""
        return self.aligned and self.distillation.by_rank


@dataclass(frozen=True)
class _Work:
    """Rows to score, their scorer, and the encoding of the signals."""

    rows: Sequence[RowToScore]
    vocabulary: int
    codec: Codec
    make_scorer: Callable[[], Scorer[Any]]
    metrics: dict[str, Any] = field(default_factory=dict)


class ScoreStage:
    """Teacher signals of the training rows."""

    name = "score"
    offers: tuple[str, ...] = (SIGNALS,)
    classifies = False
    answers_cache: str | None = None

    def __init__(self, rows: LabelledRows, scoring: Scoring) -> None:
        self._rows = rows
        self._scoring = scoring
        self._forms = Forms(scoring.models, rows.dataset, scoring.teacher_template, scoring.teacher_template_kwargs)
        self.inputs = rows.inputs

    # --- before anything runs -------------------------------------------------------------------------------

    def preflight(self) -> list[ConfigIssue]:
        scoring = self._scoring
        issues = needs_extra("train", "torch", "transformers", "safetensors")
        if scoring.signals.backend == "vllm":
            issues += needs_extra("vllm", "vllm")
        if not self._rows.from_stage:
            issues += unreadable_rows("dataset.labeled_path", self._rows.dataset.labeled_path)
        key = "models.teacher" if scoring.signals.teachers is None else "signals.teachers"
        for reference, _ in scoring.teachers:
            issues += model_issues(key, reference)
        if scoring.teacher_template is not None:
            issues += missing_file("inference.template", scoring.teacher_template)
        issues += unwritable_issues("dataset.logits_path", scoring.logits_path)
        return issues + student_issues(scoring.models)

    def examine(self) -> list[ConfigIssue]:
        """Compare the teachers' tokenizers and templates with the student's, before the first stage starts."""
        found = [(name, difference) for name, all_of in self._differences.items() for difference in all_of]
        if self._scoring.own_form:
            for name, difference in found:
                LOGGER.info("%s: %s; %s", name, difference.problem, difference.hint)
        fatal = [
            ConfigIssue("config", "models", f"{name}: {difference.problem}", difference.hint)
            for name, difference in found
            if difference.fatal
        ]
        return fatal or self._image_issues()

    def _image_issues(self) -> list[ConfigIssue]:
        """Teachers that would not see the images of rows, or read them as other tokens than those they must read."""
        scoring = self._scoring
        if self._rows.refuses_images is not None or not self._rows.show_images():
            return []
        return [
            ConfigIssue("config", "models", f"{reference}: {problem}", hint)
            for reference, _ in scoring.teachers
            for problem, hint in other_sight(scoring.models, reference, own_form=scoring.own_form)
        ]

    def _vision(self, context: StageContext) -> Vision | None:
        """What the student sees of images."""
        return sight_of(self._scoring.models, context.images.path)

    @cached_property
    def _differences(self) -> dict[str, list[Difference]]:
        from easydistill.models.compatibility import compare

        student = self._forms.student
        teachers = {reference: self._forms.teacher(reference) for reference, _ in self._scoring.teachers}
        if not self._scoring.own_form:
            return {reference: compare(student, teacher) for reference, teacher in teachers.items()}
        if self._scoring.answers:
            from easydistill.signals.answers import compare_answers

            return {reference: compare_answers(student, teacher) for reference, teacher in teachers.items()}
        from easydistill.signals.aligned import compare_aligned

        by_rank = self._scoring.by_rank
        return {name: compare_aligned(student, teacher, by_rank=by_rank) for name, teacher in teachers.items()}

    @property
    def _trust(self) -> bool:
        return self._scoring.models.trust_remote_code

    def fingerprint(self) -> dict[str, Any]:
        scoring = self._scoring
        # Only the student's tokenizer matters; the hash of its files covers that.
        students = [resolve(reference).identity() for reference in student_references(scoring.models)]
        return {
            "rows": self._rows.fingerprint(),
            "signals": scoring.signals.identity(),
            "teachers": [[resolve(reference).identity(), weight] for reference, weight in scoring.teachers],
            "tokenizer": students,
            **template_identity(self._rows.dataset),
            "temperature": scoring.distillation.temperature,
            "align": scoring.distillation.align,
            "max_length": scoring.max_length,
            **({"by_rank": scoring.by_rank} if scoring.aligned else {}),
            **(self._forms.identity() if scoring.own_form else {}),
        }

    def shows_date(self) -> bool:
        scoring, dataset = self._scoring, self._rows.dataset
        if template_shows_date(dataset, student_references(scoring.models)):
            return True
        if not scoring.own_form:
            # The teacher reads the student's tokens.
            return False
        return any(self._forms.shows_date(reference) for reference, _ in scoring.teachers)

    def less_memory(self) -> list[str]:
        most = self._scoring.signals.max_batch_tokens
        if self._scoring.signals.backend == "vllm":
            return []
        if most is None:
            return [
                "signals.max_batch_tokens=2048 (by default 4,096, and 8,192 on a GPU; a row longer than it is alone)"
            ]
        return [f"signals.max_batch_tokens={most // 2} (a row longer than it is alone)"] if most > 1 else []

    def _weights(self) -> int | None:
        """Bytes of the teachers' weights."""
        sizes = [model_parameters(reference) for reference, _ in self._scoring.teachers]
        each = 4 if self._scoring.signals.dtype == "float32" else 2
        known = [size for size in sizes if size is not None]
        return sum(known) * each if len(known) == len(sizes) else None

    def estimate(self, directory: Path) -> Estimate:
        weights = self._weights()
        rows, tokens = self._rows.sizes_ahead(self._scoring.max_length)
        disk = round(tokens * self._signal_bytes()) if rows else None
        return Estimate(
            rows=rows or None,
            memory_bytes=None if weights is None else answering_bytes(weights),
            disk_bytes=disk,
            disk_parts=None if disk is None else {"signals": disk},
        )

    def work(self) -> Work | None:
        sizes = [model_parameters(reference) for reference, _ in self._scoring.teachers]
        known = sum(size for size in sizes if size is not None)
        rows, tokens = self._rows.sizes_ahead(self._scoring.max_length)
        return None if None in sizes or not rows else Work("score", 2 * known * tokens, kind_of_device())

    def _signal_bytes(self) -> float:
        """Of a token: kept tokens with their log-probabilities, packed, and a few figures (`signals/codec.py`).

        Drawn kinds keep fewer than they may: their share is that of SmolLM2's answers (`benchmarks/quality`).
        """
        kept: Any = self._scoring.signals
        counts = {"top_k": "k", "top_p": "k_max", "sampled": "draws", "threshold": "n"}
        if kept.kind == "top_k_sampled":
            count: float = kept.k + kept.draws
        else:
            count = getattr(kept, counts[kept.kind])
        share = {"threshold": 0.17, "sampled": 0.4, "top_p": 0.4}.get(kept.kind, 1.0)
        return _FIGURES_BYTES + share * count * _ENTRY_BYTES

    @property
    def works_alone(self) -> bool:
        """Whether one process scores: vLLM shares the teacher among all devices by itself."""
        return self._scoring.signals.backend == "vllm"

    def foretell(self) -> list[str]:
        processes = self._scoring.processes
        if self._scoring.spread is not None and not self.works_alone:
            return [self._spread_note(self._scoring.spread)]
        if processes == 1:
            return []
        if self.works_alone:
            return ["vLLM scores in one process, on all GPUs: launch.processes concerns the training alone"]
        each = "each process" if processes == "auto" else f"each of {processes} processes"
        size = self._weights()
        return [f"{each} that scores loads the whole teacher" + (f" ({size / 1e9:.1f} GB)" if size else "")]

    def _spread_note(self, spread: Spread) -> str:
        elsewhere, copies = self._scoring.gpu_memory_gb, spread.copies
        if isinstance(self._scoring.processes, int):
            copies = min(copies, self._scoring.processes)
        size = self._weights()
        if elsewhere is not None:
            return spread_note(replace(spread, copies=copies), size, 0, round(elsewhere * 1e9))
        return spread_note(replace(spread, copies=copies), size, len(visible_gpus()), None)

    # --- the work -------------------------------------------------------------------------------------------

    def prepare(self, context: StageContext) -> None:
        """Make room for the store, and for what the processes tell each other."""
        from easydistill.signals.sharing import SharedWork

        self._make_room(context)
        SharedWork.clear(context.directory / SHARED)

    def _make_room(self, context: StageContext) -> None:
        """Remove shards of an earlier config, and what an earlier attempt left unfinished."""
        directory = context.directory / SIGNALS
        mark = directory / MARK
        if not mark.is_file() or mark.read_text(encoding="utf-8") != context.fingerprint:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            write_text(mark, context.fingerprint)
        # Temporary files: ours, and those that safetensors has beside them.
        for path in directory.glob(".*"):
            path.unlink()

    def run(self, context: StageContext) -> StageResult:
        from easydistill.models.allocation import reused_memory
        from easydistill.models.loading import device
        from easydistill.signals.shards import ShardPlan
        from easydistill.signals.store import SignalStore, StoreManifest

        share = self._share(context)
        samples, _, _ = self._rows.read(context)
        renderer = self._forms.student.renderer(context.started, self._vision(context))
        # The very tokens of the training stage, which cuts rows at the student's end too.
        limits = Limits.of_student(self._scoring.models)
        rendered, rejected = render_all(renderer, samples, self._scoring.max_length, self.name, limits)
        if self._scoring.answers:
            reference = self._scoring.teachers[0][0]
            theirs = self._forms.vision(reference, context.images.path)
            aligner = self._forms.aligner(reference, context.started, theirs)
            rendered, rows, unlike = read_by_teacher(aligner, rendered, self.name)
            rejected += unlike
        else:
            rows, unlike = rows_to_score(rendered), []
        keep_rejected(rejected, rendered, context, "score")
        # Here, not in training: a teacher's signals of the rows without them would be of no use.
        shown = ((sample, row.missing) for sample, row in rendered)
        LostThoughts.of(shown).refuse(self._rows.dataset, made=self._rows.from_stage)
        if self._scoring.aligned:
            work = self._aligned_work(rows, rendered, context)
        else:
            work = self._work(rows, context)
        directory = context.directory / SIGNALS
        planned = ShardPlan.of(work.rows, self._scoring.signals, directory)
        plan = planned.with_shared(self._shared(work))
        if found := len(planned.missing) - len(plan.missing):
            context.reporter.say(f"  signals of {plan.finished_rows:,} rows are from the answers cache")
            work.metrics["shards_from_cache"] = found
        counted = context.reporter.task("Scoring", len(work.rows), done=plan.finished_rows)
        with reused_memory(device()), counted as task:
            plan.score(work.codec, work.make_scorer, task.advance, context.stop, share)
        context.stop.raise_if_requested()
        if context.rank > 0:
            return StageResult([])
        about = self._about(work.vocabulary, renderer)
        if unlike:
            about["refused"] = {rejection.id: rejection.reason for rejection in unlike}
        StoreManifest.of(directory, work.codec, about, len(plan.shards)).write(directory)
        self._publish(directory)
        if share is not None:
            work.metrics.update(share.figures())
        return self._result(SignalStore(directory), len(samples), work, rejected)

    def _shared(self, work: _Work) -> SharedStore | None:
        """Where other runs keep signals, if the job names a cache."""
        from easydistill.models.loading import choose_dtype, device
        from easydistill.signals.shared import SharedShards, SharedStore

        if self.answers_cache is None:
            return None
        scoring = self._scoring
        # The tokens of the rows say what template and length made of them. Names of files are this machine's.
        about = {
            "teachers": [[resolve(reference).identity(), weight] for reference, weight in scoring.teachers],
            "tokenizer": content_hash(self._forms.student.tokenizer.get_vocab()),
            "vocabulary": work.vocabulary,
            "signals": {name: value for name, value in scoring.signals.identity().items() if name != "teachers"},
            "dtype": str(choose_dtype(scoring.signals.dtype, device())),
            "temperature": scoring.distillation.temperature,
            "align": scoring.distillation.align,
            "by_rank": scoring.by_rank,
        }
        return SharedStore(SharedShards(Path(self.answers_cache).expanduser()), about, work.codec)

    def _share(self, context: StageContext) -> SharedWork | None:
        """This process's part of the work, if there are several."""
        from easydistill.methods.shared.ranks import world_size
        from easydistill.signals.sharing import SharedWork

        if world_size() > 1:
            scores = self._scoring.spread is None or self._scoring.spread.of_rank() is not None
            return SharedWork(context.directory / SHARED, context.rank, world_size(), scores=scores)
        self._make_room(context)
        return None

    def _work(self, rows: Sequence[RowToScore], context: StageContext) -> _Work:
        """The work for teachers with the student's vocabulary."""
        from easydistill.models.compatibility import real_vocabulary
        from easydistill.signals.extract import SignalShape
        from easydistill.signals.score import ModelScorer

        scoring, signals = self._scoring, self._scoring.signals
        vocabulary = self._shared_ids()
        # Tokens that the student alone knows have no mass of the teacher's, and stand in its rows.
        stored = real_vocabulary(self._forms.student.tokenizer) if scoring.answers else vocabulary
        references, weights = zip(*scoring.teachers, strict=True)
        self._check_lengths(rows)
        if signals.backend == "vllm":
            from easydistill.signals.from_vllm import VllmScorer, codec_of

            assert isinstance(signals, TopKSignals), "the job's validator refuses other signals"
            longest = max((row.length for row in rows), default=1)
            # Without forms of their own, both read every image as the same tokens.
            files = context.images.path
            vision = self._forms.vision(references[0], files) if scoring.answers else self._vision(context)
            return _Work(
                rows,
                vocabulary,
                codec_of(signals, stored),
                lambda: VllmScorer(
                    references[0], signals, vocabulary, longest, trust_remote_code=self._trust, vision=vision
                ),
            )
        temperature = scoring.distillation.temperature
        return _Work(
            rows,
            vocabulary,
            SignalShape.of(signals, vocabulary).codec(stored),
            lambda: ModelScorer(
                references,
                weights,
                signals,
                vocabulary,
                temperature,
                trust_remote_code=self._trust,
                spread=self._spread(),
                images=context.images.path,
            ),
        )

    def _spread(self) -> Spread | None:
        """Where this process's copy of each teacher lies."""
        from easydistill.methods.shared.ranks import world_size

        spread = self._scoring.spread
        if spread is None or world_size() > 1:
            return spread and spread.of_rank()
        # A process alone has all devices.
        return Spread(spread.device_map)

    def _check_lengths(self, rows: Sequence[RowToScore]) -> None:
        """Check that every teacher has learned as many positions as the longest row has tokens.

        Raises:
            ConfigError: one has not.
        """
        for reference, _ in self._scoring.teachers:
            end = Limits.of_reference(reference, trust_remote_code=self._trust).positions
            longer = [row for row in rows if end is not None and row.length > end]
            if longer:
                problem = f"{len(longer)} of {len(rows)} rows are longer than the {end} positions of {reference}"
                hint = f"set training.max_length to {end}"
                raise ConfigError(ConfigIssue("config", "training.max_length", problem, hint))

    def _aligned_work(
        self, rows: Sequence[RowToScore], rendered: Sequence[tuple[Sample, Rendered]], context: StageContext
    ) -> _Work:
        """The work for a teacher with another tokenizer, which reads the same chats in its own tokens."""
        from easydistill.models.compatibility import real_vocabulary
        from easydistill.signals.aligned import AlignedScorer, Aligner, codec_of, coverage

        scoring, signals = self._scoring, self._scoring.signals
        (reference, _), *others = scoring.teachers
        assert not others, "the job's validator refuses several teachers"
        end = Limits.of_reference(reference, trust_remote_code=self._trust).positions
        student, files = self._forms.student, context.images.path
        sights = (self._vision(context), self._forms.vision(reference, files))
        aligner = Aligner(student, self._forms.teacher(reference), end, context.started, sights)
        vocabulary = real_vocabulary(student.tokenizer)
        aligned = [
            aligner.row(row, sample, truncated=written.truncated or is_cut(sample))
            for row, (sample, written) in zip(rows, rendered, strict=True)
        ]
        return _Work(
            aligned,
            vocabulary,
            codec_of(signals, vocabulary),
            lambda: AlignedScorer(
                reference,
                aligner.to_student,
                signals,
                vocabulary,
                scoring.distillation.temperature,
                by_rank=scoring.by_rank,
                trust_remote_code=self._trust,
                spread=self._spread(),
                images=files,
            ),
            coverage(reference, aligned),
        )

    def _shared_ids(self) -> int:
        """The bound below which token ids mean the same to the student and all teachers."""
        from easydistill.models.compatibility import answer_ids, shared_ids

        student = self._forms.student
        teachers = [self._forms.teacher(reference) for reference, _ in self._scoring.teachers]
        count = answer_ids if self._scoring.answers else shared_ids
        shared = [count(student.tokenizer, teacher.tokenizer) for teacher in teachers]
        return min(count for count in shared if count is not None)

    def _about(self, vocabulary: int, renderer: ChatRenderer) -> dict[str, Any]:
        """Everything that determined these signals: for readers, for `verify`, and for explaining mismatches."""
        scoring, student = self._scoring, self._forms.student
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
            "by_rank": scoring.by_rank,
            "max_length": scoring.max_length,
            "trust_remote_code": self._trust,
        }

    def _publish(self, directory: Path) -> None:
        """Link the store to `logits_path` (copy it across file systems); existing files there are kept."""
        if self._scoring.logits_path is None:
            return
        target = Path(self._scoring.logits_path)
        if (target / STORE).is_file() and hash_file(target / STORE) == hash_file(directory / STORE):
            return
        if target.exists():
            LOGGER.warning("%s already existed; the old files are kept as %s", target, set_aside(target))
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for path in directory.iterdir():
            if path.name != MARK:
                link_or_copy(path, temporary / path.name)
        temporary.rename(target)

    def _result(self, store: SignalStore, entered: int, work: _Work, rejected: list[Rejection]) -> StageResult:
        manifest = store.manifest
        notes = [
            f"{reference}: {difference.problem}; {difference.hint}"
            for reference, found in self._differences.items()
            for difference in found
        ]
        for note in notes:
            LOGGER.info("%s", note)
        outputs = sorted(path.name for path in store.directory.iterdir() if path.name != MARK)
        learned = sum(row.learned_tokens for row in work.rows)
        if not self._scoring.aligned and (missing := learned - manifest.tokens):
            note = f"{missing} of {learned} tokens have no signal: the teacher's probabilities are not finite there"
            LOGGER.warning("%s", note)
            notes.append(note)
        return StageResult(
            outputs=[f"{SIGNALS}/{name}" for name in outputs],
            rows=RowCounts(entered, len(work.rows), count_reasons(rejected)),
            rejected=rejected,
            tokens={"scored": manifest.tokens},
            metrics={
                "bytes_per_token": round(manifest.bytes_per_token, 3),
                "bytes": manifest.bytes,
                "signal": manifest.about["signals"]["kind"],
                **{name: round(value, 6) for name, value in store.figures().items()},
                **work.metrics,
                # An aligned teacher has none for some tokens by design; `coverage` counts those.
                **({} if self._scoring.aligned else {"unscored_tokens": learned - manifest.tokens}),
                "notes": notes,
            },
        )
