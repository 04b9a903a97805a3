"""The command `easydistill answers`: does what its arguments say, and prints what came of it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from easydistill.asking.answers_exchange import CacheCheck, CacheFacts, Imported, check, export, facts_of, import_into
from easydistill.errors import EXIT_FAILED, EXIT_OK


def answers(arguments: argparse.Namespace) -> int:
    """Returns the exit code: 1 if `verify` found damage.

    Raises what the functions of `answers_exchange` raise.
    """
    found: CacheFacts | CacheCheck | Imported | None = None
    if arguments.action == "export":
        count = export(arguments.cache, arguments.file, signals=arguments.signals)
        shown, lines = {"answers": count}, [f"wrote {arguments.file}: {count:,} answers"]
    else:
        found = _found(arguments)
        shown, lines = asdict(found), _lines(found)
    print(json.dumps(shown, indent=2, ensure_ascii=False) if arguments.json else "\n".join(lines))
    if isinstance(found, CacheCheck) and not found.good:
        hint = "damaged answers are asked again by the run that needs them, damaged signals are scored again"
        print(f"{len(found.damaged) + len(found.damaged_signals)} entries are damaged\n    → {hint}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _found(arguments: argparse.Namespace) -> CacheFacts | CacheCheck | Imported:
    if arguments.action == "import":
        return import_into(arguments.cache, arguments.file)
    return facts_of(arguments.cache) if arguments.action == "info" else check(arguments.cache)


def _lines(found: CacheFacts | CacheCheck | Imported) -> list[str]:
    if isinstance(found, CacheFacts):
        models = [f"  {name or 'without a name'}: {count:,}" for name, count in found.models.items()]
        return [
            f"{found.directory}: {found.answers:,} answers in {found.segments:,} files, {found.bytes / 1e6:,.1f} MB",
            *models,
            f"tokens: {found.prompt_tokens:,} in, {found.completion_tokens:,} out",
            f"signals: {found.signal_shards:,} shards, {found.signal_bytes / 1e6:,.1f} MB",
        ]
    if isinstance(found, CacheCheck):
        kept = f"{found.answers:,} answers and {found.signal_shards:,} shards of signals were read"
        more = f"; {found.replaced:,} more were replaced by later ones" if found.replaced else ""
        torn = f"; {found.unfinished_bytes:,} bytes were never finished" if found.unfinished_bytes else ""
        return [kept + more + torn, *(f"damaged: {place}" for place in (*found.damaged, *found.damaged_signals))]
    unusable = f"; {found.unusable:,} empty or malformed ones were left out" if found.unusable else ""
    signals = f"; {found.signal_shards:,} shards of signals" if found.signal_shards else ""
    return [f"{found.new:,} new answers, {found.known:,} were known{unusable}{signals}"]
