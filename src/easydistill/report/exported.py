"""The job `export`: what each format costs in bytes and in agreement with the student, as a section of the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easydistill.data.numbers import as_float
from easydistill.report import document as doc
from easydistill.report.collect import Facts
from easydistill.report.figures import MISSING
from easydistill.report.values import as_dict, as_int, as_text, as_texts, json_object

EXPORTED = "exported.json"
_INTRO = (
    "Each export was read back and compared with the student on the same rows. KL: mean KL(student ‖ export) over the "
    "tokens of answers, in nats. Agreement: how often the most probable token is the same."
)


def read_exports(facts: Facts) -> list[dict[str, Any]]:
    """The records of complete exports, also those of a pipeline's jobs, in the order of the stages."""
    found: list[Path] = []
    for number, stage in enumerate(facts.stages, start=1):
        folder = facts.directory / "stages" / f"{number}-{stage.name}"
        inner = sorted(folder.glob(f"stages/*/{EXPORTED}"), key=lambda path: int(path.parent.name.partition("-")[0]))
        found += [path for path in [folder / EXPORTED, *inner] if path.is_file()]
    return [json_object(path) for path in found]


def export_sections(facts: Facts) -> Iterator[doc.Section]:
    """The table of quality per byte; nothing where nothing was exported."""
    records = read_exports(facts)
    if not records:
        return
    rows = tuple(_row(record) for record in records)
    columns = (
        *doc.columns("Size", "Of the student", "Bits a weight", "KL", "Agreement"),
        doc.Column("Tensors", "kinds"),
    )
    notes = [doc.Text(f"{_name(record)}: {note}", "soft") for record in records for note in _notes(record)]
    of = f"{as_int(records[0].get('rows')) or 0:,} rows, {as_int(records[0].get('tokens')) or 0:,} answer tokens."
    same = "Token ids of all texts and the chat template are the student's in every export. "
    blocks = (
        doc.Text(f"{_INTRO} Compared on {of}"),
        doc.Table("Format", columns, rows, style="tight exported"),
        doc.Text(same + _ends(records), "soft"),
        *notes,
    )
    yield doc.Section("exports", "Quality per byte", "Exports", blocks, "hero")


def _name(record: dict[str, Any]) -> str:
    return f"{as_text(record.get('format'))}:{as_text(record.get('number'))}"


def _row(record: dict[str, Any]) -> doc.Row:
    size, parameters = as_float(record.get("bytes")), as_float(record.get("parameters"))
    source, kl, agreement = (as_float(record.get(name)) for name in ("source_bytes", "kl", "agreement"))
    kinds = as_dict(record.get("tensors"))
    return doc.row(
        _name(record),
        MISSING if size is None else f"{size / 1e6:,.1f} MB",
        MISSING if size is None or not source else f"{size / source:.0%}",
        MISSING if size is None or not parameters else f"{8 * size / parameters:.2f}",
        # Sums of float32 are a little above or below 0 where the models are the same.
        MISSING if kl is None else f"{kl:.2g}" if kl > 1e-6 else "0",
        MISSING if agreement is None else f"{agreement:.2%}",
        ", ".join(f"{count} × {kind}" for kind, count in kinds.items()) or as_text(record.get("stored")) or MISSING,
        notes=(as_text(record.get("folder")),),
    )


def _notes(record: dict[str, Any]) -> list[str]:
    lacks = as_texts(record.get("lacks_ends"))
    lost = [f"the file does not say that {', '.join(lacks)} ends a turn; the Modelfile does"] if lacks else []
    return [*as_texts(record.get("notes")), *lost]


def _ends(records: list[dict[str, Any]]) -> str:
    ends = dict.fromkeys(token for record in records for token in as_texts(record.get("end_tokens")))
    return f"A turn ends with {', '.join(ends)}." if ends else ""
