"""What a format of exported models is: how a model is written in it, and loaded from it again to be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from easydistill.registry import Contract


@dataclass(frozen=True)
class Calibration:
    """What rounding is fitted to."""

    blocks: Sequence[Sequence[int]]
    """Ids of rows one behind the other, cut to blocks of the same length."""
    iterations: int
    batch_size: int
    log: Path
    """A file for what a library says meanwhile."""
    raise_if_stopped: Callable[[], None]


@dataclass(frozen=True)
class Source:
    """The model that is exported."""

    reference: str
    directory: str
    """What `from_pretrained` takes."""
    config: Any
    """Its whole transformers config."""
    tokenizer: Any
    ends: frozenset[int]
    """Every token that ends a turn."""
    calibration: Calibration | None = None
    """For formats that need one."""


@dataclass(frozen=True)
class Written:
    """What a format has written."""

    file: str
    """What is loaded: a file's name inside the folder, or an empty text for the folder itself."""
    notes: Sequence[str] = ()
    """What a user would not expect of it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the report, as JSON."""
    before: str = ""
    """A special token behind which texts are compared, where the format reads only such texts as the student does."""


class FormatModule(Protocol):
    """A module registered as a format. It loads no heavy library when it is imported."""

    NUMBERS: tuple[str, ...]
    """The types of number that may follow the format's name and a colon; the first is taken if none does."""
    LOSSLESS: tuple[str, ...]
    """Those that round a weight at most as float16 does."""

    def problem(self, config: dict[str, Any], number: str) -> tuple[str, str] | None:
        """(problem, hint) if a model cannot be written, as far as its config.json tells."""

    def write(self, source: Source, number: str, target: Path) -> Written:
        """Write the model into an empty folder.

        Raises:
            ModelError: it cannot be written in this format.
        """

    def load(self, source: Source, target: Path, file: str) -> Any:
        """The model that was written, with float32 weights, on the CPU."""

    def load_tokenizer(self, target: Path, file: str) -> Any:
        """Of what was written: an object with `encode(text) -> list of ids`, `template` and `ends`."""


class FormatDefaults:
    """What most formats are."""

    CALIBRATES: bool = False
    """Whether `Source.calibration` is needed."""
    EXTRA: str = "train"
    """Which extra installs what it imports."""
    IMPORTS: tuple[str, ...] = ()
    """What it imports besides torch, transformers and safetensors."""


FORMAT = Contract(FormatModule, FormatDefaults)
