"""The journal: finished work survives a kill at any byte."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easydistill.data import journal as journals
from easydistill.data.journal import Journal


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
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


# --- full disks and kills ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [b"\x00" * 100, b"not json", b"[{]", b"5", b"null", b'{"key": "z"}', b'["z"]', b'[{"no": "key"}]', b"\xff\xfe",
     b"[" * 100_000, b""],
    ids=lambda line: line[:12].decode("latin-1"),
)  # fmt: skip
def test_a_line_that_cannot_be_read_costs_no_other(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"key": "a"})
    with path.open("ab") as handle:
        handle.write(line + b"\n")
    with Journal(path) as journal:
        assert list(journal) == ["a"]
        journal.append({"key": "b", "text": "paid for"})
    with Journal(path) as journal:
        assert list(journal) == ["a", "b"]
        assert journal.get("b")["text"] == "paid for"


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EASYDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(journals, "WAITS", (0.0,))
    real = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:10])

    with Journal(tmp_path / "j") as journal:
        journal.append({"key": "a"})
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            journal.append({"key": "b", "text": "x" * 55})
        monkeypatch.setattr(os, "write", real)
        assert "b" not in journal
        journal.append({"key": "c", "text": "after"})
        assert journal.get("c")["text"] == "after"
    with Journal(tmp_path / "j") as journal:
        # What no disk has taken is kept nowhere: this one refused all of them.
        assert list(journal) == ["a", "c"]


def test_a_line_is_written_whole_even_where_the_system_takes_it_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    with Journal(tmp_path / "j") as journal:
        monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
        journal.append({"key": "a", "text": "漢字" * 50}, {"key": "b"})
        journal.append({"key": "c"})
        assert journal.get("a")["text"] == "漢字" * 50
        assert list(journal) == ["a", "b", "c"]


def test_what_cannot_be_written_as_json_leaves_no_trace(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(TypeError):
            journal.append({"key": "a"}, {"key": "b", "value": object()})
        assert len(journal) == 0
    assert (tmp_path / "j").read_bytes() == b""


def test_a_large_record_and_many_small_ones(tmp_path: Path) -> None:
    large = "x" * 20_000_000
    with Journal(tmp_path / "j") as journal:
        journal.append({"key": "large", "text": large})
        for start in range(0, 2000, 100):
            journal.append(*({"key": str(n), "n": n} for n in range(start, start + 100)))
    with Journal(tmp_path / "j", note=lambda record: record.get("n")) as journal:
        assert len(journal) == 2001
        assert journal.get("large")["text"] == large
        assert all(journal.get(str(n))["n"] == n == journal.note(str(n)) for n in range(0, 2000, 37))


def test_a_killed_writer_loses_nothing_it_had_finished(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom easydistill.data.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for n in range(50):\n    journal.append({'key': str(n), 'text': 'ä' * n})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "j")], check=False)
    assert done.returncode == -9
    with Journal(tmp_path / "j") as journal:
        assert list(journal) == [str(n) for n in range(50)]
        assert journal.get("49")["text"] == "ä" * 49


records = st.lists(
    st.dictionaries(st.sampled_from(["text", "n", "x"]), st.none() | st.integers() | st.text(max_size=20)), min_size=1
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(records, min_size=1, max_size=5), data=st.data())
def test_any_journal_cut_anywhere_keeps_its_whole_lines(batches: Any, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / f"{uuid.uuid4()}.jsonl"
    written: list[list[dict[str, Any]]] = []
    ends = [0]
    with Journal(path) as journal:
        for number, batch in enumerate(batches):
            written.append([{"key": f"{number}-{place}", **record} for place, record in enumerate(batch)])
            journal.append(*written[-1])
            ends.append(path.stat().st_size)
    cut = data.draw(st.integers(0, ends[-1]))
    path.write_bytes(path.read_bytes()[:cut])
    whole = [record for batch, end in zip(written, ends[1:], strict=True) if end <= cut for record in batch]
    with Journal(path) as journal:
        assert list(journal) == [record["key"] for record in whole]
        assert [journal.get(record["key"]) for record in whole] == whole
        assert path.stat().st_size == max(end for end in ends if end <= cut)


def test_what_was_replaced_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append({"key": "a", "n": 1}, {"key": "b", "n": 2})
        journal.append({"key": "a", "n": 3})
    with Journal(path) as journal:
        journal.append({"key": "a", "n": 4})
        assert [journal.get_superseded(number)["n"] for number in range(journal.superseded)] == [1, 3]
        assert (journal.get("a")["n"], len(journal)) == (4, 2)
