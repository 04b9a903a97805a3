"""The white-box job as a user runs it: signals once, students many times, nothing mismatched."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.aligned import sharpen
from tests.support.jobs import TRAINING, run_here, start, write_config, write_prompts

from easydistill.cli import main
from easydistill.data.files import hash_file

PROMPTS = [f"question {number}: " + "word " * (number % 13) for number in range(40)]
SIGNALS = "run/stages/2-score/signals"


@pytest.fixture(scope="module")
def teacher(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights than the student's, sharp enough to teach something."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("tiny-teacher")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    sharpen(model, 5)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    return directory


def white_box_job(folder: Path, teacher: Path, student: Path, **sections: Any) -> dict[str, Any]:
    job: dict[str, Any] = {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(write_prompts(folder, PROMPTS))},
        "inference": {"backend": "transformers", "max_new_tokens": 24, "temperature": 0.9, "batch_size": 8},
        "models": {"teacher": str(teacher), "student": str(student)},
        "signals": {"shard_tokens": 300, "max_batch_tokens": 200},
        "distillation": {"kd_ratio": 0.5, "max_seq_length": 96, "distillation_type": "forward_kld"},
        "training": {name: value for name, value in TRAINING.items() if name != "max_length"},
        "evaluation": {"heldout": 8, "max_new_tokens": 8},
    }
    for name, values in sections.items():
        job[name] = {**job.get(name, {}), **values}
    return job


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run/summary.json").read_text())
    return found


def artifacts(folder: Path) -> dict[str, str]:
    shards = sorted((folder / SIGNALS).glob("shard-*.safetensors"))
    assert len(shards) >= 3
    return {
        **{path.name: hash_file(path) for path in shards},
        "store": (folder / SIGNALS / "store.json").read_text(),
        "weights": hash_file(folder / "run/student/model.safetensors"),
        "metrics": json.dumps(summary(folder)["metrics"], sort_keys=True),
    }


@pytest.fixture(scope="module")
def finished(teacher: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("white-box")
    job = white_box_job(folder, teacher, tiny_model, dataset={"logits_path": str(folder / "logits")})
    code, out = run_here(write_config(folder, job))
    assert code == 0, out
    return folder


def test_it_ends_with_a_student_nearer_to_its_teacher(finished: Path) -> None:
    found = summary(finished)
    assert list(found["stages"]) == ["label", "score", "train", "evaluate"]
    assert found["metrics"]["after"]["kl"] < found["metrics"]["before"]["kl"]
    assert found["metrics"]["bytes_per_token"] > 10
    assert found["stages"]["score"]["tokens"]["scored"] == found["stages"]["train"]["metrics"]["trained_tokens"]
    lines = [json.loads(line) for line in (finished / "run/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["stage"] == "train"]
    assert all({"cross_entropy", "divergence"} <= set(line) for line in trained)
    for line in trained:
        assert line["loss"] == pytest.approx(0.5 * line["cross_entropy"] + 0.5 * line["divergence"], rel=1e-3)


def test_the_student_loads_with_plain_transformers(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(finished / "run/student")
    assert AutoTokenizer.from_pretrained(finished / "run/student").chat_template


def test_again_does_nothing(finished: Path) -> None:
    code, out = run_here(finished / "kd.json")
    assert code == 0
    assert "everything is already done" in out


@pytest.mark.parametrize(
    ("override", "status"),
    [
        ("training.learning_rate=2e-3", {"label": "skipped", "score": "skipped", "train": "done"}),
        ("distillation.kd_ratio=0.9", {"label": "skipped", "score": "skipped", "train": "done"}),
        ("signals.n=30", {"label": "skipped", "score": "done", "train": "done"}),
        ("distillation.temperature=2.0", {"label": "skipped", "score": "done", "train": "done"}),
    ],
)
def test_a_change_repeats_what_it_affects(
    finished: Path, tmp_path: Path, override: str, status: dict[str, str]
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    own = f"output_dir={tmp_path / 'run'}", "--set", f"dataset.logits_path={tmp_path / 'logits'}"
    code, out = run_here(finished / "kd.json", "--set", *own, "--set", override)
    assert code == 0, out
    found = summary(tmp_path)["stages"]
    assert {name: found[name]["status"] for name in status} == status
    # The student of the other settings is still there.
    before = hash_file(finished / "run/student/model.safetensors")
    assert hash_file(tmp_path / "run/previous/1/student/model.safetensors") == before
    assert hash_file(tmp_path / "run/student/model.safetensors") != before
    assert f"is kept, with its report, in {tmp_path / 'run/previous/1'}" in out


def test_the_store_is_shown_where_the_user_wants_it_and_trains_alone(
    finished: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """With `labeled_path` and `logits_path` and no teacher, the same student comes out."""
    job = white_box_job(tmp_path, Path("unused"), tiny_model)
    del job["models"]["teacher"], job["signals"], job["inference"]
    job["dataset"] = {
        "labeled_path": str(finished / "run/stages/1-label/labeled.parquet"),
        "logits_path": str(finished / "logits"),
    }
    code, out = run_here(write_config(tmp_path, job))
    assert code == 0, out
    assert list(summary(tmp_path)["stages"]) == ["train", "evaluate"]
    assert hash_file(tmp_path / "run/student/model.safetensors") == hash_file(
        finished / "run/student/model.safetensors"
    )


def test_signals_of_other_rows_are_refused(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    job = white_box_job(tmp_path, Path("unused"), tiny_model)
    del job["models"]["teacher"], job["signals"], job["inference"]
    rows = json.loads((finished / "run/stages/1-label/labeled.json").read_text())
    rows[0]["output"] += " and more"
    (tmp_path / "other.json").write_text(json.dumps(rows))
    job["dataset"] = {"labeled_path": str(tmp_path / "other.json"), "logits_path": str(finished / "logits")}
    code, out = run_here(write_config(tmp_path, job))
    assert code == 1
    assert "no signal for row" in out or "made for other tokens" in out
    assert "→" in out


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"temperature": 2.0}, "computed at 1.0"),
        ({"distillation_type": "reverse_kld"}, "biased by the sampled signals"),
    ],
)
def test_signals_that_do_not_fit_the_loss_are_refused(
    finished: Path, tiny_model: Path, tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    job = white_box_job(tmp_path, Path("unused"), tiny_model, distillation=values)
    del job["models"]["teacher"], job["signals"], job["inference"]
    labels = str(finished / "run/stages/1-label/labeled.parquet")
    job["dataset"] = {"labeled_path": labels, "logits_path": str(finished / "logits")}
    code, out = run_here(write_config(tmp_path, job))
    assert code == 2
    assert told in out


def test_another_store_at_logits_path_is_kept(finished: Path, teacher: Path, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copytree(finished / "logits", tmp_path / "logits")
    job = white_box_job(tmp_path, teacher, tiny_model, dataset={"logits_path": str(tmp_path / "logits")})
    code, out = run_here(write_config(tmp_path, job), "--set", "signals.n=20", "--set", "evaluation.enabled=false")
    assert code == 0, out
    assert json.loads((tmp_path / "logits/store.json").read_text())["about"]["signals"]["n"] == 20
    assert (tmp_path / "logits.1.bak/store.json").read_bytes() == (finished / "logits/store.json").read_bytes()


def test_inspect_and_verify(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(finished / SIGNALS)
    assert main(["signals", "inspect", store]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] == summary(finished)["stages"]["score"]["tokens"]["scored"]
    assert facts["about"]["signals"]["kind"] == "threshold"
    assert main(["signals", "verify", store, "--tokens", "200"]) == 0
    assert "scored again" in capsys.readouterr().out


def test_verify_notices_another_teacher(finished: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["signals", "verify", str(finished / SIGNALS), "--teacher", str(tiny_model)]) == 1
    assert "not the weights that made" in capsys.readouterr().err


def test_verify_notices_a_changed_store(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Signals moved to a store whose tokens are others': the hashes fit, the teacher disagrees."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(finished / SIGNALS, tmp_path / "signals")
    path = tmp_path / "signals/shard-00000.safetensors"
    tensors = load_file(path)
    ids = json.loads(_metadata(path)["ids"])
    tensors["realised"] = tensors["realised"][::-1].copy()
    save_file(tensors, path, metadata={"ids": json.dumps(ids)})
    assert main(["signals", "verify", str(tmp_path / "signals"), "--tokens", "100000"]) == 1
    assert "do not match the teacher" in capsys.readouterr().err


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as handle:
        found: dict[str, str] = handle.metadata()
    return found


def test_a_teacher_with_other_tokens_is_refused_before_it_answers(
    tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other-teacher"
    shutil.copytree(teacher, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, out = run_here(write_config(tmp_path, white_box_job(tmp_path, other, tiny_model)))
    assert code == 2
    assert "number their tokens differently: 2 of" in out
    assert "distillation.align" in out
    assert not (tmp_path / "run/stages/1-label/journal.jsonl").exists()


@pytest.mark.parametrize("name", ["reverse_kld", "contrastive"])
def test_other_losses_run(tiny_model: Path, teacher: Path, tmp_path: Path, name: str) -> None:
    job = white_box_job(
        tmp_path,
        teacher,
        tiny_model,
        signals={"kind": "top_k", "k": 12},
        distillation={"distillation_type": name},
        evaluation={"generate": False},
    )
    code, out = run_here(write_config(tmp_path, job))
    assert code == 0, out
    stages = summary(tmp_path)["stages"]
    assert ("rollout" in stages) == (name == "contrastive")
    if name == "contrastive":
        assert stages["score"]["rows"]["entered"] > stages["rollout"]["rows"]["left"] > 0


# --- kill -9 -----------------------------------------------------------------------------------------------------


def killed_and_resumed(
    folder: Path, job: dict[str, Any], longest: float, generator: random.Random, stages: dict[str, int]
) -> int:
    """Run, kill, run again until it completes; counts kills by the stage they fell into."""
    config = write_config(folder, job)
    kills = 0
    while True:
        process = start(config)
        deadline = time.monotonic() + generator.uniform(0.2, longest)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is not None:
            out, _ = process.communicate()
            assert process.returncode == 0, out
            return kills
        process.kill()
        process.communicate()
        kills += 1
        done = [name for name in ("score", "train") if list((folder / "run/stages").glob(f"*-{name}/manifest.json"))]
        stages["train" if "score" in done else "score"] += 1
        longest *= 1.25


def trials(finished: Path, teacher: Path, tiny_model: Path, tmp_path: Path, wanted: int) -> None:
    """Kills during scoring and during training, `wanted` of each; labels are there already."""
    expected = artifacts(finished)
    generator = random.Random(2)
    stages = {"score": 0, "train": 0}
    trial = 0
    while min(stages.values()) < wanted:
        torn = tmp_path / f"torn-{trial}"
        (torn / "run/stages").mkdir(parents=True)
        shutil.copytree(finished / "run/stages/1-label", torn / "run/stages/1-label")
        if stages["score"] >= wanted:
            shutil.copytree(finished / "run/stages/2-score", torn / "run/stages/2-score")
        job = white_box_job(torn, teacher, tiny_model)
        killed_and_resumed(torn, job, 12.0, generator, stages)
        assert artifacts(torn) == expected
        trial += 1


def killed_once(folder: Path, config: Path, reached: str) -> None:
    """Run, and kill as soon as there is a file like `reached`."""
    process = start(config)
    while process.poll() is None and not list(folder.glob(reached)):
        time.sleep(0.01)
    process.kill()
    out, _ = process.communicate()
    assert process.returncode == -9, out


def test_kills_change_nothing(finished: Path, teacher: Path, tiny_model: Path, tmp_path: Path) -> None:
    """One kill after the first shard and one after the first checkpoint; the slow test kills at any moment."""
    stages = tmp_path / "run/stages"
    shutil.copytree(finished / "run/stages/1-label", stages / "1-label")
    config = write_config(tmp_path, white_box_job(tmp_path, teacher, tiny_model))
    for _ in range(5):
        killed_once(tmp_path, config, f"{SIGNALS}/shard-*.safetensors")
        if not (stages / "2-score/manifest.json").exists():
            break
        # The kill came too late, on a busy machine.
        shutil.rmtree(stages / "2-score")
    assert not (stages / "2-score/manifest.json").exists()
    killed_once(tmp_path, config, "run/stages/3-train/checkpoints/*/checkpoint-*/whole.json")
    assert not (stages / "3-train/manifest.json").exists()
    code, out = run_here(config)
    assert code == 0, out
    assert artifacts(tmp_path) == artifacts(finished)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_of_each_change_nothing(finished: Path, teacher: Path, tiny_model: Path, tmp_path: Path) -> None:
    trials(finished, teacher, tiny_model, tmp_path, wanted=20)
