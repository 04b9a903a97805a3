"""Preference optimisation: the student learns which of two answers is the better one (DPO and its kin)."""

from __future__ import annotations

from typing import Literal

from easydistill.config.dataset import PairsConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.job import JobConfig
from easydistill.config.models import ModelsConfig
from easydistill.engine.stage import Stage
from easydistill.methods.dpo.config import DpoTrainingConfig, PreferenceConfig
from easydistill.methods.dpo.stage import PairRows, PreferStage


class Job(JobConfig):
    """`dataset.labeled_path` holds pairs: `prompt`, `chosen`, `rejected`, and a `beta` where a pair has its own."""

    job_type: Literal["dpo"]
    """Which job this is."""
    dataset: PairsConfig
    models: ModelsConfig
    preference: PreferenceConfig = PreferenceConfig()
    training: DpoTrainingConfig = DpoTrainingConfig()
    evaluation: HeldoutConfig = HeldoutConfig()


def plan(job: Job) -> list[Stage]:
    """train, with figures of held-out pairs before and after."""
    return [PreferStage(PairRows(job.dataset, job.evaluation), job.models, job.training, job.preference)]
