"""The config and plan that PPO and GRPO share: prompts, rewards, an optional judge, one stage."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from easydistill.config.base import Unfit
from easydistill.config.dataset import DatasetConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.engine.stage import Stage
from easydistill.jobs._launch import certain_processes, check_rollouts
from easydistill.jobs._synthesis import asked_model, need_judge
from easydistill.methods.policy.config import PolicyConfig, PolicyTrainingConfig, check_rounds
from easydistill.methods.policy.stage import ExplorationRows, PolicyStage
from easydistill.rewards import blindness, rewards_section
from easydistill.rewards._section import RewardsConfig
from easydistill.synthesis.config import CurriculumModels
from easydistill.teachers.sections import JudgeConfig

RewardsSection: Any = rewards_section()


class PolicyJob(JobConfig):
    """The student answers the prompts of `dataset.instruction_path` and learns from the rewards of its answers."""

    dataset: DatasetConfig
    models: CurriculumModels
    rewards: RewardsSection
    judge: JudgeConfig | None = None
    """How the judge of `rewards.judge` is run: a server with `base_url`, else `models.judge` on this machine."""
    policy: PolicyConfig
    training: PolicyTrainingConfig = PolicyTrainingConfig()
    launch: LaunchConfig | None = None
    """Train in several processes."""
    evaluation: HeldoutConfig = HeldoutConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> PolicyJob:
        if self.dataset.instruction_path is None:
            raise Unfit("there are no prompts", "set dataset.instruction_path")
        rewards: RewardsConfig = self.rewards
        if rewards.needs_judge and self.judge is None:
            raise Unfit("rewards.judge needs a judge, and there is none", 'add "judge": {"inference": {…}}')
        if self.judge is not None and not rewards.needs_judge:
            raise Unfit("`judge` is not used without rewards.judge", "remove it, or add the reward")
        need_judge(self.judge, self.models.judge, self.models.teacher)
        check_rollouts(self.launch, "policy", self.policy.rollouts)
        check_rounds(self.policy, self.training, certain_processes(self.launch))
        return self


def plan_policy(job: Any) -> list[Stage]:
    """The one stage."""
    judge = asked_model(job.judge.inference, job.models.judge or job.models.teacher) if job.judge is not None else None

    def blind() -> tuple[str, str] | None:
        if judge is not None and not judge.plan.sees_images():
            return "models.judge", f"the judge ({job.models.judge or job.models.teacher})"
        return blindness(job.rewards)

    rows = ExplorationRows(job.dataset, job.evaluation, from_stage=False, shown_to=job.models, blind=blind)
    return [PolicyStage(rows, job.models, job.training, job.policy, job.rewards, judge)]
