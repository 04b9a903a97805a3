"""`--set`, old names, the environment, and configs from Python: who wins, and with which type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.configs import API, LOCAL, SECRET, changed, complaints, line_of, write

from easydistill import api
from easydistill.cli import main
from easydistill.errors import ConfigError


def value(dotted: str, *overrides: str, base: dict[str, Any] = LOCAL) -> Any:
    found: Any = api.load(base, overrides).job
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.learning_rate=1e-5", 1e-5),
        ("training.learning_rate=1", 1.0),
        ('training.learning_rate="3e-4"', 3e-4),
        ("training.num_train_epochs=0.5", 0.5),
        ("training.max_steps=7", 7),
        ("training.max_steps=null", None),
        ("training.packing=true", True),
        ("training.packing=True", True),
        ("training.packing=no", False),
        ("training.bf16=auto", "auto"),
        ("training.bf16=false", False),
        ("training.optim=sgd", "sgd"),
        ('training.optim="sgd"', "sgd"),
        ("inference.system_prompt=a=b=c", "a=b=c"),
        ("inference.system_prompt=", ""),
        ("inference.system_prompt= spaced ", " spaced "),
        ('inference.system_prompt="7"', "7"),
        ("inference.system_prompt=größer als [ das", "größer als [ das"),
        (" training . seed =5", 5),
        ("models.student=org/other", "org/other"),
        ("training.max_seq_length=77", None),
    ],
)
def test_a_value_has_the_type_its_key_needs(override: str, expected: Any) -> None:
    path = override.partition("=")[0].replace(" ", "")
    if path == "training.max_seq_length":
        assert value("training.max_length", override) == 77
    else:
        assert value(path, override) == expected


def test_sections_are_made_and_replaced() -> None:
    assert value("training.lora.r", "training.lora.r=4") == 4
    assert value("evaluation.heldout", "evaluation.heldout=9") == 9
    assert value("training.learning_rate", 'training={"seed": 3}') == 2e-5
    assert value("training.seed", 'training={"seed": 3}') == 3
    assert value("models.student.keep_layers", 'models.student={"from": "x"}', "models.student.keep_layers=5") == 5


def test_the_last_one_wins() -> None:
    assert value("training.seed", "training.seed=1", "training.seed=2") == 2
    assert value("training.seed", "training.seed=1", 'training={"seed": 4}') == 4


@pytest.mark.parametrize("in_file", ["max_length", "max_seq_length"])
@pytest.mark.parametrize(
    "override", ["training.max_length=5", "training.max_seq_len=5", 'training={"max_seq_length": 5}']
)
def test_an_override_wins_under_whichever_name_the_value_stands(in_file: str, override: str) -> None:
    base = changed(LOCAL, {f"training.{in_file}": 99})
    assert value("training.max_length", override, base=base) == 5


def test_a_job_type_of_version_1_as_an_override() -> None:
    assert value("job_type", "job_type=kd_black_box_train_only", "dataset.labeled_path=x.json") == "black_box_kd_local"


@pytest.mark.parametrize(
    ("override", "text", "hint"),
    [
        ("training.learning_rate", 'not of the form path=value', "--set training.learning_rate=1e-5"),
        ("=3", "not of the form path=value", "--set training.learning_rate=1e-5"),
        ("", "not of the form path=value", "--set training.learning_rate=1e-5"),
        ("training..seed=3", "not of the form path=value", "--set"),
        (".training=3", "not of the form path=value", "--set"),
        ("a" + ".b" * 200 + "=1", "not of the form path=value", "--set"),
        ("training.learning_rate=fast", "training.learning_rate: a number is needed here", "e.g. 2e-05"),
        ("training.max_seq_length=fast", "training.max_seq_length: a whole number is needed here", "e.g. 1024"),
        ("training.lerning_rate=1", "training.lerning_rate: there is no key", "'learning_rate'"),
        ("trainig.seed=1", "trainig: there is no key", "'training'"),
        ("job_type=nothing", 'job_type: there is no job type "nothing"', "black_box_kd_local"),
        ("job_type.x=1", "job_type.x: job_type is \"black_box_kd_local\", not a section", "set job_type as a whole"),
        ("models.student.keep_layers=3", 'models.student is "student/", not a section', "--set 'models.student={\"keep"),
        ("models.student.a.b=3", 'models.student is "student/", not a section', "as a whole"),
        ("training=5", "training: a section { … } is needed here, not 5", "keys of `training`"),
        ("training=null", "not null", "remove the key to get the default"),
        ("training.seed=" + "[" * 100_000, "training.seed: a whole number is needed", "e.g. 42"),
        ("training.seed=NaN", "training.seed: this is not a finite number", "such as 0.5"),
        ('output_dir="\\ud800"', "output_dir: the text contains half of a surrogate pair", "UTF-8"),
        ("models.teacher=${env:NO_SUCH_VARIABLE}", "models.teacher: the environment variable", "export NO_SUCH"),
        ("inference.api_key=x", "inference.api_key: there is no key", "such as black_box_kd_api"),
    ],
)  # fmt: skip
def test_a_bad_override_says_so(
    override: str, text: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "kd.json", LOCAL)
    found = complaints(path, capsys, f"--set={override}")
    assert len(found) == 1
    assert found[0].where == "--set"
    assert text in found[0].text
    assert hint in found[0].hint


def test_bad_overrides_and_a_bad_file_are_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "kd.json", changed(LOCAL, {"dataset.sed": 1}))
    found = complaints(path, capsys, "--set", "oops", "--set", "training.seed=x", "--set", "output_dir.x=1")
    assert [each.where for each in found] == ["--set", "--set", "--set", f"{path}:5"]
    assert "oops" in found[0].text


def test_an_override_fixes_the_file() -> None:
    bad = changed(LOCAL, {"training": 5, "job_type": "nothing"})
    with pytest.raises(ConfigError):
        api.load(bad)
    api.load(bad, ['training={"seed": 1}', "job_type=black_box_kd_local"])


# --- in a pipeline ------------------------------------------------------------------------------------------

PIPELINE: dict[str, Any] = {
    "job_type": "pipeline",
    "shared": {"training": {"max_seq_length": 99}},
    "jobs": {"first": {**LOCAL, "training": {"max_seq_length": 50}}, "second": {**LOCAL, "training": {}}},
}


@pytest.mark.parametrize("name", ["max_length", "max_seq_length", "max_seq_len"])
def test_an_override_wins_inside_a_job_under_any_name(name: str) -> None:
    jobs: Any = api.load(PIPELINE, [f"jobs.first.training.{name}=5", f"shared.training.{name}=7"]).job
    assert [job.training.max_length for job in jobs.jobs.values()] == [5, 7]


def test_an_override_that_makes_a_job_is_where_its_mistakes_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "kd.json", PIPELINE)
    found = complaints(path, capsys, "--set=jobs.third.job_type=deduplicate")
    assert [(each.where, each.text.split(":")[0]) for each in found] == [("--set", "jobs.third.dataset")]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"shared.training.max_length": 1}, "shared.training.max_seq_length"),
        ({"jobs.first.training.max_length": 1}, "jobs.first.training.max_seq_length"),
        ({"shared.training.learning_rate": "fast"}, "shared.training.learning_rate"),
    ],
)
def test_a_mistake_is_reported_once_at_its_own_place(
    changes: dict[str, Any], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "kd.json", changed(PIPELINE, changes))
    found = complaints(path, capsys, "--set=shared.training.seed=3")
    assert [each.text.split(":")[0] for each in found] == [key]
    assert found[0].where == f"{path}:{line_of(path, key)}"


def test_an_override_changes_one_use_of_a_yaml_anchor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kd.yaml"
    path.write_text(
        "job_type: pipeline\njobs:\n  a: &a\n    job_type: black_box_kd_local\n"
        "    dataset: {instruction_path: x}\n    models: {teacher: t, student: s}\n"
        "    training: {max_seq_length: 9, seed: 1}\n  b:\n    <<: *a\n"
    )
    jobs: Any = api.load(path, ["jobs.a.training.seed=5"]).job
    assert [(job.training.seed, job.training.max_length) for job in jobs.jobs.values()] == [(5, 9), (1, 9)]
    path.write_text(path.read_text().replace("seed: 1", "seed: x"))
    found = complaints(path, capsys, "--set=jobs.a.training.seed=5")
    assert [(each.where, each.text.split(":")[0]) for each in found] == [(f"{path}:7", "jobs.b.training.seed")]


def test_depth_has_a_limit_for_overrides_and_mappings_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested deeper than 100 levels"):
        api.load({**LOCAL, "output_dir": deep})
    for name, text in {"kd.toml": f"a = {json.dumps(deep)}", "kd.yaml": f"a: {json.dumps(deep)}"}.items():
        (tmp_path / name).write_text(text)
        assert "nested deeper than 100 levels" in complaints(tmp_path / name, capsys)[0].text
    found = complaints(write(tmp_path / "kd.json", LOCAL), capsys, f"--set=output_dir={json.dumps(deep)}")
    assert (found[0].where, len(found)) == ("--set", 1)


# --- the environment ----------------------------------------------------------------------------------------


def test_references_are_filled_in_wherever_text_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORK", "/data")
    monkeypatch.setenv("STEPS", "12")
    monkeypatch.setenv("PACK", "true")
    monkeypatch.setenv("MODULE", "q_proj")
    base = changed(
        LOCAL,
        {
            "dataset.instruction_path": "${env:WORK}/a-${env:STEPS}.json",
            "training.max_steps": "${env:STEPS}",
            "training.packing": "${env:PACK}",
            "training.lora": {"target_modules": ["${env:MODULE}", "v_proj"]},
        },
    )
    job: Any = api.load(base).job
    assert job.dataset.instruction_path == "/data/a-12.json"
    assert (job.training.max_steps, job.training.packing) == (12, True)
    assert job.training.lora.target_modules == ["q_proj", "v_proj"]
    assert value("output_dir", "output_dir=${env:WORK}/out") == "/data/out"


def test_a_value_from_the_environment_is_not_filled_in_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTER", "${env:INNER}")
    assert value("output_dir", "output_dir=x${env:OUTER}") == "x${env:INNER}"


@pytest.mark.parametrize("text", ["costs $5", "a $HOME b", "{env:X}", "$", "${}", "100% $"])
def test_other_dollars_are_text(text: str) -> None:
    assert value("inference.system_prompt", base=changed(LOCAL, {"inference.system_prompt": text})) == text


# --- from Python --------------------------------------------------------------------------------------------


def test_a_mapping_may_hold_paths(tmp_path: Path) -> None:
    base = changed(LOCAL, {})
    base["dataset"]["instruction_path"] = tmp_path / "x.json"
    assert api.load(base).job.dataset.instruction_path == str(tmp_path / "x.json")
    assert base["dataset"]["instruction_path"] == tmp_path / "x.json"


@pytest.mark.parametrize("odd", [{1, 2}, object(), b"x", float("nan")])
def test_a_mapping_that_is_no_json_is_a_config_error(odd: Any) -> None:
    with pytest.raises(ConfigError):
        api.load({**LOCAL, "output_dir": odd})


def test_a_mapping_that_holds_itself_is_a_config_error() -> None:
    endless = changed(LOCAL, {})
    endless["training"]["again"] = endless
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        api.load(endless)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        api.load({**LOCAL, "output_dir": deep})
    # Taken apart by hand: freeing it in one go would overflow the stack.
    while deep:
        deep = deep.pop()


def test_the_source_stays_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    written = changed(API, {"inference.api_key": "${env:MY_KEY}", "training": {"max_seq_length": 9}})
    path = write(tmp_path / "kd.json", written)
    loaded = api.load(path, ["training.seed=3"])
    assert loaded.source == written
    assert loaded.name == "kd"
    assert loaded.run_directory == Path("runs/kd")
    assert SECRET not in repr(loaded)


def test_a_secret_shows_in_no_text_of_a_loaded_config(tmp_path: Path) -> None:
    loaded = api.load(write(tmp_path / "kd.json", API), ["inference.model=m", f"inference.api_key={SECRET}-2"])
    job: Any = loaded.job
    assert job.inference.api_key.get_secret_value() == f"{SECRET}-2"
    texts = [repr(loaded), str(loaded), repr(job), str(job), job.model_dump_json(), repr(job.model_dump())]
    texts += [json.dumps(job.inference.identity()), json.dumps(job.inference.sampling())]
    assert SECRET not in "".join(texts)


def test_validate_prints_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--elsewhere", str(write(tmp_path / "kd.json", API))]) == 0
    out, err = capsys.readouterr()
    assert SECRET not in out + err
    assert "black_box_kd_api: label → train → evaluate" in out
