"""Several teachers: each row is answered, scored and compared by its own alone, and a killed run ends the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_on_policy_kd import (
    CHUNK,
    END,
    TEXTS,
    VOCABULARY,
    assert_same_bits,
    config,
    job,
    model,
    prompts,
    student,
    weights,
)
from tests.support.jobs import run_here, write_config
from tests.support.killed import Killed
from transformers import AutoTokenizer, LlamaForCausalLM

from easydistill import api
from easydistill.config.models import TeachersConfig
from easydistill.data.files import read_jsonl
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.jobs import stages_of
from easydistill.methods.on_policy import generalized_jsd, top_k
from easydistill.methods.on_policy import trainer as sampled
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.on_policy.own_teachers import each_by_its_own, token_places
from easydistill.methods.shared.rollouts import LocalScores, PromptRow, Written

OBJECTIVES = ["generalized_jsd", "sampled_reverse_kl", "top_k_reverse_kl"]
NAMES = ("math", "code")


@pytest.fixture(scope="session")
def tokenizer(smollm: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm)


def taught(count: int, names: tuple[str, ...] = NAMES) -> list[PromptRow]:
    return [replace(row, taught_by=names[at % len(names)]) for at, row in enumerate(prompts(count))]


def train(
    objective: str,
    trained: Any,
    teachers: Mapping[str, Any] | Any,
    rows: list[PromptRow],
    folder: Path,
    reporter: Reporter | None = None,
    training: Any = None,
    **settings: Any,
) -> Any:
    section = OnPolicyConfig(objective=objective, **({"max_new_tokens": 12} | settings))
    shared = (training or config(), section, folder, reporter or Reporter(None, quiet=True), StopSignal())
    if objective == "generalized_jsd":
        return generalized_jsd.train(trained, rows, teachers, *shared)
    scores = {name: LocalScores(one, END, CHUNK) for name, one in teachers.items()}
    kind = top_k if objective == "top_k_reverse_kl" else sampled
    return kind.train(trained, rows, scores, *shared)


# --- groups ---------------------------------------------------------------------------------------------------------


def test_each_is_asked_for_its_own_and_the_order_stays() -> None:
    items = [Written(f"r{n}", [5], [6] * (n + 1), rolled=True, taught_by=NAMES[n % 2]) for n in range(5)]
    asked: dict[str, list[str]] = {}

    def ask(name: str, part: list[Written]) -> list[str]:
        asked[name] = [item.id for item in part]
        return [f"{name} of {item.id}" for item in part]

    assert each_by_its_own(items, ask) == [f"{item.taught_by} of {item.id}" for item in items]
    assert asked == {"math": ["r0", "r2", "r4"], "code": ["r1", "r3"]}
    assert token_places(items, [1, 3]) == [1, 2, 6, 7, 8, 9]


# --- the losses -----------------------------------------------------------------------------------------------------


def gradient_step(objective: str, tokenizer: Any, folder: Path, teachers: Any, rows: list[PromptRow]) -> Any:
    """The figures of one step over all rows at once, and how far each weight moved by plain gradient descent."""
    trained = student(tokenizer)
    before = weights(trained)
    settings = config(
        max_steps=1,
        optim="sgd",
        max_grad_norm=0,
        learning_rate=1.0,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=len(rows),
    )
    log = folder / "metrics.jsonl"
    folder.mkdir()
    chosen: dict[str, Any] = {"rollout_share": 0.5} | ({"beta": 0.5} if objective == "generalized_jsd" else {})
    outcome = train(objective, trained, teachers, rows, folder / "run", Reporter(log, quiet=True), settings, **chosen)
    loss = next(line["loss"] for line in map(json.loads, log.read_text().splitlines()) if line["stage"] == "train")
    moved = {name: before[name] - value for name, value in weights(trained).items()}
    return loss, outcome.trained_tokens, moved


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_of_a_mixed_batch_is_the_sum_of_each_teachers_rows(
    objective: str, tokenizer: Any, tmp_path: Path
) -> None:
    """Σ over all rows with both teachers: with T₁ for all plus T₂ for all, of the rows that each teaches, alone. A row
    is left out by making its teacher a copy of the student, for which the reverse KL is zero."""
    math_one, code_one, rows = model(1), model(2), taught(8)
    same = model(0)
    settings = {"math": math_one, "code": code_one}, {"math": math_one, "code": same}, {"math": same, "code": code_one}
    both, first, second, neither = (
        gradient_step(objective, tokenizer, tmp_path / str(number), teachers, rows)
        for number, teachers in enumerate((*settings, {"math": same, "code": same}))
    )
    assert both[1] == first[1] == second[1] == neither[1]
    # Whatever the losses have in common (cross-entropy on labels) is in all four of them.
    assert both[0] + neither[0] == pytest.approx(first[0] + second[0], rel=1e-5)
    assert abs(first[0] - second[0]) > 1e-3
    for name, value in both[2].items():
        torch.testing.assert_close(value + neither[2][name], first[2][name] + second[2][name], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_names_of_one_model_are_one_teacher(objective: str, tokenizer: Any, tmp_path: Path) -> None:
    one = model(1)
    alone, twice = student(tokenizer), student(tokenizer)
    named = {"": one}
    train(objective, alone, named, prompts(10), tmp_path / "alone", training=config(optim="sgd"))
    train(objective, twice, {"math": one, "code": one}, taught(10), tmp_path / "twice", training=config(optim="sgd"))
    for name, value in weights(alone).items():
        torch.testing.assert_close(value, weights(twice)[name], rtol=1e-3, atol=1e-5)


def test_teachers_may_be_of_different_widths(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    wide = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    ).eval()
    trained = student(tokenizer)
    outcome = train("generalized_jsd", trained, {"math": model(1), "code": wide}, taught(6), tmp_path / "run")
    assert outcome.steps == 6
    assert outcome.steps == 6


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_training_killed_at_a_step_ends_with_the_same_bits(
    objective: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = {"math": model(1), "code": model(2)}
    whole, killed = student(tokenizer), student(tokenizer)
    settings: dict[str, Any] = {"steps_per_rollout": 3}
    train(objective, whole, teachers, taught(10), tmp_path / "whole", **settings)
    taken = sampled.SampledTraining.update

    def update(self: Any, batch: list[Written]) -> dict[str, float]:
        if self._step == 4:
            raise Killed
        return taken(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(sampled.SampledTraining, "update", update)
        with pytest.raises(Killed):
            train(objective, killed, teachers, taught(10), tmp_path / "killed", **settings)
    resumed = student(tokenizer)
    # From the checkpoint after step 2, in the middle of a round whose sequences are in it with their teachers.
    outcome = train(objective, resumed, teachers, taught(10), tmp_path / "killed", **settings)
    assert outcome.resumed_from_step == 4
    assert_same_bits(weights(whole), weights(resumed))


# --- the whole job --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def specialists(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two models of the tiny one's kind with other weights."""
    found = {}
    for seed, name in enumerate(NAMES, 1):
        folder = tmp_path_factory.mktemp(name)
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        own = LlamaForCausalLM.from_pretrained(folder)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            for value in own.parameters():
                value.add_(torch.randn_like(value) * value.std() * 0.5)
        own.save_pretrained(folder)
        found[name] = str(folder)
    return found


