"""Command-line tools of others: kubectl, sky, those of object stores. They have the user's credentials; we do not."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from easydistill.cloud.target import NotKnown
from easydistill.errors import CloudError

TIMEOUT = 120.0
"""Seconds for a call that is to answer at once."""


def call(
    command: Sequence[str],
    *,
    install: str,
    hints: Mapping[str, str],
    stdin: str | None = None,
    timeout: float = TIMEOUT,
) -> str:
    """What a command prints.

    Args:
        install: what to do if the tool is missing.
        hints: part of an error's text, in lower case → what to do about it; the first that is found is told.

    Raises:
        NotKnown: it does not answer.
        CloudError: it is missing, or fails.
    """
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError:
        raise missing(command[0], install) from None
    except subprocess.TimeoutExpired:
        raise NotKnown(f"{shown(command)}: no answer within {timeout:.0f} s\n    → check the connection") from None
    if done.returncode:
        raise ToolFailed(command, done.stderr or done.stdout, hints, done.stdout)
    return done.stdout


class ToolFailed(CloudError):
    """A tool has ended with an error."""

    def __init__(self, command: Sequence[str], text: str, hints: Mapping[str, str], printed: str = "") -> None:
        self.text = text.strip()
        self.printed = printed
        """What it printed before it failed."""
        hint = next((advice for part, advice in hints.items() if part in text.lower()), None)
        last = "\n".join(self.text.splitlines()[-8:]) or "it says nothing"
        super().__init__(f"{shown(command)} failed: {last}" + (f"\n    → {hint}" if hint else ""))


def missing(tool: str, install: str) -> CloudError:
    return CloudError(f"{tool} is not installed, or not on the PATH\n    → {install}")


def shown(command: Sequence[str]) -> str:
    """The tool, and what it is to do."""
    words = command[:2] if command[0] != "sky" else command[:3]
    return " ".join(words)


def stream(command: Sequence[str], *, install: str, hints: Mapping[str, str]) -> Iterator[str]:
    """Lines of a command's output as they come.

    Raises:
        CloudError: the tool is missing, or fails.
    """
    try:
        # Its errors go to a file: a pipe that nobody reads meanwhile would stop it.
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace")
            yield from _lines(process)
            if process.returncode:
                errors.seek(0)
                raise ToolFailed(command, errors.read(), hints)
    except FileNotFoundError:
        raise missing(command[0], install) from None


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield line.rstrip("\n")
        except BaseException:
            # The reader has stopped: the tool would go on following.
            process.terminate()
            raise
