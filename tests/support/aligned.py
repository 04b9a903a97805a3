"""Teachers with other tokenizers than the student, and rows aligned with them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from easydistill.data.messages import Message
from easydistill.engine.interrupt import StopSignal
from easydistill.models.compatibility import real_vocabulary, side_of
from easydistill.signals.aligned import AlignedRow, AlignedScorer, Aligner, codec_of
from easydistill.signals.config import SignalsConfig, TopKSignals
from easydistill.signals.score import RowToScore
from easydistill.signals.shards import score_rows
from easydistill.signals.store import SignalStore, StoreManifest
from tests.support import tokenizers as made
from tests.support.tokenizers import CHATML, corpus

PADDING = 60
TOP = TopKSignals(kind="top_k", k=20, dtype="float32", max_batch_tokens=250, shard_tokens=300)
NO_SYSTEM = CHATML.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
)


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}  # type: ignore[typeddict-item]


def chats(count: int, seed: int = 0) -> list[list[Message]]:
    """Answers cut from the text that the teachers' tokenizers were trained on."""
    generator = random.Random(seed)
    text = corpus()[1]
    found = []
    for number in range(count):
        start = generator.randrange(len(text) - 400)
        answer = text[start : start + generator.randint(30, 160)].strip() or "nothing"
        found.append([said("user", f"Question {number}?"), said("assistant", answer)])
    return found


def sharpen(model: Any, seed: int) -> None:
    """Other weights, sharper than random ones are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (0.6 if "embed" in name else 0.15) * torch.randn(parameter.shape, generator=generator)


def make_teacher(directory: Path, kind: str) -> Path:
    """A tiny model with a tokenizer of its own, its output layer padded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = made.tokenizer(kind)
    config = LlamaConfig(
        vocab_size=real_vocabulary(tokenizer) + PADDING,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    sharpen(model, 5)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def aligner_of(student: Path, teacher: Path, template: str | None = None) -> Aligner:
    return Aligner(side_of(str(student), "student"), replace(side_of(str(teacher), "teacher"), template=template))


def rows_of(aligner: Aligner, messages: Sequence[Sequence[Message]], longest: int | None = None) -> list[AlignedRow]:
    rows = []
    for number, chat in enumerate(messages):
        written = aligner.student.render(chat, longest)
        row = RowToScore(f"row-{number}", written.ids, [False, *written.mask[1:]])
        rows.append(aligner.row(row, chat, truncated=written.truncated))
    return rows


def scorer_of(
    aligner: Aligner, teacher: Path, config: SignalsConfig = TOP, temperature: float = 1.0, *, by_rank: bool = False
) -> AlignedScorer:
    vocabulary = real_vocabulary(aligner.student.tokenizer)
    return AlignedScorer(str(teacher), aligner.to_student, config, vocabulary, temperature, by_rank=by_rank)


def stored(
    aligner: Aligner, teacher: Path, rows: list[AlignedRow], directory: Path, *, by_rank: bool = False
) -> SignalStore:
    codec = codec_of(TOP, real_vocabulary(aligner.student.tokenizer))
    directory.mkdir(parents=True, exist_ok=True)
    shards = score_rows(
        rows,
        TOP,
        codec,
        directory,
        lambda: scorer_of(aligner, teacher, by_rank=by_rank),
        lambda count, tokens: None,
        StopSignal(),
    )
    StoreManifest.of(directory, codec, {}, shards).write(directory)
    return SignalStore(directory)


def mixed_rows(aligner: Aligner) -> list[AlignedRow]:
    """Rows with signals, and rows that the teacher's template refuses."""
    messages = chats(6, seed=4)
    messages += [[said("system", "Be brief."), *chat] for chat in chats(3, seed=5)]
    return rows_of(aligner, messages)
