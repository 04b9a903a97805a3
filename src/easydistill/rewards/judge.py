"""A model's judgement: an integer from `low` to `high`, read strictly, as (score − low) / (high − low), so 0 … 1.

A reply that does not parse or was cut off, and a question that the judge cannot be asked, are no judgement, and the
answer may be why: it counts as one that could not be judged. Where no reply came for a passing reason the reward
abstains. Equal questions are asked once, also by a run that was killed and goes on; what failed for a passing reason is
asked again when it comes again. Asking goes on through a stop, which is for whoever trains to see: a round is judged
whole. The policy writes part of the prompt and may learn to talk the judge round: watch it against something that
cannot be talked to, such as `verify`.

Prompts are Jinja files in `prompts/`, `judge.<language>.txt`. A file of the user's replaces them for all languages. It
may use `prompt` (the messages), `answer`, `ended`, `meta` (the row's other fields), `low`, `high`, `language`, and
`form`, which says how to reply.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from easydistill.config.base import NonEmptyStr, NonNegativeInt, PositiveInt, Unfit
from easydistill.contracts.reward import UNJUDGED, Reward, RewardConfig, RewardContext, Rollout
from easydistill.contracts.teacher import Failure, GenerationRequest, Outcome, Teacher, outcome_from_record, request_key
from easydistill.data.journal import Journal
from easydistill.data.records import Message
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import ConfigError, ConfigIssue, DataError
from easydistill.verification.fields import Language, Malformed
from easydistill.verification.scores import ScoreField, describe_scores, parse_scores, scores_schema

if TYPE_CHECKING:
    import jinja2

LOGGER = logging.getLogger(__name__)
_HAN = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"[^\W\d_\u4e00-\u9fff]+")


class Config(RewardConfig):
    """A score that a judging model gives."""

    identity_name = "reward.judge"

    needs_judge: ClassVar[bool] = True

    low: NonNegativeInt = 0
    """Score of the worst answer."""
    high: PositiveInt = 9
    """Score of the best."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of the prompt; `auto` takes that of the conversation."""
    prompt: NonEmptyStr | None = None
    """A Jinja file that replaces the built-in prompt."""
    reply: Literal["tags", "json"] = "tags"
    """How the judge is asked to shape its reply. Local models are held to `json`."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Config:
        if self.low >= self.high:
            raise Unfit(f"low ({self.low}) is not below high ({self.high})", "give a range such as 0 to 9")
        return self


def files(config: Config) -> dict[str, str]:
    return {"prompt": config.prompt} if config.prompt is not None else {}


def make(config: Config, context: RewardContext) -> Reward:
    """Raises ConfigError without a judge, or where the prompt's file cannot be used."""
    if context.judge is None:
        raise ConfigError(
            ConfigIssue("config", "rewards.judge", "there is no model that judges", "name one, or remove this reward")
        )
    return _Judge(config, context, context.judge)


