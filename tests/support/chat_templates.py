"""The chat templates that TRL ships, each with a small tokenizer that has its control tokens, and chats to render."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

from easydistill.data.chat import ChatRenderer
from easydistill.data.messages import Chat, Message

_CONTROL = re.compile(r"<\|[^|<>\s{}']+\|>|<｜[^｜<>]+｜>|<[A-Za-z_/][\w/]*\|?>|<\|[\w]+>|\[/?[A-Z_]+\]")
ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>",),
    "deepseek": ("<｜end▁of▁sentence｜>",),
    "diffusion_gemma": ("<turn|>",),
    "gemma4": ("<turn|>", "<|tool_response>"),
    "gemma": ("<end_of_turn>",),
    "glm4": ("<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "idefics3": ("<end_of_utterance>",),
    "smolvlm": ("<end_of_utterance>",),
    "llama3": ("<|eot_id|>",),
    "llava_next": ("</s>",),
    "phi3": ("<|endoftext|>", "<|end|>"),
    "muse": ("<|eot|>",),
}
"""The tokens that end a turn, by the beginning of a template's name; ChatML's end for all others."""


def folder() -> Path:
    """Where TRL keeps its templates."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "chat_templates"


@cache
def names() -> tuple[str, ...]:
    """The names of all templates."""
    return tuple(sorted(path.stem for path in folder().glob("*.jinja")))


@cache
def source(name: str) -> str:
    """A template's text."""
    return (folder() / f"{name}.jinja").read_text(encoding="utf-8")


def ends(name: str) -> tuple[str, ...]:
    """The texts of the tokens that end a turn of a template."""
    matching = [start for start in ENDS if name.startswith(start)]
    return ENDS[max(matching, key=len)] if matching else ("<|im_end|>",)


@cache
def tokenizer(name: str) -> Any:
    """A byte-level tokenizer without merges, with the control tokens of a template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    control = dict.fromkeys(("<s>", *ends(name), *_CONTROL.findall(source(name)), "<think>", "</think>"))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=ends(name)[0])
    made.chat_template = source(name)
    return made


@cache
def renderer(name: str) -> ChatRenderer:
    """A renderer with a template's tokenizer."""
    own = tokenizer(name)
    return ChatRenderer(own, frozenset(own.convert_tokens_to_ids(list(ends(name)))))


TOOL = {
    "type": "function",
    "function": {
        "name": "count_legs",
        "description": "Counts the legs of an animal.",
        "parameters": {
            "type": "object",
            "properties": {"animal": {"type": "string", "description": "Which animal."}},
            "required": ["animal"],
        },
    },
}


def said(role: str, content: str, **more: Any) -> Message:
    """A message."""
    return {"role": role, "content": content, **more}  # type: ignore[typeddict-item]


def called(animal: str, content: str = "", **more: Any) -> Message:
    """An answer that calls the tool."""
    call = {"id": "call00001", "name": "count_legs", "arguments": {"animal": animal}}
    return said("assistant", content, tool_calls=[call], **more)


def result(content: str) -> Message:
    """What the tool returned."""
    return said("tool", content, tool_call_id="call00001", name="count_legs")


CHATS: dict[str, Chat] = {
    "one turn": Chat((said("user", "Why is it so?"), said("assistant", "Because."))),
    "system": Chat((said("system", "Be brief."), said("user", "Why?"), said("assistant", "So."))),
    "three turns": Chat(
        (
            said("user", "Why?"),
            said("assistant", "Because."),
            said("user", "Sure?"),
            said("assistant", "Yes, quite.\n"),
            said("user", " Why\n\n"),
            said("assistant", "  assistant\nuser"),
        )
    ),
    "system and two turns": Chat(
        (
            said("system", "Be brief."),
            said("user", "Why?"),
            said("assistant", "Because."),
            said("user", "Sure?"),
            said("assistant", "Yes."),
        )
    ),
    "thoughts": Chat(
        (
            said("user", "Why?"),
            said("assistant", "Because.", reasoning_content="First thought."),
            said("user", "Sure?"),
            said("assistant", "Yes.", reasoning_content="Second thought."),
        )
    ),
    "thoughts in the text": Chat(
        (
            said("user", "Why?"),
            said("assistant", "<think>\nFirst thought.\n</think>\n\nBecause."),
            said("user", "Sure?"),
            said("assistant", "<think>\nSecond thought.\n</think>\n\nYes."),
        )
    ),
    "calls": Chat(
        (
            said("user", "How many legs has a spider?"),
            called("spider"),
            result("8 legs"),
            said("assistant", "It has eight."),
            said("user", "And an ant?"),
            called("ant"),
            result("6 legs"),
            said("assistant", "It has six."),
        ),
        (TOOL,),
    ),
    "a call with thoughts": Chat(
        (
            said("system", "Be brief."),
            said("user", "How many legs has a spider?"),
            called("spider", reasoning_content="I should count."),
            result("8 legs"),
            said("assistant", "It has eight.", reasoning_content="So it is eight."),
        ),
        (TOOL,),
    ),
    "developer": Chat((said("developer", "Be brief."), said("user", "Why?"), said("assistant", "So."))),
    "an empty answer": Chat(
        (said("user", "Why?"), said("assistant", ""), said("user", "Sure?"), said("assistant", "Yes."))
    ),
    "an empty question": Chat(
        (said("user", ""), said("assistant", "Because."), said("user", "Sure?"), said("assistant", "Yes."))
    ),
}
