"""From a file of chats to tokens: ours, with masks, compared with `datasets.map` over `apply_chat_template`.

Chats of three turns and about a thousand tokens are made from text of this repository and written as JSON lines. Ours
reads the file, renders and tokenises the chats, finds every turn that is learned and everything that the template
leaves out, and keeps the rows as a training does: in memory, or on disk if they are many. The peer is
`datasets.load_dataset` and `Dataset.map`, batched, on two processes, whose function only renders and tokenises: it has
no mask. Both arms run alternately, each in a process of its own. Seconds are from the file to the last row; CPU seconds
are those of all processes; memory is the peak of the largest process.

    python -m benchmarks.rendering.run [--chats 200000] [--repeats 3] [--template FILE] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common import RESULT, save, spread
from tests.conftest import TEACHER

CORPUS = Path(__file__).parents[2] / "tests/support/corpus"
TURNS, QUESTION, ANSWER = 3, 290, 870
PROCESSES = 2


def chats(count: int) -> Iterator[list[dict[str, str]]]:
    """Chats of about a thousand tokens, always the same."""
    text = "".join((CORPUS / f"{name}.txt").read_text(encoding="utf-8") for name in ("readme", "architecture", "code"))
    draw = random.Random(0)

    def piece(length: int) -> str:
        start = draw.randrange(len(text) - length)
        return text[start : start + length]

    for _ in range(count):
        yield [
            message
            for _ in range(TURNS)
            for message in (
                {"role": "user", "content": piece(QUESTION)},
                {"role": "assistant", "content": piece(ANSWER)},
            )
        ]


def _tokenizer(template: str | None) -> Any:
    from transformers import AutoTokenizer

    from easydistill.models.reference import model_directory, resolve

    tokenizer = AutoTokenizer.from_pretrained(model_directory(resolve(TEACHER)))
    if template is not None:
        tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    return tokenizer


def ours(source: Path, folder: Path, template: str | None) -> tuple[int, int]:
    """Our reader and renderer: (rows, tokens)."""
    from easydistill.data.chat import ChatRenderer
    from easydistill.data.reading import read_rows
    from easydistill.methods.sft.rows import training_rows

    renderer = ChatRenderer((own := _tokenizer(template)), frozenset({own.eos_token_id}))
    samples = read_rows(source, labelled=True).samples
    found, rejected = training_rows(renderer, samples, sys.maxsize, "train", folder)
    assert not rejected
    return len(found.rows), found.figures.tokens


def peer(source: Path, folder: Path, template: str | None) -> tuple[int, int]:
    """datasets and transformers: (rows, tokens)."""
    import pyarrow.compute as pc
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    tokenizer = _tokenizer(template)

    def render(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer.apply_chat_template(batch["messages"], return_dict=True)["input_ids"]}

    rows = load_dataset("json", data_files=str(source), split="train", cache_dir=str(folder))
    done = rows.map(
        render,
        batched=True,
        num_proc=PROCESSES,
        remove_columns=["messages"],
        cache_file_name=str(folder / "rows.arrow"),
    )
    return len(done), pc.sum(pc.list_value_length(done.data["input_ids"])).as_py()


ARMS = {"ours": ours, "datasets.map": peer}


def _measure(arm: str, source: Path, template: str | None) -> dict[str, Any]:
    """One arm, in this process. Libraries and the tokenizer are loaded before the clock starts."""
    import_module("easydistill.methods.sft.rows" if arm == "ours" else "datasets")
    _tokenizer(template)
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        before, start = _cpu_seconds(), time.perf_counter()
        rows, tokens = ARMS[arm](source, Path(folder), template)
        seconds = time.perf_counter() - start
        cpu_seconds = _cpu_seconds() - before
    peak = max(resource.getrusage(who).ru_maxrss for who in _PROCESSES)
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "peak_mib": round(peak / 1024),
        "rows": rows,
        "tokens": tokens,
    }


_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in _PROCESSES]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _run(arm: str, source: Path, template: str | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.rendering.run", "--arm", arm, "--source", str(source)]
    if template:
        command += ["--template", template]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith(RESULT))
    found: dict[str, Any] = json.loads(line.removeprefix(RESULT))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--template", help="a Jinja file; by default the template of SmolLM2")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.arm:
        print(RESULT + json.dumps(_measure(arguments.arm, arguments.source, arguments.template)))
        return
    _tokenizer(arguments.template)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "chats.jsonl"
        with source.open("w", encoding="utf-8") as handle:
            for chat in chats(arguments.chats):
                print(json.dumps({"messages": chat}), file=handle)
        for repeat in range(arguments.repeats):
            for arm in ARMS:
                runs[arm].append(_run(arm, source, arguments.template))
                print(f"{repeat + 1}: {arm}: {runs[arm][-1]}", file=sys.stderr, flush=True)
            path = save(Path(__file__).parent, f"rendering_{arguments.chats}", _summary(arguments, runs))
    print(json.dumps(_summary(arguments, runs), indent=2) if arguments.json else path)


def _summary(arguments: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    def of(key: str) -> dict[str, Any]:
        return {arm: spread([run[key] for run in of_arm]) for arm, of_arm in runs.items()}

    seconds, cpu_seconds = of("seconds"), of("cpu_seconds")
    return {
        "chats": arguments.chats,
        "template": Path(arguments.template).name if arguments.template else None,
        "tokens": {arm: of_arm[0]["tokens"] for arm, of_arm in runs.items()},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": {arm: max(run["peak_mib"] for run in of_arm) for arm, of_arm in runs.items()},
        "ratio_of_seconds": seconds["ours"]["median"] / seconds["datasets.map"]["median"],
        "ratio_of_cpu_seconds": cpu_seconds["ours"]["median"] / cpu_seconds["datasets.map"]["median"],
    }


if __name__ == "__main__":
    main()
