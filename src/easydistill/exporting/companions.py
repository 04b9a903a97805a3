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
        write_text(target / "Modelfile", modelfile(record))
    write_text(target / "README.md", readme(source, kind, record))


def modelfile(record: dict[str, Any]) -> str:
    """An Ollama Modelfile. Ollama takes the chat template from the file's metadata; it is told all end tokens."""
    stops = "".join(f'PARAMETER stop "{token}"\n' for token in record["end_tokens"])
    return f"FROM ./{record['file']}\n{stops}"


def readme(source: Source, kind: str, record: dict[str, Any]) -> str:
    """How to run the export, and how it compares with the student."""
    ends = ", ".join(f"`{token}`" for token in record["end_tokens"])
    figures = (
        f"Compared with the student on {record['rows']:,} rows ({record['tokens']:,} answer tokens): KL "
        f"{record['kl']:.2g} nats a token, the same most probable token at {record['agreement']:.2%}. "
        f"{record['bytes'] / 1e6:,.1f} MB of weights."
    )
    turn = f"A turn ends with {ends}. " + (
        "The chat template is part of it; send messages, not text." if source.tokenizer.chat_template else ""
    )
    notes = "".join(f"\n- {note}" for note in record["notes"])
    name = f"# Student, {kind} {record['number']}"
    return "\n\n".join([name, figures, turn.rstrip(), *_commands(kind, record)]) + f"\n{notes}\n".replace(
        "\n\n\n", "\n"
    )


def _commands(kind: str, record: dict[str, Any]) -> list[str]:
    folder, file = record["folder"], record["file"]
    if kind != "gguf":
        return [_shell("vLLM", f"vllm serve {folder}"), "Run it where the run's folder is the working directory."]
    return [
        _shell("llama.cpp", f"llama-server -m {file} --jinja", f"llama-cli -m {file} --jinja -cnv"),
        _shell("Ollama", "ollama create student -f Modelfile", "ollama run student"),
        "Run these in this folder. vLLM reads GGUF files only as an experiment: give it the safetensors export.",
    ]


def _shell(title: str, *lines: str) -> str:
    return f"{title}:\n\n```sh\n" + "\n".join(lines) + "\n```"
