"""New instructions made from existing ones (paper, 2.1.1).

    self_instruct   a few instructions from the pool are shown as examples; accepted ones join the pool
                    (Wang et al. 2023)
    evolve          one instruction is made harder or varied (Xu et al. 2024)
    persona         as self_instruct, on behalf of a described person (Ge et al. 2024)

A seed with images leads to instructions about the same images, which the teacher is shown and the new row carries.

Candidates are requested in waves until `num_output_samples` are accepted or the budget is used up. A candidate is
accepted if it is complete, of a sensible length, and new with respect to the seeds and the accepted instructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, PositiveShare, Share, Unfit
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Result, Steps
from easydistill.data.files import hash_file
from easydistill.data.messages import images_of
from easydistill.data.records import Rejection, Sample, content_hash
from easydistill.errors import DataError
from easydistill.synthesis.images import ImageNovelty, about, ask_about, without_tags, words_of
from easydistill.synthesis.replies import Unusable, field_of, rejection
from easydistill.synthesis.similarity import NEAR_DUPLICATE, TOO_SIMILAR
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
SHOWS_IMAGES = ("teacher",)
WANTS = ("instruction",)
PRIOR = 8
"""Weight, in candidates, of the prior assumption that every candidate is accepted."""
CHANGES = ("constraint", "deepen", "concretise", "reasoning", "complicate_input", "broaden")
_MARKS = ("[Instruction", "【指令")


class Config(OperatorConfig):
    """How many instructions, how they are made, and which are rejected."""

    identity_name = "operator.instruction_expansion"

    num_output_samples: PositiveInt = 100
    """Number of accepted new instructions to reach."""
    num_in_context_samples: PositiveInt = 3
    """Instructions shown as examples."""
    variant: Literal["self_instruct", "evolve", "persona"] = "self_instruct"
    """From examples, by making one instruction harder, or from examples and a described person."""
    personas_path: NonEmptyStr | None = None
    """For `persona`: a text file with one description per line."""
    generated_share: Share = 0.34
    """Share of the examples that may be new instructions that were accepted before; the others are yours."""
    budget: PositiveFloat = 10.0
    """When to give up: after so many new instructions, accepted or not, as a multiple of `num_output_samples`."""
    wave: PositiveInt = 256
    """Maximum number of new instructions requested at once. Those of one wave are not examples for each other."""
    min_tokens: PositiveInt = 4
    """Minimum length of an instruction, in words (Chinese: characters)."""
    max_tokens: PositiveInt = 400
    """Maximum length of an instruction, in words (Chinese: characters)."""
    near_duplicate: PositiveShare = NEAR_DUPLICATE
    """Texts are near duplicates from this share of common pieces of 5 characters on, of all pieces that they have
    (Jaccard similarity, estimated by MinHash)."""
    too_similar: Share = TOO_SIMILAR
    """A new instruction is too similar above this share of words that it has in the same order as another one (ROUGE-L
    F-measure)."""

    @model_validator(mode="after")
    def _has_personas(self) -> Config:
        if (self.variant == "persona") != (self.personas_path is not None):
            raise Unfit('personas_path and "variant": "persona" need each other', "set both, or neither")
        return self

    def identity(self) -> dict[str, Any]:
        """Depends on the contents of the personas file, not on its path."""
        known = super().identity()
        path = Path(self.personas_path) if self.personas_path is not None else None
        return known if path is None else known | {"personas_path": hash_file(path) if path.is_file() else None}


def files(config: Config) -> dict[str, str]:
    """The personas file, by config key."""
    return {} if config.personas_path is None else {"personas_path": config.personas_path}


def most_asks(config: Config) -> int:
    """Maximum number of requests of a run."""
    return math.ceil(config.budget * config.num_output_samples)


@dataclass(frozen=True)
class _Candidate:
    """A request for an instruction, and what it was made from."""

    ask: Ask
    number: int
    sources: tuple[str, ...]
    made_from: str
    images: tuple[str, ...] = ()
    """What it is about, and what the row will show."""


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
        # As many as needed at the yield so far, starting from the assumption that all pass: candidates beyond the
        # target would be paid for in vain.
        share = max(0.1, (len(result.accepted) + PRIOR) / (result.entered + PRIOR))
        size = min(config.wave, budget - result.entered, math.ceil(missing / share))
        candidates = [pool.candidate(result.entered + n) for n in range(size)]
        replies = yield [candidate.ask for candidate in candidates]
        waves += 1
        for candidate, reply in zip(candidates, replies, strict=True):
            result.entered += 1
            found = pool.offer(candidate, reply)
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
    """Seeds and accepted instructions, from which examples are drawn and with which candidates are compared."""

    def __init__(self, config: Config, seeds: Sequence[Sample], tools: Tools) -> None:
        self._config = config
        self._tools = tools
        self._seeds = sorted(seeds, key=lambda seed: seed.id)
        self._made: list[Sample] = []
        self._novelty = ImageNovelty(config.near_duplicate, config.too_similar)
        for seed in self._seeds:
            self._novelty.add(seed)
        self._have_images = any(seed.images for seed in seeds)
        self._personas: list[str] = []
        if config.personas_path is not None:
            lines = Path(config.personas_path).read_text(encoding="utf-8").splitlines()
            self._personas = [line.strip() for line in lines if line.strip()]
            if not self._personas:
                raise DataError(f"{config.personas_path}: there are no personas in it; write one per line")

    def candidate(self, number: int) -> _Candidate:
        """The request for candidate `number`."""
        random = self._tools.random(STAGE, number)
        config = self._config
        if config.variant == "evolve":
            source = random.choice(self._seeds + self._made)
            change = random.choice(CHANGES)
            text = prompt_text(source)
            ask = ask_about(
                self._tools,
                "instruction_evolution",
                source,
                wants=WANTS,
                index=number,
                instruction=text,
                change=change,
            )
            return _Candidate(ask, number, (source.id,), change, images_of(*source.prompt))
        examples = self._examples(random)
        persona = random.choice(self._personas) if self._personas else None
        ask = ask_about(
            self._tools,
            "instruction_expansion",
            examples[0],
            wants=WANTS,
            index=number,
            examples=[words_of(example) for example in examples],
            persona=persona,
            task=_common_task(examples),
        )
        sources = tuple(example.id for example in examples)
        return _Candidate(ask, number, sources, persona or config.variant, images_of(*examples[0].prompt))

    def _examples(self, random: Random) -> list[Sample]:
        """Instructions to show. With images, the first is about those that are shown, the others about any."""
        config, seeds, made = self._config, self._seeds, self._made
        first: list[Sample] = []
        if self._have_images:
            # Questions about images and instructions without any are not of one kind.
            drawn = random.choice(seeds)
            seeds = [seed for seed in seeds if bool(seed.images) == bool(drawn.images) and seed is not drawn]
            made = [row for row in made if bool(row.images) == bool(drawn.images)]
            first = [drawn]
        count = min(config.num_in_context_samples - len(first), len(seeds) + len(made))
        most_made = min(len(made), round(count * config.generated_share))
        examples = random.sample(seeds, min(len(seeds), count - most_made))
        examples += random.sample(made, min(len(made), count - len(examples)))
        random.shuffle(examples)
        return [*first, *examples]

    def offer(self, candidate: _Candidate, reply: Reply) -> Sample | Rejection:
        """Add the candidate to the pool if it passes every check, and return its row; otherwise a rejection."""
        identity = content_hash([STAGE, self._config.seed, candidate.number, list(candidate.sources)])[:16]
        try:
            text = field_of(reply, "instruction", self._config.reply)
            text = without_tags(text) if candidate.images else text
            check_instruction(text, self._config.min_tokens, self._config.max_tokens)
        except Unusable as problem:
            return rejection(identity, STAGE, problem, reply)
        near = self._novelty.offer(identity, candidate.images, text)
        if near is not None:
            return rejection(identity, STAGE, Unusable(near.reason, near.detail), reply)
        meta = {"operator": STAGE, "sources": list(candidate.sources), "made_by": candidate.made_from}
        row = Sample(identity, (about(candidate.images, text),), meta)
        self._made.append(row)
        return row


def check_instruction(text: str, min_tokens: int, max_tokens: int) -> None:
    """Check an instruction's length, and that it does not echo the prompt.

    Raises:
        Unusable: it is too short or too long, or repeats a part of the prompt that asked for it.
    """
    length = len(tokens(text))
    if length < min_tokens:
        raise Unusable("too_short", f"{length} words; the minimum is {min_tokens}")
    if length > max_tokens:
        raise Unusable("too_long", f"{length} words; the maximum is {max_tokens}")
    mark = next((mark for mark in _MARKS if mark in text), None)
    if mark is not None:
        raise Unusable("echo", f"it repeats the prompt's marker {mark!r}")


def _common_task(examples: Sequence[Sample]) -> str | None:
    """The task label of all examples; None if they differ."""
    tasks = {example.meta.get("task") for example in examples}
    task = next(iter(tasks)) if len(tasks) == 1 else None
    return task if isinstance(task, str) else None
