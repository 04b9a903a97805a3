"""Keys of EasyDistill 1 that have one meaning here but stand in another section, and prompts that were single texts.

EasyDistill 1 put a prompt before what it asked about, with a line break between them, and looked for tags of its own in
the replies. Here a prompt is a Jinja template that shows the row itself and says which form the reply must have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from easydistill.config.document import Document, KeyPath, dotted
from easydistill.errors import ConfigIssue

TRAIN_ONLY = frozenset({"kd_black_box_train_only", "kd_white_box_train_only"})
"""Jobs that trained on `dataset.labeled_path` and asked no teacher for answers, whatever else their configs held."""

GREEDY = frozenset(
    {
        "kd_black_box_local",
        "kd_white_box",
        *(
            f"{job}_batch"
            for job in (
                *("instruction_expansion", "instruction_refinement", "instruction_response_extraction"),
                *("cot_generation", "cot_long2short", "cot_short2long"),
            )
        ),
    }
)
"""Jobs whose teacher always took the most probable token (top_k 1), whatever the temperature."""

MOVED: dict[str, dict[KeyPath, KeyPath]] = {
    "instruction_expansion": {
        ("dataset", name): ("synthesis", name) for name in ("num_in_context_samples", "num_output_samples")
    },
}
"""Job type → old path → path now."""

_PROMPT: KeyPath = ("inference", "prompt")
_JINJA = re.compile(r"\{[{%#]")


@dataclass(frozen=True)
class OldPrompt:
    """What an old prompt becomes."""

    name: str
    """Of the prompt that it replaces."""
    shows: str
    """How the template shows the row."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tag that the old prompt asked for → tag that is read now."""
    plain: bool = False
    """Whether the whole reply was taken, without tags."""

    def template(self, text: str) -> str:
        """The template: the old text, the row, and the form of the reply."""
        return f"{literal(self.with_tags(text))}\n{self.shows}\n"

    def with_tags(self, text: str) -> str:
        """The text with the names of tags as they are now."""
        names = "|".join(self.tags)
        return re.sub(rf"<(/?)({names})>", lambda tag: f"<{tag[1]}{self.tags[tag[2]]}>", text) if names else text


_CHAIN = "[Problem]\n{{ instruction }}\n\n[Solution]\n{{ thought }}\n\n{{ form }}"
OLD_PROMPTS: dict[str, OldPrompt] = {
    "instruction_expansion": OldPrompt(
        "instruction_expansion",
        "{% for example in examples %}\n{{ example }}\n{% endfor %}\n\n{{ form }}",
        {"answer": "instruction"},
    ),
    "instruction_refinement": OldPrompt(
        "instruction_refinement", "{{ instruction }}\n\n{{ form }}", {"answer": "instruction"}
    ),
    "instruction_response_extraction": OldPrompt(
        "pair_extraction", "{{ passage }}\n\n{{ form }}", {"instruction": "question", "response": "answer"}
    ),
    "cot_generation": OldPrompt("cot_generation", "{{ instruction }}"),
    "cot_long2short": OldPrompt("cot_simplification", _CHAIN, plain=True),
    "cot_short2long": OldPrompt("cot_extension", _CHAIN, plain=True),
}
"""Job type → what its `inference.prompt` is."""


def literal(text: str) -> str:
    """Text that a Jinja template shows as it is."""
    return f"{{% raw %}}{text}{{% endraw %}}" if _JINJA.search(text) else text


def drop_prompts(document: Document) -> None:
    """Have a job that only trains ask for no answers."""
    dataset = document.data.get("dataset")
    if isinstance(dataset, dict) and "labeled_path" in dataset and "instruction_path" in dataset:
        document.note(("dataset", "instruction_path"), "is not read: the job trains on dataset.labeled_path alone")
        del dataset["instruction_path"]


def note_sampling(document: Document) -> None:
    """Say that a temperature counts which did not."""
    inference = document.data.get("inference")
    if isinstance(inference, dict) and inference.get("temperature") and "top_k" not in inference:
        text = "counts here; EasyDistill 1 took the most probable token all the same, as inference.top_k 1 does"
        document.note(("inference", "temperature"), text)


def note_labels(document: Document) -> None:
    """Say that a white-box job of old learned from a file that is written now."""
    dataset = document.data.get("dataset")
    if isinstance(dataset, dict) and "labeled_path" in dataset and "instruction_path" in dataset:
        text = "is where the teacher's answers go; EasyDistill 1 read it. To learn from it, remove instruction_path"
        document.note(("dataset", "labeled_path"), text)


def move_old_keys(document: Document) -> dict[KeyPath, ConfigIssue]:
    """Bring keys to the sections where they belong now. Returns an issue for each that is given in both places."""
    job_type = document.data.get("job_type")
    if not isinstance(job_type, str):
        return {}
    issues: dict[KeyPath, ConfigIssue] = {}
    for old, new in MOVED.get(job_type, {}).items():
        if (value := document.at(old)) is not None:
            issues |= _move(document, old, new, value)
    text = document.at(_PROMPT)
    if job_type in OLD_PROMPTS and isinstance(text, str):
        issues |= _move_prompt(document, OLD_PROMPTS[job_type], text)
    return issues


def _move_prompt(document: Document, prompt: OldPrompt, text: str) -> dict[KeyPath, ConfigIssue]:
    shown = [f"<{old}> as <{new}>" for old, new in prompt.tags.items() if f"<{old}>" in text]
    detail = f", its {' and '.join(shown)}" if shown else ""
    issues = _move(
        document, _PROMPT, ("synthesis", "prompts", prompt.name), {"text": prompt.template(text)}, detail=detail
    )
    synthesis = document.data["synthesis"]
    if prompt.plain and isinstance(synthesis, dict):
        synthesis.setdefault("reply", "plain")
    return issues


def _move(document: Document, old: KeyPath, new: KeyPath, value: Any, detail: str = "") -> dict[KeyPath, ConfigIssue]:
    where = document.where(old)
    overrides = any(old[:end] in document.overridden for end in range(1, len(old) + 1))
    section: Any = document.data
    for part in new[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            return {}
    del document.at(old[:-1])[old[-1]]
    if new[-1] in section and not overrides:
        problem = f"{dotted(old)} is EasyDistill 1's name of {dotted(new)}, and both are given"
        return {old: ConfigIssue(where, dotted(old), problem, f"keep {dotted(new)}")}
    section[new[-1]] = value
    document.renamed[new] = old
    if old in document.lines:
        document.lines[new] = document.lines[old]
    if overrides:
        document.overridden.add(new)
    document.note(new, f"is read as {dotted(new)}{detail}")
    return {}
