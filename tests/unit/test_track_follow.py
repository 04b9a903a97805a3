"""Which figures a sink is given, and when: from the files of a run as it goes on, is killed and goes on again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from easydistill.config.sink import Figures
from easydistill.tracking.follow import Follower, Superseded, numbers_in, sizes


class Files:
    """A run's files, as its stages write them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clock = 0

    def log(self, stage: str, *steps: int, file: str = "metrics.jsonl", **values: Any) -> None:
        with (self.folder / file).open("a") as lines:
            for step in steps:
                self._clock += 1
                told = values or {"loss": step / 10 + self._clock}
                lines.write(json.dumps({"time": self._clock, "stage": stage, "step": step, **told}) + "\n")

    def checkpoint(self, step: int, stage: str = "3-train", part: str = "") -> None:
        place = self.folder / "stages" / stage / "checkpoints/0123" / part / f"checkpoint-{step}"
        place.mkdir(parents=True)
        (place / "whole.json").write_text("{}")

    def begin(self, stage: str = "3-train") -> None:
        (self.folder / "stages" / stage).mkdir(parents=True, exist_ok=True)

    def complete(self, stage: str = "3-train", **metrics: Any) -> None:
        self.begin(stage)
        manifest = {"stage": stage, "seconds": 1.5, "tokens": {}, "rows": {"entered": 3}, "metrics": metrics}
        (self.folder / "stages" / stage / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def steps(found: list[Figures], group: str = "train") -> list[int]:
    return [figures.step for figures in found if figures.group == group]


def follower(files: Files, *, holds_back: bool = False, **more: Any) -> Follower:
    return Follower(files.folder, sizes(files.folder), holds_back=holds_back, **more)


def test_new_steps_are_shown_at_once(files: Files) -> None:
    files.begin()
    follow = follower(files)
    files.log("train", 1, 2)
    assert steps(follow.new()) == [1, 2]
    files.log("train", 3)
    assert steps(follow.new()) == [3]
    assert follow.new(ended=True) == []


def test_steps_that_a_kill_undid_stand_once(files: Files) -> None:
    files.begin()
    files.log("train", *range(1, 18))
    files.log("policy", 16, 17, reward=1.0)
    files.checkpoint(10)
    follow = follower(files)
    assert steps(follow.new()) == list(range(1, 11))
    files.log("train", 11, 12)
    assert steps(first := follow.new()) == [11, 12]
    assert first[0].values["loss"] > 18, "the value of the undone step"
    files.log("train", *range(13, 16))
    assert steps(follow.new()) == [13, 14, 15]
    assert steps(follow.new(ended=True), "policy") == [], "rewards of steps that were not reached again"


def test_what_an_earlier_start_left_stands_if_nothing_replaces_it(files: Files) -> None:
    files.begin()
    files.log("train", 1, 2, 3)
    follow = follower(files)
    assert follow.new() == []
    assert steps(follow.new(ended=True)) == [1, 2, 3]


def test_a_complete_stage_is_final(files: Files) -> None:
    files.log("train", 1, 2, 3)
    files.complete(final_loss=2.0)
    found = follower(files).new()
    assert steps(found) == [1, 2, 3]
    (summary,) = [figures for figures in found if figures.group == "summary/train"]
    assert summary.values == {"seconds": 1.5, "rows/entered": 3, "final_loss": 2.0}


@pytest.mark.parametrize("holds_back", [False, True])
def test_a_training_that_begins_anew_needs_a_new_record(files: Files, holds_back: bool) -> None:
    files.log("train", 1, 2, 3)
    files.complete()
    follow = follower(files, holds_back=holds_back)
    assert steps(follow.new()) == [1, 2, 3]
    (files.folder / "stages/3-train/manifest.json").unlink()
    files.log("train", 1)
    with pytest.raises(Superseded):
        follow.new()
    assert steps(Follower(files.folder, {}, holds_back=False).new()) == [1]


def test_a_record_that_is_continued_gets_only_final_steps(files: Files) -> None:
    files.begin()
    sent: dict[str, int] = {}
    follow = follower(files, holds_back=True, sent=sent)
    files.log("train", *range(1, 8))
    assert follow.new() == []
    files.checkpoint(5)
    assert steps(follow.new()) == [1, 2, 3, 4, 5]
    # Killed here; the next start knows what was sent.
    again = follower(files, holds_back=True, sent=dict(sent))
    files.log("train", 6, 7, 8)
    assert again.new() == []
    files.complete()
    assert steps(again.new(ended=True)) == [6, 7, 8]


def test_a_continued_record_notices_a_training_that_began_anew_while_nobody_looked(files: Files) -> None:
    files.log("train", 1, 2, 3)
    files.complete()
    sent: dict[str, int] = {}
    follower(files, holds_back=True, sent=sent).new()
    files.log("train", 1, 2, 3, 4)
    with pytest.raises(Superseded):
        follower(files, holds_back=True, sent=sent).new()


def test_a_continued_record_keeps_its_summaries(files: Files) -> None:
    files.complete("1-label", cut_answers=1)
    sent: dict[str, int] = {}
    assert len(follower(files, holds_back=True, sent=sent).new()) == 1
    assert follower(files, holds_back=True, sent=sent).new() == []


def test_rows_that_failed_may_be_counted_again(files: Files) -> None:
    files.log("labelling", 90, 100, file="progress.jsonl", rows_per_second=3.0)
    sent: dict[str, int] = {}
    follow = follower(files, holds_back=True, sent=sent)
    assert steps(follow.new(), "labelling") == [90, 100]
    files.log("labelling", 95, 101, file="progress.jsonl", rows_per_second=3.0)
    assert steps(follow.new(), "labelling") == [101]


def test_a_cold_start_counts_its_own_steps(files: Files) -> None:
    files.begin()
    files.log("cold_start", *range(1, 51))
    files.checkpoint(50, part="cold_start")
    files.log("train", 1, 2, 3)
    files.checkpoint(2, part="on_policy")
    found = follower(files).new()
    assert steps(found, "cold_start") == list(range(1, 51))
    assert steps(found) == [1, 2]


def test_rounds_have_their_own_steps(files: Files) -> None:
    files.log("train-1", 1, 2)
    files.complete("2-train-1")
    files.begin("3-train-2")
    files.log("train-2", 1, 2)
    found = follower(files).new(ended=True)
    assert steps(found, "train-1") == [1, 2]
    assert steps(found, "train-2") == [1, 2]


def test_the_jobs_of_a_pipeline_bear_their_names(files: Files) -> None:
    inner = Files(files.folder / "stages/1-sft")
    inner.begin()
    (inner.folder / "config.resolved.json").write_text("{}")
    inner.log("train", 1, 2)
    files.complete("1-sft", job={"metrics": {}})
    inner.complete(final_loss=1.0)
    found = follower(files).new()
    assert steps(found, "sft/train") == [1, 2]
    assert {figures.group for figures in found} == {"sft/train", "sft/summary/train"}


def test_lines_that_are_torn_or_of_another_shape_are_passed_over(files: Files) -> None:
    with (files.folder / "metrics.jsonl").open("w") as lines:
        lines.write(
            '{"stage": "train", "st\n[1]\n{"stage": 3, "step": 1}\n{"stage": "train", "step": true, "loss": 1}\n'
        )
        lines.write('{"stage": "train", "step": 1, "loss": null, "note": "no number"}\n')
        lines.write('{"stage": "train", "step": 2, "loss": 1e999, "grad_norm": 0.5}\n{"stage": "train", "step": 3,')
    follow = follower(files)
    (found,) = follow.new(ended=True)
    assert (found.step, found.values) == (2, {"grad_norm": 0.5})
    with (files.folder / "metrics.jsonl").open("a") as lines:
        lines.write(' "loss": 4.0}\n')
    assert steps(follow.new()) == [3]


def test_numbers_of_a_summary() -> None:
    values = {"after": {"kl": 0.5, "n": None, "list": [1.0], "deep": {"a": {"b": {"c": 1}}}}, "words": "no", "is": True}
    assert dict(numbers_in(values)) == {"after/kl": 0.5}
