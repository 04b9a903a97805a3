"""The answers cache: what is kept is found whole by everyone, whatever is killed, cut or damaged."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.asking.answers_exchange import check, export, facts_of, import_into
from easydistill.data.answers_cache import in_use, using
from easydistill.data.answers_cache.entries import decode, encode
from easydistill.data.answers_cache.store import ANSWERS, AnswersCache
from easydistill.errors import ConfigError, DataError
from easydistill.signals.shared import SharedShards


def key_of(number: int) -> str:
    return f"{number:032x}"


def record_of(number: int, text: str | None = None) -> dict[str, Any]:
    return {
        "kind": "completion",
        "key": key_of(number),
        "text": text or f"answer {number} ü",
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "model": "teacher",
    }


def filled(directory: Path, numbers: range) -> Path:
    with AnswersCache(directory) as cache:
        for number in numbers:
            cache.put(key_of(number), record_of(number))
    return directory


def only_segment(directory: Path) -> Path:
    (segment,) = (directory / ANSWERS).glob("*.jsonl")
    return segment


def test_another_process_finds_what_is_kept_and_nothing_is_kept_twice(tmp_path: Path) -> None:
    with AnswersCache(tmp_path / "cache") as mine, AnswersCache(tmp_path / "cache") as other:
        mine.put(key_of(1), record_of(1))
        assert key_of(1) not in other
        other.refresh()
        assert other.get(key_of(1)) == record_of(1)
        other.put(key_of(1), record_of(1, "another sample"))
        assert mine.get(key_of(1)) == record_of(1)
    assert len(list((tmp_path / "cache" / ANSWERS).iterdir())) == 1, "who has written nothing leaves no file"


def test_of_two_answers_the_one_that_was_wanted_anew_counts(tmp_path: Path) -> None:
    with AnswersCache(tmp_path) as first, AnswersCache(tmp_path) as second:
        first.put(key_of(1), record_of(1))
        second.refresh()
        second.put(key_of(1), record_of(1, "better"), replace=True)
    for _ in range(2):
        with AnswersCache(tmp_path) as later:
            found = later.get(key_of(1))
            assert found is not None and found["text"] == "better"
    assert check(tmp_path).replaced == 1


def test_keys_of_other_forms_are_not_kept(tmp_path: Path) -> None:
    with AnswersCache(tmp_path) as cache:
        cache.put("row 7", {"kind": "completion", "key": "row 7", "text": "a"})
        assert len(cache) == 0


@pytest.mark.parametrize("cut", [1, 20, 70])
def test_what_a_kill_tore_off_is_passed_over_and_does_not_count_as_damage(tmp_path: Path, cut: int) -> None:
    segment = only_segment(filled(tmp_path, range(5)))
    os.truncate(segment, segment.stat().st_size - cut)
    told: list[str] = []
    with AnswersCache(tmp_path, told.append) as cache:
        assert sorted(cache) == [key_of(number) for number in range(4)]
        assert cache.unfinished > 0
        cache.put(key_of(4), record_of(4))
    assert told == []
    found = check(tmp_path)
    assert (found.answers, found.good, found.unfinished_bytes > 0) == (5, True, True)


def test_a_damaged_answer_is_told_and_asked_again(tmp_path: Path) -> None:
    segment = only_segment(filled(tmp_path, range(3)))
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b"answer 1", b"answer 7"))
    told: list[str] = []
    with AnswersCache(tmp_path, told.append) as cache:
        assert cache.get(key_of(1)) is None
        assert key_of(1) not in cache and cache.damaged == 1
        assert "damaged" in told[0] and "asked again" in told[0]
        assert cache.get(key_of(2)) == record_of(2)
        cache.put(key_of(1), record_of(1))
    with AnswersCache(tmp_path) as later:
        assert later.get(key_of(1)) == record_of(1)
    assert check(tmp_path).damaged == [f"{segment.name}:2"]


def test_a_line_that_is_no_answer_costs_only_itself(tmp_path: Path) -> None:
    segment = only_segment(filled(tmp_path, range(2)))
    with segment.open("ab") as file:
        file.write(b"\0\0\0\n" + encode(key_of(9), 1_700_000_000_000, record_of(9)))
    told: list[str] = []
    with AnswersCache(tmp_path, told.append) as cache:
        assert len(cache) == 3 and cache.get(key_of(9)) == record_of(9)
    assert len(told) == 1 and not check(tmp_path).good


@pytest.mark.parametrize("bits", range(0, 8 * 60, 37))
def test_no_flipped_bit_passes(bits: int) -> None:
    line = bytearray(encode(key_of(3), 1_700_000_000_000, record_of(3)))
    line[bits // 8] ^= 1 << (bits % 8)
    assert decode(bytes(line)) is None


def test_a_full_disk_is_told_once_and_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    real = os.write

    def short(file: int, data: Any) -> int:
        if len(data) > 10 and state["full"]:
            state["full"] = False
            real(file, bytes(data)[:10])
            raise OSError(28, "No space left on device")
        return real(file, data)

    state = {"full": False}
    with AnswersCache(tmp_path, told.append) as cache:
        cache.put(key_of(1), record_of(1))
        monkeypatch.setattr(os, "write", short)
        state["full"] = True
        cache.put(key_of(2), record_of(2))
        cache.put(key_of(3), record_of(3))
        assert sorted(cache) == [key_of(1)]
    assert len(told) == 1 and "No space left" in told[0]
    assert check(tmp_path) == check(tmp_path) and check(tmp_path).good and check(tmp_path).unfinished_bytes == 0


def test_the_folder_must_be_ours_and_of_this_format(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"answers_cache: this folder cannot be used"):
        AnswersCache(tmp_path / "file")
    filled(tmp_path / "cache", range(1))
    (tmp_path / "cache" / "format.json").write_text('{"kind": "easydistill answers", "format": 2}')
    with pytest.raises(ConfigError, match="format 2, this version of easydistill reads 1"):
        AnswersCache(tmp_path / "cache")
    (tmp_path / "cache" / "format.json").write_text("{}")
    with pytest.raises(ConfigError, match="no answers cache"):
        AnswersCache(tmp_path / "cache")
    (tmp_path / "cache" / "format.json").write_text("")
    with pytest.raises(ConfigError, match=r"is damaged\n    → if it is an answers cache, remove format.json"):
        AnswersCache(tmp_path / "cache")
    (tmp_path / "cache" / "format.json").unlink()
    with AnswersCache(tmp_path / "cache") as cache:
        assert len(cache) == 1


def test_a_cache_is_in_use_for_as_long_as_a_run_lasts(tmp_path: Path) -> None:
    assert in_use() is None
    with using(tmp_path / "a"):
        outer = in_use()
        assert outer is not None
        with using(tmp_path / "a"):
            assert in_use() is outer, "a second one would free the first one's claims"
        with using(None):
            assert in_use() is outer
    assert in_use() is None


# --- several processes ------------------------------------------------------------------------------------------------

HAMMER = textwrap.dedent(
    """
    import os, random, sys, time
    from pathlib import Path
    from threading import Thread
    sys.path.insert(0, sys.argv[4])
    from tests.unit.test_answers_cache import key_of, record_of
    from easydistill.data.answers_cache.store import AnswersCache

    directory, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    pause = float(sys.argv[5])
    with AnswersCache(directory) as cache:
        def work(number):
            generator = random.Random(seed * 10 + number)
            for key in generator.sample(range(count), count):
                time.sleep(pause)
                cache.refresh()
                found = cache.get(key_of(key))
                if found is None:
                    cache.put(key_of(key), record_of(key))
                    os.write(1, f"{key}\\n".encode())
                else:
                    assert found == record_of(key)
        threads = [Thread(target=work, args=[number]) for number in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """
)


def test_processes_and_threads_that_are_killed_lose_nothing_that_was_kept(tmp_path: Path) -> None:
    directory, count, generator = tmp_path / "cache", 600, random.Random(7)
    root = str(Path(__file__).resolve().parents[2])

    def start(seed: int, pause: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HAMMER, str(directory), str(seed), str(count), root, str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    kept: set[int] = set()
    kills = 0
    for attempt in range(3):
        # Those that are killed are too slow to be done before.
        workers = [start(attempt * 3 + number, 0.01 if attempt < 2 else 0.0) for number in range(3)]
        if attempt < 2:
            for worker in workers:
                # Its imports are done, and it writes.
                assert worker.stdout is not None
                first = worker.stdout.readline()
                kept |= {int(first)} if first.strip() else set()
            time.sleep(generator.uniform(0, 0.03))
            for worker in workers:
                kills += worker.poll() is None
                worker.send_signal(signal.SIGKILL)
        for worker in workers:
            out, _ = worker.communicate(timeout=60)
            assert attempt < 2 or worker.returncode == 0
            # The last line may be torn.
            kept |= {int(line) for line in out.split("\n")[:-1] if line.isdecimal()}
        with AnswersCache(directory) as cache:
            assert all(cache.get(key_of(key)) == record_of(key) for key in kept)
    assert kills and kept
    found = check(directory)
    assert found.good and found.answers == count


CLAIMER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from easydistill.data.answers_cache.store import AnswersCache
    with AnswersCache(Path(sys.argv[1])) as cache:
        print(cache.claims.take(sys.argv[2]), flush=True)
        time.sleep(60)
    """
)


