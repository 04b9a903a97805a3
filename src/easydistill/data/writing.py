"""Samples and preference pairs → files, as our own jobs, `datasets` and TRL read them.

JSON: a sample whose whole chat is a prompt and perhaps a text answer is a row of the paper's format, any other one has
`messages`; pairs have `prompt`, `chosen` and `rejected`. Tool calls are spelled as chat templates read them: under
`function`, with the arguments as an object, since a text would be rendered as a text. The chat's tools are the list
`tools`, its template variables the object `chat_template_kwargs`: TRL's names.

Parquet: the same columns. Arrow gives objects of one column one type and fills the keys that an object lacks with null,
in which Llama 3.1's template sees a call. So messages with calls, and tools, are written as JSON text of Arrow's type
`arrow.json`, which `datasets` (its `Json`) gives back as the objects that were written, and pyarrow and pandas as text.
Chats of text alone are objects with `role`, `content` and `reasoning_content`.

Images: `<image>` in the text, and the list `images` of paths relative to the file, as LLaMA-Factory and ms-swift read
them. In Parquet, messages with images also have `parts`, the list that processors' templates take as `content`: Arrow
cannot mix texts and lists in one field.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from easydistill.data.files import replacing
from easydistill.data.images import ImageStore
from easydistill.data.messages import IMAGE_TAG, Chat, Content, Message, images_of, template_message
from easydistill.data.plain import plain_json
from easydistill.data.preferences import Preference
from easydistill.data.reading import ROW, Reading
from easydistill.data.reading.keys import CHAT_KEYS
from easydistill.data.records import Rejection, Sample
from easydistill.data.spool import Rows, like
from easydistill.data.tables import IMAGES, KWARGS, PARTS, TEXT_KEYS, TOOLS, Columns
from easydistill.errors import DataError

UNWRITABLE = "unwritable_row"
_PAIR = ("prompt", "chosen", "rejected")
BLOCK = 50_000
"""Rows of a table that are in memory at a time."""


Paths = Callable[[Iterable[str]], list[str]]
"""Digests of images → their paths, as a file names them."""


def _no_images(digests: Iterable[str]) -> list[str]:
    assert not list(digests), "rows with images are written with their paths"
    return []


def paths_beside(path: Path, images: ImageStore | None) -> Paths:
    """The paths of images as the file at `path` names them."""
    return _no_images if images is None else lambda digests: images.paths_from(path.parent, digests)


def file_message(message: Message) -> dict[str, Any]:
    """A message as files hold it: as chat templates read it, with the mark of a turn that is not learned."""
    spelled = template_message(message)
    if not isinstance(message["content"], str):
        spelled["content"] = file_text(message["content"])
    if "weight" in message:
        spelled["weight"] = message["weight"]
    return spelled


def file_text(content: Content) -> str:
    """The content of a message as files hold it, with tags for images. A line break behind a tag, and one before a tag
    that ends the text, are read as part of the tag, so one is written there that is the text's own."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for number, part in enumerate(content):
        if part["type"] == "image":
            texts.append(IMAGE_TAG)
            continue
        text = part["text"]
        before_last = number == len(content) - 2 and content[-1]["type"] == "image"
        texts.append("\n" * (number > 0 and text[:1] == "\n") + text + "\n" * (before_last and text[-1:] == "\n"))
    return "".join(texts)


def parts_message(message: Message) -> dict[str, Any]:
    """A message as tables hold it: with its parts, if it has images."""
    content = message["content"]
    if isinstance(content, str):
        return file_message(message)
    parts = [{"type": "image"} if part["type"] == "image" else dict(part) for part in content]
    return {**file_message(message), PARTS: parts}


