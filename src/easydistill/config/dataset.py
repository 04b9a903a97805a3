"""The `dataset` section: where rows come from and where labelled rows are written."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, model_validator

from easydistill.config.base import NonEmptyStr, PositiveInt, Section, Seed, Share, Unfit


class ColumnsConfig(Section):
    """Names of a file's columns, by what they hold, for files whose names are not the usual ones.

    A column inside an object is named with a dot, as in `extra_info.answer`. Columns of the same kind that are not
    named here are then not looked at.
    """

    prompt: NonEmptyStr | None = None
    """The prompt: a text or messages."""
    messages: NonEmptyStr | None = None
    """The whole chat as a list of messages, instead of `prompt`."""
    input: NonEmptyStr | None = None
    """A text that follows the prompt after an empty line."""
    context: NonEmptyStr | None = None
    """A text that the prompt is about; it follows the prompt, before `input`."""
    system: NonEmptyStr | None = None
    """The system prompt."""
    history: NonEmptyStr | None = None
    """Earlier turns: pairs of texts, or messages."""
    answer: NonEmptyStr | None = None
    """The answer: a text, messages, or a list of several answers."""
    thoughts: NonEmptyStr | None = None
    """The thoughts before the answer."""
    final_answer: NonEmptyStr | None = None
    """The known final answer, for verification."""
    tools: NonEmptyStr | None = None
    """The tools that the assistant may call, as a list or as JSON text."""
    template_kwargs: NonEmptyStr | None = None
    """The row's own variables of the chat template."""
    images: NonEmptyStr | None = None
    """Images: one or a list of paths, data URLs or `{"bytes": …}`. `<image>` in the text says where they stand."""
    label: NonEmptyStr | None = None
    """Whether the answer is a good one, as in data for KTO."""

    @model_validator(mode="after")
    def _is_clear(self) -> ColumnsConfig:
        names = self.names()
        if self.prompt is not None and self.messages is not None:
            raise Unfit("both prompt and messages are named", "messages is the whole chat: name one of them")
        for held, column in names.items():
            other = next((first for first, name in names.items() if name == column), held)
            if other != held:
                raise Unfit(f"{other} and {held} name the same column, {column!r}", "name another column")
        return self

    def names(self) -> dict[str, str]:
        """The columns that are named, by what they hold."""
        return {held: column for held in type(self).model_fields if (column := getattr(self, held)) is not None}


class PairColumnsConfig(ColumnsConfig):
    """Names of the columns of a file of preference pairs, by what they hold."""

    chosen: NonEmptyStr | None = None
    """The better answer: a text or messages."""
    rejected: NonEmptyStr | None = None
    """The worse answer: a text or messages."""


RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "documents",
        "messages",
        "return_assistant_tokens_mask",
        "tools",
    }
)
"""Variables of a chat template that its renderer sets."""


