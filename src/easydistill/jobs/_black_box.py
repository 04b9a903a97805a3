"""The stages that both black-box jobs share."""

from __future__ import annotations

from easydistill.config.dataset import DatasetConfig
from easydistill.config.device_map import DeviceMap
from easydistill.config.evaluation import EvaluationConfig
from easydistill.config.inference import SamplingConfig
from easydistill.config.models import ModelsConfig
from easydistill.engine.stage import Stage
from easydistill.evaluation.stage import EvaluateStage
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.stage import TrainStage
from easydistill.methods.shared.rows import LabelledRows


def train_and_evaluate(
    dataset: DatasetConfig,
    models: ModelsConfig,
    training: TrainingConfig,
    evaluation: EvaluationConfig,
    *,
    labels_by: SamplingConfig | None,
    device_map: DeviceMap | None = None,
) -> list[Stage]:
    """The stages after labelling: train → evaluate.

    Args:
        labels_by: how a teacher is asked for the labels, if a stage makes them.
        device_map: where the layers of a teacher on this machine lie.
    """
    apart = labels_by is not None and labels_by.thoughts == "apart"
    rows = LabelledRows(
        dataset,
        evaluation,
        labels_by is not None,
        awaits_thoughts=apart,
        shown_to=models,
        answer_tokens=None if labels_by is None else labels_by.max_new_tokens,
    )
    stages: list[Stage] = [TrainStage(rows, models, training)]
    if evaluation.enabled:
        stages.append(EvaluateStage(rows, models, evaluation, training.max_length, device_map=device_map))
    return stages