def test_a_claim_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    with AnswersCache(tmp_path) as cache:
        command = [sys.executable, "-c", CLAIMER, str(tmp_path), key_of(5)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdout.readline() == "True\n"
            assert not cache.claims.take(key_of(5))
            assert cache.claims.take("f" * 32)
            other.kill()
            other.wait()
        assert cache.claims.take(key_of(5))


# --- from folder to folder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["answers.tar", "answers.tar.gz"])
def test_one_file_takes_the_answers_to_another_machine(tmp_path: Path, name: str) -> None:
    filled(tmp_path / "mine", range(6))
    filled(tmp_path / "theirs", range(4, 8))
    with AnswersCache(tmp_path / "theirs") as cache:
        cache.put(key_of(4), record_of(4, "their own"), replace=True)
    assert export(tmp_path / "mine", tmp_path / name) == 6
    with pytest.raises(DataError, match="the file exists"):
        export(tmp_path / "mine", tmp_path / name)
    done = import_into(tmp_path / "theirs", tmp_path / name)
    assert (done.new, done.known) == (4, 2)
    again = import_into(tmp_path / "theirs", tmp_path / name)
    assert (again.new, again.known) == (0, 6)
    with AnswersCache(tmp_path / "theirs") as cache:
        assert len(cache) == 8 and cache.get(key_of(0)) == record_of(0)
        own = cache.get(key_of(4))
        assert own is not None and own["text"] == "their own"
    assert import_into(tmp_path / "new", tmp_path / "theirs").new == 8, "a folder can be imported too"
    facts = facts_of(tmp_path / "new")
    assert (facts.answers, facts.models, facts.prompt_tokens, facts.completion_tokens) == (8, {"teacher": 8}, 40, 56)


def test_a_damaged_file_changes_nothing(tmp_path: Path) -> None:
    export(filled(tmp_path / "mine", range(50)), tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    middle = whole.find(b"answer 20")
    for name, data in {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:middle] + b"Answer 20" + whole[middle + 9 :],
        "none": b"no archive",
        "empty": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="nothing was") as told:
            import_into(tmp_path / "theirs", tmp_path / name)
        assert str(told.value).count("\n") == 1, "one line, and the hint"
        assert facts_of(tmp_path / "theirs").answers == 0
        assert not list((tmp_path / "theirs" / ANSWERS).iterdir())
    with pytest.raises(DataError, match="there are no answers here"):
        import_into(tmp_path / "new", tmp_path / "absent")
    assert not (tmp_path / "new").exists()


def test_signals_that_are_missing_from_a_file_are_noticed(tmp_path: Path) -> None:
    filled(tmp_path / "mine", range(2))
    shard = tmp_path / "shard-00000.safetensors"
    shard.write_bytes(bytes(range(256)) * 100)
    SharedShards(tmp_path / "mine").keep(key_of(7), shard)
    export(tmp_path / "mine", tmp_path / "all.tar", signals=True)
    with tarfile.open(tmp_path / "all.tar") as whole, tarfile.open(tmp_path / "cut.tar", "w") as cut:
        for member in whole.getmembers()[:3]:
            cut.addfile(member, whole.extractfile(member))
    with pytest.raises(DataError, match="its signals are not those that were exported"):
        import_into(tmp_path / "theirs", tmp_path / "cut.tar")
    assert facts_of(tmp_path / "theirs").answers == 0
    assert import_into(tmp_path / "theirs", tmp_path / "all.tar").signal_shards == 1
    found = facts_of(tmp_path / "theirs")
    assert (found.answers, found.signal_shards, found.signal_bytes) == (2, 1, 25_600)


def test_answers_of_a_run_that_had_no_cache_can_be_imported(tmp_path: Path) -> None:
    stage = tmp_path / "run" / "stages" / "1-label"
    stage.mkdir(parents=True)
    failure = {"kind": "failure", "reason": "timeout", "detail": "", "attempts": 1, "passing": True}
    lines = [
        [{**record_of(1), "at": 1_700_000_000.5, "by": "12345678"}, {**record_of(2), "text": " "}],
        [{**record_of(3), "extra": {"from_answers_cache": True}}],
        [{**failure, "key": key_of(4)}],
        [record_of(5)],
        [{**failure, "key": key_of(5), "detail": "to be asked again"}],
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '[{"kind": "comp'
    (stage / "journal.jsonl").write_text(text)
    (stage / "rejected.jsonl").write_text('{"id": "a"}\n')
    done = import_into(tmp_path / "cache", tmp_path / "run")
    assert (done.new, done.known, done.unusable) == (2, 0, 1)
    assert (stage / "journal.jsonl").read_text() == text, "a run may be writing"
    with AnswersCache(tmp_path / "cache") as cache:
        assert list(cache) == [key_of(1), key_of(3)]
        found = cache.get(key_of(3))
        assert found is not None and found["extra"] == {} and "by" not in found


# --- configs ----------------------------------------------------------------------------------------------------------


def pipeline(**job: Any) -> dict[str, Any]:
    label = {"job_type": "label", "dataset": {"instruction_path": "p.json"}, "inference": {"base_url": "http://x/v1"}}
    return {"job_type": "pipeline", "output_dir": "runs/p", "jobs": {"label": {**label, **job}}}


def test_the_jobs_of_a_pipeline_have_its_cache_and_none_of_their_own() -> None:
    job: Any = api.load({**pipeline(), "answers_cache": "answers"}).job
    assert (job.answers_cache, job.jobs["label"].answers_cache) == ("answers", "answers")
    with pytest.raises(ConfigError, match="move it to the top level"):
        api.load(pipeline(answers_cache="own"))


def test_a_cache_changes_no_fingerprint() -> None:
    with_one: Any = api.load({**pipeline(), "answers_cache": "answers"}).job
    without: Any = api.load(pipeline()).job
    assert with_one.jobs["label"].identity() == without.jobs["label"].identity()
    with pytest.raises(ConfigError, match="object store"):
        api.load({**pipeline(), "answers_cache": "oss://bucket/answers"})
