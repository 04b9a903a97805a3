"""Rows with images that somebody would not see are told of before anything starts, in every job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.pictures import GREEN, RED, picture
from tests.support.vision_models import vision_model

import easydistill
from easydistill.errors import EasyDistillError

LOCAL = {"backend": "transformers", "max_new_tokens": 8}
API = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
TRAINING = {"max_length": 256, "num_train_epochs": 1}


def rows(folder: Path, *, pairs: bool = False) -> str:
    (folder / "r.png").write_bytes(picture(RED))
    (folder / "g.png").write_bytes(picture(GREEN))
    made: list[dict[str, Any]] = [
        {"instruction": "What is it?", "output": "Red.", "images": ["r.png"]},
        {"instruction": "Compare <image> and <image>.", "output": "They differ.", "images": ["r.png", "g.png"]},
        {"instruction": "How much is 1 + 1?", "output": "2"},
        {"instruction": "How much is 2 + 1?", "output": "3"},
    ]
    if pairs:
        made = [
            {
                "prompt": row["instruction"],
                "chosen": row["output"],
                "rejected": "No.",
                **({"images": row["images"]} if "images" in row else {}),
            }
            for row in made
        ]
    path = folder / ("pairs.json" if pairs else "rows.json")
    path.write_text(json.dumps(made))
    return str(path)


def told(config: dict[str, Any]) -> str:
    """What is said before anything starts: the error that ends it there, or the notes of the stages."""
    try:
        stages = easydistill.plan(config)
    except EasyDistillError as error:
        return str(error)
    return "\n".join(note for stage in stages for note in stage.notes)


def job(folder: Path, kind: str, **sections: Any) -> dict[str, Any]:
    dataset = sections.pop("dataset", None) or {"instruction_path": rows(folder)}
    return {"job_type": kind, "output_dir": str(folder / "run"), "dataset": dataset, **sections}


@pytest.fixture(scope="module")
def seeing() -> str:
    return str(vision_model("llava"))


def of_teachers(folder: Path, blind: str) -> dict[str, dict[str, Any]]:
    local = {"inference": LOCAL, "models": {"teacher": blind}}
    judged = {"inference": API, "judge": {"inference": LOCAL}, "models": {"judge": blind}}
    return {
        "label": job(folder, "label", **local),
        "cot_generation": job(folder, "cot_generation", **local),
        "cot_scoring by a judge": job(folder, "cot_scoring", **judged),
        "instruction_refinement by a judge": job(folder, "instruction_refinement", **judged),
        "instruction_expansion": job(folder, "instruction_expansion", **local),
        "task_labelling": job(folder, "task_labelling", **local),
        "preference_data by a student": job(
            folder,
            "preference_data",
            inference=API,
            models={"student": blind},
            student_inference={"temperature": 0.8},
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        "label",
        "cot_generation",
        "cot_scoring by a judge",
        "instruction_refinement by a judge",
        "instruction_expansion",
        "task_labelling",
        "preference_data by a student",
    ],
)
def test_models_that_are_asked(case: str, tmp_path: Path, tiny_model: Path) -> None:
    said = told(of_teachers(tmp_path, str(tiny_model))[case])
    assert "2 of 4 rows are refused (image_not_supported)" in said and "text alone" in said, said


@pytest.mark.parametrize(
    "case", ["black box", "white box", "on policy", "tapir", "supervised", "grpo", "dpo", "reward_model", "cogpo"]
)
def test_students(case: str, tmp_path: Path, tiny_model: Path, seeing: str) -> None:
    """Trained on text alone: told before the teacher is paid."""
    student = {"student": str(tiny_model)}
    rewards = {"rewards": {"length": {"max_tokens": 8}}}
    pairs = {"labeled_path": rows(tmp_path, pairs=True)}
    jobs = {
        "black box": lambda: job(tmp_path, "black_box_kd_api", inference=API, models=student),
        "white box": lambda: job(tmp_path, "white_box_kd_local", inference=LOCAL, models=student | {"teacher": seeing}),
        "on policy": lambda: job(
            tmp_path, "on_policy_kd", inference=LOCAL, models=student | {"teacher": str(tiny_model)}
        ),
        "tapir": lambda: job(tmp_path, "tapir", inference=API, models=student),
        "supervised": lambda: job(
            tmp_path, "black_box_kd_local", dataset={"labeled_path": rows(tmp_path)}, models=student
        ),
        "grpo": lambda: job(tmp_path, "grpo", models=student, **rewards),
        "dpo": lambda: job(tmp_path, "dpo", dataset=pairs, models=student),
        "reward_model": lambda: job(tmp_path, "reward_model", dataset=pairs, models=student),
        "cogpo": lambda: job(tmp_path, "cogpo", inference=API, models=student),
    }
    said = told(jobs[case]())
    assert "image" in said and ("text alone" in said or "refused" in said), said


def test_a_curriculum_with_a_blind_judge(tmp_path: Path, tiny_model: Path, seeing: str) -> None:
    said = told(
        job(
            tmp_path,
            "tapir",
            inference=API,
            judge={"inference": LOCAL},
            models={"student": seeing, "judge": str(tiny_model)},
        )
    )
    assert "2 of 4 rows are refused (image_not_supported)" in said and "the judge is given text alone" in said, said


def test_nothing_is_told_where_all_see(tmp_path: Path, seeing: str) -> None:
    for kind, models in (
        ("label", {}),
        ("cot_generation", {}),
        ("black_box_kd_api", {"models": {"student": seeing}}),
        ("tapir", {"models": {"student": seeing}}),
    ):
        said = told(job(tmp_path, kind, inference=API, **models))
        assert "refused" not in said and "text alone" not in said, (kind, said)
