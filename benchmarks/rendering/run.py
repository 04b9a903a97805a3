"""Rendering chats for training: templates, masks and tokens, compared with `datasets.map` over `apply_chat_template`.

Chats of three turns and about a thousand tokens are made from text of this repository. Ours renders them one after
another and tokenises them in batches; it finds every turn that is learned and everything that the template leaves out.
The peer is `datasets.Dataset.map`, batched, on two processes, whose function only renders and tokenises: it has no
mask. Both arms run alternately, each in a process of its own; seconds are from the first chat to the last, memory is
the peak of the process (of ours with all rows held, as a training holds them).

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


def ours(count: int, template: str | None) -> dict[str, Any]:
    """Our renderer."""
    from easydistill.data.chat import ChatRenderer

    renderer = ChatRenderer((own := _tokenizer(template)), frozenset({own.eos_token_id}))
    rows = list(chats(count))
    renderer.render(rows[0])
    start = time.perf_counter()
    rendered = list(renderer.render_many(rows))
    seconds = time.perf_counter() - start
    assert not [row for row in rendered if isinstance(row, Exception)]
    return {"seconds": seconds, "tokens": sum(len(row.ids) for row in rendered)}


def peer(count: int, template: str | None) -> dict[str, Any]:
    """datasets and transformers."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    tokenizer = _tokenizer(template)
    rows = Dataset.from_dict({"messages": list(chats(count))})

    def render(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer.apply_chat_template(batch["messages"], return_dict=True)["input_ids"]}

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = rows.map(
            render,
            batched=True,
            num_proc=PROCESSES,
            remove_columns=["messages"],
            cache_file_name=str(Path(folder) / "rows.arrow"),
        )
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(map(len, done["input_ids"]))}


ARMS = {"ours": ours, "datasets.map": peer}


def _run(arm: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.rendering.run", "--arm", arm, "--chats", str(arguments.chats)]
    if arguments.template:
        command += ["--template", arguments.template]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith(RESULT))
    found: dict[str, Any] = json.loads(line.removeprefix(RESULT))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--template", help="a Jinja file; by default the template of SmolLM2")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.arm:
        result = ARMS[arguments.arm](arguments.chats, arguments.template)
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(RESULT + json.dumps({**result, "peak_mib": round(peak / 1024)}))
        return
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for _ in range(arguments.repeats):
        for arm in ARMS:
            runs[arm].append(_run(arm, arguments))
    seconds = {arm: spread([run["seconds"] for run in of_arm]) for arm, of_arm in runs.items()}
    result = {
        "chats": arguments.chats,
        "template": Path(arguments.template).name if arguments.template else None,
        "tokens": runs["ours"][0]["tokens"],
        "seconds": seconds,
        "peak_mib": {arm: max(run["peak_mib"] for run in of_arm) for arm, of_arm in runs.items()},
        "ratio": seconds["ours"]["median"] / seconds["datasets.map"]["median"],
    }
    path = save(Path(__file__).parent, "rendering", result)
    print(json.dumps(result, indent=2) if arguments.json else path)


if __name__ == "__main__":
    main()
