"""Samples and preference pairs → files.

Samples are written in the paper's format as JSON, and with `messages` as Parquet; pairs with `prompt`, `chosen` and
`rejected` as lists of messages, as TRL and `datasets` read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from easydistill.data.files import replacing
from easydistill.data.formats import CHAT_KEYS, ROW
from easydistill.data.preferences import Preference
from easydistill.data.records import Sample


def paper_row(sample: Sample) -> dict[str, Any]:
    """A row in the paper's format `{"instruction", "output"}` if that holds the whole chat, else with `messages`."""
    roles = [message["role"] for message in sample.messages]
    if roles not in (["user"], ["user", "assistant"]):
        return {"id": sample.id, "messages": list(sample.messages), **written_meta(sample)}
    row: dict[str, Any] = {"id": sample.id, "instruction": sample.messages[0]["content"]}
    for answer in sample.messages[1:]:
        row["output"] = answer["content"]
        if "reasoning_content" in answer:
            row["reasoning_content"] = answer["reasoning_content"]
    return {**row, **written_meta(sample)}


def written_meta(sample: Sample) -> dict[str, Any]:
    """The fields of a row's `meta` that are written to files."""
    return {name: value for name, value in sample.meta.items() if name != ROW and name not in CHAT_KEYS}


def write_paper_json(path: Path, samples: Iterable[Sample]) -> None:
    """Write the paper's format."""
    write_json_rows(path, map(paper_row, samples))


def write_json_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON array, one row per line."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.write("[")
        for index, row in enumerate(rows):
            handle.write(("," if index else "") + "\n" + json.dumps(row, ensure_ascii=False))
        handle.write("\n]\n")


def write_parquet(path: Path, samples: Sequence[Sample]) -> None:
    """Write `id`, `messages` and a column for each field of `meta` as Parquet, as `datasets` and the trainers read it.

    A field whose values have no common type is written as JSON text.
    """
    import pyarrow.parquet as parquet

    rows = [
        {"id": sample.id, "messages": [dict(item) for item in sample.messages], **written_meta(sample)}
        for sample in samples
    ]
    with replacing(path) as temporary:
        parquet.write_table(parquet_table(rows, ("messages",)), temporary)


def parquet_table(rows: Sequence[dict[str, Any]], chats: Sequence[str]) -> Any:
    """A pyarrow table of rows that have an `id`; a field that a row lacks is null.

    Args:
        chats: names of the columns that hold lists of messages.
    """
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
    types = {"id": pa.string(), **dict.fromkeys(chats, pa.list_(message))}
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
    for name in dict.fromkeys(name for row in rows for name in row if name not in types):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError):
            columns[name] = pa.array(
                [None if value is None else json.dumps(value, ensure_ascii=False) for value in values], pa.string()
            )
    return pa.table(columns)


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


def pair_row(pair: Preference) -> dict[str, Any]:
    """A pair as it is written to a file."""
    own = {} if pair.beta is None else {"beta": pair.beta}
    sides = {"chosen": list(map(dict, pair.chosen)), "rejected": list(map(dict, pair.rejected))}
    return {"id": pair.id, "prompt": [dict(message) for message in pair.prompt], **sides, **own, **pair.meta}


def write_pairs_json(path: Path, pairs: Iterable[Preference]) -> None:
    """Write a JSON array, one pair per line."""
    write_json_rows(path, map(pair_row, pairs))


def write_pairs_parquet(path: Path, pairs: Sequence[Preference]) -> None:
    """Write Parquet; a field whose values have no common type is written as JSON text."""
    import pyarrow.parquet as parquet

    with replacing(path) as temporary:
        parquet.write_table(
            parquet_table([pair_row(pair) for pair in pairs], ("prompt", "chosen", "rejected")), temporary
        )
