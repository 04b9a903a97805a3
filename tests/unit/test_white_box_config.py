"""Which signals a white-box job can keep: from a teacher with another tokenizer, and through vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.configs import changed

from easydistill import api
from easydistill.errors import ConfigError
from easydistill.signals.config import ThresholdSignals, TopKSignals

JOB: dict[str, Any] = {
    "job_type": "white_box_kd_local",
    "dataset": {"instruction_path": "train.json"},
    "models": {"teacher": "teacher/", "student": "student/"},
}
BYTES = {"distillation.align": "bytes"}
ANSWERS = {"distillation.align": "answers"}
VLLM = {"signals.backend": "vllm", "signals.kind": "top_k"}
TWO = [{"model": "a/", "weight": 1.0}, {"model": "b/", "weight": 2.0}]


def kept(changes: dict[str, Any]) -> Any:
    job: Any = api.validate(changed(JOB, changes))
    return job.kept()


@pytest.mark.parametrize(
    ("changes", "kind", "k"),
    [
        (BYTES, "top_k", 20),
        ({**BYTES, "inference.top_logits_num": 8}, "top_k", 8),
        ({**BYTES, "signals.kind": "top_k"}, "top_k", 16),
        ({**BYTES, "signals.kind": "top_p"}, "top_p", None),
        ({**BYTES, "distillation.distillation_type": "uld"}, "top_k", 20),
        ({**BYTES, "distillation.distillation_type": "reverse_kld"}, "top_k", 20),
        ({**BYTES, "distillation.tail": "renormalise_teacher"}, "top_k", 20),
        ({**BYTES, "signals.kind": "top_k", "signals.teachers": TWO[:1]}, "top_k", 16),
        (VLLM, "top_k", 16),
        ({**VLLM, **ANSWERS}, "top_k", 16),
        ({**VLLM, "signals.teachers": TWO[:1]}, "top_k", 16),
    ],
)
def test_what_is_kept(changes: dict[str, Any], kind: str, k: int | None) -> None:
    found = kept(changes)
    assert found.kind == kind
    if isinstance(found, TopKSignals):
        assert found.k == k


@pytest.mark.parametrize("changes", [{}, ANSWERS, {**ANSWERS, "distillation.kd_ratio": 1.0}])
def test_a_teacher_with_the_same_tokenizer_is_drawn_from(changes: dict[str, Any]) -> None:
    assert isinstance(kept(changes), ThresholdSignals)


@pytest.mark.parametrize("kind", ["threshold", "sampled", "top_k_sampled", "top_k", "top_p"])
def test_a_teacher_with_a_form_of_its_own_gives_all_kinds(kind: str) -> None:
    assert kept({**ANSWERS, "signals.kind": kind}).kind == kind


@pytest.mark.parametrize(
    ("changes", "problem", "hint"),
    [
        ({**BYTES, "signals.kind": "threshold"}, "threshold signals are drawn", "leave signals out"),
        ({"signals.kind": "treshold"}, 'kind "treshold" is not one of "top_k"', 'did you mean "threshold"?'),
        ({"signals.kind": 7}, "kind 7 is not one of", 'use one of "top_k", "top_p"'),
        ({**BYTES, "signals.kind": "sampled"}, "sampled signals are drawn", '"top_k" or "top_p"'),
        ({**BYTES, "signals.kind": "top_k_sampled"}, "top_k_sampled signals are drawn", '"top_k" or "top_p"'),
        ({**BYTES, "signals.seed": 3}, "threshold signals are drawn", '"top_k" or "top_p"'),
        ({**BYTES, "signals.kind": "top_k", "signals.teachers": TWO}, "2 teachers", "give one teacher"),
        ({**ANSWERS, "signals.teachers": TWO}, '2 teachers cannot be mixed if distillation.align is "answers"', "one"),
        ({**BYTES, **VLLM}, "vLLM gives only a few of the teacher's tokens", '"transformers"'),
        ({**VLLM, "signals.kind": "threshold"}, "not threshold signals", '"top_k"'),
        ({**VLLM, "signals.kind": "sampled"}, "not sampled signals", '"top_k"'),
        ({**VLLM, "signals.kind": "top_p"}, "not top_p signals", '"top_k"'),
        ({"signals.backend": "vllm"}, "not threshold signals", '"top_k"'),
        ({**VLLM, "signals.teachers": TWO}, "one teacher at a time, not 2", '"transformers"'),
        ({**VLLM, "distillation.temperature": 2.0}, "temperature 1 only, not 2.0", "distillation.temperature to 1"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], problem: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        api.validate(changed(JOB, changes))
    assert problem in str(caught.value)
    assert hint in str(caught.value)
