"""EasyDistill 2's prompt templates, with `{placeholders}` of Python's, as Jinja templates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from easydistill.config.reading.version1 import OLD_PROMPTS, OldPrompt, literal
from easydistill.migration.draft import Draft, Old, pop

_PART = re.compile(r"\{\{|\}\}|\{(\w+)\}")
_TASKS = OldPrompt("task_labelling", "{{ instruction }}\n\n{{ form }}", {"answer": "label"})
_EXAMPLES = "{% for example in examples %}{{ example }}\n\n{% endfor %}"
_SLOTS = {
    "instruction_expansion": {"examples": _EXAMPLES},
    "instruction_refinement": {"instruction": "{{ instruction }}"},
    "instruction_response_extraction": {"text": "{{ passage }}"},
    "cot_generation": {"problem": "{{ instruction }}"},
    "cot_long2short": {"problem": "{{ instruction }}", "answer": "{{ thought }}"},
    "cot_short2long": {"problem": "{{ instruction }}", "answer": "{{ thought }}"},
    "task_labelling": {"instruction": "{{ instruction }}", "categories": '{{ labels | join(", ") }}'},
}
"""Job type → placeholder → what shows the same."""


class UnknownPlaceholder(ValueError):
    """A template asks for what an operator does not show."""


def convert(text: str, job_type: str) -> str:
    """The template as Jinja, its tags as they are now, with the form of the reply at its end.

    Raises:
        UnknownPlaceholder: there is a placeholder that has no equal.
    """
    prompt = _TASKS if job_type == "task_labelling" else OLD_PROMPTS[job_type]
    slots = _SLOTS[job_type]
    parts: list[str] = []
    plain = at = 0
    said = ""
    for found in _PART.finditer(text := prompt.with_tags(text)):
        said += text[at : found.start()]
        at = found.end()
        if found[1] is None:
            said += found[0][0]
            continue
        if found[1] not in slots:
            raise UnknownPlaceholder(found[1])
        parts += [literal(said), slots[found[1]]]
        said, plain = "", plain + 1
    parts.append(literal(said + text[at:]))
    made = "".join(parts).rstrip()
    if not plain:
        return prompt.template(text)
    return made if job_type == "cot_generation" else f"{made}\n\n{{{{ form }}}}\n"


def own_prompt(
    section: dict[str, Any], job_type: str, old: Old, draft: Draft, where: str, text_key: str = "prompt_template"
) -> dict[str, Any]:
    """What `synthesis` says of a prompt of the user's own; empty where the built-in one is used."""
    prompt = _TASKS if job_type == "task_labelling" else OLD_PROMPTS[job_type]
    file, text = pop(section, "prompt_template_file", str, where), pop(section, text_key, str, where)
    if text is None and file is not None:
        path = next((each for each in (Path(file), Path(old.document.source).parent / file) if each.is_file()), None)
        if path is None:
            draft.left_out.append(
                f"{where}.prompt_template_file: {file} is not here, so the built-in prompt is used; for your own, run "
                f"the command where the file is, or write it anew in Jinja for synthesis.prompts.{prompt.name}"
            )
            return {}
        text = path.read_text(encoding="utf-8")
    if text is None:
        return {}
    try:
        converted = convert(text, job_type)
    except UnknownPlaceholder as error:
        known = ", ".join(f"{{{name}}}" for name in _SLOTS[job_type])
        draft.left_out.append(f"{where}: its prompt asks for {{{error}}}, which is not known here ({known} are)")
        return {}
    draft.mapped.append(f"{where}: its prompt is synthesis.prompts.{prompt.name}, as a Jinja template")
    return {"prompts": {prompt.name: {"text": converted}}, **({"reply": "plain"} if prompt.plain else {})}
