"""What a config may say of an object store; where a run's files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.config.location import checked_location, copy_directory, is_remote
from easydistill.engine.secrets import Redactor, credentials
from easydistill.errors import ConfigError
from easydistill.launch.place import ALONE, Place, check_shared


def job(**more: Any) -> dict[str, Any]:
    return {
        "job_type": "label",
        "dataset": {"instruction_path": "rows.json"},
        "inference": {"base_url": "http://127.0.0.1:9/v1"},
        **more,
    }


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("s3:/bucket/run", "one slash"),
        ("s3://bucket", "no folder in a bucket"),
        ("s3:///run", "no folder in a bucket"),
        ("s3://key:secret@bucket/run", "no user, password"),
        ("s3://bucket/run?x=1", "no user, password"),
        ("simplecache::s3://bucket/run", "chained"),
        ("https://example.com/run", "cannot be kept at https"),
        ("s3://bucket/../other", "has . or .. in it"),
    ],
)
def test_places_that_are_none(location: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        api.load(job(output_dir=location))


@pytest.mark.parametrize("location", ["s3://bucket/run/", "oss://bucket/a/b", "gs://b/c", "file:///tmp/x/run"])
def test_places(location: str) -> None:
    loaded = api.load(job(output_dir=location))
    assert loaded.job.remote == location.rstrip("/")
    assert loaded.run_directory == copy_directory(location.rstrip("/"), "runs")


def test_directories_are_no_places() -> None:
    assert not any(map(is_remote, ("runs/kd", "/data/run", "C:/runs", "a:b", "./s3")))
    assert checked_location("runs/kd/") == "runs/kd/"
    assert api.load(job(output_dir="runs/kd")).job.remote is None


@pytest.mark.parametrize(
    "options",
    [
        {"key": "AKIA123"},
        {"secret": "x"},
        {"client_kwargs": {"aws_secret_access_key": "x"}},
        {"token": "t"},
        {"connection_string": "AccountKey=…"},
        {"endpoint_url": "https://user:word@s3.example.com"},
        {"list": [{"password": "x"}]},
    ],
)
def test_secrets_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        api.load(job(output_dir="s3://bucket/run", storage={"options": options}))
    assert "environment" in str(caught.value)
    assert "AKIA123" not in str(caught.value) and "user:word" not in str(caught.value)


def test_options_without_secrets() -> None:
    options = {"endpoint_url": "http://127.0.0.1:9000", "anon": False, "client_kwargs": {"region_name": "x"}}
    assert api.load(job(output_dir="s3://bucket/run", storage={"options": options})).job.storage.options == options


def test_storage_of_a_directory_is_refused() -> None:
    with pytest.raises(ConfigError, match="output_dir is not in an object store"):
        api.load(job(output_dir="runs/kd", storage={"each_reply": True}))


def test_storage_of_one_job_of_a_pipeline_is_refused() -> None:
    inner = {**job(), "storage": {"each_reply": True}}
    with pytest.raises(ConfigError, match="kept with the pipeline"):
        api.load({"job_type": "pipeline", "output_dir": "s3://bucket/run", "jobs": {"label": inner}})


def test_a_pipeline_keeps_its_place() -> None:
    loaded = api.load({"job_type": "pipeline", "output_dir": "s3://bucket/run", "jobs": {"label": job()}})
    assert loaded.job.remote == "s3://bucket/run"


def test_where_the_run_is_is_no_part_of_its_identity() -> None:
    here, there = api.load(job(output_dir="runs/kd")).job, api.load(job(output_dir="s3://bucket/kd")).job
    kept = api.load(job(output_dir="s3://bucket/kd", storage={"each_reply": True})).job
    assert here.identity() | {"output_dir": ""} == there.identity() | {"output_dir": ""}
    assert there.identity() == kept.identity()


def test_machines_that_train_together_need_a_directory_of_all() -> None:
    several = Place(0, 2, "the config", nodes=2)
    alone = api.load(job(output_dir="s3://bucket/run")).job
    check_shared(alone, ALONE)
    with pytest.raises(ConfigError, match="directory of its own"):
        check_shared(alone, several)
    check_shared(api.load(job(output_dir="s3://b/run", storage={"working_directory": "/nfs/run"})).job, several)


def test_credentials_of_the_environment_are_hidden() -> None:
    redactor = Redactor()
    environment = {"AWS_SECRET_ACCESS_KEY": "abcdefgh", "OSS_ACCESS_KEY_SECRET": "ijklmnop", "HOME": "/home/someone"}
    for secret in credentials(environment):
        redactor.register(secret)
    assert redactor.text("abcdefgh ijklmnop /home/someone") == "[redacted] [redacted] /home/someone"


def test_the_working_directory_has_the_name_of_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EASYDISTILL_CACHE", str(tmp_path))
    one, other = copy_directory("s3://bucket/a/kd", "runs"), copy_directory("s3://bucket/b/kd", "runs")
    assert one.name == other.name == "kd" and one != other and one.is_relative_to(tmp_path)
