"""Sources of a synthesis stage's rows: a file of rows, or raw text cut into chunks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from easydistill.config.dataset import RowsConfig, SynthesisDatasetConfig
from easydistill.data.files import hash_file
from easydistill.data.images import RowImages
from easydistill.data.reading import Reading, at_most, read_rows
from easydistill.data.records import Sample
from easydistill.data.row_files.identity import hash_rows
from easydistill.engine.checks import unreadable_rows
from easydistill.errors import ConfigIssue
from easydistill.synthesis.config import ChunksConfig


class RowSource(Protocol):
    """A source of an operator's rows."""

    @property
    def dataset(self) -> RowsConfig:
        """Where rows and their images are."""

    @property
    def where(self) -> str:
        """The path, for messages."""

    def issues(self) -> list[ConfigIssue]:
        """Problems with the path."""

    def fingerprint(self) -> dict[str, Any]:
        """Changes whenever the rows do."""

    def read(self, most: int | None = None, images: RowImages | None = None) -> Reading:
        """The rows, rejections of those that could not be read, and what is not read of them.

        Args:
            images: what reads the images of rows; without it, rows with images are refused.
        """


TEXT_ALONE = (
    "{operator} reads text alone, so rows that differ in their images would be the same to it: remove the row, or "
    "describe in words what its image shows"
)
BLIND_MODEL = (
    "the {role} is given text alone and would not see it: take a vision-language model, on this machine or behind an "
    "API, or remove the row"
)


@dataclass(frozen=True)
class FileSource:
    """Rows of `dataset.instruction_path`."""

    dataset: SynthesisDatasetConfig
    labelled: bool | None
    """See `read_samples`."""

    @property
    def where(self) -> str:
        return self.dataset.instruction_path

    def issues(self) -> list[ConfigIssue]:
        return unreadable_rows("dataset.instruction_path", self.dataset.instruction_path)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "file": hash_rows(self.dataset.instruction_path),
            "max_samples": self.dataset.max_samples,
            **self.dataset.reading_identity(),
        }

    def read(self, most: int | None = None, images: RowImages | None = None) -> Reading:
        path, columns = self.dataset.instruction_path, self.dataset.column_names
        limit = at_most(most, self.dataset.max_samples)
        return read_rows(path, labelled=self.labelled, limit=limit, columns=columns, images=images)


@dataclass(frozen=True)
class TextSource:
    """Chunks of the texts at `dataset.instruction_path`, a file or a folder; each is the only message of a row."""

    dataset: SynthesisDatasetConfig
    chunks: ChunksConfig

    @property
    def where(self) -> str:
        return self.dataset.instruction_path

    def issues(self) -> list[ConfigIssue]:
        path = self.dataset.instruction_path
        if Path(path).exists():
            return []
        here = f"paths are relative to the working directory, {Path.cwd().name}/"
        problem = f"{json.dumps(path)}: no such file or folder"
        return [ConfigIssue("config", "dataset.instruction_path", problem, here)]

    def fingerprint(self) -> dict[str, Any]:
        path = Path(self.dataset.instruction_path)
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
        return {"texts": digest.hexdigest(), "chunks": self.chunks.identity(), "max_samples": self.dataset.max_samples}

    def read(self, most: int | None = None, images: RowImages | None = None) -> Reading:
        from easydistill.data.chunks import chunks
        from easydistill.data.documents import read_documents

        config = self.chunks
        documents, rejected = read_documents(Path(self.dataset.instruction_path), config.encoding)
        rows = [
            Sample(
                f"{document.id}-{chunk.start}",
                ({"role": "user", "content": chunk.text},),
                {"text_source": document.source, "text_start": chunk.start, "text_end": chunk.end},
            )
            for document in documents
            for chunk in chunks(document.text, config.tokens_min, config.tokens_max, config.overlap)
        ]
        return Reading(rows[: at_most(most, self.dataset.max_samples)], rejected)