def paper_row(sample: Sample, paths: Paths = _no_images) -> dict[str, Any]:
    """A row in the paper's format `{"instruction", "output"}` if that holds the whole chat, else with `messages`."""
    roles = [message["role"] for message in sample.messages]
    if roles not in (["user"], ["user", "assistant"]) or _is_rich(sample):
        return chat_row(sample, paths)
    row: dict[str, Any] = {"id": sample.id, "instruction": file_text(sample.messages[0]["content"])}
    for answer in sample.messages[1:]:
        row["output"] = file_text(answer["content"])
        if "reasoning_content" in answer:
            row["reasoning_content"] = answer["reasoning_content"]
    return {**row, **_image_column(sample.images, paths), **written_meta(sample)}


def _image_column(images: Sequence[str], paths: Paths) -> dict[str, Any]:
    return {IMAGES: paths(images)} if images else {}


def _is_rich(sample: Sample) -> bool:
    """Whether a chat holds more than text."""
    beside = sample.tools or sample.template_kwargs
    return bool(beside) or any(message.keys() - TEXT_KEYS for message in sample.messages)


def paper_rows(samples: Sequence[Sample], paths: Paths = _no_images) -> Iterator[dict[str, Any]]:
    """The rows of one JSON file. If a chat of it holds more than text, all have `messages`.

    If a chat has template variables, all have a `chat_template_kwargs`: `datasets` gives a row that lacks the column
    null, which TRL's trainers do not take.
    """
    if not any(map(_is_rich, samples)):
        yield from (paper_row(sample, paths) for sample in samples)
        return
    given: dict[str, Any] = {KWARGS: {}} if any(sample.template_kwargs for sample in samples) else {}
    for sample in samples:
        row = chat_row(sample, paths)
        yield row if KWARGS in row else {**row, **given}


Spelling = Callable[[Message], dict[str, Any]]


def chat_row(sample: Sample, paths: Paths = _no_images, spelled: Spelling = file_message) -> dict[str, Any]:
    """A row with `messages`, and the chat's images, tools and variables where it has any."""
    return {
        "id": sample.id,
        "messages": list(map(spelled, sample.messages)),
        **_image_column(sample.images, paths),
        **_chat_columns(sample),
        **written_meta(sample),
    }


def _chat_columns(chat: Sample | Preference) -> dict[str, Any]:
    tools = {TOOLS: list(chat.tools)} if chat.tools else {}
    return {**tools, KWARGS: chat.template_kwargs} if chat.template_kwargs else tools


def written_meta(sample: Sample) -> dict[str, Any]:
    """The fields of a row's `meta` that are written to files, as JSON can hold them."""
    return {name: plain_json(value) for name, value in sample.meta.items() if name != ROW and name not in CHAT_KEYS}


def writable(samples: Rows[Sample], stage: str) -> tuple[Rows[Sample], list[Rejection]]:
    """The samples that can be written, and a rejection for each other one: to be asked before anything is paid for.

    Raises:
        DataError: none can be written.
    """
    rejected: list[Rejection] = []
    kept = like(samples)
    for sample in samples:
        problem = why_unwritable(sample)
        if problem is None:
            kept.append(sample)
        else:
            rejected.append(Rejection(sample.id, stage, UNWRITABLE, problem))
    if rejected and not kept:
        raise DataError(f"none of {len(rejected)} rows can be written to a file; the first: {rejected[0].detail}")
    return kept, rejected


def only_writable(found: Reading, stage: str) -> Reading:
    """Rows without those that cannot be written, which are rejected. See `writable`."""
    found.samples, unwritable = writable(found.samples, stage)
    found.rejected += unwritable
    return found


