"""kill -9 of a rank or of the command, at a random moment: the next run comes to the bits of an uninterrupted one.

`benchmarks/kills` does the same more often.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.kill_jobs import JOBS
from tests.support.random_kills import During, Uninterrupted, Victim, trial, uninterrupted

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

STRATEGIES = ["ddp", "zero2", "zero3", "fsdp2"]


@pytest.fixture(
    scope="module",
    params=[(kind, strategy) for kind in ("supervised", "preferences") for strategy in STRATEGIES],
    ids="-".join,
)
def whole(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, Uninterrupted]:
    """A job, its strategy, and its uninterrupted run."""
    kind, strategy = request.param
    folder = tmp_path_factory.mktemp("whole") / "run"
    return kind, strategy, uninterrupted(folder, lambda where: JOBS[kind](where, tiny_model, strategy))


@pytest.mark.parametrize(("victim", "during"), [("rank", "steps"), ("rank", "run"), ("parent", "steps")])
def test_a_killed_run_resumes_to_the_same_bits(
    victim: Victim, during: During, whole: tuple[str, str, Uninterrupted], tiny_model: Path, tmp_path: Path
) -> None:
    kind, strategy, expected = whole

    def make(folder: Path) -> dict[str, Any]:
        return JOBS[kind](folder, tiny_model, strategy)

    found = trial(tmp_path / "killed", make, expected, victim, during, f"{kind} {strategy} {victim} {during}")
    assert found["killed"] and not found["wrong"], found
