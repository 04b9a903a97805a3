"""Commands on runs that are kept in a store: a directory in which objects appear whole and are never appended to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec")

from tests.support.scripted_server import ScriptedServer

import easydistill
from easydistill import api
from easydistill.cli import main
from easydistill.data.files import read_json
from easydistill.errors import DataError

ASKED: list[str] = []
"""What the server was asked."""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    ASKED.clear()
    server = ScriptedServer()
    server.say = said("About {}: it is so.")
    yield server
    server.close()


def said(form: str, nothing_to: str = "…") -> Callable[[str, int], str]:
    def say(text: str, number: int) -> str:
        ASKED.append(text)
        return "" if nothing_to in text else form.format(text)

    return say


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EASYDISTILL_CACHE", str(tmp_path / "cache"))


def pipeline(folder: Path, url: str, output_dir: str, **more: Any) -> dict[str, Any]:
    """Label, then deduplicate what was labelled."""
    (folder / "seeds.json").write_text(json.dumps([{"instruction": f"Tell me of {n} things."} for n in range(12)]))
    inference = {"base_url": url, "model": "m", "max_new_tokens": 32}
    return {
        "job_type": "pipeline",
        "output_dir": output_dir,
        "jobs": {
            "label": {
                "job_type": "label",
                "dataset": {"instruction_path": str(folder / "seeds.json")},
                "inference": inference,
            },
            "dedup": {
                "job_type": "deduplicate",
                "dataset": {"instruction_path": "@label/labeled"},
                "synthesis": {"too_similar": 1},
            },
        },
        **more,
    }


def test_a_pipeline_goes_on_from_another_machine(server: ScriptedServer, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/store/runs/both"
    config = pipeline(tmp_path, server.url, place)
    assert next(stage.state for stage in api.plan(config)) == "pending"
    first = easydistill.run(config)
    assert first.run_directory.is_relative_to(tmp_path / "cache/runs")
    assert len(ASKED) == 12
    shutil.rmtree(tmp_path / "cache")
    assert {stage.state for stage in api.plan(config)} == {"done"}
    # Another machine has the directory elsewhere.
    moved = {**config, "storage": {"working_directory": str(tmp_path / "elsewhere")}}
    second = easydistill.run(moved)
    assert not second.fresh and len(ASKED) == 12
    # A change reruns what it affects, from the journal of the other machine.
    moved["jobs"]["dedup"]["synthesis"]["too_similar"] = 0.5
    third = easydistill.run(moved)
    assert third.fresh and len(ASKED) == 12
    for name in ("summary.json", "report.html", "config.resolved.json", "metrics.jsonl"):
        path = tmp_path / "store/runs/both" / name
        assert not path.exists() or path.read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()
    assert read_json(tmp_path / "store/runs/both/config.resolved.json")["output_dir"] == place


def test_other_commands_read_runs_of_stores(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"file://{tmp_path}/store/{name}" for name in ("one", "two")]
    for place in places:
        easydistill.run(pipeline(tmp_path, server.url, place), quiet=True)
    shutil.rmtree(tmp_path / "cache")
    assert main(["report", places[0]]) == 0
    assert Path(capsys.readouterr().out.strip()).name == "report.html"
    assert main(["compare", *places, "-o", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").is_file()
    fetched = api.fetch(places[0], tmp_path / "fetched")
    assert (fetched / "stages/1-label/stages/1-label/labeled.json").is_file()
    capsys.readouterr()
    assert main(["report", f"file://{tmp_path}/store/none"]) == 1
    assert "in no run of a store" in capsys.readouterr().err
    with pytest.raises(DataError, match="no run is here"):
        api.fetch(f"file://{tmp_path}/store/none", tmp_path / "none")


def test_retrying_a_run_of_a_store(server: ScriptedServer, tmp_path: Path) -> None:
    server.say = said("About {}", nothing_to=" 3 things")
    place = f"file://{tmp_path}/store/run"
    config = pipeline(tmp_path, server.url, place)
    job = {**config["jobs"]["label"], "output_dir": place}
    job["dataset"] = {**job["dataset"], "max_rejected_share": 0.5}
    first = easydistill.run(job)
    assert first.summary["rows"]["rejected"] == 1
    shutil.rmtree(tmp_path / "cache")
    server.say = said("Now about {}")
    second = api.retry(job)
    assert second.summary["rows"]["rejected"] == 0
    assert len(ASKED) == 13


def test_a_local_run_loads_nothing_of_this(server: ScriptedServer, tmp_path: Path) -> None:
    config = pipeline(tmp_path, server.url, str(tmp_path / "run"))
    job = {**config["jobs"]["label"], "output_dir": str(tmp_path / "run")}
    (tmp_path / "kd.json").write_text(json.dumps(job))
    code = (
        "import sys\nfrom easydistill.cli import main\n"
        f"assert main(['run', {str(tmp_path / 'kd.json')!r}]) == 0\n"
        "found = [name for name in sys.modules if name.startswith(('easydistill.remote', 'fsspec', 's3fs'))]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
