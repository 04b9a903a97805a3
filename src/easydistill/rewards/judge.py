"""A model's judgement: an integer from `low` to `high`, parsed strictly, as (score − low) / (high − low), so 0 … 1.

If the reply does not parse or was cut off, or the judge cannot be asked the question at all, the answer may be the
reason, so it counts as one that could not be judged. If a temporary failure prevented a reply, the reward abstains.
Equal questions are asked only once, also by a run that is resumed after a kill; after a temporary failure a question is
asked again when it recurs. A stop signal does not interrupt the questions: the trainer stops between rounds, and a
round is judged completely. A judge is shown the prompt's images. The policy writes part of the judge's prompt and may
learn to influence the judge: compare the scores with a reward that cannot be influenced, such as `verify`.

Prompts are Jinja files in `prompts/`, `judge.<language>.txt`. A file of the user's replaces them for all languages. It
may use `prompt` (the messages), `answer`, `ended`, `meta` (the row's other fields), `low`, `high`, `language`, and
`form`, the instructions on how to reply.
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
from easydistill.data.messages import IMAGE_TAG, Content, Message, images_of, said, with_images_placed
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import ConfigError, ConfigIssue, DataError
from easydistill.teachers.remembering import generate
from easydistill.verification.fields import Language, MalformedReply
from easydistill.verification.scores import ScoreField, describe_scores, parse_scores, scores_schema

if TYPE_CHECKING:
    import jinja2

LOGGER = logging.getLogger(__name__)
_HAN = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"[^\W\d_\u4e00-\u9fff]+")


class Config(RewardConfig):
    """A score from a judge model."""

    identity_name = "reward.judge"

    needs_judge: ClassVar[bool] = True

    low: NonNegativeInt = 0
    """Score of the worst answers."""
    high: PositiveInt = 9
    """Score of the best answers."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of the prompt; `auto` uses that of the conversation."""
    prompt: NonEmptyStr | None = None
    """A Jinja file that replaces the built-in prompt."""
    reply: Literal["tags", "json"] = "tags"
    """The form in which the judge is asked to reply. Local models are constrained to `json`."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Config:
        if self.low >= self.high:
            raise Unfit(f"low ({self.low}) is not below high ({self.high})", "set a range such as 0 to 9")
        return self


def files(config: Config) -> dict[str, str]:
    return {"prompt": config.prompt} if config.prompt is not None else {}


def make(config: Config, context: RewardContext) -> Reward:
    """Raises ConfigError if there is no judge or the prompt file cannot be used."""
    if context.judge is None:
        raise ConfigError(
            ConfigIssue("config", "rewards.judge", "there is no judge model", "configure one, or remove this reward")
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
        # Teachers answer one list of requests at a time, and equal requests of two lists would be sent twice.
        with self._lock:
            identity = self._teacher.identity()
            requests = [self._request(rollout, identity) for rollout in rollouts]
            self._ask(requests)
            values = [self._value(self._outcomes[request.key]) for request in requests]
        unscored = values.count(None) + values.count(UNJUDGED)
        if unscored:
            LOGGER.info("the judge gave no usable score for %d of %d answers", unscored, len(values))
        return values

    def _request(self, rollout: Rollout, identity: dict[str, Any]) -> GenerationRequest:
        language = self._config.language
        prompt_language = language_of(rollout.prompt) if language == "auto" else language
        text = self._fill(
            prompt_language,
            prompt=[{**message, "content": said(message)} for message in rollout.prompt],
            answer=rollout.text,
            ended=rollout.ended,
            meta=rollout.meta,
            low=self._config.low,
            high=self._config.high,
            language=prompt_language,
            form=describe_scores([self._field], self._config.reply, prompt_language),
        )
        messages: tuple[Message, ...] = ({"role": "user", "content": _with_images(text, rollout)},)
        if self._context.judge_system_prompt:
            messages = ({"role": "system", "content": self._context.judge_system_prompt}, *messages)
        sampling, image = dict(self._context.judge_sampling), self._context.judge_image
        key = request_key(identity, sampling, messages, schema=self._schema, image=image)
        return GenerationRequest(key, messages, schema=self._schema)

    def _fill(self, prompt_language: Language, **values: Any) -> str:
        import jinja2

        try:
            return self._templates[prompt_language].render(**values).strip()
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            where = self._config.prompt or f"judge.{prompt_language}.txt"
            raise DataError(f"rewards.judge.prompt: {where} cannot be rendered for a row: {error}") from error

    def _ask(self, requests: Sequence[GenerationRequest]) -> None:
        """Make sure that there is an outcome for each request."""
        fresh: dict[str, Outcome] = {}

        def done(key: str) -> bool:
            known = self._outcomes.get(key)
            return key in fresh or (known is not None and not (isinstance(known, Failure) and known.passing))

        def record(outcomes: Sequence[Outcome]) -> None:
            if self._journal is not None:
                self._journal.append(*(self._context.redact(outcome.as_record()) for outcome in outcomes))
            fresh.update({outcome.key: outcome for outcome in outcomes})

        try:
            # A new signal, not the user's: a stopped teacher returns early, and the trainer stops only between rounds.
            unique = list({request.key: request for request in requests}.values())
            generate(self._teacher, unique, done, record, StopSignal(), redact=self._context.redact)
        finally:
            self._outcomes.update(fresh)

    def _value(self, outcome: Outcome) -> float | None:
        if isinstance(outcome, Failure):
            return None if outcome.passing else UNJUDGED
        if outcome.text is None or outcome.finish_reason == "length":
            return UNJUDGED
        parsed = parse_scores(outcome.text, [self._field], self._config.reply)
        if isinstance(parsed, MalformedReply):
            return UNJUDGED
        return (parsed[self._field.name] - self._field.low) / (self._field.high - self._field.low)

    def close(self) -> None:
        """Close the journal and drop all outcomes from memory. The judge model stays open."""
        self._outcomes.clear()
        if self._journal is not None:
            self._journal.close()


def _with_images(text: str, rollout: Rollout) -> Content:
    """The question, with the prompt's images where it shows their tags."""
    # Tags that the policy writes are no places of images.
    return with_images_placed(text, images_of(*rollout.prompt), at_tags=IMAGE_TAG not in rollout.text)


def language_of(prompt: Sequence[Message]) -> Language:
    """`zh` if the conversation has more than twice as many Chinese characters as words of other scripts."""
    text = "\n".join(said(message) for message in prompt if message["role"] != "system")
    return "zh" if len(_HAN.findall(text)) > 2 * len(_WORD.findall(text)) else "en"


def load_template(language: Language, override: str | None) -> jinja2.Template:
    """The built-in prompt, or the user's file that replaces it.

    Raises:
        ConfigError: the file cannot be read, or is not valid Jinja.
    """
    # Imported here, because checking a config does not need it.
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def unusable(problem: str, hint: str) -> ConfigError:
        return ConfigError(ConfigIssue("config", "rewards.judge.prompt", problem, hint))

    try:
        if override is not None:
            text = Path(override).read_text(encoding="utf-8")
        else:
            text = (resources.files(__package__) / "prompts" / f"judge.{language}.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unusable(f"{override} cannot be read: {error}", "name a UTF-8 text file") from None
    try:
        return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise unusable(f"{override}: line {error.lineno}: {error.message}", "fix the template") from None
