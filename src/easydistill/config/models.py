"""The `models` section: which model teaches and which one learns."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from easydistill.config.base import NonEmptyStr, PositiveInt, Section, Seed, Unfit

ModelRef = NonEmptyStr
"""A local directory, a hub id, a `.gguf` file, or `pkg://package/file.gguf` (weights inside a Python package)."""


class PrunedStudent(Section):
    """A student made by keeping some layers of another model, evenly spaced, the first and the last included."""

    from_model: ModelRef = Field(alias="from")
    """The model whose layers are kept."""
    keep_layers: Annotated[PositiveInt, Field(ge=2)]
    """Number of layers to keep."""


class FreshStudent(Section):
    """A student with random weights."""

    config: dict[str, Any]
    """A transformers model config, with at least `model_type`."""
    tokenizer: ModelRef | None = None
    """The model whose tokenizer it uses; defaults to the teacher."""
    seed: Seed = 0
    """Seed of the random weights."""
    vocab_size: PositiveInt | None = None
    """Rows of the embedding; defaults to the tokenizer's size."""

    @field_validator("config")
    @classmethod
    def _names_an_architecture(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("model_type"), str):
            raise Unfit("a model config needs `model_type`", 'add e.g. "model_type": "llama"')
        return value


def _student_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "fresh" if "config" in value else "pruned"
    if isinstance(value, FreshStudent):
        return "fresh"
    return "pruned" if isinstance(value, PrunedStudent) else "reference"


StudentRef = Annotated[
    Annotated[ModelRef, Tag("reference")]
    | Annotated[PrunedStudent, Tag("pruned")]
    | Annotated[FreshStudent, Tag("fresh")],
    Discriminator(_student_kind),
]


class ModelsConfig(Section):
    """Teacher and student."""

    teacher: ModelRef | None = None
    """The teacher, if it runs on this machine; also the reference for KL divergence and agreement."""
    student: StudentRef
    """The student: a model, `{"from": …, "keep_layers": n}` or `{"config": {…}}`."""
    trust_remote_code: bool = False
    """Run code that comes with the student's weights."""

    @property
    def teachers_by_key(self) -> dict[str, str]:
        """The references of all teachers on this machine, by the key of the config that names them."""
        return {} if self.teacher is None else {"models.teacher": self.teacher}


TeacherName = Annotated[NonEmptyStr, Field(pattern=r"^\w[\w -]*$")]
"""Letters, digits, `_`, `-` and spaces: names are parts of the names of figures and of keys for `--set`."""


class TeachersConfig(ModelsConfig):
    """One student, and one teacher or several, each of which teaches the rows that name it."""

    identity_name: ClassVar[str] = "ModelsConfig"

    teachers: Annotated[dict[TeacherName, ModelRef], Field(min_length=1)] | None = None
    """Further teachers on this machine, by name, such as specialists of domains: `{"math": …, "code": …}`. Each row's
    answer and scores are those of the teacher that it names; `teacher` teaches rows that name none. All have the
    student's vocabulary."""
    teacher_column: NonEmptyStr = "teacher"
    """With `teachers`: the column of the rows that names their teacher; one inside an object is named with a dot."""

    @property
    def teachers_by_key(self) -> dict[str, str]:
        named = {f"models.teachers.{name}": model for name, model in (self.teachers or {}).items()}
        return {**super().teachers_by_key, **named}

    @model_validator(mode="after")
    def _has_several(self) -> TeachersConfig:
        if self.teachers is None and self.teacher_column != type(self).model_fields["teacher_column"].default:
            raise Unfit("`teacher_column` has no effect without `teachers`", "set models.teachers, or remove it")
        return self
