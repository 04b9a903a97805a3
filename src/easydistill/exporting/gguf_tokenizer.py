"""A tokenizer → GGUF metadata, and back.

llama.cpp knows the rule that splits a text into words by a name, `tokenizer.ggml.pre`. It is found here by the rule
itself as the tokenizer's file states it: one that is not known is refused, since llama.cpp would split by another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.contracts.export_format import Source
from easydistill.errors import ModelError
from easydistill.exporting.gguf_sentencepiece import MODEL, add_vocabulary, encoder_of, is_sentencepiece
from easydistill.exporting.tokenizers_read import ReadTokenizer

_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5
"""Types of tokens."""
_ENDING = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@dataclass(frozen=True)
class Splitting:
    """How a text becomes words: steps of the package tokenizers."""

    steps: tuple[Mapping[str, Any], ...]
    ignores_merges: bool = False
    """Whether a word that is a token is that token, whatever the merges say; llama.cpp ties it to the name."""


SPLITTINGS = {
    "gpt-2": Splitting((_bytes(True),)),
    "smollm": Splitting(({"type": "Digits", "individual_digits": True}, _bytes(True))),
    "qwen2": Splitting((_split(_WORDS + r"\p{N}" + _ENDING), _bytes(False))),
    "llama-bpe": Splitting((_split(_WORDS + r"\p{N}{1,3}" + _ENDING), _bytes(False)), ignores_merges=True),
}
"""By llama.cpp's name."""


def add_tokenizer(writer: Any, source: Source, rows: int) -> tuple[list[str], str]:
    """Write vocabulary, merges or scores, kinds of tokens, chat template and end tokens.

    Args:
        rows: of the model's embedding, which has a token for each.

    Returns:
        What a user would not expect; and a special token, if llama.cpp reads only texts behind one as the student does.

    Raises:
        ModelError: llama.cpp knows no such tokenizer, or it has tokens that the model does not know.
    """
    tokenizer = source.tokenizer
    described = _described(tokenizer, source.reference)
    tokens, types = _tokens(tokenizer, described, rows, source.reference)
    notes, before = [], ""
    if is_sentencepiece(described):
        spaces = add_vocabulary(writer, described, tokens, types, source.reference)
        if spaces.first_only:
            before = tokenizer.bos_token or tokenizer.convert_ids_to_tokens(min(source.ends))
            notes.append(
                "texts that begin with a special token, as chats do, are read as the student reads them; before others "
                "the student reads a space, which llama.cpp cannot put there alone"
            )
    else:
        _add_words(writer, described, tokens, types, source.reference)
        if described.get("normalizer") is not None:
            kind = described["normalizer"].get("type")
            notes.append(
                f"the tokenizer normalises texts ({kind}), which llama.cpp does not: it reads other tokens of some"
            )
    notes += _add_special(writer, source)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(_templates(tokenizer.chat_template))
    stripped = [token["content"] for token in described["added_tokens"] if token["lstrip"] or token["rstrip"]]
    if stripped:
        notes.append(f"{stripped[0]} swallows spaces beside it, and not in llama.cpp")
    return notes, before


