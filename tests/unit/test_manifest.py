"""A manifest exists if and only if its stage is complete; files exist only when complete."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from easydistill.data.files import hash_file, link_or_copy, read_jsonl, replacing, write_json, write_jsonl, write_text
from easydistill.data.manifest import NAME, Manifest, RowCounts

MANIFEST = Manifest(
    stage="label",
    fingerprint="f" * 64,
    fingerprint_of={"config": {"seed": 1}},
    outputs={"a.txt": hashlib.sha256(b"a").hexdigest(), "deep/b.txt": hashlib.sha256(b"b").hexdigest()},
    rows=RowCounts(5, 3, {"timeout": 2}),
    tokens={"prompt": 7},
    metrics={"loss": 0.5, "note": "größer"},
    seconds=1.25,
    started="2026-01-01T00:00:00+00:00",
    finished="2026-01-01T00:00:01+00:00",
    versions={"torch": "2"},
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "deep" / "b.txt").write_text("b")
    return tmp_path


def test_a_manifest_is_read_back_unchanged(directory: Path) -> None:
    MANIFEST.write(directory)
    assert Manifest.read(directory) == MANIFEST


def test_a_manifest_torn_at_any_byte_counts_as_none(directory: Path) -> None:
    MANIFEST.write(directory)
    whole = (directory / NAME).read_bytes()
    for end in range(len(whole.rstrip())):
        (directory / NAME).write_bytes(whole[:end])
        assert Manifest.read(directory) is None


@pytest.mark.parametrize(
    "value",
    [None, [], 5, "x", {}, {"rows": {}}, {**dataclasses.asdict(MANIFEST), "rows": None}, {"rows": {"entered": 1}},
     {**dataclasses.asdict(MANIFEST), "from_the_future": 1}, {**dataclasses.asdict(MANIFEST), "rows": {"x": 1}}],
)  # fmt: skip
def test_anything_else_than_a_manifest_counts_as_none(value: Any, directory: Path) -> None:
    (directory / NAME).write_text(json.dumps(value))
    assert Manifest.read(directory) is None


def test_bytes_that_are_not_text_count_as_none(directory: Path) -> None:
    (directory / NAME).write_bytes(b"\xff\xfe\x00")
    assert Manifest.read(directory) is None


def test_outputs_are_checked(directory: Path) -> None:
    assert MANIFEST.outputs_present(directory)
    assert MANIFEST.verify(directory) == []
    (directory / "a.txt").write_text("b")
    assert MANIFEST.outputs_present(directory)
    assert MANIFEST.verify(directory) == ["a.txt"]
    (directory / "deep" / "b.txt").unlink()
    assert not MANIFEST.outputs_present(directory)
    assert MANIFEST.verify(directory) == ["a.txt", "deep/b.txt"]


def test_the_hash_of_outputs_depends_on_names_and_contents_only() -> None:
    reordered = dataclasses.replace(MANIFEST, outputs=dict(reversed(MANIFEST.outputs.items())), seconds=9.0)
    assert reordered.output_hash() == MANIFEST.output_hash()
    other = dataclasses.replace(MANIFEST, outputs={**MANIFEST.outputs, "a.txt": "0"})
    assert other.output_hash() != MANIFEST.output_hash()


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_changes_nothing(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.txt"
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert list(path.parent.iterdir()) == []
    write_text(path, "old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, ["ä"])
    with pytest.raises(UnicodeEncodeError):
        write_json(path, "\ud800")
    with pytest.raises(TypeError):
        write_jsonl(path, [1, object()])
    assert json.loads(path.read_text(encoding="utf-8")) == ["ä"]
    assert list(tmp_path.iterdir()) == [path]


def test_lines(tmp_path: Path) -> None:
    rows = [{"a": "x\u2028y"}, [1], None, "ä"]
    write_jsonl(tmp_path / "r.jsonl", rows)
    assert list(read_jsonl(tmp_path / "r.jsonl")) == rows
    with (tmp_path / "r.jsonl").open("a") as handle:
        handle.write("\n  \n5\n")
    assert list(read_jsonl(tmp_path / "r.jsonl")) == [*rows, 5]


def test_a_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(256)) * 999)
    assert hash_file(tmp_path / "x") == hashlib.sha256(bytes(range(256)) * 999).hexdigest()


@pytest.mark.parametrize("links", [True, False])
def test_a_link_or_a_copy(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(self: Path, target: Path) -> None:
            raise OSError

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("new")
    target.write_text("old")
    link_or_copy(source, target)
    assert target.read_text() == "new"
    assert source.samefile(target) == links
