"""The score of a reward model: a sequence classifier with one label, trained on preferences (Bradley–Terry).

The conversation is rendered with the reward model's own template and tokenizer. `centre` is subtracted from every
score: such models are trained on differences, so their zero is arbitrary, which matters when several rewards are
summed. An answer that exceeds the model's maximum length cannot be judged; if the prompt alone does, the reward
abstains. A model that sees images is shown those of the prompt.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from easydistill.contracts.reward import UNJUDGED, AnyFloat, Reward, RewardContext, Rollout
from easydistill.data.batches import batches_by_length, padded
from easydistill.data.messages import Chat, answer_message, images_of
from easydistill.errors import ConfigIssue, DataError, ModelError
from easydistill.models import loading
from easydistill.models.loading import choose_dtype, full_config, import_torch, load_tokenizer
from easydistill.models.reference import architectures, is_classifier, resolve, sees_images
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


class Config(ModelRewardConfig):
    """The score of a reward model."""

    identity_name = "reward.reward_model"

    centre: AnyFloat = 0.0
    """Subtracted from every score, for example the mean score of the answers before training."""


def models(config: Config) -> dict[str, str]:
    return {"model": config.model}


def make(config: Config, context: RewardContext) -> Reward:
    """Raises ModelError if the model is not a reward model or has no chat template."""
    return _RewardModel(config, choose_device(context.device), vision_of(config, context))


class _RewardModel:
    """
    Args:
        vision: of a model that sees images.
    """

    def __init__(self, config: Config, device: Any, vision: Vision | None = None) -> None:
        # Imported here because it loads numpy and jinja2.
        from easydistill.data.chat import ChatRenderer

        self._config, self._device, self._vision = config, device, vision
        if vision is None:
            self._tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
        else:
            self._tokenizer = vision.processor.tokenizer
        try:
            self._chat = ChatRenderer(self._tokenizer, frozenset(), images=vision)
        except DataError as error:
            problem = str(error).partition("\n")[0]
            raise ModelError(f"rewards.reward_model.model: {config.model}: {problem}") from None
        self._model = load_classifier(config, device)
        self._own_pad: int | None = self._model.config.get_text_config().pad_token_id
        self._max_tokens = max_tokens(config, self._model.config)
        self._finite = FiniteScores("reward_model")
        self._lock = threading.Lock()

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        with self._lock:
            rows = [self._ids(rollout, rollout.text) for rollout in rollouts]
            fitting = {row: ids for row, ids in enumerate(rows) if ids is not None and self._fits(ids)}
            values: list[float | None] = [UNJUDGED] * len(rows)
            for row in range(len(rows)):
                if row not in fitting:
                    prompt = self._ids(rollouts[row], "")
                    if prompt is None or not self._fits(prompt):
                        values[row] = None
            numbers = list(fitting)
            lengths = [len(ids) for ids in fitting.values()]
            for batch in batches_by_length(lengths, MAX_BATCH_ROWS, self._config.max_batch_tokens, 0):
                taken = [numbers[at] for at in batch]
                images = [images_of(*rollouts[row].prompt) for row in taken]
                for row, score in zip(taken, self._scores([fitting[row] for row in taken], images), strict=True):
                    values[row] = self._finite(score - self._config.centre)
            return values

    def _fits(self, ids: Sequence[int]) -> bool:
        return self._max_tokens is None or len(ids) <= self._max_tokens

    def _ids(self, rollout: Rollout, answer: str) -> list[int] | None:
        """The tokens of a conversation; None if a text of it is what stands for an image in this model."""
        from easydistill.data.chat.images import RESERVED, ImageRefused, expanded

        chat = Chat((*rollout.prompt, answer_message(answer)), rollout.tools)
        try:
            text = self._chat.text(chat, add_generation_prompt=False)
        except ImageRefused as refused:
            if refused.reason != RESERVED:
                raise
            return None
        text, _ = expanded(self._vision, images_of(*rollout.prompt), text)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _scores(self, rows: Sequence[list[int]], images: Sequence[tuple[str, ...]]) -> list[float]:
        """The model's one number per row. The model itself reads the last token that is not padding."""
        torch = import_torch()
        pad = self._pad({ids[-1] for ids in rows if ids})
        ids_BT = torch.tensor(padded(rows, pad), device=self._device)
        mask_BT = torch.tensor(padded([[1] * len(ids) for ids in rows], 0), device=self._device)
        seen: dict[str, Any] = {}
        if self._vision is not None:
            seen = self._vision.inputs(ids_BT, list(zip(rows, images, strict=True)), self._model.dtype)
        with torch.no_grad():
            logits_B1 = self._model(input_ids=ids_BT, attention_mask=mask_BT, **seen).logits
        scores: list[float] = logits_B1[:, 0].float().tolist()
        return scores

    def _pad(self, ends: Collection[int]) -> int:
        """The padding token: the model's own, or else one that ends none of the rows, then set in its config."""
        if self._own_pad is not None:
            return self._own_pad
        pad = next(token for token in itertools.count() if token not in ends)
        config = self._model.config
        config.pad_token_id = config.get_text_config().pad_token_id = pad
        return pad

    def close(self) -> None:
        self._model = None


def issues(config: Config) -> list[ConfigIssue]:
    """An issue if the model's files show that it is another kind of model."""
    try:
        names = architectures(resolve(config.model))
    except ModelError:
        return []
    if not names or is_classifier(names):
        return []
    return [ConfigIssue("config", "rewards.reward_model.model", f"{config.model} {_not_a_reward_model(names)}", _HINT)]


def blindness(config: Config) -> str | None:
    return None if sees_images(config.model) else f"the reward model ({config.model})"


_HINT = "train a reward model, or name an existing one"


def _not_a_reward_model(names: Sequence[str]) -> str:
    return f"is not a reward model (its architecture: {', '.join(names) or 'none'})"


def load_classifier(config: Config, device: Any) -> Any:
    """The sequence classifier, in eval mode.

    Raises:
        ModelError: it cannot be loaded, has no trained classification head, or returns more than one number.
    """
    where = f"rewards.reward_model.model: {config.model}"
    # From a causal language model, transformers would make a classifier with a random head and only log a warning.
    names = full_config(config.model, trust_remote_code=config.trust_remote_code).architectures or []
    if not is_classifier(names):
        raise ModelError(f"{where} {_not_a_reward_model(names)}\n    → {_HINT}")
    dtype = choose_dtype(config.dtype, device)
    model = loading.load_classifier(config.model, dtype, trust_remote_code=config.trust_remote_code)
    if model.config.num_labels != 1:
        raise ModelError(f"{where} returns {model.config.num_labels} numbers per answer, a reward model returns one")
    return model.to(device)