def several(folder: Path, tiny: Path, specialists: dict[str, str], **section: Any) -> dict[str, Any]:
    """A job whose rows name math, code or no teacher."""
    made = job(folder, tiny, {"from": str(tiny), "keep_layers": 2}, **section)
    made["models"]["teachers"] = specialists
    rows = [
        {"instruction": text, **({"teacher": (*NAMES, None)[at % 3]} if at % 3 < 2 else {})}
        for at, text in enumerate(TEXTS)
    ]
    (folder / "prompts.json").write_text(json.dumps(rows))
    made["evaluation"] |= {"heldout": 9}
    return made


def test_the_whole_job(tiny_model: Path, specialists: dict[str, str], tmp_path: Path) -> None:
    made = several(tmp_path, tiny_model, {**specialists, "law": specialists["math"]}, objective="generalized_jsd")
    path = write_config(tmp_path, made)
    code, out = run_here(path)
    assert code == 0, out
    assert "rows by teacher: models.teacher 8, math 8, code 8" in out
    assert "no row is taught by law" in out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert sum(summary["stages"]["train"]["metrics"]["rows_by_teacher"].values()) == len(TEXTS) - 9
    after = summary["metrics"]["after"]
    parts = {name: after[name] for name in after if name.startswith("kl/")}
    assert set(parts) <= {"kl/math", "kl/code", "kl/models.teacher"}
    assert len(parts) > 1
    assert min(parts.values()) <= after["kl"] <= max(parts.values())
    assert len(set(parts.values())) == len(parts)
    report = (tmp_path / "run/report.md").read_text()
    assert "KL divergence from the teacher: math" in report
    # Each answer is that of the row's own teacher, as if it were asked alone.
    labelled = json.loads((tmp_path / "run/stages/1-label/labeled.json").read_text())
    by_prompt = {row["instruction"]: row["output"] for row in labelled}
    alone = tmp_path / "alone"
    alone.mkdir()
    own = job(alone, Path(specialists["math"]), str(tiny_model))
    own["models"] = {"teacher": specialists["math"]}
    asked = [text for at, text in enumerate(TEXTS) if at % 3 == 0]
    (alone / "prompts.json").write_text(json.dumps([{"instruction": text} for text in asked]))
    label = {key: own[key] for key in ("output_dir", "dataset", "inference", "models")} | {"job_type": "label"}
    code, out = run_here(write_config(alone, label))
    assert code == 0, out
    for row in json.loads((alone / "run/stages/1-label/labeled.json").read_text()):
        assert by_prompt[row["instruction"]] == row["output"]
    again, out = run_here(path)
    assert (again, "everything is already done" in out) == (0, True)


