"""`student/README.md`: what the student is, how it was made, how well it does, how to load it."""

from __future__ import annotations

import json
from pathlib import Path

from easydistill.data.files import write_text
from easydistill.report.build import shown_value
from easydistill.report.collect import Facts, collect


def write_model_card(run_directory: Path) -> None:
    """Write the card; does nothing where there is no student yet."""
    facts = collect(run_directory)
    if facts.has_student:
        write_text(run_directory / "student" / "README.md", card(facts))


def card(facts: Facts) -> str:
    """The card's Markdown, with the front matter that model hubs read."""
    models = facts.config.get("models") or {}
    inference = facts.config.get("inference") or {}
    teacher = models.get("teacher") or inference.get("model") or inference.get("base_url") or "rows labelled beforehand"
    student = models.get("student")
    base = student.get("from") if isinstance(student, dict) else student
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- easydistill",
        "- distillation",
    ]
    if isinstance(base, str) and base.count("/") == 1 and not base.startswith((".", "/", "~")):
        lines.append(f"base_model: {json.dumps(base)}")
    rows = facts.summary.get("rows") or {}
    lines += [
        "---",
        "",
        f"# {facts.summary.get('name') or facts.directory.name}",
        "",
        f"Distilled with EasyDistill (`{facts.summary.get('job_type')}`): `{teacher}` taught "
        f"`{facts.train.get('student') or base}`.",
        "",
        f"- {rows.get('entered', 'n/a')} rows read, {facts.train.get('train_rows', 'n/a')} trained on, "
        f"{facts.train.get('heldout_rows', 'n/a')} held out, {rows.get('rejected', 'n/a')} rejected",
        f"- {facts.train.get('steps', 'n/a')} optimiser steps, "
        f"final training loss {facts.train.get('final_loss', 'n/a')}",
        "",
    ]
    if facts.metrics:
        lines += ["## On held-out prompts", "", "| metric | unit | before | after |", "|---|---|---|---|"]
        for row in facts.metrics:
            note = f" ({row.note})" if row.note else ""
            before, after = shown_value(row, row.before), shown_value(row, row.after)
            lines.append(f"| {row.label} | {row.unit} | {before} | {after}{note} |")
        lines.append("")
    lines += [
        "## How to use it",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("path/to/student")',
        'model = AutoModelForCausalLM.from_pretrained("path/to/student")',
        'chat = [{"role": "user", "content": "Why does bread rise?"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0]))",
        "```",
        "",
        "## Limits",
        "",
        "It imitates its teacher, errors included, and has seen only prompts like those it was trained on.",
    ]
    return "\n".join(lines) + "\n"
