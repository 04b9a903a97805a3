"""New instructions like the ones that are there (paper, 2.1.1): from a pool, by making one harder, or for a persona.

    self_instruct   a few instructions of the pool are shown, one more is asked for; what is accepted joins the pool
                    (Wang et al. 2023)
    evolve          one instruction is made harder or moved sideways (Xu et al. 2024)
    persona         as self_instruct, for somebody who is described (Ge et al. 2024)

Candidates are asked for in waves until `num_output_samples` are accepted or the budget is used up. A candidate is
accepted if it is a whole, fresh instruction: not cut off, of a sensible length, new beside seeds and accepted ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, PositiveShare, Share, Unfit
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Result, Steps
from easydistill.data.files import hash_file
from easydistill.data.records import Rejection, Sample, content_hash
from easydistill.errors import DataError
from easydistill.synthesis.replies import Unusable, field_of, rejection
from easydistill.synthesis.similarity import NEAR_DUPLICATE, TOO_SIMILAR, Novelty
from easydistill.synthesis.text import prompt_text, tokens
from easydistill.synthesis.tools import Tools

STAGE = "instruction_expansion"
SUMMARY = "New instructions like those of `dataset.instruction_path`."
PROMPTS = ("instruction_expansion", "instruction_evolution")
REASONS = (
    "truncated",
    "malformed_reply",
    "too_short",
    "too_long",
    "echo",
    "duplicate",
    "near_duplicate",
    "too_similar",
)
LABELLED = False
MAKES_PROMPTS = True
WANTS = ("instruction",)
PRIOR = 8
"""Candidates that the first estimate of the yield stands for."""
CHANGES = ("constraint", "deepen", "concretise", "reasoning", "complicate_input", "broaden")
_MARKS = ("[Instruction", "【指令")


class Config(OperatorConfig):
    """How many instructions, how they are found, and what is refused."""

    identity_name = "operator.instruction_expansion"

    num_output_samples: PositiveInt = 100
    """New instructions wanted, accepted ones."""
    num_in_context_samples: PositiveInt = 3
    """Instructions that are shown as examples."""
    variant: Literal["self_instruct", "evolve", "persona"] = "self_instruct"
    """From the pool, by making one instruction harder, or for a described person."""
    personas_path: NonEmptyStr | None = None
    """For `persona`: a text file, a description a line."""
    generated_share: Share = 0.34
    """Share of the examples that may be accepted candidates; the others are seeds."""
    budget: PositiveFloat = 10.0
    """Candidates that may be asked for, as a multiple of `num_output_samples`."""
    wave: PositiveInt = 256
    """Most candidates asked for at once. Those of a wave do not see each other."""
    min_tokens: PositiveInt = 4
    """Shortest instruction, in words (Chinese: characters)."""
    max_tokens: PositiveInt = 400
    """Longest instruction, likewise."""
    near_duplicate: PositiveShare = NEAR_DUPLICATE
    """From this estimated Jaccard similarity of 5-character runs on, a candidate is a near duplicate."""
    too_similar: Share = TOO_SIMILAR
    """Above this ROUGE-L F-measure a candidate is too similar."""

    @model_validator(mode="after")
    def _has_personas(self) -> Config:
        if (self.variant == "persona") != (self.personas_path is not None):
            raise Unfit('personas_path and "variant": "persona" go together', "set both, or neither")
        return self

    def identity(self) -> dict[str, Any]:
        """What the file of personas holds decides, not where it lies."""
        known = super().identity()
        path = Path(self.personas_path) if self.personas_path is not None else None
        return known if path is None else known | {"personas_path": hash_file(path) if path.is_file() else None}


def files(config: Config) -> dict[str, str]:
    """Files that the config names, by key."""
    return {} if config.personas_path is None else {"personas_path": config.personas_path}


def most_asks(config: Config) -> int:
    """Questions that a run may need, for `plan`."""
    return math.ceil(config.budget * config.num_output_samples)


@dataclass(frozen=True)
class _Candidate:
    """A question and what it was made from."""

    ask: Ask
    number: int
    sources: tuple[str, ...]
    made_from: str


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Expand the seeds `rows`; accepted rows are prompts without answers."""
    if not rows:
        raise DataError("there are no seed instructions to expand")
    pool = _Pool(config, rows, tools)
    result = Result()
    budget = most_asks(config)
    waves = 0
    while len(result.accepted) < config.num_output_samples and result.entered < budget:
        missing = config.num_output_samples - len(result.accepted)
        # As many as the yield so far says are needed, beginning with the belief that every one will pass: what is
        # asked beyond the target was paid for in vain.
        share = max(0.1, (len(result.accepted) + PRIOR) / (result.entered + PRIOR))
        size = min(config.wave, budget - result.entered, math.ceil(missing / share))
        candidates = [pool.candidate(result.entered + n) for n in range(size)]
        replies = yield [candidate.ask for candidate in candidates]
        waves += 1
        for candidate, reply in zip(candidates, replies, strict=True):
            result.entered += 1
            found = pool.judge(candidate, reply)
            if isinstance(found, Rejection):
                result.rejected.append(found)
            elif len(result.accepted) < config.num_output_samples:
                result.accepted.append(found)
            else:
                surplus = Unusable("surplus", "enough rows were accepted before it")
                result.rejected.append(rejection(found.id, STAGE, surplus, reply))
    result.facts = {
        "wanted": config.num_output_samples,
        "budget": budget,
        "waves": waves,
        "yield": round(len(result.accepted) / max(1, result.entered), 4),
    }
    return result


