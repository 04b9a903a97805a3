"""Secrets appear nowhere: not in files, the log or a traceback, in any spelling."""

from __future__ import annotations

import html
import json
import logging
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill import api
from easydistill.engine.run_directory import LOGGER, RunDirectory
from easydistill.engine.secrets import MASK, Redactor

KEYS = ["sk-plain-1234567890", 'quo"ted\\key', "slash/plus+equals==", "späce in it é", "a'b&c<d>e", "percent%2Fcoded"]
SPELLINGS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "JSON": json.dumps,
    "JSON, not ASCII": lambda key: json.dumps(key, ensure_ascii=False),
    "JSON in JSON": lambda key: json.dumps(json.dumps({"error": f"key {key}"})),
    "JSON with escaped slashes": lambda key: json.dumps(key).replace("/", "\\/"),
    "repr": lambda key: repr({"key": key}) if "'" not in key else repr(key)[1:-1],
    "URL path": urllib.parse.quote,
    "URL": lambda key: urllib.parse.quote(key, safe=""),
    "URL in small letters": lambda key: re.sub(
        "%..", lambda code: code.group().lower(), urllib.parse.quote(key, safe="")
    ),
    "query": lambda key: urllib.parse.urlencode({"key": key}),
    "HTML": html.escape,
    "header": lambda key: f"Authorization: Bearer {key}\r\n",
    "traceback": lambda key: f'  File "x.py"\nValueError: bad key {key}',
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_every_key(spelling: str, key: str) -> None:
    redactor = Redactor()
    redactor.register(key)
    spelled = f"before {SPELLINGS[spelling](key)} after"
    hidden = redactor.text(spelled)
    assert MASK in hidden
    for core in (key, key[2:-2]):
        assert core not in hidden
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=6, max_size=20), st.text(max_size=10))
def test_any_key_in_any_text(key: str, around: str) -> None:
    redactor = Redactor()
    redactor.register(key)
    text = redactor.text(f"{around}{key}{around}")
    assert MASK in text
    assert key not in text.replace(MASK, "\0")
    assert redactor.text(json.dumps({"k": key})) == json.dumps({"k": MASK})


def test_a_longer_secret_is_hidden_whole(tmp_path: Path) -> None:
    redactor = Redactor()
    redactor.register("sk-abcdef")
    redactor.register("sk-abcdef-and-more")
    assert redactor.text("x sk-abcdef-and-more y sk-abcdef z") == f"x {MASK} y {MASK} z"


def test_placeholders_do_not_blank_out_innocent_text() -> None:
    redactor = Redactor()
    redactor.register("EMPTY")
    redactor.register("")
    assert redactor.text("the list is EMPTY") == "the list is EMPTY"


def test_values_of_every_shape() -> None:
    redactor = Redactor()
    redactor.register("sk-secret")
    value = {"sk-secret": ["a sk-secret", ("sk-secret", 1, 1.5, None, True)], "n": 3, "half": "\ud800"}
    assert redactor.value(value) == {MASK: [f"a {MASK}", [MASK, 1, 1.5, None, True]], "n": 3, "half": "?"}


def test_all_secrets_of_a_config_are_registered() -> None:
    config = {
        "job_type": "black_box_kd_api",
        "dataset": {"instruction_path": "x.json"},
        "inference": {"base_url": "https://me:p%40ssword@host/v1", "api_key": "sk-from-config"},
        "models": {"student": "s"},
    }
    redactor = Redactor()
    redactor.register_config(api.load(config).job)
    hidden = redactor.text("sk-from-config p%40ssword p@ssword host me")
    assert hidden == f"{MASK} {MASK} {MASK} host me"


def test_the_log_hides_messages_arguments_and_tracebacks(tmp_path: Path) -> None:
    redactor = Redactor()
    redactor.register("sk-secret")
    run = RunDirectory(tmp_path)
    with run.logging(redactor):
        LOGGER.warning("key %s", "sk-secret")
        logging.getLogger("transformers").warning("sk-secret")
        try:
            raise ValueError("wrong key sk-secret")
        except ValueError:
            LOGGER.exception("failed")
    LOGGER.warning("sk-after")
    text = run.log.read_text()
    assert "sk-secret" not in text
    assert text.count(MASK) >= 3
    assert "Traceback" in text
    assert "sk-after" not in text


def test_files_in_the_run_directory_are_redacted(tmp_path: Path) -> None:
    redactor = Redactor()
    redactor.register("sk-secret")
    run = RunDirectory(tmp_path)
    run.write_config({"a": "sk-secret"}, {"b": ["sk-secret"]}, redactor)
    run.write_summary({"error": "key sk-secret"}, redactor)
    run.write_environment()
    for path in tmp_path.iterdir():
        assert "sk-secret" not in path.read_text()
    assert run.read_summary() == {"error": f"key {MASK}"}
    run.summary_path.write_text("{")
    assert run.read_summary() is None
