"""Real tokenizers of every kind that can be aligned, trained on a frozen copy of text from this repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from tests.conftest import TEACHER

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ["<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(0x100)]
SPACE = "\u2581"
CORPUS = Path(__file__).parent / "corpus"
# Characters that are rare in the corpus.
FOREIGN = ["知识蒸馏用大模型教小模型，学生模型学习教师模型的分布。", "naïve café Straße ¿qué? €5 ½", "👩‍👩‍👧 🇩🇪 ⭐ ∑≠∅"]


@cache
def corpus() -> tuple[str, ...]:
    """English and code, frozen: results must not depend on the current wording of the README."""
    names = ("readme", "architecture", "code")
    return (*((CORPUS / f"{name}.txt").read_text(encoding="utf-8") for name in names), *FOREIGN * 3)


def wrapped(backend: Tokenizer, *, thinks: bool = False) -> Any:
    """A transformers tokenizer with ChatML and control tokens; with `thinks`, `<think>` is one token, as in Qwen3."""
    from transformers import PreTrainedTokenizerFast

    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    if thinks:
        backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=CONTROL
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def byte_level(size: int = 1200, *, split: str | None = None, nfc: bool = False, thinks: bool = False) -> Any:
    """Byte-level BPE: GPT-2's own splitting, or, with `split`, a pattern before it as in Llama 3 and Qwen."""
    backend = Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    before = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, plain])
    if nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(corpus(), trainer)
    return wrapped(backend, thinks=thinks)


def llama_2(size: int = 900, *, dummy_prefix: bool, byte_fallback: bool = True, thinks: bool = False) -> Any:
    """BPE with U+2581 for spaces and byte fallback: as in Llama 2, or without the dummy prefix as in Gemma."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    learner.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    tokens = [*CONTROL, *(BYTE_TOKENS if byte_fallback else [])]
    ascii_characters = [chr(code) for code in range(0x20, 0x7F)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=tokens, initial_alphabet=ascii_characters, show_progress=False
    )
    learner.train_from_iterator(corpus(), trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(
        models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback)
    )
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if dummy_prefix else spaces
    strip = [decoders.Strip(" ", 1, 0)] if dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return wrapped(backend, thinks=thinks)


def unigram(size: int = 900, *, prepend_scheme: str = "never", byte_fallback: bool = True) -> Any:
    """Unigram with the Metaspace pre-tokenizer, as sentencepiece trains it by default."""
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=CONTROL, unk_token="<unk>", show_progress=False)
    learner.train_from_iterator(corpus(), trainer)
    pieces = [(piece, score) for piece, score in json.loads(learner.to_str())["model"]["vocab"]]
    if byte_fallback:
        pieces += [(token, 0.0) for token in BYTE_TOKENS]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    fallback = [decoders.ByteFallback()] if byte_fallback else []
    backend.decoder = decoders.Sequence([*fallback, decoders.Metaspace(prepend_scheme=prepend_scheme)])
    return wrapped(backend)


def spaces() -> Any:
    """A small BPE with the dummy prefix, in which a real space and U+2581 are both tokens, and two U+2581 are one."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, " ": 1, SPACE: 2, SPACE * 2: 3, "a": 4, "\n": 5, "<|im_end|>": 6}
    backend = Tokenizer(models.BPE(vocabulary, [(SPACE, SPACE)], unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


def changed(tokenizer: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """A tokenizer rebuilt from its JSON after a change to its model."""
    from transformers import PreTrainedTokenizerFast

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    change(parts["model"])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)), eos_token="<|im_end|>")


def wordpiece() -> Any:
    """A tokenizer like BERT's, which loses white space."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def smollm() -> Any:
    """SmolLM2's real tokenizer, whose vocabulary lacks some bytes."""
    from easydistill.models.loading import load_tokenizer

    return load_tokenizer(TEACHER)


LLAMA_3_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KINDS: dict[str, Any] = {
    "gpt2": byte_level,
    "qwen": lambda: byte_level(2000, split=LLAMA_3_SPLIT, nfc=True, thinks=True),
    "llama2": lambda: llama_2(dummy_prefix=True),
    "gemma": lambda: llama_2(1500, dummy_prefix=False, thinks=True),
    "unigram": lambda: unigram(),
    "unigram-dummy": lambda: unigram(prepend_scheme="always"),
    "smollm": smollm,
}


@cache
def tokenizer(kind: str) -> Any:
    """One of `KINDS`, made once per process."""
    return KINDS[kind]()
