"""How probable a teacher finds an answer of T tokens: r = (1/T) Σ_t log p_T(a_t | prompt, a_<t), in nats a token.

It is the teacher's half of the reverse KL divergence. With a term for the policy's entropy, −log p_S(a_t) a token, the
expected sum is −KL(student ‖ teacher) a token, which MiniLLM (Gu et al., 2024) and on-policy distillation
(Agarwal et al., 2024) maximise. Alone it has its maximum at the teacher's most probable answer, not at its
distribution.

The teacher reads the policy's own token ids, so both must have the same tokens. The answer's end token counts where the
answer ended. An answer that is empty, that the teacher has no room for, or that holds a token which the teacher lacks
cannot be judged; where the prompt alone is so, the reward abstains.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from easydistill.contracts.reward import UNJUDGED, Reward, RewardContext, Rollout
from easydistill.data.batches import batches_by_length
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.models.loading import choose_dtype, eos_ids, import_torch, load_model
from easydistill.rewards._models import MAX_BATCH_ROWS, FiniteScores, ModelRewardConfig, place, room

LOGGER = logging.getLogger(__name__)
_CHUNK_BYTES = 256 << 20
"""Of logits that exist at once."""


class Config(ModelRewardConfig):
    """The teacher's mean log-probability of the answer's tokens."""

    identity_name = "reward.teacher_kl"


def models(config: Config) -> dict[str, str]:
    return {"model": config.model}


def make(config: Config, context: RewardContext) -> Reward:
    """Raises ConfigError for a teacher with other tokens than the policy, ModelError for one that cannot be loaded."""
    vocabulary = shared_vocabulary(config, context)
    device = place(context.device)
    dtype = choose_dtype(config.dtype, device)
    model = load_model(config.model, dtype, trust_remote_code=config.trust_remote_code).to(device)
    return _TeacherKl(config, model, vocabulary)


def shared_vocabulary(config: Config, context: RewardContext) -> int:
    """How many token ids, from 0 up, mean the same to policy and teacher; no weights are read.

    Raises:
        ConfigError: their distributions cannot be compared.
    """
    from easydistill.models.compatibility import Side, compare, fatal, shared_ids, side_of

    assert context.tokenizer is not None, "the trainer knows its policy's tokenizer"
    teacher = side_of(config.model, "teacher", trust_remote_code=config.trust_remote_code)
    policy = Side("student", context.tokenizer, context.eos_ids or eos_ids(context.tokenizer), None)
    differences = compare(policy, teacher)
    mend = "name a teacher of the policy's family; this reward has no way to match other tokens"
    issues = [ConfigIssue("config", "rewards.teacher_kl.model", item.problem, mend) for item in fatal(differences)]
    shared = shared_ids(context.tokenizer, teacher.tokenizer)
    if issues or shared is None:
        raise ConfigError(issues)
    for item in differences:
        LOGGER.warning("rewards.teacher_kl: %s", item.problem)
    return shared


class _TeacherKl:
    def __init__(self, config: Config, model: Any, vocabulary: int) -> None:
        self._config, self._model, self._vocabulary = config, model, vocabulary
        self._room = room(config, model.config)
        self._finite = FiniteScores("teacher_kl")
        self._lock = threading.Lock()

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        values: list[float | None] = [UNJUDGED if self._reads(rollout.prompt_ids, 1) else None for rollout in rollouts]
        fits = [row for row, rollout in enumerate(rollouts) if values[row] is not None and self._can_judge(rollout)]
        lengths = [len(rollouts[row].prompt_ids) + len(rollouts[row].answer_ids) for row in fits]
        with self._lock:
            for batch in batches_by_length(lengths, MAX_BATCH_ROWS, self._config.max_batch_tokens, 0):
                taken = [fits[at] for at in batch]
                for row, value in zip(taken, self._means([rollouts[row] for row in taken]), strict=True):
                    values[row] = self._finite(value)
        return values

    def _can_judge(self, rollout: Rollout) -> bool:
        return bool(rollout.answer_ids) and self._reads((*rollout.prompt_ids, *rollout.answer_ids), 0)

    def _reads(self, ids: Sequence[int], more: int) -> bool:
        """Whether the teacher takes tokens, and so many more."""
        short = self._room is None or len(ids) + more <= self._room
        return bool(ids) and short and max(ids) < self._vocabulary

    def _means(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Mean log-probability of each answer among the tokens that both models know."""
        from easydistill.models.logprobs import completion_logprobs

        torch = import_torch()
        rows = [([*rollout.prompt_ids, *rollout.answer_ids], len(rollout.prompt_ids)) for rollout in rollouts]
        with torch.no_grad():
            logprobs_N, _ = completion_logprobs(
                self._model, rows, 0, _CHUNK_BYTES, vocabulary=self._vocabulary, with_entropy=False
            )
        answers = torch.split(logprobs_N, [len(rollout.answer_ids) for rollout in rollouts])
        return [float(logprobs_T.double().mean()) for logprobs_T in answers]

    def close(self) -> None:
        self._model = None
