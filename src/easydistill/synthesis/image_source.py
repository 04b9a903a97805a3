"""Images without instructions, as rows of a synthesis stage: of a folder, a single one, or in rows of images alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from easydistill.config.dataset import SynthesisDatasetConfig
from easydistill.data.documents import IMAGE_SUFFIXES
from easydistill.data.files import hash_file
from easydistill.data.images import NoImages, RowImages
from easydistill.data.images.reader import with_digests
from easydistill.data.messages import Message, have_images, text_of
from easydistill.data.reading import ROW, SHAPES, Reading, at_most, chat_of, keys
from easydistill.data.reading.columns import under_known_names
from easydistill.data.reading.media import place_images
from easydistill.data.reading.row import fields_of, has_chat
from easydistill.data.reading.samples import folder_of, notices_of, own_ids
from easydistill.data.reading.unread import unread_fields
from easydistill.data.records import IdAssigner, Rejection, Sample
from easydistill.data.row_files import MalformedRow, format_of, parse_rows
from easydistill.data.row_files.hub_place import is_hub
from easydistill.data.row_files.identity import hash_rows
from easydistill.engine.checks import unreadable_rows
from easydistill.errors import ConfigIssue, DataError

HAS_INSTRUCTION, NO_IMAGE = "has_instruction", "no_image"
"""Reasons of rejections: a row has text already that asks something; or no image."""
SOURCE = "image_source"
"""Key of a row's `meta` with the name of its file, below the folder."""
_KEY = "dataset.instruction_path"


