"""The synthesise stage runs an operator: it answers the operator's requests and writes the accepted rows and a funnel.

Every answer is journalled as received before the operator sees it, keyed by the request. An operator that runs again,
after a kill or with another threshold, only sends requests that have not been answered yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easydistill.asking.answers import JOURNAL, worth_another_try
from easydistill.asking.forecast import forecast_calls
from easydistill.asking.model import AskedModel
from easydistill.asking.outputs import (
    LABELED_JSON,
    LABELED_PARQUET,
    labeled_path_issues,
    publish_pairs,
    publish_samples,
    write_rejected,
)
from easydistill.asking.work import asking_work
from easydistill.contracts.operator import Ask, OperatorConfig, Result, Role, Steps, UnfitRows, answer_with
from easydistill.data.files import replacing
from easydistill.data.images import ImageReader, ImageStore, NoImages, RowImages
from easydistill.data.journal import Journal
from easydistill.data.manifest import RowCounts
from easydistill.data.reading import Reading
from easydistill.data.records import Rejection, Sample, count_reasons
from easydistill.data.row_files import MALFORMED
from easydistill.data.spool import like
from easydistill.data.writing import (
    as_preference,
    only_writable,
    write_pairs_json,
    write_pairs_parquet,
    write_paper_json,
    write_parquet,
)
from easydistill.engine.checks import missing_file, needs_extra, unreadable_rows
from easydistill.engine.devices import answering_bytes
from easydistill.engine.stage import REJECTED, Estimate, Previewed, StageContext, StageResult, Work, lines_of
from easydistill.errors import ConfigIssue, DataError
from easydistill.synthesis.asker import Asker
from easydistill.synthesis.dataset_card import dataset_card
from easydistill.synthesis.operators import OPERATORS
from easydistill.synthesis.sources import BLIND_MODEL, TEXT_ALONE, RowSource
from easydistill.synthesis.tools import Tools, prompt_hashes, prompt_issues
from easydistill.teachers.sizes import chat_bytes

CARD = "README.md"
MOST_SEEDS = 2000
"""Maximum number of seeds that new rows are compared with for the diversity metrics."""


class SynthesiseStage:
    """One operator over the rows of a source."""

    name = "synthesise"
    classifies = False
    inputs: tuple[str, ...] = ()

    def __init__(
        self,
        operator: str,
        config: Any,
        source: RowSource,
        models: Mapping[Role, AskedModel],
        labeled_path: str | None,
    ) -> None:
        self._operator = operator
        self._module: Any = OPERATORS.module(operator)
        self._config = config
        self._source = source
        self._models = models
        self._labeled_path = labeled_path
        self._pairs: bool = self._module.PAIRS
        self._also: tuple[str, ...] = self._module.ALSO
        self.offers = (LABELED_PARQUET, LABELED_JSON, *(f"{name}.parquet" for name in self._also))

    def preflight(self) -> list[ConfigIssue]:
        issues = self._source.issues() + labeled_path_issues(self._labeled_path)
        issues += needs_extra("synth", "rensa", "rapidfuzz", "math_verify", "jsonschema")
        if isinstance(self._config, OperatorConfig):
            issues += prompt_issues(self._config, self._module.PROMPTS)
        files = self._module.files(self._config).items()
        issues += [issue for key, path in files for issue in missing_file(f"synthesis.{key}", path)]
        rows = self._module.row_files(self._config).items()
        issues += [issue for key, path in rows for issue in unreadable_rows(f"synthesis.{key}", path)]
        for model in {id(model): model for model in self._models.values()}.values():
            issues += model.plan.preflight()
        return issues

    def fingerprint(self) -> dict[str, Any]:
        asked = isinstance(self._config, OperatorConfig)
        return {
            "operator": self._module.IDENTITY or self._operator,
            "config": self._config.identity(),
            "prompts": prompt_hashes(self._config) if asked else {},
            "source": self._source.fingerprint(),
            "models": {role: model.identity() for role, model in self._models.items()},
            "labeled_path": self._labeled_path,
        }

    def shows_date(self) -> bool:
        return any(model.plan.shows_date() for model in self._models.values())

    def first_questions(self, limit: int | None = None) -> tuple[Sequence[Sample], list[Ask]]:
        """The rows (at most `limit`), and the operator's first requests about them."""
        rows = self._read().samples[:limit]
        steps = self._steps(rows)
        try:
            return rows, next(steps)
        except StopIteration:
            return rows, []
        finally:
            steps.close()

    def preview(self, limit: int) -> list[Previewed]:
        rows, asks = self.first_questions(limit)
        if not asks:
            messages = [Previewed(self.name, row=row.id, messages=row.messages) for row in rows]
            note = f"{self._operator} asks no model; these are the rows it reads"
            return [*messages, Previewed(self.name, note=note)]
        found: list[Previewed] = []
        for ask in asks[:limit]:
            model = self._models[ask.role]
            sampling = model.sampling(ask) | ({"schema": ask.schema} if ask.schema else {})
            found.append(Previewed(self.name, ask.role, messages=model.messages(ask), sampling=sampling))
        return found

    def estimate(self, directory: Path) -> Estimate:
        """Estimate from the operator's first requests, with the maximum number of requests if the operator knows it."""
        rows, asks = self.first_questions()
        # All of this machine stay loaded; those behind an API take nothing.
        models = {id(model): model.plan.memory_bytes() for model in self._models.values()}
        weights = sum(size for size in models.values() if size is not None)
        memory = answering_bytes(weights) if weights else None
        if not asks:
            return Estimate(rows=len(rows), calls=0, memory_bytes=memory)
        model = self._models[asks[0].role]
        identities = {role: self._models[role].plan.identity() for role in {ask.role for ask in asks}}
        requests = {
            request.key: request.messages
            for request in (self._models[ask.role].request(ask, identities[ask.role]) for ask in asks)
        }
        known = all(None not in identity.values() for identity in identities.values())
        most = self._module.most_asks(self._config)
        figures = forecast_calls(requests, directory, model.inference, keys_known=known, most=most)
        longest = max(model.inference.max_new_tokens for model in self._models.values())
        return Estimate(
            rows=len(rows),
            calls_at_most=most,
            tokens_at_most=(most or figures["calls"]) * longest,
            memory_bytes=memory,
            **(figures | {"done_rows": None}),
        )

    def work(self) -> Work | None:
        """Of the operator's first requests, or of as many as there may be, if one model is asked them all."""
        if len(self._models) != 1:
            # Without a model the first request is never reached: that would be the whole work.
            return None
        _, asks = self.first_questions()
        if not asks:
            return None
        (model,) = self._models.values()
        most = self._module.most_asks(self._config) or len(asks)
        size = sum(chat_bytes(model.messages(ask)) for ask in asks)
        return asking_work(model.inference, model.plan, most, size * most // len(asks))

    def run(self, context: StageContext) -> StageResult:
        found = self._read(context=context)
        context.notice(found.notices)
        return self._finish(found.samples, found.rejected, self._steps(found.samples), context)

    def foretell(self) -> list[str]:
        plans = {id(model): model.plan for model in self._models.values()}.values()
        return [*lines_of(self._read), *(note for plan in plans for note in plan.notes())]

    def _read(self, most: int | None = None, context: StageContext | None = None) -> Reading:
        """The rows, and rejections of those that cannot be read, or not be written again."""
        found = self._source.read(most, self._images(context))
        # Before models are asked, not when the result is written.
        return only_writable(found, self.name)

    def _images(self, context: StageContext | None = None) -> RowImages:
        """What reads the images of rows, or refuses them."""
        if (why := self._unseen()) is not None:
            return NoImages(why)
        dataset = self._source.dataset
        if context is None:
            return ImageReader.of(dataset, ImageStore())
        return ImageReader.of(dataset, context.images, context.image_sources)

    def _unseen(self) -> str | None:
        """Why rows with images are refused; None if they are not."""
        shows: tuple[Role, ...] = self._module.SHOWS_IMAGES
        if not shows and not self._module.KEEPS_IMAGES:
            return self._module.REFUSES_IMAGES or TEXT_ALONE.format(operator=self._operator)
        asked = [role for role in shows if role in self._models]
        blind = next((role for role in asked if not self._models[role].plan.sees_images()), None)
        return None if blind is None else BLIND_MODEL.format(role=blind)

    def _finish(
        self, rows: Sequence[Sample], unreadable: list[Rejection], steps: Steps[Result], context: StageContext
    ) -> StageResult:
        """Run the operator's `steps` to the end and write the result."""
        with Journal(context.directory / JOURNAL, note=worth_another_try) as journal:
            asker = Asker(self._models, journal, context)
            try:
                result = answer_with(steps, asker.answer)
            except UnfitRows as problem:
                raise DataError(f"{self._source.where}: {problem}") from None
            finally:
                asker.close()
        if unreadable:
            rejected = like(result.rejected)
            rejected.extend(unreadable)
            rejected.extend(result.rejected)
            result.rejected = rejected
        result.entered += len(unreadable)
        if not result.accepted:
            write_rejected(context, result.rejected)
            reasons = f"each with its reason: {context.directory / REJECTED}"
            raise DataError(f"{self._source.where}: {_nothing_left(self._operator, result)}\n    → {reasons}")
        return self._write(rows, result, asker, context)

    def _steps(self, rows: Sequence[Sample]) -> Any:
        tools = Tools(self._config, self._module) if isinstance(self._config, OperatorConfig) else None
        return self._module.run(self._config, rows, tools)

    def _write(self, rows: Sequence[Sample], result: Result, asker: Asker, context: StageContext) -> StageResult:
        files = self._write_rows(result, context)
        if self._labeled_path is not None:
            self._publish(result.accepted, Path(self._labeled_path), context)
        counts = RowCounts(result.entered, len(result.accepted), count_reasons(result.rejected))
        from easydistill.synthesis.diversity import diversity

        seeds = rows[:MOST_SEEDS] if self._module.MAKES_PROMPTS else []
        metrics = {
            "operator": self._operator,
            "funnel": funnel(result, self._module.REASONS),
            "diversity": diversity(self._one_per_prompt(result.accepted), seeds),
            **asker.spent(),
            **result.facts,
        }
        with replacing(context.directory / CARD) as temporary:
            card = dataset_card(
                self._operator, result.accepted, counts, metrics, made=bool(self._models), pairs=self._pairs
            )
            temporary.write_text(card, encoding="utf-8")
        return StageResult(
            outputs=(*files, CARD),
            rows=counts,
            rejected=result.rejected,
            tokens=asker.tokens,
            metrics=metrics,
        )

    def _one_per_prompt(self, rows: Sequence[Sample]) -> Sequence[Sample]:
        """The rows; if they are pairs, only the first of each prompt."""
        return list({row.prompt_hash: row for row in reversed(rows)}.values())[::-1] if self._pairs else rows

    def _write_rows(self, result: Result, context: StageContext) -> list[str]:
        """Write the accepted rows and those of other kinds; returns the file names."""
        directory = context.directory
        if self._pairs:
            pairs = list(map(as_preference, result.accepted))
            write_pairs_json(directory / LABELED_JSON, pairs, context.images)
            write_pairs_parquet(directory / LABELED_PARQUET, pairs, context.images)
        else:
            write_paper_json(directory / LABELED_JSON, result.accepted, context.images)
            write_parquet(directory / LABELED_PARQUET, result.accepted, context.images)
        files = [LABELED_JSON, LABELED_PARQUET]
        for name in self._also:
            write_paper_json(directory / f"{name}.json", result.also[name], context.images)
            write_parquet(directory / f"{name}.parquet", result.also[name], context.images)
            files += [f"{name}.json", f"{name}.parquet"]
        return files

    def _publish(self, rows: Sequence[Sample], target: Path, context: StageContext) -> None:
        if self._pairs:
            publish_pairs(context, target, list(map(as_preference, rows)))
        else:
            publish_samples(context, target, rows)


def funnel(result: Result, order: Sequence[str]) -> list[tuple[str, int]]:
    """Candidates left after each check, in the order of the checks: [(reason code, rows left)]."""
    lost = Counter(rejection.reason for rejection in result.rejected)
    known = (MALFORMED, *order)
    names = [*(name for name in known if name in lost), *(name for name in lost if name not in known)]
    left = result.entered
    steps = [("candidates", left)]
    for name in names:
        left -= lost[name]
        steps.append((name, left))
    return steps


def _nothing_left(operator: str, result: Result) -> str:
    reasons = ", ".join(f"{reason} ×{count}" for reason, count in count_reasons(result.rejected).items())
    example = f"\n    e.g. {result.rejected[0].detail}" if result.rejected else ""
    return f"{operator}: none of {result.entered} candidates was accepted: {reasons or 'there were none'}{example}"
