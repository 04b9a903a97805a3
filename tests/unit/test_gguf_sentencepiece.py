"""SentencePiece tokenizers as scores, read by llama.cpp's rule, beside the package tokenizers with merges."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.test_gguf_rotation import Writer
from tokenizers import Tokenizer

from easydistill.errors import ModelError
from easydistill.exporting.gguf_sentencepiece import add_vocabulary, encoder_of, scores_of, spaces_of

WORDS = "the cat sat on a mat that the hat of theirs had matted; she rather bathed there, in the bath."
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
TEXTS = (
    "the cat sat",
    "  two  spaces ",
    "theirs\nthere\n\n",
    "🙂 naïve",
    "<s>the<|x|> bath</s>",
    "matmatmathathat",
    "",
    " ",
)


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def described_with(normalizer: Any, splitter: Any) -> dict[str, Any]:
    """A vocabulary of pieces of words with every merge that makes one, as transformers converts SentencePiece's."""
    text = WORDS.replace(" ", "▁")
    pieces = {text[at : at + size] for size in (2, 3, 4) for at in range(len(text) - size)} | {"▁▁"}
    ordered = sorted(pieces, key=lambda piece: (-text.count(piece), piece))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *ordered, *sorted({*text, "\n"})]
    known = set(tokens)
    merges = [
        [piece[:at], piece[at:]]
        for piece in ordered
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [
        {"id": tokens.index(token), "content": token, "special": True, **flags} for token in ("<unk>", "<s>", "</s>")
    ]
    return {
        "version": "1.0",
        "added_tokens": [*special, {"id": len(tokens), "content": "<|x|>", "special": False, **flags}],
        "normalizer": normalizer,
        "pre_tokenizer": splitter,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        },
    }


def read_back(described: dict[str, Any]) -> Any:
    tokens = [*described["model"]["vocab"], "<|x|>"]
    types = [3, 3, 3, *[1] * (len(tokens) - 4), 4]
    writer = Writer()
    spaces = add_vocabulary(writer, described, tokens, types, "student")
    written = (writer.values[name] for name in ("token_list", "token_types", "token_scores", "add_space_prefix"))
    return spaces, encoder_of(*written)


@pytest.mark.parametrize(
    ("normalizer", "splitter", "before"),
    [
        ({"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None, ""),
        (REPLACE, None, ""),
        (None, metaspace("never"), ""),
        (None, metaspace("first"), "<s>"),
    ],
)
def test_the_same_ids_as_with_merges(normalizer: Any, splitter: Any, before: str) -> None:
    described = described_with(normalizer, splitter)
    spaces, encode = read_back(described)
    made = Tokenizer.from_str(json.dumps(described))
    assert spaces.first_only == bool(before)
    for text in TEXTS:
        assert encode(before + text) == made.encode(before + text, add_special_tokens=False).ids, text


def test_other_scores_give_other_ids() -> None:
    described = described_with(REPLACE, None)
    _, encode = read_back(described)
    described["model"]["merges"].reverse()
    _, other = read_back(described)
    assert encode("the cat sat") != other("the cat sat")


def test_what_scores_cannot_say_is_refused() -> None:
    lost = described_with(REPLACE, None)
    lost["model"]["merges"].pop()
    with pytest.raises(ModelError, match="make a token and are no merge"):
        scores_of(lost, "student")
    apart = described_with(REPLACE, None)
    first = next(pair for pair in apart["model"]["merges"] if len("".join(pair)) == 3)
    apart["model"]["merges"].remove(first)
    apart["model"]["merges"].append(first)
    with pytest.raises(ModelError, match="do not stand together"):
        scores_of(apart, "student")
    bytes_ = described_with(REPLACE, None)
    del bytes_["model"]["vocab"]["<0x41>"]
    with pytest.raises(ModelError, match="<0x41>"):
        scores_of(bytes_, "student")


@pytest.mark.parametrize(
    ("normalizer", "splitter"),
    [
        ({"type": "NFKC"}, metaspace("first")),
        (None, {**metaspace("always"), "split": True}),
        (None, None),
        ({"type": "Sequence", "normalizers": [REPLACE, PREPEND]}, None),
    ],
)
def test_other_ways_to_change_texts_are_refused(normalizer: Any, splitter: Any) -> None:
    with pytest.raises(ModelError, match=r"llama\.cpp does not know"):
        spaces_of({"normalizer": normalizer, "pre_tokenizer": splitter}, "student")
