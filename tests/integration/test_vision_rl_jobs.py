"""`grpo`, `ppo` and `on_policy_kd` as jobs on rows with images: whole runs, kills, reports, judges, what is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.killed import Killed, killed_at
from tests.support.pictures import looking, picture, sent_images
from tests.support.vision_models import FAMILIES, vision_model

import easydistill
from easydistill.errors import ConfigError, DataError
from easydistill.methods.on_policy import trainer as sampled
from easydistill.methods.policy import stage as policy_stage

COLOURS = {"red": (230, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 230)}
KINDS = ("grpo", "ppo", "generalized_jsd", "sampled_reverse_kl")


def rows_in(folder: Path, count: int = 9) -> list[dict[str, Any]]:
    """Rows about a picture each, one about two, and one about none."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        name = list(COLOURS)[number % 3]
        (folder / f"{number}.png").write_bytes(picture(COLOURS[name], (24, 24 - number % 2 * 8)))
        rows.append(
            {"id": f"r{number}", "instruction": "<image>\nColour?", "images": [f"{number}.png"], "answer": name}
        )
    rows.append(
        {"id": "two", "instruction": "<image> <image>\nColours?", "images": ["0.png", "1.png"], "answer": "red"}
    )
    return [*rows, {"id": "text", "instruction": "Say yes.", "answer": "yes"}]