class _Judge:
    def __init__(self, config: Config, context: RewardContext, teacher: Teacher) -> None:
        self._config, self._context, self._teacher = config, context, teacher
        self._field = ScoreField(low=config.low, high=config.high)
        self._schema = scores_schema([self._field]) if config.reply == "json" else None
        languages: tuple[Language, ...] = ("en", "zh")
        self._templates = {language: load_template(language, config.prompt) for language in languages}
        self._journal = Journal(context.journal) if context.journal is not None else None
        self._outcomes: dict[str, Outcome] = {}
        if self._journal is not None:
            self._outcomes = {key: outcome_from_record(self._journal.get(key)) for key in self._journal}
        self._lock = threading.Lock()

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        if not rollouts:
            return []
        # Teachers answer one list of requests at a time, and equal ones of two lists would be asked twice.
        with self._lock:
            identity = self._teacher.identity()
            requests = [self._request(rollout, identity) for rollout in rollouts]
            self._ask(requests)
            values = [self._value(self._outcomes[request.key]) for request in requests]
        unknown = values.count(None) + values.count(UNJUDGED)
        if unknown:
            LOGGER.info("the judge gave no usable score to %d of %d answers", unknown, len(values))
        return values

    def _request(self, rollout: Rollout, identity: dict[str, Any]) -> GenerationRequest:
        language = self._config.language
        chosen = language_of(rollout.prompt) if language == "auto" else language
        text = self._fill(
            chosen,
            prompt=rollout.prompt,
            answer=rollout.text,
            ended=rollout.ended,
            meta=rollout.meta,
            low=self._config.low,
            high=self._config.high,
            language=chosen,
            form=describe_scores([self._field], self._config.reply, chosen),
        )
        messages: tuple[Message, ...] = ({"role": "user", "content": text},)
        if self._context.judge_system_prompt:
            messages = ({"role": "system", "content": self._context.judge_system_prompt}, *messages)
        key = request_key(identity, dict(self._context.judge_sampling), messages, schema=self._schema)
        return GenerationRequest(key, messages, schema=self._schema)

    def _fill(self, chosen: Language, **values: Any) -> str:
        import jinja2

        try:
            return self._templates[chosen].render(**values).strip()
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            where = self._config.prompt or f"judge.{chosen}.txt"
            raise DataError(f"rewards.judge.prompt: {where} cannot be filled for a row: {error}") from error

    def _ask(self, requests: Sequence[GenerationRequest]) -> None:
        """Have an outcome for each request."""
        fresh: dict[str, Outcome] = {}

        def done(key: str) -> bool:
            known = self._outcomes.get(key)
            return key in fresh or (known is not None and not (isinstance(known, Failure) and known.passing))

        def record(outcomes: Sequence[Outcome]) -> None:
            if self._journal is not None:
                self._journal.append(*(outcome.as_record() for outcome in outcomes))
            fresh.update({outcome.key: outcome for outcome in outcomes})

        try:
            # Not the user's signal: a stopped teacher returns early, and the trainer stops between rounds alone.
            self._teacher.generate(list({r.key: r for r in requests}.values()), done, record, StopSignal())
        finally:
            self._outcomes.update(fresh)

    def _value(self, outcome: Outcome) -> float | None:
        if isinstance(outcome, Failure):
            return None if outcome.passing else UNJUDGED
        if outcome.text is None or outcome.finish_reason == "length":
            return UNJUDGED
        found = parse_scores(outcome.text, [self._field], self._config.reply)
        if isinstance(found, Malformed):
            return UNJUDGED
        return (found[self._field.name] - self._field.low) / (self._field.high - self._field.low)

    def close(self) -> None:
        """Forgets what was asked, the journal aside; the teacher belongs to whoever made it."""
        self._outcomes.clear()
        if self._journal is not None:
            self._journal.close()


def language_of(prompt: Sequence[Message]) -> Language:
    """`zh` where what is asked has more Chinese characters than twice its words."""
    text = "\n".join(message["content"] for message in prompt if message["role"] != "system")
    return "zh" if len(_HAN.findall(text)) > 2 * len(_WORD.findall(text)) else "en"


def load_template(language: Language, override: str | None) -> jinja2.Template:
    """The built-in prompt, or the user's in its place.

    Raises:
        ConfigError: the file cannot be read, or is not valid Jinja.
    """
    # Loaded here: configs are checked without it.
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def unusable(problem: str, mend: str) -> ConfigError:
        return ConfigError(ConfigIssue("config", "rewards.judge.prompt", problem, mend))

    try:
        if override is not None:
            text = Path(override).read_text(encoding="utf-8")
        else:
            text = (resources.files(__package__) / "prompts" / f"judge.{language}.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unusable(f"{override} cannot be read: {error}", "give a UTF-8 text file") from None
    try:
        return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise unusable(f"{override}: line {error.lineno}: {error.message}", "mend the template") from None