class _Pool:
    """Seeds and accepted instructions: what examples are drawn from, and what candidates are compared with."""

    def __init__(self, config: Config, seeds: Sequence[Sample], tools: Tools) -> None:
        self._config = config
        self._tools = tools
        self._seeds = sorted(seeds, key=lambda seed: seed.id)
        self._made: list[Sample] = []
        self._novelty = Novelty(config.near_duplicate, config.too_similar)
        for seed in self._seeds:
            self._novelty.add(seed.id, prompt_text(seed))
        self._personas: list[str] = []
        if config.personas_path is not None:
            lines = Path(config.personas_path).read_text(encoding="utf-8").splitlines()
            self._personas = [line.strip() for line in lines if line.strip()]
            if not self._personas:
                raise DataError(f"{config.personas_path}: there is no persona in it; write one a line")

    def candidate(self, number: int) -> _Candidate:
        """The question that brings candidate `number`."""
        random = self._tools.random(STAGE, number)
        config = self._config
        if config.variant == "evolve":
            source = random.choice(self._seeds + self._made)
            change = random.choice(CHANGES)
            text = prompt_text(source)
            ask = self._tools.ask(
                "instruction_evolution", text, wants=WANTS, index=number, instruction=text, change=change
            )
            return _Candidate(ask, number, (source.id,), change)
        count = min(config.num_in_context_samples, len(self._seeds) + len(self._made))
        made = min(len(self._made), round(count * config.generated_share))
        seeds = random.sample(self._seeds, min(len(self._seeds), count - made))
        examples = seeds + random.sample(self._made, min(len(self._made), count - len(seeds)))
        random.shuffle(examples)
        persona = random.choice(self._personas) if self._personas else None
        texts = [prompt_text(example) for example in examples]
        ask = self._tools.ask(
            "instruction_expansion",
            texts[0],
            wants=WANTS,
            index=number,
            examples=texts,
            persona=persona,
            task=_common_task(examples),
        )
        return _Candidate(ask, number, tuple(example.id for example in examples), persona or config.variant)

    def judge(self, candidate: _Candidate, reply: Reply) -> Sample | Rejection:
        """The candidate as a row of the pool, or why it is none."""
        identity = content_hash([STAGE, self._config.seed, candidate.number, list(candidate.sources)])[:16]
        try:
            text = field_of(reply, "instruction", self._config.reply)
            check_instruction(text, self._config.min_tokens, self._config.max_tokens)
        except Unusable as problem:
            return rejection(identity, STAGE, problem, reply)
        near = self._novelty.offer(identity, text)
        if near is not None:
            return rejection(identity, STAGE, Unusable(near.reason, near.detail), reply)
        meta = {"operator": STAGE, "sources": list(candidate.sources), "made_by": candidate.made_from}
        row = Sample(identity, ({"role": "user", "content": text},), meta)
        self._made.append(row)
        return row


def check_instruction(text: str, min_tokens: int, max_tokens: int) -> None:
    """Refuse what is no whole instruction of a sensible length.

    Raises:
        Unusable: it is too short or too long, or repeats a part of the prompt that asked for it.
    """
    length = len(tokens(text))
    if length < min_tokens:
        raise Unusable("too_short", f"{length} words, at least {min_tokens} are wanted")
    if length > max_tokens:
        raise Unusable("too_long", f"{length} words, at most {max_tokens} are wanted")
    mark = next((mark for mark in _MARKS if mark in text), None)
    if mark is not None:
        raise Unusable("echo", f"it repeats the prompt's own mark {mark!r}")


def _common_task(examples: Sequence[Sample]) -> str | None:
    """The task label that all examples carry."""
    tasks = {example.meta.get("task") for example in examples}
    task = next(iter(tasks)) if len(tasks) == 1 else None
    return task if isinstance(task, str) else None
