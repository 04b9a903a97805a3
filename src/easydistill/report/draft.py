"""The student as a draft model for its teacher, in speculative decoding."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from easydistill.data.numbers import as_float
from easydistill.evaluation.metrics.acceptance import tokens_per_pass
from easydistill.report.collect import Facts
from easydistill.report.document import Code, Section, Table, Text, columns, row

DRAFTED = range(1, 9)
_WORDS = (
    "Tokens that each pass of the teacher gives, if the student drafts some before it, by the share of drafts that are "
    "accepted (Leviathan et al. 2023, equation 1). How much faster that is depends on what a pass of each model takes."
)
_COMMAND = "With vLLM, whose metrics then count the drafts that were accepted; try other numbers of drafts, too:"
_USUAL = 4
"""Drafts in the command that is shown."""


def draft_sections(facts: Facts) -> Iterator[Section]:
    """Expected tokens per pass for 1 to 8 drafted tokens; nothing where acceptance was not measured."""
    after = {found.name: as_float(found.after) for found in facts.metrics}
    sampled, greedy = after.get("acceptance"), after.get("agreement")
    if sampled is None:
        return
    known = [("Sampled, temperature 1", sampled), *([("Greedy", greedy)] if greedy is not None else [])]
    rows = tuple(
        row(f"{drafted} drafted", *(f"{tokens_per_pass(share, drafted):.2f}" for _, share in known))
        for drafted in DRAFTED
    )
    heads = columns(*(f"{name}: {share:.1%} accepted" for name, share in known))
    table = Table("Drafts", heads, rows, "tight")
    blocks = [Text(f"{_WORDS}{_before(facts)}"), table]
    if facts.has_student:
        blocks += [Text(_COMMAND, ""), Code(vllm_command(facts), "sh", "command")]
    yield Section("draft", "As a draft model", "Draft model", tuple(blocks))


def _before(facts: Facts) -> str:
    before = next((as_float(found.before) for found in facts.metrics if found.name == "acceptance"), None)
    return "" if before is None else f" Before the training, {before:.1%} of the sampled drafts were accepted."


def vllm_command(facts: Facts) -> str:
    """The command that serves the teacher with the student as its draft."""
    teacher = facts.setting("models.teacher")
    # Weights in a package or a GGUF file are read here, and not by vLLM.
    named = isinstance(teacher, str) and not teacher.startswith("pkg://") and not teacher.endswith(".gguf")
    draft = {
        "method": "draft_model",
        "model": str(facts.directory / "student"),
        "num_speculative_tokens": _USUAL,
    }
    speculative = shlex.quote(json.dumps(draft, ensure_ascii=False))
    return f"vllm serve {shlex.quote(teacher) if named else 'TEACHER'} --speculative-config {speculative}"
