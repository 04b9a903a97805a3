"""Preference optimisation: the student learns which of two answers is better (DPO and related losses)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from easydistill.config.dataset import PairsConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.engine.stage import Stage
from easydistill.jobs._launch import check_pair_losses
from easydistill.methods.dpo.config import DpoTrainingConfig, PreferenceConfig
from easydistill.methods.dpo.stage import DpoStage
from easydistill.methods.shared.pairs import PairRows


class Job(JobConfig):
    """`dataset.labeled_path` holds pairs: `prompt`, `chosen`, `rejected`, and optionally the pair's own `beta`."""

    job_type: Literal["dpo"]
    """Which job this is."""
    dataset: PairsConfig
    models: ModelsConfig
    preference: PreferenceConfig = PreferenceConfig()
    training: DpoTrainingConfig = DpoTrainingConfig()
    launch: LaunchConfig | None = None
    """Train in several processes."""
    evaluation: HeldoutConfig = HeldoutConfig()

    @model_validator(mode="after")
    def _fits_its_processes(self) -> Job:
        check_pair_losses(self.launch, self.preference)
        return self


def plan(job: Job) -> list[Stage]:
    """train, with metrics on held-out pairs before and after."""
    return [
        DpoStage(PairRows(job.dataset, job.evaluation, shown_to=job.models), job.models, job.training, job.preference)
    ]
