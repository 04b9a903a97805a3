"""Reads rows of the shapes that public data sets have. A row is read whole, or refused with the reason and a hint.

- `row.py`: a row → its chat; start here. It asks, in this order:
- `columns.py`: columns that `dataset.columns` names.
- `several.py`: rows with several answers or prompts.
- `turns.py`, `parts.py`, `marks.py`: lists of turns (OpenAI's messages, ShareGPT), what a message's content holds, and
  whether it is learned.
- `media.py`: images, and where they stand in a chat; sound and video are refused.
- `prompts.py`, `answers.py`: rows with a column for the prompt and one for the answer.
- `texts.py`: a whole chat in one text.
- `calls.py`: tool calls and tools. `checks.py`: what a row must have.
- `unread.py`: what could carry meaning and is not read.
- `samples.py`: files → `Sample`s. `pairs.py`, `verdicts.py`: rows with two answers, of which one is better.
- `keys.py`, `values.py`: the names of fields; values as files hold them.
"""

from easydistill.data.reading.checks import refuse_lone_surrogates
from easydistill.data.reading.row import SHAPES, RowChat, chat_of, chats_of
from easydistill.data.reading.samples import ROW, Reading, RowScan, at_most, read_rows, read_samples

__all__ = [
    "ROW",
    "SHAPES",
    "Reading",
    "RowChat",
    "RowScan",
    "at_most",
    "chat_of",
    "chats_of",
    "read_rows",
    "read_samples",
    "refuse_lone_surrogates",
]
