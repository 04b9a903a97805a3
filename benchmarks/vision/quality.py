"""What the teacher's distributions are worth on image rows: the jobs of examples/vision with the same rows and steps.

    start             the student as made (4 of the teacher's 8 layers)
    black_box         examples/vision/black_box.json: cross-entropy on the teacher's answers
    white_box         examples/vision/white_box.json: half of the loss is the divergence from the teacher
    black_box_coarse  as black_box, but the student reads a picture as 16 tokens, where the teacher reads 36
    white_box_coarse  as white_box, for such a student: distillation.align is "answers"

The teacher answers once. For a seed, all arms see the same rows in the same order and take the same number of steps.
Measured on rows that were held out: KL, agreement, cross-entropy and image_gain by the job; exact match of the true
answers, with the rows' own pictures and with others', by examples/vision/exact_match.py. A run whose result is there is
not run again, and one that was broken off goes on.

    python examples/vision/make_teacher.py
    python -m benchmarks.vision.quality [--seeds 3] [--coarse-seeds 1] [--rows 640] [--epochs 2] [--made runs/vision]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLE = ROOT / "examples" / "vision"
RUNS = ROOT / "runs" / "vision_quality"
ARMS = ("black_box", "white_box", "black_box_coarse", "white_box_coarse")
JOB_METRICS = ("kl", "agreement", "cross_entropy", "image_gain")
COARSE_SIDE = 56
"""Pixels of the side of what a coarse student sees: four patches of 14, instead of the teacher's six."""
HELDOUT = 100


def coarse_copy(teacher: Path) -> Path:
    """The teacher with a processor that makes pictures smaller; its tower interpolates the places of patches."""
    copy = RUNS / "coarse"
    if not copy.is_dir():
        temporary = RUNS / ".coarse"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(teacher, temporary)
        path = temporary / "processor_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["image_processor"]["size"] = {"shortest_edge": COARSE_SIDE}
        settings["image_processor"]["crop_size"] = {"height": COARSE_SIDE, "width": COARSE_SIDE}
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        temporary.rename(copy)
    return copy


def labels(made: Path, rows: int) -> Path:
    """The teacher's answers to the first prompts, given once."""
    import easydistill

    path = RUNS / "labeled.json"
    config = {
        "job_type": "label",
        "output_dir": str(RUNS / "labels"),
        "dataset": {
            "instruction_path": str(made / "data" / "prompts.jsonl"),
            "labeled_path": str(path),
            "max_samples": rows + HELDOUT,
        },
        "inference": {"backend": "transformers", "temperature": 0, "max_new_tokens": 8},
        "models": {"teacher": str(made / "teacher")},
    }
    easydistill.run(config, quiet=True)
    return path


def overrides(arm: str, seed: int, made: Path, labeled: Path, epochs: float) -> list[str]:
    """What an arm changes of the example that it is."""
    coarse = arm.endswith("_coarse")
    teacher = made / "teacher"
    changed = [
        f"output_dir={RUNS / f'{arm}-{seed}'}",
        "dataset.instruction_path=null",
        f"dataset.labeled_path={labeled}",
        f"models.teacher={teacher}",
        f"models.student.from={coarse_copy(teacher) if coarse else teacher}",
        f"training.seed={seed}",
        f"training.num_train_epochs={epochs}",
        f"evaluation.heldout={HELDOUT}",
        # The answers are measured below, against the true ones.
        "evaluation.generate=false",
    ]
    if coarse:
        # Also of the arm without the teacher's distributions: its evaluation then compares answers, too.
        changed += ["distillation.align=answers", *(["distillation.kd_ratio=0"] if arm == "black_box_coarse" else [])]
    return changed


def measure(arm: str, seed: int, made: Path, labeled: Path, epochs: float) -> dict[str, Any]:
    """The arm's figures at the start and at the end, and its seconds by stage."""
    import easydistill

    example = "black_box" if arm == "black_box" else "white_box"
    spent = time.process_time()
    found = easydistill.run(EXAMPLE / f"{example}.json", overrides(arm, seed, made, labeled, epochs), quiet=True)
    stages = found.summary["stages"]
    return {
        "arm": arm,
        "seed": seed,
        "before": {name: found.metrics["before"][name] for name in JOB_METRICS},
        "after": {name: found.metrics["after"][name] for name in JOB_METRICS},
        "exact_match": answered(RUNS / f"{arm}-{seed}" / "student", made),
        "steps": last_step(RUNS / f"{arm}-{seed}"),
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "cpu_seconds": round(time.process_time() - spent, 1),
    }


def answered(model: Path, made: Path) -> dict[str, str]:
    """How many of the held-out questions a model answers exactly."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    sys.path.insert(0, str(EXAMPLE))
    from drawing import read
    from exact_match import exact_match

    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    found: dict[str, str] = exact_match(
        loaded, AutoProcessor.from_pretrained(model), read(made / "data" / "heldout.jsonl")
    )
    return found


def last_step(directory: Path) -> int:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return max(int(line["step"]) for line in lines if "step" in line)


def planned(seeds: int, coarse_seeds: int) -> Iterator[tuple[str, int]]:
    for seed in range(max(seeds, coarse_seeds)):
        for arm in ARMS:
            if seed < (coarse_seeds if arm.endswith("_coarse") else seeds):
                yield arm, seed


def share(text: str) -> float:
    right, total = map(int, text.split("/"))
    return right / total


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with the extremes."""
    table: dict[str, Any] = {}
    for arm in ARMS:
        own = [run for run in runs if run["arm"] == arm]
        if not own:
            continue
        values = {name: [run["after"][name] for run in own] for name in JOB_METRICS}
        values |= {name: [share(run["exact_match"][name]) for run in own] for name in own[0]["exact_match"]}
        table[arm] = {
            "seeds": len(own),
            **{
                name: {"mean": round(fmean(each), 4), "min": round(min(each), 4), "max": round(max(each), 4)}
                for name, each in values.items()
            },
        }
    return table


def main() -> None:
    from benchmarks.common import save

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--coarse-seeds", type=int, default=1, help="of the arms whose student reads 16 image tokens")
    parser.add_argument("--rows", type=int, default=640, help="training rows")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--made", type=Path, default=ROOT / "runs" / "vision", help="what make_teacher.py has made")
    given = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    labeled = labels(given.made, given.rows)
    runs = []
    for arm, seed in planned(given.seeds, given.coarse_seeds):
        path = RUNS / f"{arm}-{seed}.json"
        if not path.is_file():
            found = measure(arm, seed, given.made, labeled, given.epochs)
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        runs.append(json.loads(path.read_text(encoding="utf-8")))
        print(json.dumps(runs[-1]), flush=True)
    result = {
        "what": "examples/vision with the same rows and steps; one thread, processor shared with other work",
        "rows": given.rows,
        "epochs": given.epochs,
        "heldout_rows": HELDOUT,
        "teacher": answered_teacher(given.made),
        "table": summary(runs),
        "runs": runs,
    }
    print(json.dumps(result["table"], indent=1), save(HERE, "quality", result), sep="\n")


def answered_teacher(made: Path) -> dict[str, str]:
    """The teacher's own exact match, once."""
    path = RUNS / "teacher.json"
    if not path.is_file():
        path.write_text(json.dumps(answered(made / "teacher", made)), encoding="utf-8")
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
