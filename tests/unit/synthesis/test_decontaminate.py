"""Decontamination: a row that contains a benchmark problem is dropped, and the problem is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from easydistill.contracts.operator import answer_with
from easydistill.data.reading import read_samples
from easydistill.data.records import Sample
from easydistill.data.writing import write_parquet
from easydistill.errors import DataError
from easydistill.synthesis.operators import OPERATORS
from easydistill.synthesis.operators.decontaminate import Config, _Parts, decontaminate
from easydistill.synthesis.text import ngrams

DUCKS = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends "
    "every day with four. How much does she make at the market?"
)
ROBES = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total does it take?"
SHORT = "How can I improve my time management skills?"
CHINESE = "小明有十二个苹果，他把其中的三分之一送给了小红，又吃掉了两个，请问他现在还剩下多少个苹果？"


def row(identity: str, prompt: str, answer: str = "So be it.", **more: str) -> Sample:
    answered: Any = {"role": "assistant", "content": answer, **more}
    return Sample(identity, ({"role": "user", "content": prompt}, answered))


def benchmark(folder: Path, *problems: Any, name: str = "bench.jsonl") -> str:
    path = folder / name
    rows = [each if isinstance(each, dict) else {"question": each, "answer": "#### 1"} for each in problems]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return str(path)


def judged(config: Config, *rows: Sample) -> dict[str, tuple[str, str] | None]:
    result = decontaminate(config, rows)
    found: dict[str, tuple[str, str] | None] = {each.id: (each.reason, each.detail) for each in result.rejected}
    found.update((each.id, None) for each in result.accepted)
    assert result.entered == len(rows) == len(found)
    return found


def test_equal_and_overlapping_rows_name_the_problem(tmp_path: Path) -> None:
    config = Config(benchmarks=[benchmark(tmp_path, ROBES, DUCKS, SHORT)])
    found = judged(
        config,
        row("equal", DUCKS.upper()),
        row("quoted", "Solve this, please. " + DUCKS.split(". ")[1] + ". Show your work."),
        row("short", "how can I improve my  time management skills"),
        row("longer", "How can I improve my time management skills when I work from home?"),
        row("other", "Tom's hens lay 9 eggs per week. How many is that in a year, if none of them is ever ill?"),
    )
    assert found["equal"] == ("benchmark_exact", "the same text as bench.jsonl, row 2")
    assert found["short"] == ("benchmark_exact", "the same text as bench.jsonl, row 3")
    quoted = found["quoted"]
    assert quoted is not None and quoted[0] == "benchmark_overlap"
    assert quoted[1] == (
        "5 runs of 13 tokens shared with bench.jsonl, row 2: "
        "“she eats three for breakfast every morning and bakes muffins for her friends”"
    )
    # A problem shorter than the run length is only found as a whole message.
    assert found["longer"] is None
    assert found["other"] is None


def test_chinese_problems_are_found_by_character(tmp_path: Path) -> None:
    config = Config(benchmarks=[benchmark(tmp_path, CHINESE)])
    found = judged(
        config,
        row("quoted", "请解答：" + CHINESE[:26] + "。谢谢"),
        row("within English", f"Translate into English, word by word, and explain how you did it: {CHINESE}"),
        row("part", CHINESE[:18] + "他有多少钱？"),
    )
    assert found["quoted"] is not None and found["quoted"][0] == "benchmark_overlap"
    assert "“小明有十二个苹果他把其中的三分之一送给了" in found["quoted"][1]
    assert found["within English"] is not None
    assert found["part"] is None
    assert judged(Config(benchmarks=config.benchmarks, characters=15), row("part", CHINESE[:18]))["part"] is not None


def test_answers_and_reasoning_are_checked_and_messages_are_not_joined(tmp_path: Path) -> None:
    config = Config(benchmarks=[benchmark(tmp_path, ROBES)])
    half = ROBES.split()
    found = judged(
        config,
        row("answer", "Invent a problem.", ROBES),
        row("thought", "Invent a problem.", "No.", reasoning_content=f"Say: {ROBES}"),
        row("halves", " ".join(half[:11]), " ".join(half[11:])),
        Sample("system", ({"role": "system", "content": ROBES}, {"role": "user", "content": "Hello"})),
    )
    assert found["answer"] is not None
    assert found["thought"] is not None
    assert found["halves"] is None
    assert found["system"] is None


def test_the_problem_with_the_most_shared_runs_is_named(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(40)]
    config = Config(benchmarks=[benchmark(tmp_path, " ".join(words[:16]), " ".join(words[:30]))])
    found = judged(config, row("1", " ".join(words)))["1"]
    assert found is not None and found[1].startswith("18 runs of 13 tokens shared with bench.jsonl, row 2")


@given(
    st.integers(1, 9), st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=3), st.text("abc", max_size=40)
)
def test_runs_are_found_as_by_looking_at_every_place(size: int, problems: list[list[str]], text: str) -> None:
    known = {run for problem in problems for run in ngrams(problem, size)}
    parts = _Parts(size)
    for run in known:
        parts.add(run)
    starts = list(parts.starts(list(text)))
    assert starts == sorted(set(starts))
    assert all(0 <= start <= len(text) - size for start in starts)
    assert {start for start, run in enumerate(ngrams(list(text), size)) if run in known} <= set(starts)


def test_common_phrases_are_ignored(tmp_path: Path) -> None:
    phrase = "your entire response should be in English and in all capital letters without any exception"
    problems = [f"Question number {number} about topic {number * 7}: {phrase}" for number in range(11)]
    path = benchmark(tmp_path, *problems)
    assert judged(Config(benchmarks=[path]), row("1", f"Tell a joke; {phrase}."))["1"] is None
    assert judged(Config(benchmarks=[path], boilerplate=11), row("1", f"Tell a joke; {phrase}."))["1"] is not None
    assert judged(Config(benchmarks=[path]), row("1", problems[3]))["1"] is not None


def test_every_kind_of_file(tmp_path: Path) -> None:
    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"instruction": DUCKS, "output": "18"}]))
    chat = {"messages": [{"role": "user", "content": ROBES}, {"role": "assistant", "content": "3"}]}
    lines = benchmark(tmp_path, chat, {"task_id": "t/0", "prompt": CHINESE}, name="lines.jsonl")
    parquet = tmp_path / "table.parquet"
    write_parquet(parquet, [row("1", SHORT)])
    config = Config(benchmarks=[str(array), lines, str(parquet)])
    found = judged(config, row("a", DUCKS), row("b", ROBES), row("c", CHINESE), row("d", SHORT), row("e", "Else"))
    assert [each and each[1].removeprefix("the same text as ") for each in found.values()] == [
        "array.json, row 1",
        "lines.jsonl, row 1",
        "lines.jsonl, row 2",
        "table.parquet, row 1",
        None,
    ]


def test_bad_benchmarks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        decontaminate(Config(benchmarks=[str(tmp_path / "nowhere.jsonl")]), [])
    with pytest.raises(DataError, match=r"1 benchmark problems cannot be read; the first: .*row 2: no `instruction`"):
        decontaminate(Config(benchmarks=[benchmark(tmp_path, DUCKS, {"task": 3})]), [])
    with pytest.raises(ValidationError):
        Config(benchmarks=[])
    with pytest.raises(ValidationError):
        Config(benchmarks=["x"], words=0)


def test_the_identity_depends_on_file_contents(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, elsewhere = benchmark(tmp_path, DUCKS), benchmark(tmp_path / "elsewhere", DUCKS)
    identity = Config(benchmarks=[here]).identity()
    assert Config(benchmarks=[elsewhere]).identity() == identity
    assert Config(benchmarks=[here], words=8).identity() != identity
    benchmark(tmp_path, ROBES)
    assert Config(benchmarks=[here]).identity() != identity
    json.dumps(Config(benchmarks=["missing.jsonl"]).identity())


def test_real_benchmarks(corpus: Path, own_data: Path) -> None:
    files = [str(corpus / name) for name in ("gsm8k_test.jsonl", "humaneval.jsonl", "ifeval_100.jsonl")]
    clean, _ = read_samples(corpus / "p3_test.jsonl", labelled=False)
    leaked = []
    for file in files:
        problems, _ = read_samples(Path(file), labelled=False)
        for number, problem in enumerate(problems[:20]):
            leaked.append(Sample(f"{Path(file).stem}-{number}", problem.messages))
    module = OPERATORS.module("decontaminate")
    steps = module.run(Config(benchmarks=files), [*clean[:100], *leaked], None)
    result = answer_with(steps, lambda asks: pytest.fail("it asked"))
    assert result.facts["problems"] == (22 + 22 + 22 if corpus == own_data else 1319 + 164 + 100)
    assert {each.id for each in leaked} <= {each.id for each in result.rejected}
    for each in result.rejected[-60:]:
        name, number = each.id.rsplit("-", 1)
        assert f"{name}.jsonl, row {int(number) + 1}" in each.detail
    # Prompts of other tasks share nothing with them.
    assert len(result.rejected) == len(leaked)
