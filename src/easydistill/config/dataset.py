"""The `dataset` section: where rows come from and where labelled rows go."""

from __future__ import annotations

from typing import ClassVar

from easydistill.config.base import NonEmptyStr, PositiveInt, Section, Seed, Share


class RowsConfig(Section):
    """Rows that come in and rows that go out.

    Files may hold the paper's `[{"instruction": …, "output": …}]`, `messages`, ShareGPT `conversations` or
    Alpaca rows, as a JSON array, JSON Lines or Parquet.
    """

    runtime_only: ClassVar[frozenset[str]] = frozenset({"instruction_path", "labeled_path", "max_rejected_share"})

    instruction_path: NonEmptyStr | None = None
    """Prompts for the teacher to answer."""
    labeled_path: NonEmptyStr | None = None
    """With a teacher: where its answers are written, in the paper's format. Without: rows to train on."""
    max_samples: PositiveInt | None = None
    """Use only the first so many rows."""
    max_rejected_share: Share = 0.05
    """A run whose rejected rows exceed this share of all rows ends with exit code 3."""


class DatasetConfig(RowsConfig):
    """Seed data of a distillation job."""

    template: NonEmptyStr | None = None
    """A chat-template Jinja file that replaces the student's own (an EasyDistill 1 template works too)."""
    seed: Seed = 42
    """Decides which rows are held out for evaluation."""


class PairsConfig(Section):
    """Pairs of answers to learn from."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"labeled_path", "max_rejected_share"})

    labeled_path: NonEmptyStr
    """Pairs: rows with `prompt`, `chosen` and `rejected`, as a JSON array, JSON Lines or Parquet."""
    max_samples: PositiveInt | None = None
    """Use only the first so many rows."""
    max_rejected_share: Share = 0.05
    """A run whose rejected rows exceed this share of all rows ends with exit code 3."""
    template: NonEmptyStr | None = None
    """A chat-template Jinja file that replaces the student's own."""
    seed: Seed = 42
    """Decides which pairs are held out."""


class SynthesisDatasetConfig(RowsConfig):
    """What a synthesis job starts from, and where its rows go."""

    instruction_path: NonEmptyStr
    """Seed rows; for extraction a text file or a folder of txt, md, html and pdf files."""
    labeled_path: NonEmptyStr | None = None
    """Where accepted rows are written too, as `.json`, `.jsonl` or `.parquet`."""
    max_rejected_share: Share = 1.0
    """A run whose rejected rows exceed this share of all rows ends with exit code 3."""


class TeacherDatasetConfig(SynthesisDatasetConfig):
    """What a synthesis job with a teacher starts from, and where its rows go."""

    template: NonEmptyStr | None = None
    """A chat-template Jinja file for a teacher on this machine that has none of its own."""


class WhiteBoxDatasetConfig(DatasetConfig):
    """Seed data, and where the teacher's signals go or come from."""

    runtime_only: ClassVar[frozenset[str]] = DatasetConfig.runtime_only | {"logits_path"}

    logits_path: NonEmptyStr | None = None
    """With a teacher: a directory where its signals are shown too. Without: the signals to train from."""