def why_unwritable(sample: Sample) -> str | None:
    """Why no file can hold a sample. Its text and the values of its calls must be written as they are."""
    try:
        chat = Chat.of(sample)
        text = json.dumps([chat.messages, chat.tools, chat.template_kwargs], ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "its chat contains half of a surrogate pair"
    except (TypeError, ValueError, RecursionError) as error:
        return f"its chat cannot be written as JSON: {error}"
    for name, value in sample.meta.items():
        try:
            name.encode("utf-8")
            plain_json(value)
        except (ValueError, RecursionError) as error:
            return f"its field {name!r} cannot be written: {error}"
    return None


def as_preference(sample: Sample) -> Preference:
    """The pair of a chat that ends with the chosen answer; `rejected` (and perhaps `beta`) are in its `meta`."""
    meta = {name: value for name, value in written_meta(sample).items() if name not in {"rejected", "beta"}}
    worse, beta = sample.meta["rejected"], sample.meta.get("beta")
    return Preference(
        sample.id,
        sample.prompt,
        (sample.messages[-1],),
        (worse,),
        beta,
        meta,
        tools=sample.tools,
        template_kwargs=sample.template_kwargs,
    )


def pair_row(pair: Preference, paths: Paths = _no_images, spelled: Spelling = file_message) -> dict[str, Any]:
    """A pair as it is written to a file."""
    own = {} if pair.beta is None else {"beta": pair.beta}
    sides = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    written = {name: list(map(spelled, messages)) for name, messages in sides.items()}
    images = _image_column(images_of(*pair.prompt), paths)
    return {"id": pair.id, **written, **images, **_chat_columns(pair), **own, **plain_json(pair.meta)}


# --- JSON -------------------------------------------------------------------------------------------------


def write_paper_json(
    path: Path, samples: Sequence[Sample], images: ImageStore | None = None, at: Path | None = None
) -> None:
    """Write the paper's format; see `paper_rows`.

    Args:
        images: holds those of the rows, if there are any.
        at: where the file will be read, if not at `path`.
    """
    write_json_rows(path, paper_rows(samples, paths_beside(at or path, images)))


def write_pairs_json(
    path: Path, pairs: Iterable[Preference], images: ImageStore | None = None, at: Path | None = None
) -> None:
    """Write a JSON array, one pair per line.

    Args:
        at: the path that the file will have, if it is another one.
    """
    paths = paths_beside(at or path, images)
    write_json_rows(path, (pair_row(pair, paths) for pair in pairs))


def write_json_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON array, one row per line."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.write("[")
        for index, row in enumerate(rows):
            handle.write(("," if index else "") + "\n" + json.dumps(row, ensure_ascii=False, allow_nan=False))
        handle.write("\n]\n")


# --- Parquet ----------------------------------------------------------------------------------------------


def write_parquet(
    path: Path, samples: Sequence[Sample], images: ImageStore | None = None, at: Path | None = None
) -> None:
    """Write `id`, `messages`, the chats' tools and variables, and a column for each field of `meta` as Parquet.

    A field whose values have no common type is written as JSON. `images` and `at` are those of `write_paper_json`.
    """
    paths = paths_beside(at or path, images)

    def row(sample: Sample) -> dict[str, Any]:
        return chat_row(sample, paths, parts_message) if sample.images else chat_row(sample)

    _write_tables(path, samples, row, ("messages",))


def write_pairs_parquet(
    path: Path, pairs: Sequence[Preference], images: ImageStore | None = None, at: Path | None = None
) -> None:
    """Write Parquet; a field whose values have no common type is written as JSON text. For `at`, see
    `write_pairs_json`."""
    paths = paths_beside(at or path, images)
    _write_tables(path, pairs, lambda pair: pair_row(pair, paths, parts_message), _PAIR)


def _write_tables(
    path: Path, rows: Sequence[Any], spelled: Callable[[Any], dict[str, Any]], chats: Sequence[str]
) -> None:
    """Write rows block by block; if there are several blocks, a first pass finds the columns that hold all rows."""
    import pyarrow.parquet as parquet

    columns = Columns(chats)
    if len(rows) > BLOCK:
        for block in _blocks(rows, spelled):
            columns.fit(block)
    with replacing(path) as temporary, contextlib.ExitStack() as stack:
        writer: Any = None
        for block in _blocks(rows, spelled):
            table = columns.table(block)
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(temporary, table.schema))
            writer.write_table(table)


def _blocks(rows: Iterable[Any], spelled: Callable[[Any], dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows as they are written, `BLOCK` at a time; one empty block if there are none."""
    written = map(spelled, rows)
    block = list(itertools.islice(written, BLOCK))
    yield block
    while block := list(itertools.islice(written, BLOCK)):
        yield block
