"""What stands beside an export: a README with the commands that run it, and for GGUF a Modelfile for Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.data.files import write_text

if TYPE_CHECKING:
    from easydistill.contracts.export_format import Source


def write_companions(source: Source, kind: str, record: dict[str, Any], target: Path) -> None:
    """Write them into the export's folder."""
    if kind == "gguf":
        write_text(target / "Modelfile", modelfile(source, record))
    write_text(target / "README.md", readme(source, kind, record))


def modelfile(source: Source, record: dict[str, Any]) -> str:
    """An Ollama Modelfile, with all end tokens as stop words.

    Ollama does not run the Jinja template in the file. One that writes ChatML is given in Ollama's own language, with
    the system prompt that it writes where there is none; of others Ollama takes what it knows by itself.
    """
    stops = "".join(f'PARAMETER stop "{token}"\n' for token in record["end_tokens"])
    return f"FROM ./{record['file']}\n{_ollama_template(source.tokenizer) or ''}{stops}"


_CHATML = '''TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
'''


def _ollama_template(tokenizer: Any) -> str | None:
    """TEMPLATE and SYSTEM of a Modelfile, if the tokenizer's chat template writes ChatML; else None."""
    turns = (("user", "U-1"), ("assistant", "A-1"), ("user", "U-2"))
    if tokenizer.chat_template is None:
        return None
    try:
        with_system, without = (_rendered(tokenizer, chat) for chat in ((("system", "S-1"), *turns), turns))
    except Exception:  # A template raises what it likes; then it is not the one that is looked for.
        return None
    added = without.removesuffix(_chatml(turns))
    opening, closing = "<|im_start|>system\n", "<|im_end|>\n"
    if with_system != _chatml((("system", "S-1"), *turns)) or not without.endswith(_chatml(turns)):
        return None
    if not added:
        return _CHATML
    system = added.removeprefix(opening).removesuffix(closing)
    if added != f"{opening}{system}{closing}" or '"""' in system:
        return None
    return f'{_CHATML}SYSTEM """{system}"""\n'


def _rendered(tokenizer: Any, turns: tuple[tuple[str, str], ...]) -> str:
    chat = [{"role": role, "content": content} for role, content in turns]
    text: str = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return text


def _chatml(turns: tuple[tuple[str, str], ...]) -> str:
    shown = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return f"{shown}<|im_start|>assistant\n"


def readme(source: Source, kind: str, record: dict[str, Any]) -> str:
    """How to run the export, and how it compares with the student."""
    ends = ", ".join(f"`{token}`" for token in record["end_tokens"])
    figures = (
        f"Compared with the student on {record['rows']:,} rows ({record['tokens']:,} answer tokens): KL "
        f"{max(record['kl'], 0):.2g} nats a token, the same most probable token at {record['agreement']:.2%}. "
        f"{record['bytes'] / 1e6:,.1f} MB of weights."
    )
    turn = f"A turn ends with {ends}. " + (
        "The chat template is part of it; send messages, not text." if source.tokenizer.chat_template else ""
    )
    notes = "".join(f"\n- {note}" for note in record["notes"])
    name = f"# Student, {kind} {record['number']}"
    if kind == "gguf" and source.tokenizer.chat_template and _ollama_template(source.tokenizer) is None:
        notes += (
            "\n- Ollama does not run the chat template in the file, and the Modelfile has none: check what it sends."
        )
    return "\n\n".join([name, figures, turn.rstrip(), *_commands(kind, record)]) + f"\n{notes}\n".replace(
        "\n\n\n", "\n"
    )


def _commands(kind: str, record: dict[str, Any]) -> list[str]:
    file = record["file"]
    if kind != "gguf":
        lines = [_shell("vLLM", "vllm serve ."), "Run it in this folder."]
        if kind in {"gptq", "awq"}:
            lines.append("transformers loads it where `auto-round` or `gptqmodel` is installed.")
        return lines
    return [
        _shell("llama.cpp", f"llama-server -m {file} --jinja", f"llama-cli -m {file} --jinja -cnv"),
        _shell("Ollama", "ollama create student -f Modelfile", "ollama run student"),
        "Run these in this folder. vLLM reads GGUF files only as an experiment: give it the safetensors export.",
    ]


def _shell(title: str, *lines: str) -> str:
    return f"{title}:\n\n```sh\n" + "\n".join(lines) + "\n```"
