"""Rows as public data sets have them, each through its container: read whole, or refused with a hint.

`tests/support/cases/rows.jsonl` holds a schema a line: its name, its container, its rows, and in `expect` either the
chats that they are (`messages`, with `weight` 0 on turns that are not learned; the number of `tools`; `final_answer`
and other `meta`), or what is said of them (`refuse`), or the prompt that they are (`prompt`). `image` names a picture
that lies beside the rows. `pairs.jsonl` does the same for preference rows.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.support.pictures import picture

from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.images.reader import name_of
from easydistill.data.messages import as_context
from easydistill.data.preferences import read_pairs
from easydistill.data.reading import read_rows
from easydistill.errors import DataError

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "support" / "cases"
GOOD = {"instruction": "Say yes.", "output": "Yes."}
GOOD_PAIR = {"prompt": "Say yes.", "chosen": "Yes.", "rejected": "No."}


def cases(name: str) -> list[Any]:
    found = [json.loads(line) for line in (CASES / name).read_text(encoding="utf-8").splitlines()]
    assert len({case["name"] for case in found}) == len(found)
    return [pytest.param(case, id=case["name"]) for case in found]


def written(folder: Path, rows: list[Any], container: str) -> Path:
    path = folder / f"rows.{container}"
    if container == "parquet":
        import pyarrow.parquet as parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif container == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


class Named:
    """Reads images, and calls them what the row calls them."""

    def __init__(self, folder: Path) -> None:
        self._reader = ImageReader(ImageStore(folder / "store"))

    def digest(self, source: Any, folder: Path | None) -> str:
        assert self._reader.digest(source, folder).startswith("sha256:")
        name = name_of(source)
        assert name is not None
        return name


def images_beside(path: Path, case: dict[str, Any]) -> Named:
    if "image" in case:
        (path.parent / case["image"]).write_bytes(picture(kind="JPEG"))
    return Named(path.parent)


def refusals(path: Path, case: dict[str, Any]) -> list[str]:
    """Why rows are refused; a file without a readable row is an error that quotes the first."""
    columns, images = case.get("columns"), images_beside(path, case)
    try:
        return [each.detail for each in read_rows(path, labelled=True, columns=columns, images=images).rejected]
    except DataError as error:
        return [str(error)]


@pytest.mark.parametrize("case", cases("rows.jsonl"))
def test_a_row_is_read_whole_or_refused(case: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, case["rows"], case["container"])
    expected, columns = case["expect"], case.get("columns")
    if isinstance(expected, dict) and "refuse" in expected:
        told = refusals(path, case)
        assert len(told) == expected.get("rows", len(case["rows"]))
        assert all(expected["refuse"] in words for words in told)
        return
    if isinstance(expected, dict):
        (sample,) = read_rows(path, labelled=False, columns=columns).samples
        assert list(sample.messages) == expected["prompt"] and sample.answer is None
        assert sample.meta.get("final_answer") == expected.get("final_answer")
        return
    found = read_rows(path, labelled=True, columns=columns, images=images_beside(path, case))
    assert not found.rejected and len(found.samples) == len(expected)
    assert len({sample.id for sample in found.samples}) == len(expected)
    for sample, chat in zip(found.samples, expected, strict=True):
        assert list(sample.messages) == chat["messages"]
        assert len(sample.tools) == chat.get("tools", 0)
        assert all(tool["type"] == "function" and tool["function"]["name"] for tool in sample.tools)
        assert sample.template_kwargs == chat.get("template_kwargs", {})
        assert chat.get("final_answer") is None or sample.meta["final_answer"] == chat["final_answer"]
        assert chat.get("meta", {}).items() <= sample.meta.items()
        assert chat.get("id", sample.id) == sample.id


@pytest.mark.parametrize("container", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize("case", cases("rows.jsonl"))
def test_a_row_is_the_same_in_every_container(case: dict[str, Any], container: str, tmp_path: Path) -> None:
    """Parquet fills what a row lacks with nulls, so it may only differ where a null was written on purpose."""
    if "null for a parameter" in case["name"]:
        pytest.skip("in Parquet a null that was written cannot be told from one that was filled in")
    readings: list[Any] = []
    for name in (case["container"], container):
        folder = tmp_path / f"as-{name}"
        folder.mkdir(exist_ok=True)
        try:
            path = written(folder, case["rows"], name)
        except pa.ArrowException:
            pytest.skip("a column of Parquet cannot hold values of several kinds")
        try:
            images = images_beside(path, case)
            found = read_rows(path, labelled=None, columns=case.get("columns"), images=images)
        except DataError:
            readings.append(None)
            continue
        readings.append([(row.messages, row.tools, row.template_kwargs) for row in found.samples])
    if case["name"] != "smoltalk2":
        assert readings[0] == readings[1]


@pytest.mark.parametrize("case", cases("rows.jsonl"))
def test_prompts_of_the_rows_lose_nothing_but_the_answer(case: dict[str, Any], tmp_path: Path) -> None:
    if isinstance(case["expect"], dict):
        return
    path = written(tmp_path, case["rows"], case["container"])
    images = images_beside(path, case)
    prompts = read_rows(path, labelled=False, columns=case.get("columns"), images=images).samples
    labelled = read_rows(path, labelled=True, columns=case.get("columns"), images=images).samples
    for row in labelled:
        whole = [as_context(row.messages[: len(one.messages)]) == as_context(one.messages) for one in prompts]
        beginnings = [one for one, fits in zip(prompts, whole, strict=True) if fits]
        assert beginnings and beginnings[0].tools == row.tools and beginnings[0].template_kwargs == row.template_kwargs
    assert all(row.messages[-1]["role"] != "assistant" for row in prompts)


@pytest.mark.parametrize("case", cases("pairs.jsonl"))
def test_a_pair_is_read_whole_or_refused(case: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, case["rows"], case["container"])
    found = read_pairs(path, columns=case.get("columns"))
    expected = case["expect"] if isinstance(case["expect"], list) else case["expect"]["pairs"]
    told = [] if isinstance(case["expect"], list) else case["expect"]["reasons"]
    assert [each.reason for each in found.rejected] == told
    assert len(found.pairs) == len(expected)
    for pair, chat in zip(found.pairs, expected, strict=True):
        assert list(pair.prompt) == chat["prompt"]
        assert list(pair.chosen) == chat["chosen"]
        assert list(pair.rejected) == chat["rejected"]
        assert len(pair.tools) == chat.get("tools", 0)
        assert pair.template_kwargs == chat.get("template_kwargs", {})
        assert chat.get("meta", {}).items() <= pair.meta.items()


def test_the_table_of_the_documents_is_that_of_the_cases() -> None:
    generated = runpy.run_path(str(ROOT / "docs/shapes.py"))["text"]()
    assert (ROOT / "docs/shapes.md").read_text(encoding="utf-8") == generated, "run: python docs/shapes.py"


@pytest.mark.parametrize("case", cases("pairs.jsonl"))
def test_a_pair_is_no_row_to_imitate(case: dict[str, Any], tmp_path: Path) -> None:
    """Where a row with two answers is read for fine-tuning, the worse one is never learned."""
    worse = [
        message["content"]
        for chat in (case["expect"] if isinstance(case["expect"], list) else case["expect"]["pairs"])
        for message in chat["rejected"]
    ]
    path = written(
        tmp_path, [*case["rows"], GOOD] if case["container"] != "parquet" else case["rows"], case["container"]
    )
    try:
        found = read_rows(path, labelled=True, columns=case.get("columns"))
    except DataError:
        return
    assert not [row.id for row in found.samples if row.answer in worse]
