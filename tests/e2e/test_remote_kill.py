"""kill -9 at any moment, and the machine's disk is gone: the run goes on from its store, and has lost nothing of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.fault_server import Running, running
from tests.support.jobs import api_job, run, write_config, write_prompts
from tests.support.remote_runs import CONCURRENCY, torture
from tests.support.s3_server import BUCKET, FaultyWay, s3_server

from easydistill.data.files import hash_file
from easydistill.remote.fetch import fetch

pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(latency=0.05) as found:
        yield found


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-test-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-test-secret-of-some-length")


def kept(job: dict[str, Any], url: str, folder: Path, options: dict[str, Any], **storage: Any) -> dict[str, Any]:
    settings = {"options": options, "working_directory": str(folder / "disk/run"), "lock_seconds": 5, **storage}
    return {**job, "output_dir": url, "storage": settings}


def test_a_label_job_loses_no_answer_of_its_store(server: Running, tmp_path: Path) -> None:
    """The store is a directory, in which objects appear as in a store: whole, and never appended to."""
    prompts = [f"{tmp_path.name} question {n}" for n in range(150)]
    job = {
        "job_type": "label",
        "dataset": {"instruction_path": str(write_prompts(tmp_path, prompts))},
        "inference": {"base_url": server.base_url, "max_new_tokens": 16, "max_concurrency": CONCURRENCY},
    }
    url = f"file://{tmp_path}/store/run"
    config = write_config(tmp_path, kept(job, url, tmp_path, {}, each_reply=True))
    found = torture(config, url, {}, server, kills=2, longest=3.0, seed=0)
    assert not found["again"]
    asked = server.stats()["attempts"]
    # Repeated can only be what was under way at a kill.
    assert sum(asked[text] for text in prompts) - len(prompts) <= 2 * CONCURRENCY
    labelled = json.loads((fetch(url, tmp_path / "fetched") / "stages/1-label/labeled.json").read_text())
    assert [row["output"] for row in labelled] == [f"answer to: {text}" for text in prompts]


def artifacts(directory: Path) -> dict[str, str]:
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "done"
    return {
        "labels": hash_file(directory / "stages/1-label/labeled.json"),
        "weights": hash_file(directory / "student/model.safetensors"),
        "answers": hash_file(directory / "stages/3-evaluate/answers.jsonl"),
        "metrics": json.dumps(summary["metrics"], sort_keys=True),
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("each_reply", [True, False], ids=["each-reply", "every-second"])
def test_ten_kills_of_a_distillation_behind_a_faulty_network(
    each_reply: bool, server: Running, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    prompts = [f"{tmp_path.name} question {n}, in a few words" for n in range(240)]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    code, out = run(write_config(whole, api_job(whole, server.base_url, tiny_model, prompts)))
    assert code == 0, out
    server.reset()
    url = f"s3://{BUCKET}/runs/torn"
    with s3_server(tmp_path) as direct:
        way = FaultyWay(int(direct.rpartition(":")[2]), share=0.15, seed=0)
        options = {"endpoint_url": way.url, "config_kwargs": {"read_timeout": 5, "connect_timeout": 5}}
        job = api_job(torn, server.base_url, tiny_model, prompts, max_concurrency=CONCURRENCY)
        config = write_config(torn, kept(job, url, torn, options, each_reply=each_reply, send_seconds=1))
        found = torture(config, url, {"endpoint_url": direct}, server, kills=10, longest=16.0, seed=1)
        way.close()
        fetched = fetch(url, tmp_path / "fetched", options={"endpoint_url": direct})
    print(found["stored"], dict(way.met))
    assert len(found["stored"]) == 10
    assert not found["again"], "an answer of the store was asked for again"
    assert len(way.met) == 5, way.met
    asked = server.stats()["attempts"]
    repeated = sum(asked[text] for text in prompts) - len(prompts)
    # A second's answers, at 50 ms each, and those under way.
    most = CONCURRENCY if each_reply else CONCURRENCY + 4 * 20 * CONCURRENCY
    assert repeated <= 10 * most
    assert artifacts(fetched) == artifacts(whole / "run")
    texts = [path for path in fetched.rglob("*") if path.suffix in {".json", ".jsonl", ".txt", ".html", ".md"}]
    assert not [path for path in texts if "a-test-secret" in path.read_text()]
