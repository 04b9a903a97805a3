"""The benchmark of a GPU, on small shapes and whatever device there is: every part ends with figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gpu.run import PARTS
from tests.support.jobs import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_ends_with_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--tiny", "--seconds", "900", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    found = json.loads((tmp_path / "results/tiny.json").read_text())
    assert found["card"]["torch"]
    assert list(found["parts"]) == list(PARTS)
