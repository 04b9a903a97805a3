"""Writes docs/templates.md: what becomes of a chat in every template that TRL ships.

Run `python -m tests.support.template_table` after a change of the rendering or a new version of TRL.
"""

from __future__ import annotations

from importlib.metadata import version as installed
from pathlib import Path

from easydistill.data.chat import Rendered, count_kinds
from easydistill.data.messages import Chat
from easydistill.errors import DataError
from tests.support import chat_templates as corpus

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"
HEAD = """\
# Chat templates

A chat template turns a list of messages into the one text that a model reads, with its own marks for who speaks. It
comes with the model and is used as it is; you need this page only if yours leaves something out. Chats are rendered by
transformers' own renderer, with the student's template or the one in `dataset.template`.

- **What is learned.** Every answer that the template shows and that has no `weight: 0`: exactly the tokens that the
  student would have to write itself, the one that ends the answer included. The marks around a thought are learned
  if the student has to write them. Prompts, tool results and what follows the end of an answer never are.
- **Variables.** `dataset.template_kwargs`, such as `{{"enable_thinking": false}}`; a row's own
  `chat_template_kwargs` win. The saved student's template has them as defaults, so others render its chats as in
  training; `chat_settings.json` beside it and the model card name them, and what became of thoughts. The date that a
  template writes is that of the run's first start; it is part of the fingerprint where the template of the student,
  or of a teacher on this machine, writes it.
- **Thoughts** are given under the name that the template reads. `dataset.thoughts: "inline"` writes them into the
  answer as `<think>…</think>` instead, `"drop"` leaves them out. Answers whose thoughts would be left out without
  either are not trained on (see [data](data.md)).
- **Tool calls** are given as the template reads them: with arguments as an object or as JSON text, the content
  empty, None or absent.
- **What a template does not show** is told by `plan` and when a run starts, with the number of rows, and in the
  report. Rows whose answers call tools are refused if the calls are not shown: an answer without them would be
  learned.

What becomes of {chats} chats (one and several turns, system and developer texts, tool calls and their results,
thoughts beside and inside an answer, empty texts) in each template that TRL ships ({version}). The text of every
chat is the one that transformers renders. The table is written by `tests/support/template_table.py`, and a test
checks that it is current.

- **Turns learned**: answers that are learned, of those in the chats that the template takes.
- **Mask**: *marks* if the template marks what the assistant writes with `{{% generation %}}`: then these marks are
  the mask, less what they mark behind an end token. *Found* if the turns are found in the text.
- **Not shown**: what the template leaves out of some of the chats.
- **Takes no**: chats that the template refuses.

| template | turns learned | mask | not shown | takes no |
|---|---|---|---|---|
"""
FEATURES = {
    "system": "system text",
    "developer": "developer role",
    "calls": "tool calls",
}
"""A chat that shows whether a template takes it, and its name in the table."""


def version() -> str:
    """The version of TRL."""
    return f"TRL {installed('trl')}"


def _line(name: str) -> str:
    renderer = corpus.renderer(name)
    learned = total = 0
    refused: list[str] = []
    missing = []
    for about, chat in corpus.CHATS.items():
        row = _row(name, chat)
        if isinstance(row, DataError):
            if about in FEATURES and "refuses" in str(row):
                refused.append(FEATURES[about])
            elif "refuses" not in str(row):
                missing.append(renderer.missing(chat))
            continue
        turns = sum(message["role"] == "assistant" for message in chat.messages)
        total += turns
        learned += turns - row.lost_turns
        missing.append(list(row.missing))
    mask = "marks" if "generation %}" in corpus.source(name) else "found"
    kinds = ", ".join(sorted(count_kinds(missing)))
    return f"| {name} | {learned} of {total} | {mask} | {kinds} | {', '.join(refused)} |"


def _row(name: str, chat: Chat) -> Rendered | DataError:
    (row,) = corpus.renderer(name).render_many([chat])
    return row


def page() -> str:
    """The page."""
    head = HEAD.format(version=version(), chats=len(corpus.CHATS))
    return head + "\n".join(map(_line, corpus.names())) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
