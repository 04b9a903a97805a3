"""Configs that must work: the paper's, EasyDistill 1's, every notation, every shipped file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import easydistill
from easydistill import api
from easydistill.cli import main
from easydistill.config.dataset import DatasetConfig
from easydistill.config.reading.template import starting_config
from easydistill.errors import ConfigError
from easydistill.jobs import stages_of
from easydistill.jobs._synthesis import SelectionJob, SynthesisJob

ROOT = Path(__file__).resolve().parents[2]

# The paper's Code 1, and its Code 2 with the printed dots filled in and the printed errors mended.
CODE_1: dict[str, Any] = {
    "job_type": "black_box_kd_api",
    "dataset": {
        "instruction_path": "train.json",
        "labeled_path": "train_labeled.json",
        "template": "chat_template.jinja",
        "seed": 42,
    },
    "inference": {
        "base_url": "ENDPOINT",
        "api_key": "TOKEN",
        "stream": "true",
        "system_prompt": "You are a helpful assistant.",
        "max_new_tokens": 512,
    },
    "models": {"student": "student/Qwen/Qwen2.5-0.5B-Instruct/"},
    "training": {
        "output_dir": "result/",
        "num_train_epochs": 3,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "save_steps": 1000,
        "logging_steps": 1,
        "learning_rate": 2e-5,
        "weight_decay": 0.05,
        "warmup_ratio": 0.1,
        "lr_scheduler_type": "cosine",
    },
}
CODE_2: dict[str, Any] = {
    **CODE_1,
    "job_type": "black_box_kd_local",
    "inference": {
        "enable_chunked_prefill": True,
        "seed": 777,
        "gpu_memory_utilization": 0.9,
        "temperature": 0.8,
        "trust_remote_code": True,
        "enforce_eager": False,
        "max_model_len": 4096,
        "max_new_tokens": 512,
    },
    "models": {"teacher": "teacher/Qwen/Qwen2.5-32B-Instruct/", "student": "student/Qwen/Qwen2.5-0.5B-Instruct/"},
}
SHIPPED = sorted([*(ROOT / "examples").rglob("*.json*"), *(ROOT / "recipes").rglob("*.json*")])
WRONG = {"typos.jsonc"}
"""Examples of mistakes."""
CONFIGS = [path for path in SHIPPED if '"job_type"' in path.read_text() and path.name not in WRONG]


@pytest.fixture(autouse=True)
def _names_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What shipped configs take from there."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "k")


def load(config: dict[str, Any], *overrides: str) -> Any:
    return api.load(config, overrides).job


def test_code_1() -> None:
    job = load(CODE_1)
    assert job.inference.stream is True
    assert job.inference.api_key.get_secret_value() == "TOKEN"
    assert job.training.warmup_ratio == 0.1
    assert job.run_directory("kd") == Path("result")
    assert [stage.name for stage in stages_of(job)] == ["label", "train", "evaluate"]


def test_code_2() -> None:
    job = load(CODE_2)
    assert (job.inference.seed, job.inference.max_model_len, job.inference.enforce_eager) == (777, 4096, False)
    assert [stage.name for stage in stages_of(job)] == ["label", "train", "evaluate"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kd_black_box_api", "black_box_kd_api"),
        ("kd_black_box_local", "black_box_kd_local"),
        ("kd_black_box_train_only", "black_box_kd_local"),
    ],
)
def test_names_of_version_1(old: str, new: str) -> None:
    base = CODE_1 if new.endswith("api") else CODE_2
    config = {**base, "job_type": old, "training": {**base["training"], "max_seq_length": 77}}
    job = load(config)
    assert job.job_type == new
    assert job.training.max_length == 77


def test_train_only_needs_no_teacher() -> None:
    config = {"job_type": "kd_black_box_train_only", "dataset": {"labeled_path": "x.json"}, "models": {"student": "s"}}
    assert [stage.name for stage in stages_of(load(config))] == ["train", "evaluate"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rank_dpo_api", "dpo"),
        ("rank_dpo_local", "dpo"),
        ("rl_reward_api", "reward_model"),
        ("rl_reward_local", "reward_model"),
        ("rl_ppo", "ppo"),
        ("rl_grpo", "grpo"),
    ],
)
def test_old_jobs_that_are_several_now(old: str, new: str) -> None:
    base: dict[str, Any] = {"job_type": old, "models": {"student": "s"}}
    if new in {"ppo", "grpo"}:
        fits = {**base, "dataset": {"instruction_path": "x.json"}, "rewards": {"verify": {}}}
    else:
        fits = {**base, "dataset": {"labeled_path": "x.json"}}
    assert load(fits).job_type == new
    with pytest.raises(ConfigError) as caught:
        load({**fits, "models": {"student": "s", "reward": "r"}})
    told = {issue.path: issue for issue in caught.value.issues}
    assert old in told["job_type"].problem
    assert "examples/" in told["job_type"].hint
    assert (ROOT / told["job_type"].hint.split()[-1]).is_file()
    assert "models.reward" in told


NOTATIONS = {
    "kd.json": '{"job_type": "black_box_kd_local", "dataset": {"instruction_path": "a.json", "seed": 7},'
    ' "models": {"teacher": "t", "student": {"from": "s", "keep_layers": 3}}, "training": {"learning_rate": 1e-4}}',
    "kd.jsonc": "\ufeff{ // a comment\n /* another */ "
    '"job_type": "black_box_kd_local", "dataset": {"instruction_path": "a.json", "seed": 7,},'
    ' "models": {"teacher": "t", "student": {"from": "s", "keep_layers": 3,}}, "training": {"learning_rate": 1E-4},\n}',
    "kd.yaml": "job_type: black_box_kd_local\ndataset: {instruction_path: a.json, seed: 7}\nmodels:\n  teacher: t\n"
    "  student:\n    from: s\n    keep_layers: 3\ntraining:\n  learning_rate: 1e-4\n",
    "kd.toml": 'job_type = "black_box_kd_local"\n[dataset]\ninstruction_path = "a.json"\nseed = 7\n[models]\n'
    'teacher = "t"\n[models.student]\nfrom = "s"\nkeep_layers = 3\n[training]\nlearning_rate = 1e-4\n',
}


def test_all_notations_say_the_same(tmp_path: Path) -> None:
    jobs = []
    for name, text in NOTATIONS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        jobs.append(easydistill.validate(tmp_path / name))
    assert all(job == jobs[0] for job in jobs)
    assert jobs[0].models.student.keep_layers == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "arguments", [["PATH"], ["--config", "PATH"], ["--config=PATH"], ["-config", "PATH"], ["-config=PATH"]]
)
def test_every_way_to_name_the_config(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kd.json"
    path.write_text(json.dumps(CODE_2))
    given = [argument.replace("PATH", str(path)) for argument in arguments]
    assert main(["validate", "--elsewhere", *given]) == 0
    assert "label → train → evaluate" in capsys.readouterr().out
    # Without a command, as in the paper, it is `run`.
    seen: list[Any] = []
    monkeypatch.setattr(api, "run", lambda config, overrides, quiet: seen.append((config, overrides)) or 1 / 0)
    assert main([*given, "--set", "dataset.seed=3"]) == 1
    assert seen == [(str(path), ["dataset.seed=3"])]


def test_overrides_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-abc")
    config = {**CODE_1, "inference": {**CODE_1["inference"], "api_key": "${env:MY_KEY}"}}
    job = load(
        config,
        "training.learning_rate=1e-4",
        "training.lora.r=4",
        "dataset.seed=9",
        'models.student={"from": "x", "keep_layers": 4}',
        "inference.system_prompt=be brief",
    )
    assert job.training.learning_rate == 1e-4
    assert job.training.lora.r == 4
    assert job.dataset.seed == 9
    assert job.models.student.keep_layers == 4
    assert job.inference.system_prompt == "be brief"
    assert job.inference.api_key.get_secret_value() == "sk-abc"


def test_a_secret_does_not_show() -> None:
    job = load({**CODE_1, "inference": {**CODE_1["inference"], "api_key": "sk-topsecret"}})
    for text in (repr(job), str(job), job.model_dump_json(), json.dumps(job.inference.identity())):
        assert "topsecret" not in text


def test_what_only_steers_a_run_is_not_part_of_its_identity() -> None:
    assert DatasetConfig(instruction_path="a").identity() == DatasetConfig(instruction_path="b").identity()
    job = load(CODE_1)
    other = load(CODE_1, "training.logging_steps=7", "inference.max_concurrency=3")
    assert job.training.identity() == other.training.identity()
    assert job.inference.identity() == other.inference.identity()
    assert job.training.identity() != load(CODE_1, "training.learning_rate=1").training.identity()


def test_the_schema_accepts_what_we_accept_and_refuses_a_typo() -> None:
    schema = api.job_schema()
    validator = jsonschema.Draft202012Validator(schema)
    good = {**CODE_2, "inference": {"temperature": 0.5}, "$schema": "job.schema.json"}
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "training": {"learnin_rate": 1}})
    assert not validator.is_valid({**good, "job_type": "nothing"})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_schema_accepts_the_shipped_configs_and_refuses_each_with_a_typo(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "k")
    validator = jsonschema.Draft202012Validator(api.job_schema())
    source = api.load(path).source
    assert [error.message for error in validator.iter_errors(source)] == []
    for section in [name for name, value in source.items() if isinstance(value, dict)]:
        assert not validator.is_valid({**source, section: {**source[section], "temprature": 1}})
    assert not validator.is_valid({**source, "trainning": {}})


def test_the_schema_is_a_schema_and_describes_every_key() -> None:
    schema = api.job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(api.job_classes()) <= set(schema["$defs"])
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name
        bare = [key for key, value in definition["properties"].items() if not {"description", "$ref"} & set(value)]
        assert not bare, (name, bare)


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "yes", "on", "1", True, 1])
def test_truth_in_words(text: Any) -> None:
    assert load({**CODE_2, "training": {"packing": text}}).training.packing is True
    assert load({**CODE_2, "training": {"bf16": text}}).training.bf16 is True


@pytest.mark.parametrize(("text", "value"), [("2e-5", 2e-5), ("0.5", 0.5), (3, 3.0), ("1E-4", 1e-4)])
def test_numbers_in_quotes(text: Any, value: float) -> None:
    assert load({**CODE_2, "training": {"learning_rate": text}}).training.learning_rate == value
    assert load({**CODE_2, "training": {"max_length": "512"}}).training.max_length == 512


def test_codes_1_and_2_as_files_in_the_papers_spelling(tmp_path: Path) -> None:
    for config in (CODE_1, CODE_2):
        path = tmp_path / "kd.json"
        path.write_text(json.dumps(config, indent=2))
        assert main(["validate", "--elsewhere", str(path)]) == 0
        assert easydistill.validate(path) == load(config)


def test_every_default_config_is_what_init_says(tmp_path: Path) -> None:
    """Each default that `init` shows commented out is the default indeed."""
    for job_type in set(api.job_classes()) - {"pipeline", "evaluate"}:  # keys of the user's own
        lines = starting_config(api.job_classes()[job_type]).splitlines()
        keys = re.compile(r'    // ("[a-z_0-9]+": )')
        opened = "\n".join(line.replace("// ", "", 1) if keys.match(line) else line for line in lines)
        (tmp_path / "open.jsonc").write_text(opened.replace("${env:API_KEY}", "k"))
        (tmp_path / "kd.jsonc").write_text("\n".join(lines).replace("${env:API_KEY}", "k"))
        assert opened.count("// ") < "\n".join(lines).count("// ")
        assert easydistill.validate(tmp_path / "open.jsonc") == easydistill.validate(tmp_path / "kd.jsonc")


@pytest.mark.parametrize("job_type", sorted(api.job_classes()))
def test_init_writes_a_config_that_works(job_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "k")
    target = tmp_path / "kd.jsonc"
    assert main(["init", job_type, "-o", str(target)]) == 0
    assert main(["validate", "--elsewhere", str(target)]) == 0
    assert "// " in target.read_text()
    assert main(["init", job_type, "-o", str(target)]) == 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_validate_and_dispatch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "k")
    job = easydistill.validate(path)
    assert stages_of(job)


SYNTHESIS = [path for path in CONFIGS if path.parent.name == "synthesis"]


@pytest.mark.parametrize("path", SYNTHESIS, ids=lambda path: path.stem)
def test_synthesis_examples_can_be_planned(path: Path, monkeypatch: pytest.MonkeyPatch, smollm: Path) -> None:
    """Their files are there, and their prompts can be filled."""
    monkeypatch.setenv("API_KEY", "k")
    monkeypatch.chdir(ROOT)
    asks = "inference" in easydistill.validate(path).model_fields_set
    (stage,) = easydistill.plan(path)
    if stage.state == "pending":
        assert stage.estimate.rows and bool(stage.estimate.calls) == asks


def test_every_synthesis_job_has_its_example() -> None:
    classes = api.job_classes().items()
    jobs = {name for name, job in classes if issubclass(job, SynthesisJob | SelectionJob)}
    assert jobs <= {path.stem for path in SYNTHESIS}
    assert all(f'"job_type": "{path.stem}"' in path.read_text() for path in SYNTHESIS if path.stem != "api")


def test_there_are_shipped_configs_and_enough_prompts() -> None:
    assert CONFIGS
    prompts = json.loads((ROOT / "examples/quickstart/prompts.json").read_text())
    assert len({row["instruction"] for row in prompts}) >= 200


def test_errors_are_also_standard_errors() -> None:
    with pytest.raises(ValueError, match="job_type"):
        easydistill.validate({})
    with pytest.raises(ConfigError):
        easydistill.validate({})
