"""The arms of `time_to_kl`, each one training from the same student on the same rows: its course.

All compute in the same number type, with the settings of our job's `training` section. TRL's trainers get tokens, and
batches of similar length as ours does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmarks.time_to_kl.work import LENGTH, TEACHER, Course, job, models, runs, size_of
from transformers import PrinterCallback, TrainerCallback

import easydistill
from easydistill.api import load
from easydistill.data.manifest import Manifest
from easydistill.engine.run_directory import RunDirectory
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import IGNORE, TokenRow
from easydistill.methods.shared.compat import argument_values
from easydistill.methods.shared.watch import Watch
from easydistill.models.loading import device, load_model, with_padding
from easydistill.models.student import Student, build_student


def ours(rows: list[TokenRow], course: Course, tiny: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """The job itself: its stages score, train and evaluate. The clock has the whole stage that scores."""
    original = supervised.train

    def scoring() -> float:
        (found,) = (path for path in RunDirectory(Path(where)).stage_directories() if path.name.endswith("-score"))
        manifest = Manifest.read(found)
        assert manifest is not None
        return manifest.seconds

    class MeasuredWatch(Watch):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if course.after_step(state.global_step, state.max_steps, kwargs["model"]):
                control.should_training_stop = True
            return super().on_step_end(args, state, control, **kwargs)

    def train(student: Student, found: list[TokenRow], *args: Any, **kwargs: Any) -> Any:
        assert {row.id: row.ids for row in found} == {row.id: row.ids for row in rows}
        course.seconds += scoring()
        course.go()
        return original(student, found, *args, **kwargs)

    with (
        tempfile.TemporaryDirectory(dir=runs(tiny)) as where,
        mock.patch.object(supervised, "Watch", MeasuredWatch),
        mock.patch.object(supervised, "train", train),
    ):
        made = easydistill.run({**job(tiny, **settings), "output_dir": where}, quiet=True)
        return {"seconds_of_scoring": scoring(), "kl_of_evaluation": made.metrics["after"]["kl"]}


class Measuring(TrainerCallback):
    """Keeps the course of a trainer of TRL."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._course.after_step(state.global_step, state.max_steps, kwargs["model"]):
            control.should_training_stop = True


def trl_arguments(tiny: bool, directory: str, settings: dict[str, Any]) -> tuple[dict[str, Any], Student]:
    """The arguments of our own trainer, and the student."""
    training: Any = load({**job(tiny, **settings), "output_dir": directory}).job.training  # type: ignore[attr-defined]
    values = argument_values(training, Path(directory), device())
    # As ours does, rows of similar length go together.
    values |= {"train_sampling_strategy": "group_by_length", "save_strategy": "no"}
    student = build_student(models(size_of(tiny)), torch.float32)
    with_padding(student.tokenizer, student.limits.tokens)
    return values, student


def trl_sft(rows: list[TokenRow], course: Course, tiny: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer on the labels."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as directory:
        values, student = trl_arguments(tiny, directory, settings)
        course.go()
        masks = [[int(learned) for learned in row.learned] for row in rows]
        trainer = SFTTrainer(
            model=student.model.train(),
            args=SFTConfig(**values, completion_only_loss=True, max_length=LENGTH),
            train_dataset=Dataset.from_dict({"input_ids": [row.ids for row in rows], "completion_mask": masks}),
            processing_class=student.tokenizer,
            callbacks=[Measuring(course)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {}


def trl_gkd(rows: list[TokenRow], course: Course, tiny: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """TRL's GKDTrainer on the labels (lambda 0): forward KL to the teacher, whose loading is on the clock."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    with tempfile.TemporaryDirectory() as directory:
        values, student = trl_arguments(tiny, directory, settings)
        pad = student.tokenizer.pad_token_id

        def batch_of(items: list[dict[str, Any]]) -> dict[str, Any]:
            def padded(name: str, fill: int) -> torch.Tensor:
                columns = [torch.tensor(item[name]) for item in items]
                return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=fill)

            ids_BT, mask_BT = padded("input_ids", pad), padded("attention_mask", 0)
            prompts = {"prompts": ids_BT[:, :1], "prompt_attention_mask": mask_BT[:, :1]}
            return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": padded("labels", IGNORE), **prompts}

        course.go()
        bf16 = torch.bfloat16 if values["bf16"] else torch.float32
        columns = {
            "input_ids": [row.ids for row in rows],
            "attention_mask": [[1] * len(row) for row in rows],
            "labels": [row.labels().tolist() for row in rows],
        }
        trainer = GKDTrainer(
            model=student.model.train(),
            teacher_model=load_model(TEACHER, bf16),
            args=GKDConfig(**values, lmbda=0.0, beta=0.0, temperature=1.0, max_length=LENGTH),
            data_collator=batch_of,
            train_dataset=Dataset.from_dict(columns),
            processing_class=student.tokenizer,
            callbacks=[Measuring(course)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {}


ARMS: dict[str, Callable[..., dict[str, Any]]] = {"ours": ours, "trl_sft": trl_sft, "trl_gkd": trl_gkd}