def _free(variables: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(RESERVED & variables.keys()):
        raise ValueError(f"{', '.join(taken)} is set by the renderer, not by a config")
    return variables


TemplateVariables = Annotated[dict[str, Any], AfterValidator(_free)]
"""Variables for a chat template, such as `enable_thinking`."""


def reading_identity(columns: dict[str, str], image_folder: str | None, fetch_images: bool) -> dict[str, Any]:
    """What decides how a file is read, for fingerprints; nothing at the defaults."""
    found: dict[str, Any] = {"columns": columns} if columns else {}
    if image_folder is not None:
        found["image_folder"] = image_folder
    return found | ({"fetch_images": True} if fetch_images else {})


class RowsConfig(Section):
    """The rows a job reads, and where it writes the ones it makes.

    Rows may be the paper's `{"instruction": …, "output": …}`, `messages`, ShareGPT `conversations`, Alpaca and most
    other public shapes; `columns` names what has other names. A path of rows is a file of JSON, JSON Lines, CSV,
    Parquet or Arrow (text also as `.gz`, `.zst`, `.bz2`, `.xz`), a folder of such files, a glob, a folder of
    `save_to_disk`, or a hub's `hf://owner/name?split=train`.
    """

    runtime_only: ClassVar[frozenset[str]] = frozenset({"instruction_path", "labeled_path", "max_rejected_share"})

    instruction_path: NonEmptyStr | None = None
    """Prompts for the teacher to answer."""
    labeled_path: NonEmptyStr | None = None
    """With a teacher: where its answers are written, in the paper's format. Without a teacher: the rows to train on."""
    max_samples: PositiveInt | None = None
    """Use only this many rows, from the start."""
    max_rejected_share: Share = 0.05
    """If more than this share of all rows is rejected, the run ends with exit code 3."""
    columns: ColumnsConfig | None = None
    """Names of the columns, if they are not among those that are known."""
    image_folder: NonEmptyStr | None = None
    """Folder that the paths of images in the rows are relative to, and must not lead out of; by default the folder of
    the rows' file."""
    fetch_images: bool = False
    """Fetch images that rows name by an http or https address. Without it, such rows are rejected."""

    @property
    def column_names(self) -> dict[str, str]:
        """The columns that are named, by what they hold."""
        return {} if self.columns is None else self.columns.names()

    def reading_identity(self) -> dict[str, Any]:
        """What decides how a file is read, for fingerprints; nothing at the defaults."""
        return reading_identity(self.column_names, self.image_folder, self.fetch_images)


class DatasetConfig(RowsConfig):
    """Seed data of a distillation job."""

    template: NonEmptyStr | None = None
    """A chat template (a Jinja file) that replaces the student's own; an EasyDistill 1 template works too."""
    template_kwargs: TemplateVariables | None = None
    """Variables of the chat template, such as `{"enable_thinking": false}`. A row's own `chat_template_kwargs` win."""
    thoughts: Literal["inline", "drop"] | None = None
    """What becomes of an assistant's thoughts: `inline` writes them into its text as `<think>…</think>`, `drop` leaves
    them out. By default the template shows them, and answers whose thoughts it does not show are not trained on."""
    seed: Seed = 42
    """Seed for choosing the rows held out for evaluation."""


class PairsConfig(Section):
    """Preference pairs to train on."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"labeled_path", "max_rejected_share"})

    labeled_path: NonEmptyStr
    """Preference pairs: rows with `prompt`, `chosen` and `rejected`, or two answers and a verdict, scores, or labels,
    at a path as `dataset.instruction_path` may be."""
    max_samples: PositiveInt | None = None
    """Use only this many rows, from the start."""
    max_rejected_share: Share = 0.05
    """If more than this share of all rows is rejected, the run ends with exit code 3."""
    template: NonEmptyStr | None = None
    """A chat template (a Jinja file) that replaces the student's own."""
    template_kwargs: TemplateVariables | None = None
    """Variables of the chat template, such as `{"enable_thinking": false}`. A row's own `chat_template_kwargs` win."""
    thoughts: Literal["inline", "drop"] | None = None
    """What becomes of an assistant's thoughts: `inline` writes them into its text as `<think>…</think>`, `drop` leaves
    them out. By default the template shows them, and answers whose thoughts it does not show are not trained on."""
    seed: Seed = 42
    """Seed for choosing the pairs held out for evaluation."""
    columns: PairColumnsConfig | None = None
    """Names of the columns, if they are not among those that are known."""
    image_folder: NonEmptyStr | None = None
    """Folder that the paths of images in the rows are relative to, and must not lead out of; by default the folder of
    the rows' file."""
    fetch_images: bool = False
    """Fetch images that rows name by an http or https address. Without it, such rows are rejected."""

    @property
    def column_names(self) -> dict[str, str]:
        """The columns that are named, by what they hold."""
        return {} if self.columns is None else self.columns.names()

    def reading_identity(self) -> dict[str, Any]:
        """What decides how a file is read, for fingerprints; nothing at the defaults."""
        return reading_identity(self.column_names, self.image_folder, self.fetch_images)


class SynthesisDatasetConfig(RowsConfig):
    """The seed rows of a synthesis job, and where its rows are written."""

    instruction_path: NonEmptyStr
    """Seed rows; for extraction, a text file or a folder of txt, md, html and pdf files."""
    labeled_path: NonEmptyStr | None = None
    """Another file for the accepted rows: `.json`, `.jsonl` or `.parquet`."""
    max_rejected_share: Share = 1.0
    """If more than this share of all rows is rejected, the run ends with exit code 3."""


class TeacherDatasetConfig(SynthesisDatasetConfig):
    """The seed rows of a synthesis job with a teacher, and where its rows are written."""

    template: NonEmptyStr | None = None
    """A chat template (a Jinja file) for a teacher on this machine that has none of its own."""


class WhiteBoxDatasetConfig(DatasetConfig):
    """Seed data, and where the teacher's signals are written or read."""

    runtime_only: ClassVar[frozenset[str]] = DatasetConfig.runtime_only | {"logits_path"}

    logits_path: NonEmptyStr | None = None
    """With a teacher: another directory in which its signals appear. Without a teacher: the signals to train on."""