def job(folder: Path, kind: str, family: str = "llava", **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    rows = rows_in(folder)
    training: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-3, "max_length": 256, "save_steps": 1}
    training |= {"logging_steps": 1, "bf16": False, "per_device_train_batch_size": 8}
    made: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "rows.json")},
        "models": {"student": str(vision_model(family))},
        "training": training,
    }
    if kind in ("grpo", "ppo"):
        rewards = {"format": {"pattern": "(?s).*[a-h].*"}, "length": {"max_tokens": 12, "buffer": 8, "weight": 0.5}}
        policy: dict[str, Any] = {"max_new_tokens": 10, "eval_steps": 2}
        if kind == "grpo":
            policy |= {"num_generations": 4, "mask_truncated": False, "beta": 0.05, "num_iterations": 2}
        made |= {"job_type": kind, "rewards": rewards, "policy": policy, "evaluation": {"heldout": 3}}
    else:
        rows = [{**row, "output": row["answer"]} for row in rows]
        made["dataset"] = {"labeled_path": str(folder / "rows.json")}
        made["models"] |= {"teacher": str(vision_model(family, 5))}
        own = {"sft_steps": 2} if kind == "generalized_jsd" else {"steps_per_rollout": 2}
        made |= {"job_type": "on_policy_kd", "inference": {"dtype": "float32"}, "evaluation": {"enabled": False}}
        made["on_policy"] = {"max_new_tokens": 10, "objective": kind, **own}
        training["per_device_train_batch_size"] = 3
    (folder / "rows.json").write_text(json.dumps(rows))
    for name, value in changes.items():
        made[name] = {**made[name], **value} if isinstance(made.get(name), dict) else value
    return made


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "student" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@contextlib.contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, kind: str, step: int) -> Iterator[None]:
    """What trains in here is killed near the end of a step, and must be."""
    if kind in ("grpo", "ppo"):
        with killed_at(monkeypatch, step):
            yield
        return
    original = sampled.SampledTraining.update

    def dying(self: Any, batch: Any) -> Any:
        if self._step == step - 1:
            raise Killed
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(sampled.SampledTraining, "update", dying)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("kind", ["grpo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_a_killed_training_goes_on_bit_for_bit_unless_an_image_changed(
    kind: str, changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = "idefics3" if kind == "grpo" else "qwen2_5_vl"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    configs = [job(folder, kind, family) for folder in (whole, broken)]
    with killed(monkeypatch, kind, 4):
        easydistill.run(configs[1])
    kept = list((broken / "run").glob("stages/1-train/checkpoints/**/checkpoint-*/whole.json"))
    assert kept
    if changes:
        for folder in (whole, broken):
            (folder / "3.png").write_bytes(picture((250, 250, 0), (24, 16)))
    for config in configs:
        assert easydistill.run(config).exit_code == 0
    resumed = json.loads((broken / "run/summary.json").read_text())["stages"]["train"]["metrics"]
    assert same(whole, broken)
    assert not easydistill.run(configs[1]).fresh
    lines = (broken / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if line.get("stage") == "train"]
    # With another image it begins again.
    assert (steps.count(1) == 2) == changes
    assert resumed["steps"] == 4


def test_a_finished_run_is_finished_until_an_image_changes(tmp_path: Path) -> None:
    config = job(tmp_path, "grpo", training={"max_steps": 2, "warmup_ratio": 0.0})
    assert easydistill.run(config).exit_code == 0
    assert not easydistill.run(config).fresh
    before = weights(tmp_path)
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(picture((250, 250, 10 * number), (24, 24 - number % 2 * 8)))
    assert easydistill.run(config).fresh
    assert any(not torch.equal(value, before[name]) for name, value in weights(tmp_path).items())


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("grpo", "gemma3"),
        *(pytest.param(kind, family, marks=pytest.mark.slow) for kind in KINDS for family in FAMILIES),
    ],
)
def test_every_family_is_trained_and_saved(kind: str, family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    config = job(tmp_path, kind, family, training={"max_steps": 2})
    assert not [note for stage in easydistill.plan(config) for note in stage.notes if "image" in note]
    assert easydistill.run(config).exit_code == 0
    saved = tmp_path / "run" / "student"
    AutoProcessor.from_pretrained(saved)
    AutoModelForImageTextToText.from_pretrained(saved)
    start = load_file(vision_model(family) / "model.safetensors")
    assert any(not torch.equal(value, start[name]) for name, value in weights(tmp_path).items() if name in start)


def test_the_report_shows_held_out_pictures_with_their_answers(tmp_path: Path) -> None:
    rows = job(tmp_path, "grpo", training={"max_steps": 2}, evaluation={"heldout": 6})
    assert easydistill.run(rows).exit_code == 0
    (path,) = (tmp_path / "run").glob("stages/*-train/answers.jsonl")
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(answers) == 6
    assert {row["teacher"] for row in answers} <= {*COLOURS, "yes"}
    assert all(isinstance(row[when], str) for row in answers for when in ("before", "after"))
    report = (tmp_path / "run" / "report.md").read_text()
    assert "![image](report_images/" in report and "\nKnown answer:\n" in report
    assert "\nTeacher:\n" not in report
    page = (tmp_path / "run" / "report.html").read_text()
    assert "report_images/" in page and "base64" not in page


def test_a_judge_is_shown_the_images(tmp_path: Path) -> None:
    with looking() as server:
        server.says = lambda colours: f"<score>{len(colours) * 3}</score>"
        config = job(
            tmp_path,
            "grpo",
            rewards={"judge": {}},
            judge={"inference": {"base_url": server.url, "model": "judge", "temperature": 0.0}},
            training={"max_steps": 2},
            evaluation={"heldout": 0},
        )
        assert easydistill.run(config).exit_code == 0
        counts = {len(sent_images(body)) for body in server.bodies}
        bodies = json.dumps(server.bodies)
    assert counts <= {0, 1, 2} and 1 in counts
    assert "<image>" not in bodies, "each stands where its tag was"
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.suffix in (".jsonl", ".json")]
    assert not any("base64" in path.read_text() for path in written)


# --- what is refused before anything is paid ------------------------------------------------------------------------

