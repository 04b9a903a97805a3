"""`chat_settings.json` beside a saved student: how its chats were rendered in training, where that was not the default.

Its template has the variables as defaults, but what became of thoughts is not in any template.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from easydistill.data.files import write_text
from easydistill.methods.shared.rendering import TemplateSettings

NAME = "chat_settings.json"


def write_chat_settings(student: Path, chats: TemplateSettings) -> None:
    """Write the file, if there is something to say."""
    said = {"thoughts": chats.thoughts, "template_kwargs": dict(chats.template_kwargs or {})}
    said = {name: value for name, value in said.items() if value}
    if said:
        write_text(student / NAME, json.dumps(said, ensure_ascii=False, indent=2) + "\n")


def inherited_lines(references: Iterable[str], chats: TemplateSettings) -> list[str]:
    """What to tell of a student that was trained with other settings than it is to be trained with now."""
    found: list[str] = []
    for reference in references:
        said = _read(Path(reference).expanduser() / NAME)
        thoughts, variables = said.get("thoughts"), said.get("template_kwargs")
        if isinstance(thoughts, str) and thoughts != chats.thoughts:
            now = "is not set" if chats.thoughts is None else f"is {json.dumps(chats.thoughts)}"
            found.append(
                f"the student was trained with dataset.thoughts {json.dumps(thoughts)}, which {now} here\n"
                f"    → set dataset.thoughts to {json.dumps(thoughts)} to go on as it was trained"
            )
        # Its own template has them as defaults; another one has not.
        if variables and chats.template is not None and variables != dict(chats.template_kwargs or {}):
            shown = json.dumps(variables, ensure_ascii=False)
            found.append(
                f"the student was trained with dataset.template_kwargs {shown}, which are not set here for "
                "dataset.template\n    → set dataset.template_kwargs to go on as it was trained"
            )
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