@dataclass(frozen=True)
class ImageSource:
    """The images at `dataset.instruction_path`, each row's in a message without text."""

    dataset: SynthesisDatasetConfig

    @property
    def where(self) -> str:
        return self.dataset.instruction_path

    @property
    def _path(self) -> Path:
        return Path(self.where)

    @property
    def _has_files(self) -> bool:
        """Whether the path is that of images, not of rows."""
        if is_hub(self.where):
            return False
        if self._path.is_file():
            return _is_image(self._path)
        return self._path.is_dir() and any(map(_is_image, _files(self._path)))

    def issues(self) -> list[ConfigIssue]:
        if not self._has_files:
            found = unreadable_rows(_KEY, self.where)
            if found and self._path.is_dir():
                hint = f"images are PNG, JPEG, WebP or GIF; of rows, {found[0].hint}"
                return [replace(found[0], problem=f"{found[0].problem}, and no image", hint=hint)]
            return found
        shown = json.dumps(self.where, ensure_ascii=False)
        written = self.dataset.labeled_path
        if written is not None and Path(written).resolve().is_relative_to(self._path.resolve()):
            problem = f"{json.dumps(written, ensure_ascii=False)} is in the folder of images {shown}: what is written "
            problem += "there, rows and their images, would be read with them the next time"
            return [ConfigIssue("config", "dataset.labeled_path", problem, "write it beside the folder")]
        rows = next((file.name for file in _files(self._path) if format_of(file) is not None), None)
        if rows is not None:
            hint = "name the file of rows, or a folder of images alone"
            return [ConfigIssue("config", _KEY, f"{shown}: there are images, and a file of rows ({rows})", hint)]
        if self.dataset.image_folder is not None:
            problem = f"{shown} has the images itself, so no paths of rows are relative to this folder"
            return [ConfigIssue("config", "dataset.image_folder", problem, "remove it")]
        if self.dataset.column_names:
            return [ConfigIssue("config", "dataset.columns", f"{shown} has images, and no columns", "remove it")]
        return []

    def fingerprint(self) -> dict[str, Any]:
        common = {"max_samples": self.dataset.max_samples, **self.dataset.reading_identity()}
        if not self._has_files:
            return {"file": hash_rows(self.where), **common}
        digest = hashlib.sha256()
        for file in filter(_is_image, _files(self._path)):
            digest.update(f"{self._name(file)}\0{hash_file(file)}\n".encode())
        return {"images": digest.hexdigest(), **common}

    def read(self, most: int | None = None, images: RowImages | None = None) -> Reading:
        limit, images = at_most(most, self.dataset.max_samples), images or NoImages()
        found = self._read_files(limit, images) if self._has_files else self._read_rows(limit, images)
        if not found.samples:
            why = f"\n    {found.rejected[0].detail}" if found.rejected else f"; {SHAPES}"
            raise DataError(f"{self.where}: none of its {len(found.rejected)} images can be used{why}")
        return found

    # --- files --------------------------------------------------------------------------------------------------

    def _read_files(self, limit: int | None, images: RowImages) -> Reading:
        ids, found, others = IdAssigner(), Reading(), list[str]()
        for file in _files(self._path):
            name = self._name(file)
            if not _is_image(file):
                others.append(name)
                continue
            if limit is not None and len(found.samples) + len(found.rejected) >= limit:
                break
            message: Message = {"role": "user", "content": [{"type": "image", "image": name}]}
            try:
                messages = with_digests([message], images, self._path if self._path.is_dir() else file.parent)
            except MalformedRow as problem:
                identity = ids.assign(["image", name])
                found.rejected.append(Rejection(identity, "read", problem.reason, str(problem), 1, name))
                continue
            number = len(found.samples) + len(found.rejected) + 1
            found.samples.append(Sample(ids.assign(messages), tuple(messages), {ROW: number, SOURCE: name}))
        if others:
            found.notices.append(f"{self.where}: {len(others)} files are not read as images, e.g. {others[0]}")
        return found

    def _name(self, file: Path) -> str:
        return file.name if file == self._path else file.relative_to(self._path).as_posix()

    # --- rows ---------------------------------------------------------------------------------------------------

    def _read_rows(self, limit: int | None, images: RowImages) -> Reading:
        ids, found, unread, count = IdAssigner(), Reading(), Counter[str](), 0

        def parse(row: Any, source: str) -> tuple[Sample, frozenset[str]]:
            sample, names = self._row(row)
            return replace(sample, messages=tuple(with_digests(sample.messages, images, folder_of(source)))), names

        for number, row, parsed in parse_rows(self.where, parse, ids, limit):
            count += 1
            if isinstance(parsed, Rejection):
                found.rejected.append(parsed)
                continue
            sample, names = parsed
            unread.update(names)
            identity = ids.assign(list(sample.messages), own_ids(row, 1)[0])
            found.samples.append(replace(sample, id=identity, meta={ROW: number, **sample.meta}))
        found.notices = notices_of(self.where, unread, count)
        return found

    def _row(self, row: Any) -> tuple[Sample, frozenset[str]]:
        """A row's images, with the fields that the message does not hold; and which of these could say something.

        Raises:
            MalformedRow: it has none, or text that asks about them.
        """
        fields = fields_of(row)
        if self.dataset.column_names:
            fields, _ = under_known_names(fields, self.dataset.column_names)
        if has_chat(fields):
            chat = chat_of(fields, with_answer=False)
            asking = [message for message in chat.messages if message["role"] != "assistant"]
            if not have_images(asking):
                raise MalformedRow("the row has no image", NO_IMAGE)
            if len(asking) > 1 or text_of(asking[0]).strip():
                raise MalformedRow(
                    "the row has an instruction already: take instruction_expansion, which makes more like it, or give "
                    "the images alone",
                    HAS_INSTRUCTION,
                )
            return Sample("", tuple(asking), chat.rest), chat.unread
        messages: list[Message] = [{"role": "user", "content": ""}]
        used = place_images(fields, messages)
        if not have_images(messages):
            raise MalformedRow(f"the row has no image (one of {', '.join(keys.IMAGES)})", NO_IMAGE)
        dropped = {*used, *keys.CHAT_KEYS}
        rest = {str(name): value for name, value in fields.items() if value is not None and name not in dropped}
        return Sample("", tuple(messages), rest), frozenset(unread_fields(fields, used, messages))


def _files(path: Path) -> Iterator[Path]:
    """The file, or the files below a folder in the order of their names. Names that begin with a dot are left out, and
    what is in the directory of a run, which keeps images too."""
    if path.is_file():
        yield path
        return
    runs: set[Path] = set()
    for file in sorted(path.rglob("*")):
        if file.is_dir():
            if (file / "config.resolved.json").is_file():
                runs.add(file)
        elif (
            file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and runs.isdisjoint(file.parents)
        ):
            yield file


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES
