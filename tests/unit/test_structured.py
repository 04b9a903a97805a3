"""Answers of local models constrained to a JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from transformers import AutoTokenizer

from easydistill.config.inference import AutoInferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import TeacherError
from easydistill.models.structured import SchemaGrammars
from easydistill.synthesis.replies import schema_of
from easydistill.teachers.transformers import TransformersTeacher

SCHEMAS: list[dict[str, Any] | None] = [
    schema_of({"rv": (0, 9), "cd": (0, 9)}),
    schema_of(("label",), choices=("Math", 'Code "Generation"', "数学")),
    None,
    schema_of({"score": (1, 10)}),
    schema_of(("question", "answer")),
]


def asked(model: Path, schemas: list[dict[str, Any] | None], rows: int, **options: Any) -> list[Completion]:
    """Answers of an untrained model, which only the schema can give a form."""
    config = AutoInferenceConfig(**{"max_new_tokens": 60, "temperature": 1.0, "batch_size": rows, **options})
    requests = [
        GenerationRequest(str(n), ({"role": "user", "content": f"prompt {n}"},), schema=schemas[n % len(schemas)])
        for n in range(rows)
    ]
    found: dict[str, Completion] = {}

    def record(outcomes: Any) -> None:
        found.update((outcome.key, outcome) for outcome in outcomes)

    TransformersTeacher(str(model), config).generate(requests, lambda key: False, record, StopSignal())
    return [found[str(n)] for n in range(rows)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_whole_answer_follows_its_schema(tiny_model: Path, temperature: float) -> None:
    answers = asked(tiny_model, SCHEMAS, 60, temperature=temperature)
    ended: list[int] = []
    for number, answer in enumerate(answers):
        schema = SCHEMAS[number % len(SCHEMAS)]
        assert answer.text is not None
        if schema is not None and answer.finish_reason == "stop":
            jsonschema.validate(json.loads(answer.text), schema)
            ended.append(number % len(SCHEMAS))
    # Bounded fields always end; texts may be cut off.
    assert min(ended.count(kind) for kind in (0, 1, 3)) == 12


def test_unconstrained_rows_are_not_affected_by_constrained_ones(tiny_model: Path) -> None:
    mixed = asked(tiny_model, SCHEMAS, 20)
    free = asked(tiny_model, [None], 20)
    assert [mixed[n].text for n in range(2, 20, 5)] == [free[n].text for n in range(2, 20, 5)]
    assert mixed[0].text != free[0].text


def test_a_cut_off_answer_is_reported_as_such(tiny_model: Path) -> None:
    answers = asked(tiny_model, [schema_of(("text",))], 4, max_new_tokens=5)
    assert {answer.finish_reason for answer in answers} == {"length"}


def test_schemas_and_tokenizers_without_a_grammar_are_errors(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    grammars = SchemaGrammars(tokenizer, [2], 49_152)
    with pytest.raises(TeacherError, match="no grammar can be made"):
        grammars.masks([{"type": "no such type"}])
    with pytest.raises(TeacherError, match="take tags or plain"):
        SchemaGrammars(object(), [2], 49_152)
    assert grammars.masks([None, None]) is None


ODD = ['a "quoted" one', "back\\slash", "中文", "new\nline", "", " ", "é" * 40, "{}", "\u2028"]


@pytest.mark.parametrize(
    "schema",
    [
        schema_of(("text",)),
        schema_of(("why", "a_2", "ref")),
        schema_of(("label",), ODD),
        schema_of({"quality": (1, 10), "ease": (0, 5)}),
        schema_of({"score": (0, 1_000_000)}),
    ],
    ids=str,
)
def test_every_schema_that_operators_make_has_a_grammar(tiny_model: Path, schema: dict[str, Any]) -> None:
    """Contract with llguidance: fields, choices and ranges come from configs, and none of them may fail in a run."""
    grammars = SchemaGrammars(AutoTokenizer.from_pretrained(tiny_model), [2], 49_152)
    assert grammars.masks([schema]) is not None


@pytest.mark.parametrize(
    "keyword",
    [{"uniqueItems": True}, {"not": {"const": []}}, {"if": {"minItems": 1}, "then": {"maxItems": 2}}],
    ids=str,
)
def test_keywords_that_no_grammar_can_hold_are_refused(tiny_model: Path, keyword: dict[str, Any]) -> None:
    """They may come from an operator of a third party; ignoring them would break its promise."""
    grammars = SchemaGrammars(AutoTokenizer.from_pretrained(tiny_model), [2], 49_152)
    schema = {"type": "object", "properties": {"x": {"type": "array", "items": {"type": "string"}, **keyword}}}
    with pytest.raises(TeacherError, match="no grammar can be made"):
        grammars.masks([schema])