TEXT_ONLY = "reads text alone and would not see it"


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_text_is_refused(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    config = job(tmp_path, kind)
    config["models"]["student"] = str(tiny_model)
    if "teacher" in config["models"]:
        config["models"]["teacher"] = str(tiny_model)
    with pytest.raises(
        ConfigError, match=r"models\.student: 10 of the first 11 rows have an image; .*reads text alone"
    ):
        easydistill.run(config)
    assert not (tmp_path / "run" / "images").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_vllm_does_not_write_for_a_student_that_sees(kind: str, tmp_path: Path) -> None:
    section = "policy" if kind in ("grpo", "ppo") else "on_policy"
    config = job(tmp_path, kind, **{section: {"rollouts": "vllm"}})
    with pytest.raises(ConfigError, match=rf"{section}\.rollouts: vLLM does not take over .*that sees images") as told:
        easydistill.plan(config)
    assert f"set {section}.rollouts=transformers" in str(told.value)


@pytest.mark.parametrize("objective", ["generalized_jsd", "sampled_reverse_kl"])
def test_teachers_that_see_nothing_or_otherwise_are_refused(objective: str, tiny_model: Path, tmp_path: Path) -> None:
    for teacher, told in (
        (tiny_model, "reads text alone, and rows have images"),
        (vision_model("qwen2_5_vl"), "image"),
    ):
        config = job(tmp_path, objective)
        config["models"]["teacher"] = str(teacher)
        with pytest.raises(ConfigError, match=rf"models\.teacher: .*{told}"):
            easydistill.run(config)


@pytest.mark.parametrize(
    ("rewards", "key"),
    [
        ({"teacher_kl": {"model": "TEXT"}}, "rewards.teacher_kl"),
        ({"reward_model": {"model": "TEXT"}}, "rewards.reward_model"),
        ({"judge": {}}, "models.judge"),
    ],
)
def test_rewards_that_do_not_see_are_refused(
    rewards: dict[str, Any], key: str, tiny_model: Path, tmp_path: Path
) -> None:
    text = str(tiny_model)
    if "reward_model" in rewards:
        text = str(classifier(tiny_model, tmp_path / "classifier"))
    named = json.loads(json.dumps(rewards).replace("TEXT", text))
    config = job(tmp_path / "job", "grpo")
    config["rewards"] = named
    if "judge" in rewards:
        config["models"]["judge"] = text
        config["judge"] = {"inference": {"backend": "transformers"}}
    with pytest.raises(ConfigError, match=rf"{key}: 10 of the first 11 rows have an image; .*reads text alone") as told:
        easydistill.run(config)
    assert f"set {key} to one that sees, or remove it" in str(told.value)


def classifier(model: Path, target: Path) -> Path:
    """A reward model of text."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(model, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(target)
    AutoTokenizer.from_pretrained(model).save_pretrained(target)
    return target


def test_text_rows_are_judged_by_what_does_not_see(tiny_model: Path, tmp_path: Path) -> None:
    reward = str(classifier(tiny_model, tmp_path / "classifier"))
    config = job(tmp_path / "job", "grpo", rewards={"reward_model": {"model": reward}}, training={"max_steps": 1})
    rows = [{"instruction": f"Say {number}.", "answer": str(number)} for number in range(6)]
    (tmp_path / "job" / "rows.json").write_text(json.dumps(rows))
    assert easydistill.run(config).exit_code == 0


def test_a_critic_from_a_reward_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    reward = str(classifier(tiny_model, tmp_path / "classifier"))
    config = job(tmp_path / "job", "ppo", policy={"critic": "reward_model"})
    config["rewards"] = {"reward_model": {"model": reward}}
    with pytest.raises(ConfigError, match=r"policy\.critic: a reward model does not value .*that sees images"):
        easydistill.plan(config)


def test_a_student_that_is_found_to_see_gets_no_other_critic_than_was_asked_for(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a student that is yet to be downloaded nobody knows before."""
    reward = str(classifier(tiny_model, tmp_path / "classifier"))
    config = job(tmp_path / "job", "ppo", policy={"critic": "reward_model"}, evaluation={"enabled": False})
    config["rewards"] = {"reward_model": {"model": reward}}
    (tmp_path / "job" / "rows.json").write_text(json.dumps([{"id": "text", "instruction": "Say yes."}]))
    monkeypatch.setattr(policy_stage, "sees_images", lambda models: False)
    with pytest.raises(ConfigError, match=r"policy\.critic: a reward model does not value .*that sees images"):
        easydistill.run(config)


def test_prompts_without_room_for_their_images_are_rejected(tmp_path: Path) -> None:
    config = job(tmp_path, "grpo", training={"max_length": 40})
    config["dataset"]["max_rejected_share"] = 1.0
    with pytest.raises(DataError, match=r"prompt_too_long, \d+ of \d+: the prompt has \d+ tokens"):
        easydistill.run(config)
