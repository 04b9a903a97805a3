"""What lm-eval calls of our model, without lm-eval: its base class is stood in for by its abstract methods."""

from __future__ import annotations

import abc
import json
import sys
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from easydistill.contracts.task import Reply
from easydistill.task_evaluation.asking import Answered
from easydistill.task_evaluation.lm_eval_model import journal_lm


class LM(abc.ABC):
    """The abstract methods of `lm_eval.api.model.LM` 0.4.13."""

    @abc.abstractmethod
    def loglikelihood(self, requests: list[Any]) -> Any: ...

    @abc.abstractmethod
    def loglikelihood_rolling(self, requests: list[Any]) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: list[Any]) -> Any: ...


def test_our_model_has_the_methods_that_lm_eval_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["lm_eval.api.model"], "LM", LM, raising=False)

    def answer(sampling: Mapping[str, Any], questions: Any) -> list[Answered]:
        assert sampling == {"max_new_tokens": 12}
        return [
            Answered(Reply(f"{messages[0]['content']} {sample}; rest", cut=True), "") for messages, sample in questions
        ]

    model = journal_lm(answer, lambda given: {"max_new_tokens": given["max_gen_toks"]})
    requests = []
    for number in range(2):
        prompt = model.apply_chat_template([{"role": "user", "content": f"q{number}"}])
        assert json.loads(prompt) == [{"role": "user", "content": f"q{number}"}]
        given = {"max_gen_toks": 12, "until": [";"]}
        requests.append(SimpleNamespace(args=(prompt, given), task_name="t", doc_id=number))
    # A task with `repeats: 2` has each request twice.
    texts = model.generate_until([requests[0], requests[0], requests[1]])
    assert texts == ["q0 0", "q0 1", "q1 0"]
    assert [len(found) for found in model.replies.values()] == [2, 1]
    assert not model.replies["t", 0][0].reply.cut, "it reached a stop"
