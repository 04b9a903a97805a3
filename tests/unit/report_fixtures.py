"""A run directory as a run leaves it, and what a browser makes of a page; for the tests of the report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from easydistill.report.build import build_report

HOSTILE = "<script>alert(1)</script></pre>]]>{{ 7*7 }}&\"' `|```\n# x"


def stage(entered: int, left: int, rejected: dict[str, int] | None = None, **more: Any) -> dict[str, Any]:
    rows = {"entered": entered, "left": left, "rejected": rejected or {}}
    return {"status": "done", "seconds": 61.0, "rows": rows, "tokens": {}, "metrics": {}, **more}


def make_run(folder: Path, **changes: Any) -> Path:
    """A complete run; `changes` are to its summary."""
    train = {"train_rows": 90, "heldout_rows": 5, "steps": 30, "final_loss": 1.5, "parameters": 1000,
             "trainable_parameters": 250, "truncated_rows": 3, "student": "org/student"}  # fmt: skip
    metrics = {
        "before": {"cross_entropy": 4.0, "kl": None, "agreement": 0.1, "rouge_l": 0.2, "novel": 1.0},
        "after": {"cross_entropy": 2.0, "kl": None, "agreement": 0.4, "rouge_l": 0.1, "novel": 2.0},
        "notes": {"kl": "the teacher is not on this machine"},
    }
    summary: dict[str, Any] = {
        "job_type": "black_box_kd_local", "name": "my run", "status": "done", "exit_code": 0, "error": None,
        "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:10:00+00:00", "seconds": 600.0,
        "stages": {
            "label": stage(100, 95, {"empty_content": 5}, tokens={"prompt": 1234, "completion": 20}),
            "train": stage(90, 90, tokens={"trained": 30}, metrics=train),
            "evaluate": stage(5, 5, metrics=metrics),
        },
        "rows": {"entered": 100, "accepted": 95, "rejected": 5, "rejected_share": 0.05,
                 "rejected_by_reason": {"empty_content": 5}},
        "metrics": metrics,
        "resume": "easydistill run kd.json",
    }  # fmt: skip
    config = {
        "dataset": {"instruction_path": "prompts.json", "seed": 7, "max_rejected_share": 0.05},
        "models": {"teacher": "org/teacher", "student": "org/student"},
        "inference": {"temperature": 0.5, "max_new_tokens": 9},
        "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 3.0,
                     "learning_rate": 1e-4, "max_length": 64},
    }  # fmt: skip
    for name in ("1-label", "2-train", "3-evaluate"):
        (folder / "stages" / name).mkdir(parents=True)
    (folder / "student").mkdir()
    (folder / "student/config.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps(summary | changes))
    (folder / "config.resolved.json").write_text(json.dumps(config))
    environment = {"python": "3.11", "platform": "Linux", "cpus": 2, "packages": {"torch": "2.13"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    curve = [{"stage": "train", "step": n, "loss": 5 / n, "learning_rate": 3e-4 / n} for n in range(1, 31)]
    write_lines(folder / "metrics.jsonl", curve)
    rejected = [{"id": f"r{n}", "reason": "empty_content", "detail": HOSTILE, "raw": HOSTILE} for n in range(5)]
    write_lines(folder / "stages/1-label/rejected.jsonl", rejected)
    answer = {"id": "a", "prompt": [{"role": "user", "content": HOSTILE}], "teacher": HOSTILE, "before": None,
              "after": "  two\n\n  lines", "rouge_l_before": None, "rouge_l_after": 0.5}  # fmt: skip
    write_lines(folder / "stages/3-evaluate/answers.jsonl", [answer])
    return folder


def synthesis_metrics(**more: Any) -> dict[str, Any]:
    """What a synthesis stage leaves in its manifest: 20 candidates, 12 accepted; a teacher that judges too."""
    bill = {"answers": 20, "answers_without_counts": 0, "prompt_tokens": 1500, "completion_tokens": 600,
            "cached_prompt_tokens": None, "reasoning_tokens": 100, "cost": 0.25}  # fmt: skip
    spread = {"p0": 1.0, "p5": 2.0, "p25": 3.0, "p50": 4.0, "p75": 5.0, "p95": 6.0, "p100": 7.0}
    return {
        "operator": "instruction_expansion",
        "funnel": [["candidates", 20], ["malformed_reply", 19], ["too_similar", 12]],
        "diversity": {
            "texts": 12, "languages": {"en": 9, "zh": 3}, "distinct": {"1": 0.25, "2": 0.5, "3": None},
            "self_bleu": 0.125, "seed_similarity": {name: value / 10 for name, value in spread.items()},
            "lengths": spread, "sampled": 12,
        },
        "spent_by_teacher": bill, "spent_by_judge": bill,
        "wanted": 12, "yield": 0.6,
        **more,
    }  # fmt: skip


def make_synthesis_run(folder: Path, **metrics: Any) -> Path:
    """A complete run of a synthesis job; `metrics` change those of its one stage."""
    return make_named_synthesis_run(folder, "synthesise", metrics)


def make_named_synthesis_run(folder: Path, name: str, metrics: dict[str, Any]) -> Path:
    told = synthesis_metrics(**metrics)
    lost = {"too_similar": 7, "malformed_reply": 1}
    summary = {
        "job_type": "instruction_expansion", "name": "new rows", "status": "done", "exit_code": 0, "error": None,
        "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:10:00+00:00", "seconds": 60.0,
        "stages": {name: stage(20, 12, lost, tokens={"prompt": 1500, "completion": 600}, metrics=told)},
        "rows": {"entered": 20, "accepted": 12, "rejected": 8, "rejected_share": 0.4, "rejected_by_reason": lost},
        "metrics": {}, "resume": "easydistill run new.json",
    }  # fmt: skip
    written = {
        "job_type": "instruction_expansion",
        "dataset": {"instruction_path": "data/seeds.json", "labeled_path": "new.json", "max_rejected_share": 1.0},
        "inference": {"base_url": "http://localhost:1/v1", "model": "big", "temperature": 0.5, "max_new_tokens": 9},
        "models": {"teacher": None, "judge": None}, "judge": None,
        "synthesis": {"num_output_samples": 12, "prompts": {}},
    }  # fmt: skip
    stage_folder = folder / "stages" / f"1-{name}"
    stage_folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.resolved.json").write_text(json.dumps(written))
    rows = [{"id": f"k{n}", "instruction": f"Question {n}", "output": f"Answer {n}", "task": "Art"} for n in range(12)]
    write_array(stage_folder / "labeled.json", rows)
    refused = [{"id": f"r{n}", "reason": "too_similar", "detail": f"like k{n}", "raw": f"Raw {n}"} for n in range(7)]
    malformed = {"id": "m", "reason": "malformed_reply", "detail": HOSTILE, "attempts": 3, "raw": HOSTILE}
    write_lines(stage_folder / "rejected.jsonl", [*refused, malformed])
    return folder


def write_array(path: Path, rows: list[Any]) -> None:
    """A JSON array, one row a line, as stages write it."""
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


HIDDEN = "\0\x1b[31m\u202e \u00a0\u200d\ue000\u2028\ufffd"
"""Control characters, what turns text around, spaces of all kinds, part of a character."""


def token(number: int, text: str) -> dict[str, Any]:
    return {"id": number, "text": text}


def standing(scale: float = 1.0, text: str = "<i>cat</i>") -> dict[str, Any]:
    """One side of `disagreement.json`; its divergences are multiples of `scale`."""
    likely = [{**token(7, text), "probability": 0.75}, {**token(8, HIDDEN), "probability": 1e-5}]
    other = [{**token(9, HOSTILE), "probability": 0.5}, {**token(10, "\ufffd"), "probability": 0.0}]
    large = {
        "row": HOSTILE, "position": 12, "context": f"{HOSTILE}\n{HIDDEN}the", "context_is_cut": True,
        "token": token(7, text), "kl": 3.25 * scale, "teacher_probability": 0.75, "student_probability": 0.002,
        "teacher": likely, "student": other,
    }  # fmt: skip
    return {
        "tokens": 1234, "not_finite": 0, "top": 10, "kl": scale, "overlap": 1 - 0.5 * scale,
        "teacher_mass_on_teacher_top": 0.875, "student_mass_on_teacher_top": 0.25, "teacher_mass_on_student_top": 0.375,
        "teacher_entropy": 1.5, "student_entropy": 4.5,
        "kl_by_position": [{"first": 2 ** n // 2 + 1, "last": 2**n, "tokens": 2**n, "kl": scale * n} for n in range(9)],
        "largest": [large | {"kl": (9 - n / 8) * scale} for n in range(20)],
        "by_token": [{"token": token(n, f"{text}|`{n}"), "count": 40 - n, "kl": 2 * scale} for n in range(20)],
    }  # fmt: skip


def compare(folder: Path, **sides: Any) -> Path:
    """Give a run of `make_run` the comparison of teacher and student."""
    text = json.dumps(sides or {"before": standing(1.0), "after": standing(0.5)})
    (folder / "stages/3-evaluate/disagreement.json").write_text(text)
    return folder


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class Page(HTMLParser):
    """What a browser would make of a page: elements, attributes, scripts, and whether all that opens is closed."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "rect", "line", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def sections(self) -> list[str]:
        return [attributes["id"] or "" for tag, attributes in self.tags if tag == "section" and "id" in attributes]


def page_of(folder: Path) -> Page:
    return Page(build_report(folder).read_text(encoding="utf-8"))
