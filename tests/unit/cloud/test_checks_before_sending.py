"""What is refused before anything is sent: where, what, and how to fix it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.clouds import JOBS, settings, write
from tests.support.configs import changed

from easydistill.cli import main
from easydistill.cloud.kubectl import _only_moved, _unpack
from easydistill.cloud.settings import Mount, looks_secret
from easydistill.cloud.spec import JobSpec, script
from easydistill.cloud.targets import kubernetes, pai_dlc

SECRET = "sk-0123456789abcdef0123"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(
    capsys: pytest.CaptureFixture[str],
    target: str,
    case: str,
    job: dict[str, Any],
    of_target: dict[str, Any],
    *more: str,
) -> str:
    """Submit what must be refused; what is told."""
    Path("kd.json").write_text(json.dumps(changed(JOBS[case], job)))
    Path("target.json").write_text(json.dumps(changed(settings(target, case), of_target)))
    command = ["submit", "kd.json", "--to", target, "--target-config", "target.json", *more]
    assert main([*command, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "\n    → " in told and SECRET not in told and "Traceback" not in told
    # Without --dry-run nothing is sent or written either.
    assert main(command) == 2
    capsys.readouterr()
    assert not Path("runs").exists()
    return told


SECRETS: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...], str]] = [
    ("inline", {"inference.api_key": SECRET}, {}, (), "inference.api_key: it is a secret"),
    ("short", {"inference.api_key": "abc"}, {}, (), "inference.api_key: it is a secret"),
    ("override", {}, {}, ("--set", f"inference.api_key={SECRET}"), "inference.api_key: it is a secret"),
    ("url", {"inference.base_url": "https://me:hunter22@t.example/v1"}, {}, (), "inference.base_url: it is a secret"),
    ("elsewhere", {"output_dir": f"/mnt/shared/{SECRET}"}, {}, (), "output_dir: it looks like a secret"),
    ("not given", {}, {"secrets": {}}, (), "${env:TEACHER_KEY}, and the job would not have it"),
    ("in env", {}, {"secrets": {}, "env.TEACHER_KEY": "x"}, (), "env.TEACHER_KEY looks like a secret"),
    ("renamed", {"inference.api_key": "${env:MINE}"}, {"env.MINE": "plain"}, (), "it comes from MINE, which is in env"),
    ("value in env", {}, {"env.MINE": SECRET}, (), "env.MINE looks like a secret"),
    ("value as reference", {}, {"secrets.TEACHER_KEY": SECRET}, (), "secrets.TEACHER_KEY is no reference"),
    ("twice", {}, {"env.TEACHER": "a", "secrets.TEACHER": "b/c"}, (), "TEACHER is in env and in secrets"),
]


@pytest.mark.parametrize(
    ("job", "of_target", "more", "told"), [case[1:] for case in SECRETS], ids=[case[0] for case in SECRETS]
)
def test_secrets(
    job: dict[str, Any], of_target: dict[str, Any], more: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "kubernetes", "api_only", job, of_target, *more)


PLACES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("one_gpu", {"training.output_dir": "/scratch/kd"}, {}, "is on no mount: a job that is preempted would lose it"),
    ("one_gpu", {"training.output_dir": "/models/kd"}, {}, "is mounted for reading"),
    ("one_gpu", {}, {"workdir": "shared"}, "workdir: shared is not an absolute path"),
    ("one_gpu", {}, {"mounts": [{"path": "/a", "source": "s3://x"}]}, "s3://x names no volume"),
    ("one_gpu", {}, {"mounts": [{"path": "/a", "source": "pvc:UPPER"}]}, "pvc:UPPER names no volume"),
    ("one_gpu", {}, {"config_path": "/etc/kd.json"}, "/etc/kd.json is on no mount"),
    ("one_gpu", {}, {"target": "pai-dlc"}, "the file is for pai-dlc, and --to says kubernetes"),
    ("one_gpu", {}, {"gpu": 8}, "there is no key 'gpu' here"),
    ("one_gpu", {}, {"env.RANK": "0"}, "RANK is set by the target"),
    ("one_gpu", {"launch": {"nodes": 2, "rendezvous": "a:1"}}, {}, "it names a machine"),
    ("one_gpu", {"launch": {"nodes": 2}}, {"nodes": 1}, "launch.nodes: it is 2, and nodes of the target is 1"),
    ("four_nodes", {}, {"nodes": 3}, "launch.nodes: it is 4"),
    ("four_nodes", {}, {"gpus": 4}, "launch.processes: it is 8, and each machine has 4 GPUs"),
    ("api_only", {}, {"nodes": 2}, "label runs in one process"),
]


@pytest.mark.parametrize(("case", "job", "of_target", "told"), PLACES)
def test_places_and_machines(
    case: str, job: dict[str, Any], of_target: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "kubernetes", case, job, of_target)


OF_TARGETS: list[tuple[str, str, dict[str, Any], str]] = [
    ("pai-dlc", "one_gpu", {"quota_id": "q"}, "both quota_id and instance_type are given"),
    ("pai-dlc", "four_nodes", {"instance_type": "ecs.x", "quota_id": None}, "the instance type decides"),
    ("pai-dlc", "four_nodes", {"cpus": None}, "each node must say what it needs"),
    ("pai-dlc", "one_gpu", {"workspace_id": "mine"}, "workspace_id"),
    ("pai-dlc", "one_gpu", {"priority": 10}, "priority: 10 is out of range"),
    ("pai-dlc", "one_gpu", {"secrets": {"A": "/elsewhere/a"}}, "secrets.A is a file on no mount"),
    ("kubeflow", "one_gpu", {"retries": 2}, "retries: a TrainJob cannot say it"),
    ("kubeflow", "one_gpu", {"port": 2222}, "the runtime says the port"),
    ("skypilot", "one_gpu", {"accelerator": None}, "gpus and accelerator belong together"),
    ("skypilot", "one_gpu", {"max_hours": 2}, "has no time limit"),
    ("skypilot", "one_gpu", {"mounts": [{"path": "/mnt/shared", "source": "oss://b/kd"}]}, "does not mount oss://b/kd"),
]


@pytest.mark.parametrize(("target", "case", "of_target", "told"), OF_TARGETS)
def test_what_a_target_does_not_take(
    target: str, case: str, of_target: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, target, case, {}, of_target)


def test_a_request_that_is_too_large(capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"models.student": {"config": {"model_type": "llama", "long": ["x" * 100] * 700}}}
    told = refused(capsys, "pai-dlc", "one_gpu", columns, {})
    assert "DLC takes 65,536" in told and "set config_path" in told
    Path("kd.json").write_text(json.dumps(changed(JOBS["one_gpu"], columns)))
    Path("target.json").write_text(json.dumps(settings("pai-dlc", "one_gpu") | {"config_path": "/mnt/shared/kd.json"}))
    command = ["submit", "kd.json", "--to", "pai-dlc", "--target-config", "target.json", "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "exec easydistill run /mnt/shared/kd.json" in shown.out
    assert "put this one there" in shown.err


STORE = {"training": None, "output_dir": "s3://bucket/runs/kd"}


def test_a_run_in_a_store_needs_no_mount(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, of_target = write(tmp_path, "kubernetes", "one_gpu", mounts=[], workdir="/workspace")
    job = {name: value for name, value in (JOBS["one_gpu"] | STORE).items() if value is not None}
    config.write_text(json.dumps(job))
    command = ["submit", str(config), "--to", "kubernetes", "--target-config", str(of_target), "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "name: kd-1\n" in shown.out and str(Path.home()) not in shown.out + shown.err
    assert "need a role that may write there, or secrets" in shown.err
    given = {"AWS_ACCESS_KEY_ID": "store/id", "AWS_SECRET_ACCESS_KEY": "store/secret"}
    of_target.write_text(json.dumps(json.loads(of_target.read_text()) | {"secrets": given}))
    assert main(command) == 0
    assert "need a role" not in capsys.readouterr().err


def test_machines_that_share_a_run_in_a_store_share_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, "kubernetes", "four_nodes", {"output_dir": "s3://bucket/runs/kd"}, {})
    assert "storage.working_directory" in told and "a directory that all of them see" in told
    own = {"output_dir": "s3://bucket/runs/kd", "storage": {"working_directory": "/scratch/kd"}}
    told = refused(capsys, "kubernetes", "four_nodes", own, {"nodes": 4})
    assert "/scratch/kd is on no mount, and each machine would have its own" in told


def test_kubernetes_puts_no_variable_into_a_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("kubernetes", "kubeflow"):
        config, of_target = write(tmp_path, target, "one_gpu", env={"SHOWN": "$(HOME)"})
        command = ["submit", str(config), "--to", target, "--target-config", str(of_target), "--dry-run"]
        assert main([*command, "--set", "inference.system_prompt=pay $(SHOWN)"]) == 0
        shown = capsys.readouterr().out
        assert "pay $$(SHOWN)" in shown and "value: $$(HOME)" in shown


def test_rows_beside_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipeline's `data` paths are relative to its file, which is elsewhere on the job's machines."""
    (tmp_path / "both").mkdir()
    label = {
        "job_type": "label",
        "dataset": {"instruction_path": "@data/seeds"},
        "inference": {"base_url": "https://teacher.example/v1", "model": "m"},
    }
    job = {
        "job_type": "pipeline",
        "data": {"seeds": "rows/seeds.jsonl"},
        "jobs": {"label": label, "again": {**label, "dataset": {"instruction_path": "@label/labeled"}}},
    }
    Path("both/pipeline.json").write_text(json.dumps(job))
    _, of_target = write(tmp_path, "kubernetes", "one_gpu")
    command = ["submit", "both/pipeline.json", "--to", "kubernetes", "--target-config", str(of_target), "--dry-run"]
    assert main(command) == 0
    assert '"seeds": "/mnt/shared/kd/both/rows/seeds.jsonl"' in capsys.readouterr().out
    command[1] = "recipe:thoughtx:small"
    assert main(command) == 2
    assert "easydistill init --recipe thoughtx" in capsys.readouterr().err


