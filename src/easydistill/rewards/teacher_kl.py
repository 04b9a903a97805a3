"""How probable an answer of T tokens is to a teacher: r = (1/T) Σ_t log p_T(a_t | prompt, a_<t), in nats per token.

It is the teacher's half of the reverse KL divergence. Together with an entropy term for the policy, −log p_S(a_t) per
token, the expected sum is −KL(student ‖ teacher) per token, which MiniLLM (Gu et al., 2024) and on-policy distillation
(Agarwal et al., 2024) maximise. On its own its maximum is at the teacher's most probable answer, not at the teacher's
distribution.

The teacher reads the policy's token ids, so both must have the same tokens. If the answer ended, its end token counts.
An answer cannot be judged if it is empty, exceeds the teacher's maximum length, or has a token that the teacher lacks;
if any of this is true of the prompt alone, the reward abstains.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easydistill.contracts.reward import UNJUDGED, Reward, RewardContext, Rollout
from easydistill.data.batches import batches_by_length
from easydistill.data.messages import images_of
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.models.loading import choose_dtype, eos_ids, import_torch, load_model
from easydistill.models.reference import sees_images
from easydistill.rewards._models import (
    MAX_BATCH_ROWS,
    FiniteScores,
    ModelRewardConfig,
    choose_device,
    max_tokens,
    vision_of,
)

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

LOGGER = logging.getLogger(__name__)
_CHUNK_BYTES = 256 << 20
"""Of logits in memory at the same time."""


class Config(ModelRewardConfig):
    """The teacher's mean log-probability of the answer's tokens."""

    identity_name = "reward.teacher_kl"


def models(config: Config) -> dict[str, str]:
    return {"model": config.model}


def blindness(config: Config) -> str | None:
    return None if sees_images(config.model) else f"the teacher ({config.model})"


def make(config: Config, context: RewardContext) -> Reward:
    """Raises ConfigError if the teacher's tokens differ from the policy's, ModelError if it cannot be loaded."""
    vocabulary = shared_vocabulary(config, context)
    device = choose_device(context.device)
    dtype = choose_dtype(config.dtype, device)
    model = load_model(config.model, dtype, trust_remote_code=config.trust_remote_code).to(device)
    return _TeacherKl(config, model, vocabulary, vision_of(config, context))


def shared_vocabulary(config: Config, context: RewardContext) -> int:
    """The number of token ids, from 0 on, that are the same for policy and teacher. Reads no weights.

    Raises:
        ConfigError: their distributions cannot be compared.
    """
    from easydistill.models.compatibility import Side, compare, fatal, shared_ids, side_of

    assert context.tokenizer is not None, "the trainer passes its policy's tokenizer"
    teacher = side_of(config.model, "teacher", trust_remote_code=config.trust_remote_code)
    policy = Side("student", context.tokenizer, context.eos_ids or eos_ids(context.tokenizer), None)
    differences = compare(policy, teacher)
    hint = "name a teacher of the policy's model family; this reward cannot align different tokenizers"
    issues = [ConfigIssue("config", "rewards.teacher_kl.model", item.problem, hint) for item in fatal(differences)]
    shared = shared_ids(context.tokenizer, teacher.tokenizer)
    if issues or shared is None:
        raise ConfigError(issues)
    for item in differences:
        LOGGER.warning("rewards.teacher_kl: %s", item.problem)
    return shared


class _TeacherKl:
    def __init__(self, config: Config, model: Any, vocabulary: int, vision: Vision | None) -> None:
        self._config, self._model, self._vocabulary = config, model, vocabulary
        self._vision = vision
        self._max_tokens = max_tokens(config, model.config)
        self._finite = FiniteScores("teacher_kl")
        self._lock = threading.Lock()

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        readable = [self._can_read(rollout.prompt_ids, 1) for rollout in rollouts]
        values: list[float | None] = [UNJUDGED if prompt else None for prompt in readable]
        judged = [row for row, rollout in enumerate(rollouts) if readable[row] and self._can_judge(rollout)]
        lengths = [len(rollouts[row].prompt_ids) + len(rollouts[row].answer_ids) for row in judged]
        with self._lock:
            for batch in batches_by_length(lengths, MAX_BATCH_ROWS, self._config.max_batch_tokens, 0):
                taken = [judged[at] for at in batch]
                for row, value in zip(taken, self._means([rollouts[row] for row in taken]), strict=True):
                    values[row] = self._finite(value)
        return values

    def _can_judge(self, rollout: Rollout) -> bool:
        return bool(rollout.answer_ids) and self._can_read((*rollout.prompt_ids, *rollout.answer_ids), 0)

    def _can_read(self, ids: Sequence[int], more: int) -> bool:
        """Whether the teacher can read these tokens and has room for `more`."""
        fits = self._max_tokens is None or len(ids) + more <= self._max_tokens
        return bool(ids) and fits and max(ids) < self._vocabulary

    def _means(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Mean log-probability of each answer's tokens, over the vocabulary that both models share."""
        from easydistill.kernels.logprobs import completion_logprobs

        torch = import_torch()
        rows = [([*rollout.prompt_ids, *rollout.answer_ids], len(rollout.prompt_ids)) for rollout in rollouts]
        images = [self._images(rollout) for rollout in rollouts]
        with torch.no_grad():
            logprobs_N, _ = completion_logprobs(
                self._model,
                rows,
                0,
                _CHUNK_BYTES,
                vocabulary=self._vocabulary,
                with_entropy=False,
                vision=self._vision,
                images=images,
            )
        answers = torch.split(logprobs_N, [len(rollout.answer_ids) for rollout in rollouts])
        return [float(logprobs_T.double().mean()) for logprobs_T in answers]

    def _images(self, rollout: Rollout) -> tuple[str, ...]:
        """The digests of the prompt's images.

        Raises:
            ConfigError: the teacher reads them as another number of tokens than the policy.
        """
        images = images_of(*rollout.prompt)
        if images:
            assert self._vision is not None, "rows with images are refused for a teacher of text"
            own, read = sum(map(self._vision.image_tokens, images)), self._vision.count(rollout.prompt_ids)
            if own != read:
                problem = f"the policy reads the images of a prompt as {read} tokens, this teacher as {own}"
                hint = "name a teacher with the policy's processor of images"
                raise ConfigError(ConfigIssue("config", "rewards.teacher_kl.model", problem, hint))
        return images

    def close(self) -> None:
        self._model = None
