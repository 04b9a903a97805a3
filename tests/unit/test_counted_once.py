"""Small things that users see: progress counts a row once, and templates say where an API's key goes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.pool import context_in

from easydistill.api import job_classes, load
from easydistill.asking.answers import JOURNAL, answer_all, worth_another_try
from easydistill.config.inference import ApiInferenceConfig
from easydistill.config.reading.fields import models_in
from easydistill.config.reading.template import starting_config
from easydistill.contracts.teacher import Completion, GenerationRequest
from easydistill.data.journal import Journal
from easydistill.engine.progress import Reporter
from easydistill.synthesis.operators import OPERATORS


class InBatches:
    """Answers whole batches, as local teachers do: one with an open question is answered anew."""

    def identity(self) -> dict[str, Any]:
        return {"model": "m"}

    def generate(self, requests: Sequence[GenerationRequest], done: Any, record: Any, stop: Any) -> None:
        for at in range(0, len(requests), 16):
            batch = requests[at : at + 16]
            if not all(done(request.key) for request in batch):
                record([Completion(request.key, "so", completion_tokens=1) for request in batch])

    def close(self) -> None:
        """Nothing is open."""


def test_more_rows_are_not_counted_twice(tmp_path: Path) -> None:
    """14 rows, then 16 of which a teacher answers all again: 16 of 16, not 30."""
    requests = [GenerationRequest(str(n), ({"role": "user", "content": f"{n}"},)) for n in range(16)]
    screen = io.StringIO()
    context = replace(context_in(tmp_path), reporter=Reporter(None, stream=screen))
    with Journal(tmp_path / JOURNAL, note=worth_another_try) as journal:
        answer_all(InBatches(), requests[:14], journal, context, "Labelling")
        answer_all(InBatches(), requests, journal, context, "Labelling")
    said = [line.split(" rows")[0].strip() for line in screen.getvalue().splitlines()]
    assert said == ["Labelling: 14/14", "Labelling: 14 of 16", "Labelling: 16/16"]


@pytest.mark.parametrize("job_type", sorted(job_classes()))
def test_a_template_says_where_the_key_goes_wherever_an_api_may_be_asked(job_type: str) -> None:
    job = job_classes()[job_type]
    section = job.model_fields.get("inference")
    accepted = () if section is None else models_in(section.annotation)
    if any(issubclass(member, ApiInferenceConfig) for member in accepted):
        assert '"api_key": "${env:API_KEY}"' in starting_config(job)


@pytest.mark.parametrize("name", OPERATORS.names())
def test_a_selection_with_defaults_needs_no_synthesis_section(name: str) -> None:
    fields = job_classes()[name].model_fields
    if "synthesis" not in fields or fields["synthesis"].is_required():
        assert name in {"code_selection", "decontaminate", "cogpo", "tapir"}, (
            "what it runs or compares with has no default"
        )
        return
    if "inference" not in fields:
        job: Any = load({"job_type": name, "dataset": {"instruction_path": "rows.json"}}).job
        assert job.synthesis.identity() == type(job.synthesis)().identity()