def test_unknown_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "kd.json", "--to", "nowhere", "--with", "image=i"]) == 2
    assert "use one of kubeflow, kubernetes, pai-dlc, skypilot" in capsys.readouterr().err


def test_paths_that_are_seen_here_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mounts = [{"path": "/mnt/shared", "source": "pvc:s", "local": str(tmp_path / "nas")}]
    config, of_target = write(tmp_path, "kubernetes", "one_gpu", mounts=mounts)
    command = ["submit", str(config), "--to", "kubernetes", "--target-config", str(of_target), "--dry-run"]
    assert main(command) == 2
    assert "dataset.instruction_path" in (told := capsys.readouterr().err) and "nas/kd/data/train.jsonl" in told
    (tmp_path / "nas/kd/data").mkdir(parents=True)
    (tmp_path / "nas/kd/data/train.jsonl").write_text('{"instruction": "a"}\n')
    assert main(command) == 0


def test_settings_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config, of_target = write(tmp_path, "kubernetes", "one_gpu")
    given = [part for change in ("nodes=2", "gpus=4", "namespace=mine") for part in ("--with", change)]
    command = ["submit", str(config), "--to", "kubernetes", "--target-config", str(of_target), *given]
    assert main([*command, "--set", "training.learning_rate=1e-5", "--name", "Mein Lauf!", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "completions: 2" in shown and "nvidia.com/gpu: '4'" in shown and "namespace: mine" in shown
    assert "- --set\n        - training.learning_rate=1e-5\n" in shown and "name: mein-lauf-1\n" in shown


def test_names_fit_every_target() -> None:
    from easydistill.cloud.prepare import _slug

    assert _slug("KD run_7") == "kd-run-7"
    assert _slug("7b") == "run-7b"
    assert _slug("Übung") == "bung" and _slug("测试") == "run"
    long = [_slug("x" * 80 + end) for end in "ab"]
    assert len(set(long)) == 2 and all(len(name) <= 40 for name in long)


def test_a_script_takes_any_text() -> None:
    """Paths and overrides reach the command as they are, whatever the shell makes of such characters."""
    import subprocess

    odd = """it's "$HOME" `x` \\ ü"""
    spec = JobSpec(
        name="a-1",
        config_name="kd.json",
        config='{"a": "$HOME `date` \\\\ \'"}\nEASYDISTILL_CONFIG_ENDS\n',
        config_path="/dev/stderr",
        run_directory="/",
        workdir="/tmp",
        image="i",
        overrides=(f"a={odd}",),
    )
    text = script(spec).replace("exec easydistill", "exec printf '%s\\n'").replace("> /dev/stderr", ">&2")
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["run", "/dev/stderr", "--set", f"a={odd}"]
    assert done.stderr == spec.config


def test_the_last_state_of_a_job() -> None:
    def state(**status: Any) -> str:
        return kubernetes.state({"status": status}).phase

    assert state() == "waiting" and state(active=1) == "waiting" and state(active=1, ready=1) == "running"
    assert state(conditions=[{"type": "Failed", "status": "False"}], active=1, ready=1) == "running"
    assert (
        state(conditions=[{"type": "FailureTarget", "status": "True"}, {"type": "Failed", "status": "True"}])
        == "failed"
    )
    assert set(pai_dlc._PHASES.values()) == {"waiting", "running", "done", "failed", "cancelled"}


def test_nested_mounts() -> None:
    found = settings("kubernetes", "one_gpu")
    found["mounts"] = [*found["mounts"], {"path": "/mnt/shared/kd/runs", "source": "pvc:runs"}]
    config = kubernetes.Config.model_validate(found)
    assert config.mount_of("/mnt/shared/kd/runs/a") == Mount(path="/mnt/shared/kd/runs", source="pvc:runs")
    assert config.mount_of("/mnt/shared2") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sk-proj-0123456789abcdef", True),
        ("https://x/?key=AKIA0123456789ABCDEF", True),
        ("hf_abcdefghijklmnopqrstuvwxyz0123", True),
        ("hf_datasets_cache_directory", False),
        ("/data/task-0123456789abcdefgh", False),
        ("/data/sk-learn-like-features", False),
        ("Qwen/Qwen2.5-0.5B-Instruct", False),
    ],
)
def test_what_looks_like_a_secret(text: str, expected: bool) -> None:
    assert looks_secret(text) == expected


