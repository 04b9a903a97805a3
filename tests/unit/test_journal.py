"""The journal: whatever was finished survives a kill at any byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from easydistill.data.journal import Journal


def test_what_is_written_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"key": "a", "text": "ä 漢字 \n \u2028"})
        journal.append({"key": "b", "n": 1}, {"key": "c", "n": 2})
        journal.append({"key": "a", "text": "newer"})
        assert journal.get("a") == {"key": "a", "text": "newer"}
    with Journal(path, note=lambda record: record.get("n")) as journal:
        assert list(journal) == ["a", "b", "c"]
        assert "c" in journal
        assert "d" not in journal
        assert journal.get("a")["text"] == "newer"
        assert journal.get("c") == {"key": "c", "n": 2}
        assert (journal.note("a"), journal.note("c")) == (None, 2)
        with pytest.raises(KeyError):
            journal.get("d")


def test_a_tear_at_every_byte_of_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"key": "a", "text": "first"})
        journal.append({"key": "b", "text": "second"})
    kept = path.stat().st_size
    with Journal(path) as journal:
        journal.append({"key": "c", "text": "漢"}, {"key": "d", "text": "same batch"})
    whole = path.read_bytes()
    for end in range(kept, len(whole)):
        path.write_bytes(whole[:end])
        with Journal(path) as journal:
            assert list(journal) == ["a", "b"]
            assert path.stat().st_size == kept
            journal.append({"key": "e"})
        with Journal(path) as journal:
            assert list(journal) == ["a", "b", "e"]
            assert journal.get("b")["text"] == "second"


def test_garbage_after_a_power_cut_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"key": "a"})
    with path.open("ab") as handle:
        handle.write(b"\x00" * 4096 + b"\n")
    with Journal(path) as journal:
        assert list(journal) == ["a"]


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.append({"key": "a", "text": "\ud800"})
        assert journal.get("a")["text"] == "\ud800"
