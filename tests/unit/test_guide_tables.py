"""The guide's tables are complete, and its figures those of the raw results."""

from __future__ import annotations

import json
import re
import runpy
from typing import Any

import pytest
from tests.support.guide import GUIDE, ROOT, blocks, table
from tests.support.rejection_reasons import Reasons

from easydistill import errors
from easydistill.asking.retry import KNOWN
from easydistill.config.dataset import DatasetConfig
from easydistill.synthesis.operators import rejection_reasons

WORDS = re.compile(r"`([^`]+)`")
PAGES = sorted(GUIDE.glob("*.md"))


@pytest.fixture(scope="module")
def reasons() -> dict[str, str]:
    """Every reason → a place that gives it."""
    of_operators = dict.fromkeys(rejection_reasons(), "an operator's REASONS")
    return of_operators | dict.fromkeys(KNOWN, "asking/retry.py") | Reasons().found()


def documented(columns: int) -> set[str]:
    rows = table(GUIDE / "rejected_rows.md", "reason")
    return {word for row in rows for cell in row[:columns] for word in WORDS.findall(cell)}


def test_the_reasons_of_the_code_are_found(reasons: dict[str, str]) -> None:
    found = {reason for reason, place in reasons.items() if ":" in place}
    # Given as a word, through a constant, through a package that passes it on, and through a dictionary.
    assert {"wrong_answer", "unknown_token", "malformed_row", "video_not_supported"} <= found
    assert len(found) > 100


def test_every_reason_for_which_a_row_is_rejected_is_in_the_guide(reasons: dict[str, str]) -> None:
    # Some are told beside their relatives, in the explanation.
    named = documented(columns=2)
    missing = {reason: place for reason, place in reasons.items() if reason not in named}
    assert not missing, "add them to docs/guide/rejected_rows.md"


def test_the_guide_names_no_reason_that_is_gone(reasons: dict[str, str]) -> None:
    named = documented(columns=1)
    put_together = {word for word in named if word.startswith(("http_", "batch_"))}
    assert named - put_together <= set(reasons)


def test_exit_codes_are_those_of_the_code() -> None:
    told = {int(row[0]) for row in table(GUIDE / "troubleshooting.md", "code")}
    assert told == {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_the_memory_table_is_what_plan_computes() -> None:
    module = runpy.run_path(str(ROOT / "docs/memory_table.py"))
    page = (GUIDE / "gpu.md").read_text()
    assert page == module["current"](page), "run: python docs/memory_table.py"


def gpu_results() -> dict[str, Any]:
    parts: dict[str, Any] = json.loads((ROOT / "benchmarks/gpu/results/gpu.json").read_text())["parts"]
    return parts


@pytest.mark.parametrize(
    ("row", "part", "path"),
    [
        ("fine-tuning, shape of 0.5B, compiled layers", "training", ("same", "sft_compiled")),
        ("white-box training, the same", "training", ("same", "kd_compiled")),
        ("fine-tuning, shape of 1.5B, not compiled", "training, first lease, eager", ("larger", "sft")),
        ("the teacher's scores, shape of 1.5B", "scoring", ("tokens_per_batch", "32768", "threshold")),
    ],
)
def test_the_speeds_of_the_gpu_page_were_measured(row: str, part: str, path: tuple[str, ...]) -> None:
    raw = gpu_results()[part]
    for name in path:
        raw = raw[name]
    (cells,) = [cells for cells in table(GUIDE / "gpu.md", "") if cells[0] == row]
    assert int(cells[1].replace(",", "")) == raw["tokens_per_second"]
    assert float(cells[2].split()[0]) == pytest.approx(raw["peak_gib"], abs=0.05)
    minutes = re.search(r"([\d.]+) min", cells[3])
    if minutes:
        assert float(minutes[1]) == pytest.approx(15e6 / raw["tokens_per_second"] / 60, abs=0.05)
    else:
        assert "46 s" in cells[3] and 5e6 / raw["tokens_per_second"] == pytest.approx(46, abs=0.5)


def test_what_the_methods_gain_was_measured() -> None:
    raw = json.loads((ROOT / "benchmarks/quality/results/quality.json").read_text())
    text = json.dumps(raw)
    for row in table(GUIDE / "choose.md", ""):
        kl = float(row[1])
        assert any(abs(value - kl) < 0.0051 for value in _numbers(raw)), (row, text[:200])


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, float) else []


def test_the_guide_tells_the_true_defaults() -> None:
    share = DatasetConfig.model_fields["max_rejected_share"].default
    assert f"({share:.0%}".replace("%", " %") in (GUIDE / "rejected_rows.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_takes_a_minute_or_two(page: Any) -> None:
    """240 words a minute. Tables of reasons and the glossary are looked up, not read."""
    words = len(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).split())
    assert words <= (2000 if page.stem in {"rejected_rows", "glossary"} else 650)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_shows_have_a_name_or_are_whole_configs(page: Any) -> None:
    for block in blocks(page):
        assert block.file or block.language in {"bash", "text", "python"}, block.text
