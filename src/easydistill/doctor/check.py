"""All findings in order, and how they are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from easydistill.doctor.finding import Finding
from easydistill.doctor.installed import installed, is_installed
from easydistill.doctor.machine import machine

EXPECTED = "expect"


def findings(*, measure: bool) -> Iterator[Finding]:
    """What there is to say, one after another as it is found.

    Args:
        measure: also measure, which takes up to a minute.
    """
    yield from installed()
    yield from machine()
    if not measure:
        return
    missing = [name for name in ("torch", "transformers") if not is_installed(name)]
    if missing:
        state = f"nothing, without {' and '.join(missing)}; jobs with an API alone need neither"
        yield Finding("measured", "measured", state, good=False)
        return
    from easydistill.doctor.measured import measured

    yield from measured()


def lines(found: Iterable[Finding]) -> Iterator[str]:
    """As text: a heading for each section, a line for each finding."""
    section = None
    for finding in found:
        if finding.section != section:
            section = finding.section
            yield f"{section}:"
        # An estimate is neither good nor bad.
        mark = "" if section == EXPECTED else "ok" if finding.good else "--"
        yield f"{mark:<3} {finding.name:<22} {finding.state}"


def as_json(found: Iterable[Finding]) -> dict[str, Any]:
    """The findings by section."""
    sections: dict[str, list[dict[str, Any]]] = {}
    for finding in found:
        entry = dataclasses.asdict(finding)
        sections.setdefault(entry.pop("section"), []).append(entry)
    return sections
