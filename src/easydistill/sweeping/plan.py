"""What a sweep would do: of each variant the stages that are open, and which of them another variant pays for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from easydistill.config.job import JobConfig
from easydistill.data.records import content_hash
from easydistill.engine.stage import Estimate, PlannedStage
from easydistill.jobs import Sharing, stages_of


@dataclass(frozen=True)
class PlannedVariant:
    """A variant as `--dry-run` shows it."""

    name: str
    stages: tuple[PlannedStage, ...]
    shared: dict[str, str]
    """Stage that takes what was paid for already → the variant that pays."""

    def paid(self) -> list[PlannedStage]:
        """Its open stages, without what others pay for."""
        return [
            replace(stage, estimate=Estimate(disk_bytes=stage.estimate.disk_bytes))
            if stage.name in self.shared
            else stage
            for stage in self.stages
            if stage.state != "done"
        ]


def planned(found: Sequence[tuple[str, JobConfig, Sequence[PlannedStage]]]) -> list[PlannedVariant]:
    """What each variant takes, in the order in which they run.

    Args:
        found: name, job, and stages as `plan` shows them, of each.
    """
    first: dict[str, str] = {}
    variants = []
    for name, job, stages in found:
        shared = {}
        for key, sharing in _sharing(job):
            for stage in stages:
                # A pipeline's stages have the name of their job before their own.
                if stage.name.split(".")[0] != key[0] or not (sharing or stage.estimate.calls):
                    continue
                mark = f"{key[1]} {stage.name}"
                if mark in first and stage.state != "done":
                    shared[stage.name] = first[mark]
                first.setdefault(mark, name)
        variants.append(PlannedVariant(name, tuple(stages), shared))
    return variants


def _sharing(job: JobConfig) -> list[tuple[tuple[str, str], bool]]:
    """((stage, hash of all that decides what it makes), whether it shares more than answers)."""
    chains: dict[str, str] = {}
    found = []
    for stage in stages_of(job):
        inputs = [chains[name] for name in stage.inputs if name in chains]
        chains[stage.name] = content_hash([stage.name, stage.fingerprint(), inputs])
        found.append(((stage.name, chains[stage.name]), isinstance(stage, Sharing)))
    return found