def _add_words(writer: Any, described: Mapping[str, Any], tokens: list[str], types: list[int], reference: str) -> None:
    """A byte-level BPE: words by a name, and merges."""
    name = splitting_of(described, reference)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(
        [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    )


def _described(tokenizer: Any, reference: str) -> dict[str, Any]:
    """The tokenizer's own file.

    Raises:
        ModelError: it is neither a byte-level BPE nor one of SentencePiece's with bytes for what it does not know.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    model = described["model"]
    kind = model.get("type") or "a tokenizer without a tokenizer.json"
    decoder = (described.get("decoder") or {}).get("type")
    if kind != "BPE" or not (model.get("byte_fallback") or decoder == "ByteLevel"):
        problem = f"{reference}: its tokenizer is no BPE of bytes, nor one that falls back to them, but {kind}"
        raise ModelError(f"{problem}\n    → export it as safetensors")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(
            f"{reference}: its tokenizer marks parts of words, which GGUF cannot say\n    → use safetensors"
        )
    return described


def splitting_of(described: Mapping[str, Any], reference: str) -> str:
    """llama.cpp's name of how a tokenizer splits texts into words.

    Raises:
        ModelError: it has no such name that is known here.
    """
    steps = described.get("pre_tokenizer") or {}
    given = steps.get("pretokenizers", [steps])
    merges_ignored = bool(described["model"].get("ignore_merges"))
    for name, known in SPLITTINGS.items():
        if known.ignores_merges == merges_ignored and len(given) == len(known.steps):
            pairs = zip(known.steps, given, strict=True)
            if all(all(found.get(key) == value for key, value in wanted.items()) for wanted, found in pairs):
                return name
    shown = json.dumps(steps, ensure_ascii=False)[:200]
    problem = f"{reference}: how its tokenizer splits words is none of llama.cpp's ways known here: {shown}"
    raise ModelError(f"{problem}\n    → export it as safetensors; known are {', '.join(SPLITTINGS)}")


def _tokens(tokenizer: Any, described: Mapping[str, Any], rows: int, reference: str) -> tuple[list[str], list[int]]:
    """The text and type of each token, one for each row of the embedding."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    beyond = [token for number, token in by_id.items() if number >= rows]
    if beyond:
        problem = f"{reference}: {len(beyond)} tokens, such as {beyond[0]!r}, have no row in its embedding of {rows}"
        raise ModelError(f"{problem}\n    → resize its embedding, or remove them from the tokenizer")
    added = {token["id"]: token for token in described["added_tokens"]}
    tokens, types = [], []
    for number in range(rows):
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        if number in added:
            types.append(_CONTROL if added[number]["special"] else _USER)
        else:
            types.append(_NORMAL if number in by_id else _UNUSED)
    return tokens, types


def _add_special(writer: Any, source: Source) -> list[str]:
    """The tokens that begin and end texts."""
    tokenizer, ends = source.tokenizer, sorted(source.ends)
    main = tokenizer.eos_token_id if tokenizer.eos_token_id in source.ends else next(iter(ends), None)
    others = [end for end in ends if end != main]
    adders = (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, main),
        (writer.add_eot_token_id, next(iter(others), None)),
        (writer.add_eom_token_id, next(iter(others[1:]), None)),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    )
    for add, token in adders:
        if token is not None:
            add(int(token))
    marked = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(marked) and marked[0] == tokenizer.bos_token_id is not None)
    writer.add_add_eos_token(len(marked) > 1 and marked[-1] == tokenizer.eos_token_id)
    if len(others) > 2:
        lost = ", ".join(tokenizer.convert_ids_to_tokens(others[2:]))
        return [f"the file has room for three end tokens; give programs the others as stop words: {lost}"]
    return []


def _templates(template: Any) -> Any:
    """A template, or several by name."""
    if isinstance(template, str):
        return template
    return [{"name": name, "template": text} for name, text in template.items()]


def read_tokenizer(path: Path) -> ReadTokenizer:
    """The tokenizer that a file's metadata describe, built anew from them alone."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields

    def value(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents() if f"tokenizer.{name}" in fields else None

    ends = (value(f"ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    rest = value("chat_template"), frozenset(end for end in ends if end is not None)
    if value("ggml.model") == MODEL:
        lists = (value(f"ggml.{name}") for name in ("tokens", "token_type", "scores", "add_space_prefix"))
        return ReadTokenizer(encoder_of(*lists), *rest)
    made = _built(value("ggml.tokens"), value("ggml.token_type"), value("ggml.merges"), SPLITTINGS[value("ggml.pre")])
    return ReadTokenizer(lambda text: list(made(text, add_special_tokens=False)["input_ids"]), *rest)


def _built(tokens: list[str], types: list[int], merges: list[str], splitting: Splitting) -> Any:
    """A tokenizer of transformers."""
    import tempfile

    from transformers import PreTrainedTokenizerFast

    as_is = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    described = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, "special": kind == _CONTROL, **as_is}
            for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in {_CONTROL, _USER}
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_complete(step) for step in splitting.steps]},
        "decoder": _complete(_bytes(True)),
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [pair.split(" ") for pair in merges],
            "ignore_merges": splitting.ignores_merges,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        path.write_text(json.dumps(described), encoding="utf-8")
        return PreTrainedTokenizerFast(tokenizer_file=str(path))


def _complete(step: Mapping[str, Any]) -> dict[str, Any]:
    return {**step, "trim_offsets": True} if step["type"] == "ByteLevel" else dict(step)
