"""The student around training: where a stage finds it, the resources its training takes, how it is saved."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from easydistill.config.deepspeed import deepspeed_identity
from easydistill.config.deepspeed_checks import deepspeed_issues
from easydistill.config.fsdp2_checks import fsdp2_issues
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.config.training import TrainerConfig
from easydistill.data.files import show_directory
from easydistill.data.manifest import RowCounts
from easydistill.data.records import Rejection, count_reasons
from easydistill.engine.checks import needs_extra
from easydistill.engine.stage import StageContext, StageResult
from easydistill.errors import ConfigIssue
from easydistill.launch.stages import process_count
from easydistill.methods.shared.chat_settings import write_chat_settings
from easydistill.methods.shared.rendering import TemplateSettings, template_identity
from easydistill.models.student import Student, student_identity

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer
    from easydistill.methods.shared.watch import TrainingOutcome


MODEL = "model"


class TrainingRows(Protocol):
    """The rows of a training, as its fingerprint needs them."""

    @property
    def dataset(self) -> Any:
        """The config section, with its `template` and what belongs to it."""

    def fingerprint(self) -> dict[str, Any]:
        """What changes when the rows do."""


def student_of_stage(models: ModelsConfig, stage: str | None, context: StageContext) -> ModelsConfig:
    """`models` with the student that an earlier train stage saved; unchanged if `stage` is None."""
    if stage is None:
        return models
    return models.model_copy(update={"student": str(context.input_path(stage, MODEL))})


def optimiser_issues(training: TrainerConfig) -> list[ConfigIssue]:
    """An issue if the library of the optimiser is not installed."""
    libraries = {"adamw_8bit": "torchao", "paged_adamw_8bit": "bitsandbytes"}
    library = libraries.get(training.optim)
    return needs_extra("optim", library) if library is not None else []


def launch_issues(launch: LaunchConfig | None, training: TrainerConfig) -> list[ConfigIssue]:
    """What is wrong with how a training is launched, and a library that it needs and is not installed."""
    issues = deepspeed_issues(launch, training) + fsdp2_issues(launch, training)
    if launch is not None and launch.uses_deepspeed:
        issues += needs_extra("deepspeed", "deepspeed")
    return issues + _gpu_issues(launch)


def _gpu_issues(launch: LaunchConfig | None) -> list[ConfigIssue]:
    """An issue if this command would start more processes than this machine has GPUs, each of which needs one."""
    # With `gpu_memory_gb`, the run takes place elsewhere.
    if launch is None or launch.processes == "auto" or launch.gpu_memory_gb is not None:
        return []
    wanted = process_count(launch)
    if wanted == 1 or importlib.util.find_spec("torch") is None:
        return []
    import torch

    gpus = torch.cuda.device_count()
    if not 0 < gpus < wanted:
        return []
    problem = f"launch.processes is {wanted}, and this machine has {gpus} GPU{'s' if gpus > 1 else ''}"
    hint = (
        f"set launch.processes={gpus}, or remove it; to plan a run on another machine, set launch.gpu_memory_gb to the "
        "memory of a GPU there"
    )
    return [ConfigIssue("config", "launch.processes", problem, hint)]


def loaded_student(models: ModelsConfig, max_length: int, context: StageContext, dtype: str = "float32") -> Student:
    """The student in `dtype`, to be trained on rows of up to `max_length` tokens; what the user should know is said."""
    from easydistill.methods.shared.strategies.base import strategy
    from easydistill.models.loading import choose_dtype, device
    from easydistill.models.student import build_student

    with strategy().loading():
        student = build_student(models, choose_dtype(dtype, device()))
    longest = student.limits.within(max_length)
    for note in student.notes:
        context.reporter.say(f"  note: {note}")
    if longest < max_length:
        problem = f"{student.description} has {longest} positions and training.max_length is {max_length}"
        context.reporter.say(f"  note: {problem}: rows end after {longest} tokens")
    return student


def training_fingerprint(
    rows: TrainingRows, models: ModelsConfig, training: TrainerConfig, launch: LaunchConfig | None = None
) -> dict[str, Any]:
    """What the trained student depends on, whatever the method: rows, the student, settings and the template."""
    deepspeed = deepspeed_identity(launch)
    return {
        "rows": rows.fingerprint(),
        "student": student_identity(models),
        "training": training.identity(),
        **template_identity(rows.dataset),
        **({"deepspeed": deepspeed} if deepspeed else {}),
    }


def checkpoints_of(context: StageContext, images: str = "") -> Path:
    """The directory of the checkpoints of a training as it is configured now.

    Args:
        images: a hash of the images of its rows, if they have some. A training does not go on with others.
    """
    folder = context.directory / "checkpoints"
    return folder / "-".join(filter(None, (context.fingerprint[:12], images[:12])))


def all_checkpoints_of(context: StageContext) -> list[Path]:
    """The directories of the checkpoints of a training as it is configured now, whatever its images are."""
    folder = context.directory / "checkpoints"
    return sorted(folder.glob(f"{context.fingerprint[:12]}*"))


def show_student(context: StageContext) -> None:
    """Show the saved student as `student/` in the run directory, and remove the checkpoints."""
    show_directory(context.directory / MODEL, context.run_directory / "student")
    shutil.rmtree(context.directory / "checkpoints", ignore_errors=True)


def outcome_metrics(outcome: TrainingOutcome) -> dict[str, Any]:
    """The outcome's figures that do not depend on interruptions."""
    left_out = {"resumed_from_step", *(name for name in ("alarms", "fit") if not getattr(outcome, name))}
    return {name: value for name, value in asdict(outcome).items() if name not in left_out}


