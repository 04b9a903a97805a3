"""The types of `inference` sections: for each kind of job, the union of the backends that it can use.

The backends of third parties are included, so that `validate`, `schema`, `init` and the generated documentation know
their keys.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, create_model

from easydistill.config.base import Section, Unfit
from easydistill.config.extensions import or_in_a_file, refusing
from easydistill.config.inference import AutoInferenceConfig, InferenceConfig, WhiteBoxInferenceConfig
from easydistill.config.values import show
from easydistill.teachers import TEACHERS

SERVER, LOCAL = "openai", "auto"
"""The default backends: with `base_url`, and without."""


def inference_section(
    suits: Callable[[type[InferenceConfig]], bool] = lambda config: True,
    refusal: str = "",
    member: Callable[[type[InferenceConfig]], type[InferenceConfig]] = lambda config: config,
) -> Any:
    """The type of an `inference` section: the union of the backends' classes, discriminated by `backend`.

    Args:
        suits: whether a job can use the backend with this class.
        refusal: why it cannot use the others, for the error message.
        member: replaces a backend's class in the union.
    """
    configs: dict[str, type[InferenceConfig]] = {name: module.Config for name, module in TEACHERS.loaded().items()}
    fitting = {name: config for name, config in configs.items() if suits(config)}

    def backend_of(value: Any) -> str:
        if not isinstance(value, dict):
            return str(getattr(value, "backend", LOCAL))
        server = LOCAL not in fitting or (SERVER in fitting and "base_url" in value)
        return str(value.get("backend", SERVER if server else LOCAL))

    def refuse_others(value: Any) -> Any:
        named = value.get("backend") if isinstance(value, dict) else None
        if isinstance(named, str) and named in configs and named not in fitting:
            raise Unfit(f"backend {show(named)} {refusal}", f"use one of {', '.join(map(show, fitting))}")
        return value

    def of_file(config: type[InferenceConfig]) -> Any:
        if not suits(config):
            raise Unfit(
                f"backend {show(config.plain_file.short if config.plain_file else '')} {refusal}", "use another"
            )
        return member(config)

    classes = {name: member(config) for name, config in fitting.items()}
    classes |= {name: refusing(InferenceConfig, error) for name, error in TEACHERS.broken().items()}
    section: Any
    if len(classes) == 1:
        section = next(iter(classes.values()))
    else:
        tagged: list[Any] = [Annotated[config, Tag(name)] for name, config in classes.items()]
        union: Any = functools.reduce(operator.or_, tagged)
        section = Annotated[union, Discriminator(backend_of)]
    return Annotated[or_in_a_file(section, TEACHERS, of_file), BeforeValidator(refuse_others)]


@functools.cache
def white_box(config: type[InferenceConfig]) -> Any:
    """A backend's class with the keys of `WhiteBoxInferenceConfig` beside its own."""
    bases = (config, WhiteBoxInferenceConfig)
    made: Any = create_model(f"WhiteBox{config.__name__}", __base__=bases, __module__=__name__, __doc__=config.__doc__)
    made.runtime_only = WhiteBoxInferenceConfig.runtime_only | config.runtime_only  # type: ignore[attr-defined]
    return made


Inference: Any = inference_section()
"""Any backend."""
LocalInference: Any = inference_section(
    lambda config: config.needs_model, "does not run models.teacher, which this job asks"
)
"""Backends that run `models.teacher`."""
ServedInference: Any = inference_section(
    lambda config: not config.needs_model, "runs models.teacher, and this job asks a teacher at a server"
)
"""Backends whose section names the teacher."""
ScoringInference: Any = inference_section(
    lambda config: config.scores, "gives no log-probabilities of given tokens, which this job needs"
)
"""Backends that give log-probabilities of given tokens."""
WhiteBoxInference: Any = inference_section(
    lambda config: config.scores and config.needs_model,
    "gives no distributions over tokens, which this job needs",
    white_box,
)
"""Backends that run `models.teacher` and give its distributions; with `top_logits_num` beside each backend's keys."""


class JudgeConfig(Section):
    """Another model, or other sampling, for judging."""

    inference: Inference = Field(default=AutoInferenceConfig(temperature=0.0))
    """How the judge is asked."""