def dying_at_the_second(answer_all: Any) -> Any:
    """What asks teachers, killed before it asks the second one."""
    asked: list[int] = []

    def dying(teacher: Any, requests: Any, *rest: Any) -> None:
        asked.append(len(requests))
        if len(asked) == 2:
            raise Killed
        answer_all(teacher, requests, *rest)

    return dying


def test_a_run_killed_while_the_second_teacher_answers(
    tiny_model: Path, specialists: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from easydistill.asking import label as asking

    files = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        made = several(folder, tiny_model, specialists, objective="top_k_reverse_kl")
        made["evaluation"] = {"enabled": False}
        path = write_config(folder, made)
        if name == "killed":
            with monkeypatch.context() as patched:
                patched.setattr(asking, "answer_all", dying_at_the_second(asking.answer_all))
                with pytest.raises(Killed):
                    run_here(path)
        code, out = run_here(path)
        assert code == 0, out
        journal = list(read_jsonl(folder / "run/stages/1-label/journal.jsonl"))
        files.append(((folder / "run/student/model.safetensors").read_bytes(), len(journal)))
    assert files[0] == files[1]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("maths", "did you mean 'math'?"),
        (3, "names the teacher 3"),
        (None, "names no teacher in `teacher`, and there is no models.teacher"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_asked(
    given: Any, words: str, labels: bool, tiny_model: Path, specialists: dict[str, str], tmp_path: Path
) -> None:
    made = several(tmp_path, tiny_model, specialists, rollout_share=0.5 if labels else 1.0)
    del made["models"]["teacher"]
    made["evaluation"] = {"enabled": False}
    rows = [{"instruction": text, "teacher": "math"} for text in TEXTS[:8]]
    (tmp_path / "prompts.json").write_text(json.dumps([*rows, {"instruction": "One more?", "teacher": given}]))
    code, out = run_here(write_config(tmp_path, made))
    assert code == 1, out
    assert words in out
    assert "(number 9)" in out
    assert "→" in out
    assert not any(path.stat().st_size for path in (tmp_path / "run").glob("stages/*/journal.jsonl"))
    assert not (tmp_path / "run/student").exists()


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_is_asked(
    tiny_model: Path, specialists: dict[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(specialists["code"], other)
    tokens = AutoTokenizer.from_pretrained(other)
    tokens.add_tokens(["<|another|>"])
    tokens.save_pretrained(other)
    made = several(tmp_path, tiny_model, {**specialists, "code": str(other)})
    code, out = run_here(write_config(tmp_path, made))
    assert code == 2, out
    assert "models.teachers.code" in out
    assert "different vocabularies" in out
    assert not list((tmp_path / "run").glob("stages/*/journal.jsonl"))


# --- the plan -------------------------------------------------------------------------------------------------------


def test_plan_counts_every_teacher_once(tiny_model: Path, specialists: dict[str, str], tmp_path: Path) -> None:
    def memory(teachers: dict[str, str] | None) -> int:
        made = several(tmp_path, tiny_model, specialists, rollout_share=1.0)
        made["evaluation"] = {"enabled": False}
        made["models"] |= {"teachers": teachers} if teachers else {}
        if teachers is None:
            del made["models"]["teachers"]
        (stage,) = stages_of(api.validate(made))
        found = stage.estimate(tmp_path / "none").memory_bytes
        assert found is not None
        return found

    one, all_three = memory(None), memory(specialists)
    assert memory({**specialists, "again": specialists["math"]}) == all_three
    assert (all_three - one) % 2 == 0
    assert all_three > memory({"math": specialists["math"]}) > one


def test_identities_change_only_with_several_teachers(
    tiny_model: Path, specialists: dict[str, str], tmp_path: Path
) -> None:
    made = several(tmp_path, tiny_model, specialists)
    plain = {**made, "models": {key: value for key, value in made["models"].items() if key != "teachers"}}

    def prints(changed: dict[str, Any]) -> dict[str, Any]:
        return {stage.name: stage.fingerprint() for stage in stages_of(api.validate(changed)) if stage.name != "label"}

    assert prints(plain)["train"]["teacher"].keys() >= {"dtype"}
    assert "column" not in prints(plain)["train"]["teacher"]
    swapped = dict(zip(NAMES, reversed(list(specialists.values())), strict=True))
    others = [made, {**made, "models": {**made["models"], "teachers": swapped}}]
    others.append({**made, "models": {**made["models"], "teacher_column": "domain"}})
    found = [json.dumps(prints(each)["train"], sort_keys=True) for each in [plain, *others]]
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": {"teachers": {"a.b": "x"}}}, "teachers"),
        ({"models": {"teachers": {}}}, "teachers"),
        ({"models": {"teachers": None, "teacher_column": "domain"}}, "no effect without `teachers`"),
        (
            {"inference": {"base_url": "http://localhost:8000/v1"}, "on_policy": {"objective": "top_k_reverse_kl"}},
            "a server for all rows",
        ),
    ],
)
def test_configs_that_do_not_fit(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    made: dict[str, Any] = {
        "job_type": "on_policy_kd",
        "dataset": {"instruction_path": "train.json"},
        "models": {"teacher": "t/", "student": "s/", "teachers": {"math": "m/"}},
    }
    for section, values in changes.items():
        made[section] = made.get(section, {}) | values
    with pytest.raises(Exception, match=words):
        api.validate(made)


def test_images_are_refused_with_several_teachers() -> None:
    from easydistill.methods.shared.sight import blindness

    models = TeachersConfig(student="s/", teachers={"math": "m/"})
    assert "rows of text" in str(blindness(models))
