"""lm-eval's view of our teachers: a model whose replies come through the journal, and what lm-eval made of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from easydistill.contracts.task import Reply
from easydistill.data.messages import Message
from easydistill.data.records import content_hash
from easydistill.errors import DataError
from easydistill.task_evaluation.asking import Answered
from easydistill.task_evaluation.exams import Answer


def journal_lm(answer: Answer, sampling_of: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    """lm-eval's model whose replies come from `answer`. (The class is made here because its base is lm-eval's.)"""
    from lm_eval.api.model import LM

    class JournalLM(LM):
        tokenizer_name = "the model's own chat template"

        def __init__(self) -> None:
            super().__init__()
            self.replies: dict[tuple[str, int], list[Answered]] = {}
            self.instances: dict[tuple[str, int], Any] = {}

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                raise DataError("the task begins the model's reply (gen_prefix), which a chat cannot do")
            plain = [{"role": turn["role"], "content": turn["content"]} for turn in chat_history]
            return json.dumps(plain, ensure_ascii=False)

        def generate_until(self, requests: list[Any]) -> list[str]:
            groups: dict[str, list[int]] = {}
            for number, request in enumerate(requests):
                groups.setdefault(content_hash(request.args[1]), []).append(number)
            texts: dict[int, str] = {}
            for numbers in groups.values():
                given = requests[numbers[0]].args[1]
                asked: Counter[int] = Counter()
                questions = []
                for number in numbers:
                    request = requests[number]
                    # A task with `repeats` has the same request several times.
                    questions.append((messages_of(request), asked[id(request)]))
                    asked[id(request)] += 1
                answered = answer(sampling_of(given), questions)
                for number, item in zip(numbers, answered, strict=True):
                    texts[number] = self._keep(requests[number], item, until_of(given))
            return [texts[number] for number in range(len(requests))]

        def _keep(self, request: Any, answered: Answered, until: Sequence[str]) -> str:
            found = stopped(answered, until)
            place = (request.task_name, request.doc_id)
            self.instances.setdefault(place, request)
            self.replies.setdefault(place, []).append(found)
            return found.reply.text

        def loglikelihood(self, requests: list[Any]) -> Any:
            raise DataError("the task asks for probabilities of given texts, not for replies")

        loglikelihood_rolling = loglikelihood

    return JournalLM()


def stopped(answered: Answered, until: Sequence[str]) -> Answered:
    """A reply up to the first of the stops. One that reached a stop was not cut off."""
    text = answered.reply.text
    ends = [place for stop in until if (place := text.find(stop)) >= 0]
    if not ends:
        return answered
    return replace(answered, reply=Reply(text[: min(ends)], cut=False))


class Evaluated:
    """lm-eval's results, by task and number of the document."""

    def __init__(self, results: Any, lm: Any) -> None:
        self._lm = lm
        self._samples: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
        for task, samples in results["samples"].items():
            for sample in samples:
                self._samples.setdefault((task, sample["doc_id"]), []).append(sample)

    def first_instances(self) -> list[tuple[tuple[str, int], Any]]:
        return list(self._lm.instances.items())

    def sample(self, task: str, number: int) -> Mapping[str, Any]:
        return self._samples[task, number][0]

    def answered(self, task: str, number: int) -> list[Answered]:
        found: list[Answered] = self._lm.replies[task, number]
        return found

    def scores(self, task: str, number: int) -> dict[str, tuple[float, float]]:
        """`metric,filter` → (points, of how many), of the metrics that score a problem by itself."""
        found: dict[str, tuple[float, float]] = {}
        for sample in self._samples[task, number]:
            for metric in sample["metrics"]:
                value = sample[metric]
                if isinstance(value, bool | int | float):
                    found[f"{metric},{sample['filter']}"] = (float(value), 1.0)
                elif isinstance(value, list) and value and all(isinstance(item, bool | int | float) for item in value):
                    found[f"{metric},{sample['filter']}"] = (float(fmean(value) * len(value)), float(len(value)))
        return found


def until_of(given: Mapping[str, Any]) -> list[str]:
    until = given.get("until") or []
    return [text for text in ([until] if isinstance(until, str) else until) if text]


def messages_of(instance: Any) -> tuple[Message, ...]:
    found: list[Message] = json.loads(instance.args[0])
    return tuple(found)
