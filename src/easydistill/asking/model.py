"""A model that operators or rewards ask: its plan, sampling and system prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from easydistill.config.inference import SamplingConfig
from easydistill.contracts.operator import Ask
from easydistill.contracts.teacher import GenerationRequest, TeacherPlan, request_key
from easydistill.data.messages import Chat, Message


def with_system_prompt(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The messages, preceded by a system prompt unless they bring their own."""
    if system and messages[0]["role"] not in {"system", "developer"}:
        return ({"role": "system", "content": system}, *messages)
    return messages


@dataclass(frozen=True)
class AskedModel:
    """A model to ask, with its sampling and system prompt."""

    plan: TeacherPlan
    inference: SamplingConfig

    def identity(self) -> dict[str, Any]:
        return {"teacher": self.plan.identity(), "inference": self._sampling(), **self._reading()}

    def _reading(self) -> dict[str, Any]:
        image = self.inference.image_identity()
        return self.inference.reading() | ({"image": image} if image else {})

    def _sampling(self) -> dict[str, Any]:
        return {"system_prompt": self.inference.system_prompt, **self.inference.sampling()}

    def sampling(self, ask: Ask) -> dict[str, Any]:
        """The sampling parameters of a question."""
        own = {} if ask.temperature is None else {"temperature": ask.temperature}
        return self.inference.sampling() | own

    def messages(self, ask: Ask) -> tuple[Message, ...]:
        """The messages that are sent: the question, preceded by the config's system prompt unless it has its own."""
        return with_system_prompt(ask.messages, self.inference.system_prompt)

    def request(self, ask: Ask, identity: dict[str, Any]) -> GenerationRequest:
        """The request for a question.

        Args:
            identity: the running teacher's; a plan may not know the model's name yet.
        """
        chat = Chat(self.messages(ask), ask.tools, ask.template_kwargs)
        key = request_key(identity, self.sampling(ask), chat, ask.index, ask.schema, self.inference.image_identity())
        asked = GenerationRequest.of(key, chat)
        return replace(asked, schema=ask.schema, index=ask.index, temperature=ask.temperature)
