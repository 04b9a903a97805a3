"""The sections of the job `evaluate`: models, tasks, speed, rows that may be contaminated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from easydistill.config.base import NonEmptyStr, PositiveInt, Section, Unfit
from easydistill.config.inference import ApiInferenceConfig, AutoInferenceConfig, LocalInferenceConfig
from easydistill.config.models import FreshStudent, ModelRef, PrunedStudent, StudentRef
from easydistill.config.values import show
from easydistill.contracts.task import SampledTask, TaskConfig
from easydistill.tasks import task_section
from easydistill.teachers.sections import Inference

PlaceInTheTable = Literal["teacher", "before", "after", "other"]
_SAMPLED = ("temperature", "top_p", "max_new_tokens", "seed", "truncation", "thoughts")
"""Keys of an `inference` section that the tasks decide here."""
_REMARK = "replies are sampled as each task says, so that models are comparable"


class EvaluatedModel(Section):
    """A model that answers the tasks. `"path"` is short for `{"model": "path"}`."""

    model: StudentRef | None = None
    """The model: a reference, `{"from": …, "keep_layers": n}` or `{"config": {…}}`; none for a server."""
    inference: Inference = Field(default=AutoInferenceConfig(), union_mode="left_to_right")
    """How it is asked: backend, batch sizes, prices, system prompt. Sampling is the tasks' affair."""
    role: PlaceInTheTable | None = None
    """Its part in the comparison: the teacher, the student before training, the student after it, or another model.
    Defaults to its name, if that is one of `teacher`, `before`, `after` and `student` (which is `before` if another
    model is `after`, else `after`)."""
    published: dict[NonEmptyStr, float] = {}  # noqa: RUF012 (pydantic copies it)
    """Figures that others published for it: task → score in percent. Shown in a column of their own."""
    trust_remote_code: bool = False
    """Run code that comes with the weights."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"published", "role"})

    @model_validator(mode="after")
    def _is_one_model(self) -> EvaluatedModel:
        if self.inference.needs_model and self.model is None:
            raise Unfit("there is no model", "set model, or inference.base_url")
        if not self.inference.needs_model and self.model is not None:
            raise Unfit("model is not used: the server names its own", "set inference.model, and remove model")
        given = [name for name in _SAMPLED if name in self.inference.model_fields_set]
        if given:
            hint = f"set it in the task: {_REMARK}" if given[0] in TaskConfig.model_fields else f"remove it: {_REMARK}"
            raise Unfit(f"inference.{given[0]} has no effect here", hint)
        return self

    @model_validator(mode="after")
    def _makes_its_model_here(self) -> EvaluatedModel:
        if isinstance(self.model, str) or self.model is None:
            return self
        if self.inference.backend not in {"auto", "transformers"}:
            problem = f"a model that the run makes is asked in its own process, not by {show(self.inference.backend)}"
            raise Unfit(problem, "save it first, or remove inference.backend")
        return self

    @property
    def is_local(self) -> bool:
        """Whether it answers on this machine."""
        return isinstance(self.inference, LocalInferenceConfig)

    @property
    def served(self) -> ApiInferenceConfig | None:
        """Its server's section, if it has one."""
        return self.inference if isinstance(self.inference, ApiInferenceConfig) else None


def _whole(value: Any) -> Any:
    """A reference, or a student as other jobs' `models.student` describes it, is the model itself."""
    if isinstance(value, str | PrunedStudent | FreshStudent):
        return {"model": value}
    if isinstance(value, Mapping) and ("from" in value or "config" in value):
        return {"model": dict(value)}
    return value


NamedModel = Annotated[
    EvaluatedModel, BeforeValidator(_whole, ModelRef | PrunedStudent | FreshStudent | EvaluatedModel)
]
"""A model, or short for one: a reference, `{"from": …, "keep_layers": n}` or `{"config": {…}}`."""


class LmEvalConfig(SampledTask):
    """A task of lm-evaluation-harness, or a user's YAML for it. It decides prompts, few-shot examples and scores; its
    `generation_kwargs` decide the sampling where they say something."""

    lm_eval: NonEmptyStr
    """A task's name, or the path of a YAML file. Tasks that run programs are refused: use ours."""
    num_fewshot: PositiveInt | None = None
    """Worked examples; by default as many as the task says. A task that says 0 keeps none, whatever is given here."""
    metric: NonEmptyStr | None = None
    """The metric that counts, such as `exact_match,strict-match`; by default the task's first."""

    @property
    def shown_name(self) -> str:
        return self.name or self.lm_eval.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")

    @model_validator(mode="after")
    def _leaves_samples_to_the_task(self) -> LmEvalConfig:
        if self.samples > 1 or self.pass_at:
            raise Unfit("samples and pass_at belong to tasks of ours", "write `repeats` into the task's YAML")
        return self


Task: Any = task_section(lm_eval=LmEvalConfig)
"""Any task."""


class ContaminationConfig(Section):
    """Rows that a student was trained on, to be compared with the evaluated problems."""

    data: list[NonEmptyStr] = Field(min_length=1)
    """Files of training rows, in all that `dataset.instruction_path` may be."""
    words: PositiveInt = 13
    """How many words in a row must be the same to count as overlap, in scripts with spaces."""
    characters: PositiveInt = 21
    """The same in scripts without spaces."""


class SpeedConfig(Section):
    """How fast the models write: all on one engine, the same prompts, in turns."""

    models: list[NonEmptyStr] = []  # noqa: RUF012 (pydantic copies it)
    """Names of the models to time; by default teacher and student after training. The first is the yardstick."""
    prompts: PositiveInt = 16
    """Prompts at once in the saturated measurement, drawn evenly from the tasks' problems."""
    single: PositiveInt = 4
    """Prompts that are also answered one at a time."""
    new_tokens: PositiveInt = 64
    """Longest answer, in tokens."""
    rounds: PositiveInt = 3
    """Times that each model is measured; the models take turns. A first answer of each is not counted."""
