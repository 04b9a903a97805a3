"""Quotations: found where they stand, and not where they only resemble."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill.errors import MissingExtra
from easydistill.verification.evidence import find_evidence

pytest.importorskip("rapidfuzz", reason="needs the extra 'synth'")
SOURCE = (
    "In 2011, the “Crisis Group” said that Myanmar’s human-rights record has been improving; it gave a rating of 7.\n\n"
    "In 2012 the Freedom in the World report notes improvement. 缅甸的人权记录自新政府成立以来不断改善，评级为七。"
)


@pytest.mark.parametrize(
    ("span", "how", "place"),
    [
        ("Myanmar’s human-rights record", "exact", "Myanmar’s human-rights record"),
        ('…the "crisis  group" SAID that\nMyanmar\'s', "exact", "the “Crisis Group” said that Myanmar’s"),
        ("a rating of 7. In 2012 the Freedom", "exact", "a rating of 7.\n\nIn 2012 the Freedom"),
        ("人权记录自新政府成立", "exact", "人权记录自新政府成立"),
        ("said that Myanmars human rights record has been improving; it gave a rating of 7", "fuzzy", None),
        (
            "缅甸的人权纪录自新政府成立以后不断改善，评级为七",
            "fuzzy",
            "缅甸的人权记录自新政府成立以来不断改善，评级为七",
        ),
    ],
)
def test_quotations_are_found(span: str, how: str, place: str | None) -> None:
    evidence = find_evidence(span, SOURCE)
    assert evidence.found and evidence.how == how and not evidence.reason
    assert evidence.score == 100 if how == "exact" else 90 <= evidence.score < 100
    assert place is None or SOURCE[evidence.start : evidence.end] == place


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ("", "too short"),
        ("In 2012", "too short"),
        ("人权记录", "too short"),
        ("isis Group” said that", "that a fuzzy match needs"),
        ("the crisis group sid", "that a fuzzy match needs"),
        ("The report was written by a committee of experts.", "below 90"),
        ("said that Myanmar's human rights record has been improving; it gave a rating of 9", "has no 9 in that place"),
        (SOURCE + "x" * 400, "below 90"),
        ("word " * 1000, "longer than"),
    ],
)
def test_resemblance_is_not_evidence(span: str, reason: str) -> None:
    evidence = find_evidence(span, SOURCE)
    assert not evidence.found and evidence.how == "none"
    assert reason in evidence.reason


def test_a_source_inside_the_span_is_not_the_span_inside_the_source() -> None:
    assert not find_evidence("The whole of this sentence is invented but for its end: rain fell.", "rain fell.").found
    assert not find_evidence("a sentence of sufficient length", "").found


@given(st.text(max_size=120), st.integers(0, 120), st.integers(0, 120))
def test_every_part_at_word_borders_is_found_or_too_short(text: str, start: int, length: int) -> None:
    source = f"{text} | {'a quotation that is long enough'} | {text}"
    span = source[start : start + length]
    evidence = find_evidence(f"| {span} |", f"{source} | {span} | {source}")
    assert evidence.found or evidence.reason.startswith("too short")
    assert 0 <= evidence.start <= evidence.end


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    assert find_evidence("Myanmar’s human-rights record", SOURCE).found
    with pytest.raises(MissingExtra, match="synth"):
        find_evidence("Nobody ever wrote this sentence here", SOURCE)


def test_sentences_of_passages_are_evidence_for_their_own_passage_only(corpus: Path) -> None:
    with (corpus / "passages.jsonl").open(encoding="utf-8") as lines:
        passages = list(dict.fromkeys(json.loads(line)["data"] for line in lines))[:40]
    for number, passage in enumerate(passages):
        span = passage[len(passage) // 3 :].split(" ", 1)[1][:120].rsplit(" ", 1)[0]
        evidence = find_evidence(span, passage)
        assert evidence.found and evidence.how == "exact", span
        other = passages[number - 1]
        if span[:40] not in other:
            assert not find_evidence(span, other).found
