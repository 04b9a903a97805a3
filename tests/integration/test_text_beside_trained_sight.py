"""Trainings of what sees images, without the language model, on rows with images beside rows without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.integration import test_vision_pair_jobs as pairs
from tests.integration import test_vision_rl_jobs as own_answers
from tests.support.pictures import RED, picture
from tests.support.vision_models import vision_model

import easydistill
from easydistill.errors import ConfigError

SLOW = pytest.mark.slow
KINDS = ("black_box_kd_local", "generalized_jsd", "sampled_reverse_kl", "grpo", "dpo")
"""All but PPO and reward models, whose heads learn of texts too."""
CONNECTOR = "multi_modal_projector"


def job(kind: str, folder: Path, *, images: bool = True) -> dict[str, Any]:
    """One row about an image beside rows of text, each a batch, and a connector that is to be trained."""
    changes: dict[str, Any] = {"train_parts": ["connector"], "max_steps": 12 if kind == "grpo" else 4}
    changes |= {"per_device_train_batch_size": 4 if kind == "grpo" else 1, "gradient_accumulation_steps": 1}
    (folder / "0.png").write_bytes(picture(RED, (24, 24)))
    text = {"instruction": "Say yes.", "prompt": "Say yes.", "output": "yes", "chosen": "yes", "rejected": "no"}
    rows: list[dict[str, Any]] = [{**text, "id": f"text{number}"} for number in range(3)]
    if images:
        shown = "<image>\nColour?"
        rows.append({**text, "id": "seen", "instruction": shown, "prompt": shown, "images": ["0.png"]})
    rows = [{name: value for name, value in row.items() if kind == "dpo" or name in _READ} for row in rows]
    if kind == "dpo":
        rows = [{name: value for name, value in row.items() if name not in ("instruction", "output")} for row in rows]
        return pairs.job(kind, folder, str(vision_model("llava")), rows, **changes) | {"evaluation": {"enabled": False}}
    made = own_answers.job(folder, "grpo" if kind == "grpo" else "generalized_jsd", evaluation={"enabled": False})
    made["training"] |= changes
    if kind == "grpo":
        made["policy"] |= {"eval_steps": 0}
    elif kind == "black_box_kd_local":
        del made["on_policy"], made["inference"], made["models"]["teacher"]
        made["job_type"] = kind
    else:
        made["on_policy"] = {"objective": kind, "max_new_tokens": 6}
    (folder / "rows.json").write_text(json.dumps(rows))
    return made


_READ = ("id", "instruction", "output", "images")


@pytest.mark.parametrize("kind", [*KINDS[:2], *(pytest.param(kind, marks=SLOW) for kind in KINDS[2:])])
def test_a_batch_of_text_alone_teaches_nothing(kind: str, tmp_path: Path) -> None:
    assert easydistill.run(job(kind, tmp_path)).exit_code == 0
    (saved,) = (tmp_path / "run").glob("student*/model.safetensors")
    start = load_file(vision_model("llava") / "model.safetensors")
    changed = {name for name, value in load_file(saved).items() if not torch.equal(value, start[name])}
    assert changed and all(CONNECTOR in name for name in changed)


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=SLOW) for kind in KINDS[1:])])
def test_rows_of_text_alone_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.train_parts: .*connector is to be trained, and no row") as told:
        easydistill.run(job(kind, tmp_path, images=False))
    assert 'add "language"' in str(told.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_text_is_refused_before_anything_is_paid(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    config = job(kind, tmp_path, images=False)
    config["models"] |= {"student": str(tiny_model)}
    with pytest.raises(ConfigError, match=r"training\.train_parts: the student is a model of text and has no conn"):
        easydistill.plan(config)