def training_result(
    outcome: TrainingOutcome,
    files: list[str],
    rows: RowCounts,
    rejected: list[Rejection],
    read: int | None = None,
    **metrics: Any,
) -> StageResult:
    """The result of a training stage.

    Args:
        files: outputs, from `save_student`.
        rows: numbers of rows; the reasons for rejection are counted here.
        read: tokens that were read without being learned, if they are counted.
        metrics: figures beside those of the outcome.
    """
    return StageResult(
        outputs=files,
        rows=replace(rows, rejected=count_reasons(rejected)),
        rejected=rejected,
        tokens={"trained": outcome.trained_tokens} | ({} if read is None else {"read": read}),
        metrics=outcome_metrics(outcome) | metrics,
    )


def save_student(student: Student, renderer: ChatRenderer, chats: TemplateSettings, target: Path) -> list[str]:
    """Save model, tokenizer and processor in `target`; returns the files' paths relative to the parent of `target`.

    Its chat template is the one it was trained with, with the variables that it was trained with as defaults, so that
    whoever renders chats for it renders them as in training.

    Args:
        chats: the `dataset` section: its `template`, if any, replaces the tokenizer's own.
    """
    from easydistill.models.loading import import_torch
    from easydistill.models.saving import let_read

    torch = import_torch()
    shutil.rmtree(target, ignore_errors=True)
    student.model.to(getattr(torch, student.save_dtype)).save_pretrained(target)
    let_read(target)
    if not renderer.single_turn:
        if chats.template is not None:
            student.tokenizer.chat_template = renderer.template
        _set_defaults(student.tokenizer, chats.template_kwargs or {})
    if student.processor is None:
        student.tokenizer.save_pretrained(target)
    else:
        student.processor.save(target)
    write_chat_settings(target, chats)
    return [f"{target.name}/{path.name}" for path in sorted(target.iterdir()) if path.is_file()]


def _set_defaults(tokenizer: Any, variables: Mapping[str, Any]) -> None:
    """Let variables of the chat templates be what they were in training, where nobody sets them."""
    from easydistill.data.chat.defaults import with_defaults

    own = tokenizer.chat_template
    if variables and isinstance(own, str):
        tokenizer.chat_template = with_defaults(own, variables)
    elif variables and isinstance(own, Mapping):
        tokenizer.chat_template = {name: with_defaults(text, variables) for name, text in own.items()}
