"""A reward model from pairs: the student, with a scalar head, learns to score the better answer higher."""

from __future__ import annotations

from typing import Literal

from easydistill.config.dataset import PairsConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.engine.stage import Stage
from easydistill.methods.reward_model.config import RewardModelConfig, RewardTrainingConfig
from easydistill.methods.reward_model.stage import RewardStage
from easydistill.methods.shared.pairs import PairRows


class Job(JobConfig):
    """`dataset.labeled_path` holds pairs: `prompt`, `chosen`, `rejected`, and optionally a `margin`."""

    job_type: Literal["reward_model"]
    """Which job this is."""
    dataset: PairsConfig
    models: ModelsConfig
    reward_model: RewardModelConfig = RewardModelConfig()
    training: RewardTrainingConfig = RewardTrainingConfig()
    launch: LaunchConfig | None = None
    """Train in several processes."""
    evaluation: HeldoutConfig = HeldoutConfig()


def plan(job: Job) -> list[Stage]:
    """train, with metrics on held-out pairs before and after."""
    return [
        RewardStage(
            PairRows(job.dataset, job.evaluation, shown_to=job.models), job.models, job.training, job.reward_model
        )
    ]
