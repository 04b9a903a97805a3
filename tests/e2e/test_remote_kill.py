"""kill -9 at any moment, and the machine's disk is gone: the run goes on from its store, and has lost nothing of it."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.fault_server import Running, running
from tests.support.jobs import api_job, run, write_config, write_prompts
from tests.support.remote_runs import CONCURRENCY, Moment, torture
from tests.support.s3_server import BUCKET, FAULTS, FaultyWay, s3_server

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


def label_job(folder: Path, server: Running, prompts: list[str]) -> dict[str, Any]:
    return {
        "job_type": "label",
        "dataset": {"instruction_path": str(write_prompts(folder, prompts))},
        "inference": {"base_url": server.base_url, "max_new_tokens": 16, "max_concurrency": CONCURRENCY},
    }


def check_labels(fetched: Path, prompts: list[str]) -> None:
    rows = json.loads((fetched / "stages/1-label/labeled.json").read_text())
    assert [row["output"] for row in rows] == [f"answer to: {text}" for text in prompts]


def repeated(server: Running, prompts: list[str]) -> int:
    asked = server.stats()["attempts"]
    return sum(asked[text] for text in prompts) - len(prompts)


def test_a_label_job_loses_no_answer_of_its_store(server: Running, tmp_path: Path) -> None:
    """The store is a directory, in which objects appear as in a store: whole, and never appended to."""
    prompts = [f"{tmp_path.name} question {n}" for n in range(100)]
    url = f"file://{tmp_path}/store/run"
    config = write_config(tmp_path, kept(label_job(tmp_path, server, prompts), url, tmp_path, {}, each_reply=True))
    found = torture(config, url, {}, server, [Moment(20), Moment(30)])
    assert len(found["stored"]) == 2
    assert not found["again"]
    # Repeated can only be what was under way at a kill.
    assert repeated(server, prompts) <= 2 * CONCURRENCY
    check_labels(fetch(url, tmp_path / "fetched"), prompts)


@contextlib.contextmanager
def faulty_s3(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any], FaultyWay]]:
    """Options for the run, whose way to the server is bad, and for the test, whose way is good."""
    with s3_server(folder) as direct:
        way = FaultyWay(int(direct.rpartition(":")[2]), share=0.15, seed=0)
        config = {"read_timeout": 5, "connect_timeout": 5}
        yield {"endpoint_url": way.url, "config_kwargs": config}, {"endpoint_url": direct}, way
        way.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("each_reply", [True, False], ids=["each-reply", "every-second"])
def test_ten_kills_of_a_label_job_behind_a_faulty_network(each_reply: bool, server: Running, tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    # A machine that is slow at killing must not find the job done.
    prompts = [f"{tmp_path.name} question {n}" for n in range(360)]
    url = f"s3://{BUCKET}/runs/label"
    with faulty_s3(tmp_path) as (bad, good, way):
        job = kept(label_job(tmp_path, server, prompts), url, tmp_path, bad, each_reply=each_reply, send_seconds=1)
        generator = random.Random(1)
        kills = [Moment(generator.randint(1, 20), seconds=generator.random() / 2) for _ in range(10)]
        found = torture(write_config(tmp_path, job), url, good, server, kills)
        fetched = fetch(url, tmp_path / "fetched", options=good)
    again = repeated(server, prompts)
    print(f"stored at the kills {found['stored']}, asked again {again}, connections {dict(way.met)}")
    assert len(found["stored"]) == 10
    assert not found["again"], "an answer of the store was asked for again"
    assert set(way.met) == {*FAULTS, "none"}
    if each_reply:
        assert again <= 10 * CONCURRENCY
    check_labels(fetched, prompts)
    texts = [path for path in fetched.rglob("*") if path.is_file() and path.suffix != ".parquet"]
    assert not [path for path in texts if "a-test-secret" in path.read_text()]


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
def test_a_killed_distillation_gives_the_artifacts_of_an_uninterrupted_local_run(
    server: Running, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    prompts = [f"{tmp_path.name} question {n}, in a few words" for n in range(60)]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    code, out = run(write_config(whole, api_job(whole, server.base_url, tiny_model, prompts)), timeout=1200)
    assert code == 0, out
    server.reset()
    url = f"s3://{BUCKET}/runs/torn"
    with faulty_s3(tmp_path) as (bad, good, way):
        job = api_job(torn, server.base_url, tiny_model, prompts, max_concurrency=CONCURRENCY)
        config = write_config(torn, kept(job, url, torn, bad, send_seconds=1))
        generator = random.Random(2)
        late = [Moment(commits=generator.randint(2, 9), labelled=True, seconds=generator.random()) for _ in range(3)]
        found = torture(config, url, good, server, [Moment(generator.randint(5, 40)), *late])
        fetched = fetch(url, tmp_path / "fetched", options=good)
    print(f"stored at the kills {found['stored']}, connections {dict(way.met)}")
    assert len(found["stored"]) >= 3
    assert not found["again"], "an answer of the store was asked for again"
    assert artifacts(fetched) == artifacts(whole / "run")
