"""What synthesis operators make of real data with a small real teacher: yields, reasons, seconds, tokens.

Every operator runs once as an ordinary job over GSM8K, Self-Instruct's seed tasks and passages of text, in
`runs/synthesis_benchmark`, so a benchmark that is broken off goes on; the selectors read what the others made. Then a
pipeline goes from seeds to a student. Checks are as shipped: SmolLM2-135M is a weak writer and a weaker judge, and low
yields are what the checks are for. Accepted chains of thought are counted again by `recount.py`.

    python -m benchmarks.synthesis.run [--arms expansion …] [--rows 2] [--seed 0] [--json]

`--rows` tries everything on so many rows, and saves nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.synthesis.arms import TEACHER, Arm, arms, pipeline, write_rows
from benchmarks.synthesis.recount import recount

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "synthesis_benchmark"
PIPELINE = "seeds_to_student"
FACTS = ("funnel", "diversity", "scores", "tasks", "bins", "answers_known", "median_length_ratio", "waves", "yield")


def measure(arm: Arm, config: dict[str, Any], run: Path) -> dict[str, Any]:
    """Candidates, accepted rows, reasons, seconds, tokens of one arm; also where nothing was accepted."""
    import easydistill
    from easydistill.errors import DataError

    try:
        stage = easydistill.run(config, quiet=True).summary["stages"]["synthesise"]
    except DataError:
        return {"job_type": arm.job_type, **_failed(run)}
    rows, tokens, metrics = stage["rows"], stage["tokens"], stage["metrics"]
    return {
        "job_type": arm.job_type,
        "candidates": rows["entered"],
        "accepted": rows["left"],
        "reasons": rows["rejected"],
        "seconds": stage["seconds"],
        "tokens": tokens,
        "facts": {name: metrics[name] for name in FACTS if name in metrics},
    }


def _failed(run: Path) -> dict[str, Any]:
    """What is on disk of an arm that ended without a row."""
    from easydistill.data.records import Rejection, count_reasons
    from easydistill.engine.runner import TIME_SPENT

    stage = _stage(run)
    lines = (stage / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    refused = [Rejection(**json.loads(line)) for line in lines]
    spent = json.loads((stage / TIME_SPENT).read_text(encoding="utf-8"))["seconds"]
    return {
        "candidates": len(refused),
        "accepted": 0,
        "reasons": count_reasons(refused),
        "seconds": round(spent, 3),
        "tokens": _tokens(stage),
    }


def _tokens(stage: Path) -> dict[str, int]:
    """Of the journalled answers."""
    from easydistill.data.journal import Journal

    with Journal(stage / "journal.jsonl") as journal:
        answers = [journal.get(key) for key in journal]
    return {name: sum(answer.get(f"{name}_tokens", 0) for answer in answers) for name in ("prompt", "completion")}


def _stage(run: Path) -> Path:
    return next(run.glob("stages/*-synthesise"))


def _made(run: Path) -> Path | None:
    """The rows of an arm that is complete."""
    complete = next(run.glob("stages/*-synthesise/manifest.json"), None)
    return complete.with_name("labeled.json") if complete is not None else None


def measure_pipeline(config: dict[str, Any]) -> dict[str, Any]:
    """Rows, seconds and tokens of each job, and what the student learned."""
    import easydistill

    summary = easydistill.run(config, quiet=True).summary
    jobs = {
        name: {field: stage[field] for field in ("rows", "seconds", "tokens")}
        for name, stage in summary["stages"].items()
    }
    return {"jobs": jobs, "metrics": summary["metrics"], "rows": summary["rows"]}


def run_all(
    data: Path, folder: Path, chosen: list[str], rows: int | None, seed: int, tell: Callable[[str, Any], None]
) -> dict[str, Any]:
    """Every chosen arm, in order; one whose rows come from an arm that made none is left out, and says so."""
    files = write_rows(data, folder / "data")
    found: dict[str, Any] = {}
    for arm in (arm for arm in arms(data / "gsm8k_test.jsonl") if arm.name in chosen):
        source = files.get(arm.rows) or _made(folder / arm.rows)
        if source is None:
            found[arm.name] = {"left_out": f"{arm.rows} made no rows"}
        else:
            run = folder / arm.name
            found[arm.name] = measure(arm, arm.config(source, run, rows, seed), run)
            if arm.job_type == "cot_generation":
                found[arm.name]["recount"] = recount(files["problems"], _stage(run))
        tell(arm.name, found[arm.name])
    if PIPELINE in chosen:
        found[PIPELINE] = measure_pipeline(pipeline(files, folder / PIPELINE, rows, seed))
        tell(PIPELINE, found[PIPELINE])
    return found


def table(found: Mapping[str, Any]) -> str:
    """The yields as Markdown."""
    lines = ["| run | candidates | accepted | refused for | seconds | tokens written |", "|---|---|---|---|---|---|"]
    for name, arm in found.items():
        if "accepted" in arm:
            reasons = ", ".join(f"{reason} {count}" for reason, count in arm["reasons"].items()) or "–"
            figures = f"{arm['candidates']} | {arm['accepted']} | {reasons} | {arm['seconds']:.0f}"
            lines.append(f"| {name} | {figures} | {arm['tokens'].get('completion', 0)} |")
        elif "left_out" in arm:
            lines.append(f"| {name} | – | – | {arm['left_out']} | – | – |")
    return "\n".join(lines)


def main() -> None:
    from benchmarks.common import real_data, save

    names = [arm.name for arm in arms(Path())] + [PIPELINE]
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", nargs="+", choices=names, default=names)
    parser.add_argument("--rows", type=int, help="try it on so many rows; nothing is saved")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the result alone")
    arguments = parser.parse_args()
    data = real_data()
    folder = RUNS / (f"{arguments.rows}-rows" if arguments.rows else f"seed-{arguments.seed}")

    def tell(name: str, arm: Any) -> None:
        if not arguments.json:
            print(name, json.dumps(arm), flush=True)

    found = run_all(data, folder, arguments.arms, arguments.rows, arguments.seed, tell)
    result = {"teacher": TEACHER, "seed": arguments.seed, "arms": found}
    saved = None if arguments.rows else save(HERE, "synthesis", result)
    print(json.dumps(result) if arguments.json else f"{table(found)}\n{saved or ''}")


if __name__ == "__main__":
    main()
