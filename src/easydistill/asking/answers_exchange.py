"""What an answers cache holds, whether it is whole, and its way to another machine: one file, imported there.

The file is a tar archive, compressed if its name ends in `.gz` or `.tgz`: `about.json`, `answers.jsonl` with the lines
of `data/answers_cache/entries.py` in the order of their keys, and on demand the shards of teacher signals. An import is
complete or has changed nothing; what a cache has already stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from easydistill.data.answers_cache import ABOUT
from easydistill.data.answers_cache.entries import decode, encode, is_key
from easydistill.data.answers_cache.store import ANSWERS, FORMAT, KIND, AnswersCache, segment_path
from easydistill.data.files import replacing, sync
from easydistill.data.journal import records_in
from easydistill.errors import DataError
from easydistill.signals.shared import SHARDS, SharedShards
from easydistill.teachers.remembering import kept_record

_ABOUT, _ANSWERS = "about.json", "answers.jsonl"
_SUFFIXES = (".gz", ".tgz")


@dataclass(frozen=True)
class CacheFacts:
    """What a cache holds."""

    directory: str
    answers: int
    segments: int
    bytes: int
    models: dict[str, int]
    """Answers by the name that the server gave its model; `""` where it gave none."""
    prompt_tokens: int
    completion_tokens: int
    signal_shards: int
    signal_bytes: int


@dataclass(frozen=True)
class CacheCheck:
    """What `verify` found: everything was read."""

    answers: int
    """Keys with a good answer."""
    replaced: int
    """Good answers in whose place a later one counts."""
    damaged: list[str]
    """`segment:line` of what is no good answer."""
    unfinished_bytes: int
    """At the ends of segments, left by a kill; harmless."""
    signal_shards: int
    damaged_signals: list[str]

    @property
    def good(self) -> bool:
        return not self.damaged and not self.damaged_signals


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    new: int
    known: int
    """Answers whose requests the cache could answer already."""
    unusable: int = 0
    """Answers of a run that are not kept: empty, filtered, malformed."""
    signal_shards: int = 0


def opened(directory: str | Path) -> AnswersCache:
    """A cache that exists.

    Raises:
        DataError: there is none.
        ConfigError: the folder cannot be used.
    """
    path = Path(directory).expanduser()
    if not (path / ABOUT).is_file():
        raise DataError(f"{path}: no answers cache is here (no {ABOUT})\n    → name the folder of answers_cache")
    return AnswersCache(path)


def facts_of(directory: str | Path) -> CacheFacts:
    """Count what a cache holds. Raises what `opened` raises."""
    with opened(directory) as cache:
        models: Counter[str] = Counter()
        tokens = [0, 0]
        for key in cache:
            record = cache.get(key)
            if record is not None:
                models[str(record.get("model") or "")] += 1
                tokens[0] += int(record.get("prompt_tokens") or 0)
                tokens[1] += int(record.get("completion_tokens") or 0)
        segments = [path for path in (cache.directory / ANSWERS).glob("*.jsonl") if not path.name.startswith(".")]
        shards = SharedShards(cache.directory).sizes()
        return CacheFacts(
            directory=str(cache.directory),
            answers=models.total(),
            segments=len(segments),
            bytes=sum(path.stat().st_size for path in segments),
            models=dict(models.most_common()),
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            signal_shards=len(shards),
            signal_bytes=sum(shards.values()),
        )


def check(directory: str | Path) -> CacheCheck:
    """Read everything and compare it with its checksums. Raises what `opened` raises."""
    with opened(directory) as cache:
        damaged: list[str] = []
        good: Counter[str] = Counter()
        unfinished = 0
        for path in sorted((cache.directory / ANSWERS).glob("*.jsonl")):
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.endswith(b"\n"):
                        unfinished += len(line)
                    elif (record := decode(line)) is None:
                        damaged.append(f"{path.name}:{number}")
                    else:
                        good[record["key"]] += 1
        shards = SharedShards(cache.directory)
        broken = [name for name in shards.sizes() if not shards.is_whole(name)]
        replaced = good.total() - len(good)
        return CacheCheck(len(good), replaced, damaged, unfinished, len(shards.sizes()), broken)


# --- export -----------------------------------------------------------------------------------------------------------


def export(directory: str | Path, target: str | Path, *, signals: bool = False) -> int:
    """Write a cache's answers, and on demand its signals, to one file; returns the number of answers.

    Raises:
        DataError: there is no cache, or the file exists. And what `opened` raises.
    """
    path = Path(target)
    if path.exists():
        raise DataError(f"{path}: the file exists\n    → choose another name, or remove it")
    with opened(directory) as cache, tempfile.TemporaryFile(dir=_folder(path)) as lines:
        digest = hashlib.sha256()
        count = 0
        for key in cache:
            line = cache.line(key)
            if line is not None and decode(line) is not None:
                lines.write(line)
                digest.update(line)
                count += 1
        shards = SharedShards(cache.directory)
        names = [name for name in shards.sizes() if shards.is_whole(name)] if signals else []
        about = {"kind": KIND, "format": FORMAT, "answers": count, "sha256": digest.hexdigest(), "signals": len(names)}
        with replacing(path) as temporary, tarfile.open(temporary, "w:gz" if _compressed(path) else "w") as archive:
            _add_text(archive, _ABOUT, json.dumps(about, indent=2) + "\n")
            info = tarfile.TarInfo(_ANSWERS)
            info.size = lines.tell()
            lines.seek(0)
            archive.addfile(info, lines)
            for name in names:
                for file in shards.files(name):
                    archive.add(file, f"{SHARDS}/{file.name}", recursive=False)
        return count


def _folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent


def _compressed(path: Path) -> bool:
    return path.name.endswith(_SUFFIXES)


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    import io

    data = text.encode()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


# --- import -----------------------------------------------------------------------------------------------------------


def import_into(directory: str | Path, source: str | Path) -> Imported:
    """Put answers into a cache, which is made if it is missing.

    Args:
        source: a file that `export` wrote, another cache's folder, or the directory of a run (its journals are read).

    Raises:
        DataError: the source is none of these, or it is damaged; nothing was changed.
        ConfigError: the folder cannot be used.
    """
    path = Path(source).expanduser()
    take: Callable[[AnswersCache, Path], Imported]
    if (path / ABOUT).is_file():
        take = _import_cache
    elif (path / "stages").is_dir() or (path / "summary.json").is_file():
        take = _import_run
    elif path.is_file():
        take = _import_file
    else:
        hint = "name a file that `easydistill answers export` wrote, a cache's folder, or a run directory"
        raise DataError(f"{path}: there are no answers here\n    → {hint}")
    with AnswersCache(Path(directory).expanduser()) as cache:
        return take(cache, path)


def _import_cache(cache: AnswersCache, source: Path) -> Imported:
    with _new_segment(cache) as segment, AnswersCache(source) as other:
        for key in other:
            line = other.line(key)
            # What is damaged there would only be asked again here.
            if line is not None and decode(line) is not None:
                segment.add(line)
    shards, theirs = SharedShards(cache.directory), SharedShards(source)
    return segment.result(sum(shards.take(name, theirs) for name in theirs.sizes()))


def _import_run(cache: AnswersCache, run: Path) -> Imported:
    with _new_segment(cache) as segment:
        unusable = 0
        for journal in sorted((run / "stages").rglob("*.jsonl")):
            for record in _last_records(journal):
                kept = kept_record(record)
                if kept is None:
                    unusable += record.get("kind") == "completion"
                elif is_key(str(kept["key"])):
                    at = round(float(record.get("at") or 0) * 1000)
                    segment.add(encode(str(kept["key"]), at, kept))
    found = segment.result()
    return Imported(found.new, found.known, unusable)


def _last_records(path: Path) -> Iterable[dict[str, Any]]:
    """The last outcome of each request in a journal; nothing of any other file."""
    outcomes = (record for record in records_in(path) if record.get("kind") in ("completion", "failure"))
    return {str(record["key"]): record for record in outcomes}.values()


def _import_file(cache: AnswersCache, source: Path) -> Imported:
    try:
        with tarfile.open(source, "r:*") as archive, tempfile.TemporaryDirectory(dir=cache.directory) as waiting:
            about = _about(archive, source)
            digest, count = hashlib.sha256(), 0
            with _new_segment(cache) as segment:
                for line in archive.extractfile(_next(archive, _ANSWERS)) or ():
                    digest.update(line)
                    count += 1
                    segment.add(line)
                if (count, digest.hexdigest()) != (about["answers"], about["sha256"]):
                    raise DataError("its answers are not those that were exported")
                folder = Path(waiting)
                for member in archive:
                    _extract_shard(archive, member, folder)
                theirs = SharedShards(folder, flat=True)
                if sum(map(theirs.is_whole, theirs.sizes())) != about["signals"]:
                    raise DataError("its signals are not those that were exported")
            taken = sum(SharedShards(cache.directory).take(name, theirs) for name in theirs.sizes())
            return segment.result(taken)
    except (tarfile.TarError, EOFError, OSError, KeyError, ValueError) as error:
        hint = "transfer it again, or export it again"
        # tarfile lists all that it has tried, a line each.
        why = "it is no archive" if "\n" in str(error) else error
        raise DataError(f"{source}: cannot be imported, nothing was: {why}\n    → {hint}") from None


def _about(archive: tarfile.TarFile, source: Path) -> dict[str, Any]:
    file = archive.extractfile(_next(archive, _ABOUT))
    about = json.load(file) if file is not None else None
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise DataError("it is no file of `easydistill answers export`")
    if about.get("format") != FORMAT:
        raise DataError(f"it has format {about.get('format')}, this version of easydistill reads {FORMAT}")
    return about


def _next(archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    member = archive.next()
    if member is None or member.name != name or not member.isfile():
        raise DataError(f"it is no file of `easydistill answers export` ({name} is not where it should be)")
    return member


def _extract_shard(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    # Only plain files of known names: what an archive of others may hold besides is not written.
    name = member.name.removeprefix(f"{SHARDS}/")
    file = archive.extractfile(member) if member.isfile() and SharedShards.is_file_name(name) else None
    if file is not None:
        with (folder / name).open("wb") as target:
            while data := file.read(1 << 20):
                target.write(data)


class _Segment:
    """A segment in the making, which becomes part of the cache as a whole."""

    def __init__(self, cache: AnswersCache, file: IO[bytes]) -> None:
        self._cache, self._file = cache, file
        self._new: set[str] = set()
        self._known = 0

    def add(self, line: bytes) -> None:
        """Take an answer that the cache does not have.

        Raises:
            DataError: the line is damaged.
        """
        record = decode(line)
        if record is None:
            raise DataError("an answer is damaged")
        if record["key"] in self._cache or record["key"] in self._new:
            self._known += 1
            return
        self._new.add(record["key"])
        self._file.write(line)

    @property
    def is_empty(self) -> bool:
        return not self._new

    def result(self, signal_shards: int = 0) -> Imported:
        return Imported(len(self._new), self._known, signal_shards=signal_shards)


@contextlib.contextmanager
def _new_segment(cache: AnswersCache) -> Iterator[_Segment]:
    target = segment_path(cache.directory)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("wb") as file:
            segment = _Segment(cache, file)
            yield segment
            file.flush()
            sync(file.fileno())
        if not segment.is_empty:
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