def test_a_copy_whose_tool_complains_at_length_does_not_stand_still(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/report.html").write_text("made")
    complain = "yes 'tar: ./log.txt: file changed as we read it' | head -n 20000 >&2; tar -cf - -C"
    _unpack(["sh", "-c", f"{complain} {tmp_path}/run ."], tmp_path / "here")
    assert (tmp_path / "here/report.html").read_text() == "made"


def test_a_run_that_goes_on_while_it_is_fetched() -> None:
    moved = "tar: ./log.txt: file changed as we read it\n"
    assert _only_moved(moved + "command terminated with exit code 1\n")
    assert not _only_moved("") and not _only_moved(moved + "tar: ./a: Cannot open: Permission denied\n")


def test_plain_files_are_looked_for_where_the_job_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A job reads them below its working directory, wherever its config is put; what is missing is told."""
    Path("code").mkdir()
    Path("code/mine.py").write_text("import helper\ndef titled(row): return row\n")
    Path("code/helper.py").touch()
    Path("configs").mkdir()
    job = {**JOBS["api_only"], "job_type": "../code/mine.py:titled"}
    job = {name: job[name] for name in ("job_type", "dataset", "output_dir")}
    job["dataset"] = {"instruction_path": "data/x.jsonl"}
    Path("configs/op.json").write_text(json.dumps(job))
    of_target = settings("kubernetes", "api_only")
    of_target["mounts"][0] = {**of_target["mounts"][0], "local": "here"}
    Path("target.json").write_text(json.dumps(of_target))
    command = ["submit", "configs/op.json", "--to", "kubernetes", "--target-config", "target.json", "--dry-run"]
    Path("here/kd/data").mkdir(parents=True)
    Path("here/kd/data/x.jsonl").touch()
    assert main(command) == 2
    told = capsys.readouterr().err
    for name in ("mine.py", "helper.py"):
        assert f"job_type: here/kd/code/{name}: nothing is there, where the job would look for it" in told
        Path("here/kd/code").mkdir(exist_ok=True)
        Path(f"here/kd/code/{name}").touch()
    assert main(command) == 0
    assert '"job_type": "/mnt/shared/kd/code/mine.py:titled"' in capsys.readouterr().out.replace("\\", "")
