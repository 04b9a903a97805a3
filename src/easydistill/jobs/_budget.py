"""What the jobs of a pipeline spend together on models behind APIs: their limits, and what they have spent.

The journals of a run directory say what was paid for, in this run or an earlier one, also by a job that was killed, or
that is no longer in the config. Answers cost what the config says now; those of a model that it no longer names are
taken at the dearest of its prices, so that a budget is never exceeded for want of knowing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from easydistill.asking.answers import AUTHOR, JOURNAL, UNPAID
from easydistill.config.inference import ApiInferenceConfig, PricesConfig
from easydistill.config.job import JobConfig
from easydistill.config.pipeline import PipelineConfig
from easydistill.config.values import KeyPath, dotted
from easydistill.contracts.teacher import Completion, endpoint_name, outcome_from_record
from easydistill.data.files import write_json
from easydistill.data.journal import records_in
from easydistill.data.records import content_hash
from easydistill.engine.budget import Account, AccountKey, Budget
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.summary import SPENDING
from easydistill.errors import ConfigIssue
from easydistill.methods.policy.stage import JUDGED
from easydistill.tasks.custom import judge_journal
from easydistill.teachers.ledger import Ledger
from easydistill.teachers.remembering import was_remembered

_JOURNALS = (JOURNAL, JUDGED, judge_journal("*"))


def asked_servers(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, ApiInferenceConfig]]:
    """Every section of a job by which a model behind an API is asked, with its path."""
    if isinstance(value, ApiInferenceConfig):
        yield path, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from asked_servers(getattr(value, name), (*path, name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from asked_servers(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from asked_servers(item, (*path, number))


def budget_issues(pipeline: PipelineConfig) -> list[ConfigIssue]:
    """Limits of a pipeline that cannot be kept: nothing is counted, or nobody knows what it costs."""
    given = [name for name in ("max_cost", "max_tokens_total") if getattr(pipeline, name) is not None]
    if not given:
        return []
    asked = [(f"jobs.{name}.{dotted(path)}", section) for name, path, section in _servers(pipeline)]
    if not asked:
        problem = "no job of this pipeline asks a model behind an API: there is nothing to count"
        return [ConfigIssue("config", name, problem, "remove it") for name in given]
    if pipeline.max_cost is None:
        return []
    hint = 'set "prices": {"input": …, "output": …} there, or in shared.inference'
    unknown = [place for place, section in asked if section.token_prices is None]
    if unknown:
        problem = f"the pipeline's max_cost needs to know what the tokens of {', '.join(unknown)} cost"
        return [ConfigIssue("config", "max_cost", problem, hint)]
    known = (section.built_in_price for _, section in asked)
    currencies = sorted({price.currency for price in known if price is not None})
    if len(currencies) > 1:
        problem = f"the jobs' built-in prices are in {' and '.join(currencies)}, which cannot be added"
        return [ConfigIssue("config", "max_cost", problem, "set inference.prices in one currency")]
    return []


def _servers(pipeline: PipelineConfig) -> Iterator[tuple[str, KeyPath, ApiInferenceConfig]]:
    for name, job in pipeline.jobs.items():
        for path, section in asked_servers(job):
            yield name, path, section


@dataclass
class Purse:
    """A pipeline's budget, read from its run directory when the first job starts."""

    pipeline: PipelineConfig
    run: RunDirectory
    _budget: Budget | None = field(default=None, init=False)

    @property
    def budget(self) -> Budget:
        if self._budget is None:
            self._budget = spent_so_far(self.pipeline, self.run)
        return self._budget

    def lines(self, name: str) -> list[str]:
        """What is left of the limits, told with the first job that asks a model behind an API."""
        first = next((job for job, _, _ in _servers(self.pipeline)), None)
        if name != first:
            return []
        # As it is on disk: a plan writes nothing, and the run goes on counting.
        budget = self._budget or spent_so_far(self.pipeline, self.run)
        return budget.left()

    def settle(self, name: str, directory: Path) -> None:
        """Count what a job that has ended has left, and keep the sums for the report."""
        self.budget.settle(name, _found(directory, self.budget, _prices(self.pipeline, name)))
        write_json(self.run.path / SPENDING, _by_job(self.pipeline, self.budget))


def spent_so_far(pipeline: PipelineConfig, run: RunDirectory) -> Budget:
    """What a run directory says was spent, with the pipeline's limits."""
    budget = Budget(run.path, pipeline.max_cost, pipeline.max_tokens_total)
    for directory in run.stage_directories():
        name = directory.name.partition("-")[2]
        budget.accounts.update(_found(directory, budget, _prices(pipeline, name)))
    return budget


@dataclass(frozen=True)
class _Prices:
    """Prices by author, and of authors that the config does not name."""

    by_author: Mapping[str, PricesConfig | None]
    other: PricesConfig | None
    judge: bool
    """Whether the job's judge is behind an API."""

    def of(self, author: str) -> PricesConfig | None:
        return self.by_author.get(author, self.other)


def _prices(pipeline: PipelineConfig, name: str) -> _Prices:
    own: Mapping[KeyPath, ApiInferenceConfig] = {}
    if isinstance(job := pipeline.jobs.get(name), JobConfig):
        own = dict(asked_servers(job))
    every = list(own.values()) or [section for _, _, section in _servers(pipeline)]
    known = [prices for section in every if (prices := section.token_prices) is not None]
    other = None
    if known:
        other = PricesConfig(input=max(p.input for p in known), output=max(p.output for p in known))
    by_author = {
        content_hash({"base_url": endpoint_name(section.base_urls), "model": section.model})[:8]: section.token_prices
        for section in own.values()
        if section.model is not None
    }
    return _Prices(by_author, other, any("judge" in path for path in own))


def _found(directory: Path, budget: Budget, prices: _Prices) -> dict[AccountKey, Account]:
    """The accounts in a job's directory."""
    found: dict[AccountKey, Account] = {}
    for pattern in _JOURNALS:
        for path in sorted(directory.glob(f"stages/*/{pattern}")):
            place = budget.place(path)
            # Those that were asked again were paid for, too.
            for record in records_in(path):
                if record.get("kind") != "completion":
                    continue
                author = record.get(AUTHOR)
                # Judges of rewards and tasks have journals of their own, and sign nothing.
                judged = author is None and prices.judge and path.name != JOURNAL
                if not (judged or (author is not None and not author.startswith(UNPAID))):
                    continue
                answer, key = _completion(record), (place, author or "")
                if was_remembered(answer):
                    continue
                ledger = found.setdefault(key, Ledger(prices.of(author or "")))
                assert isinstance(ledger, Ledger)
                ledger.add(answer)
    return found


def _completion(record: dict[str, Any]) -> Completion:
    known = {"kind", *Completion.__dataclass_fields__}
    outcome = outcome_from_record({name: value for name, value in record.items() if name in known})
    assert isinstance(outcome, Completion)
    return outcome


def _by_job(pipeline: PipelineConfig, budget: Budget) -> dict[str, Any]:
    """What each job has spent, by model, and where its prices are from; and the pipeline's limits."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    for (place, _), account in budget.accounts.items():
        if isinstance(account, Ledger) and place.startswith("stages/"):
            jobs.setdefault(place.split("/")[1], []).append(account.as_metrics())
    known = {name: price for name, _, section in _servers(pipeline) if (price := section.built_in_price) is not None}
    return {
        "max_cost": pipeline.max_cost,
        "max_tokens_total": pipeline.max_tokens_total,
        "jobs": jobs,
        "built_in": {name: {"as_of": price.as_of, "currency": price.currency} for name, price in known.items()},
    }
