"""PPO on TRL's GRPOTrainer, whose loss accepts an advantage for every token; TRL no longer has a PPO of its own.

Ours: the critic, values, the KL in the reward, GAE, the value loss. The critic has its own optimiser and is not part of
the policy, so it is not saved with the student.

Written against TRL 1.16. Shapes: B answers, P prompt tokens, T answer tokens, D hidden width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easydistill.config.training import TrainerConfig
from easydistill.methods.policy import ppo
from easydistill.methods.policy.config import PpoConfig
from easydistill.methods.policy.trl_trainer import PolicyTrainer
from easydistill.methods.policy.watch import Explorer, PolicyWatch
from easydistill.methods.shared.ranks import gather_rows, sum_over_ranks, world_size
from easydistill.models.head import body_of
from easydistill.models.student import Student

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

CRITIC = "critic.pt"
"""File of the critic and its optimiser in a checkpoint."""


class ValueHead(nn.Module):
    """V_t = w · h_t + b on the policy's hidden states, initially 0. Its loss also trains the policy's body."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(policy.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        # None unless values are wanted: generation passes through the hook too.
        self._seen: list[Tensor] | None = None
        # A hook, because TRL's forward returns log-probabilities only.
        self._hook = body_of(policy).register_forward_hook(self._keep)

    def _keep(self, module: Any, given: Any, found: Any) -> None:
        if self._seen is not None:
            self._seen.append(found.last_hidden_state)

    def begin(self) -> None:
        """Call before the policy's forward passes whose values are wanted."""
        self._seen = []

    def values(self, ids_BL: Tensor, mask_BL: Tensor, tokens: int) -> Tensor:
        """(B, T): the value before each of the last `tokens` tokens, from the forward passes since `begin`."""
        assert self._seen is not None, "begin() comes first"
        # A row that only accompanies a batch without images comes last.
        hidden_BLD = torch.cat(self._seen)[: len(ids_BL)]
        self._seen = None
        values_BT: Tensor = self.linear(hidden_BLD[:, -tokens - 1 : -1].float()).squeeze(-1)
        return values_BT

    def close(self) -> None:
        self._hook.remove()


class ModelCritic(nn.Module):
    """V_t is a reward model's score of the text so far; the model is trained further."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.float().eval().requires_grad_(True)

    def begin(self) -> None:
        pass

    def values(self, ids_BL: Tensor, mask_BL: Tensor, tokens: int) -> Tensor:
        hidden_BLD = self.model.base_model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        values_BT: Tensor = self.model.score(hidden_BLD[:, -tokens - 1 : -1]).squeeze(-1)
        return values_BT

    def close(self) -> None:
        pass


class PpoTrainer(PolicyTrainer):
    """Proximal policy optimisation with a critic."""

    _policy: PpoConfig

    def __init__(
        self,
        student: Student,
        explorer: Explorer,
        config: TrainerConfig,
        policy: PpoConfig,
        checkpoints: Path,
        watch: PolicyWatch,
        vision: Vision | None = None,
        critic: Any = None,
    ) -> None:
        """
        Args:
            critic: a reward model with the student's tokens, trained further here; None for a value head.
        """
        super().__init__(student, explorer, config, policy, checkpoints, watch, vision)
        # Created after the policy was moved to its device.
        self._critic: ValueHead | ModelCritic = ValueHead(student.model) if critic is None else ModelCritic(critic)
        self._critic.to(self.accelerator.device)
        self._critic_optimizer = torch.optim.AdamW(
            self._critic.parameters(), lr=policy.critic_learning_rate, weight_decay=0.0
        )

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        found_B1 = super()._calculate_rewards(*args, **kwargs)
        mine = len(self._asked)
        first = self.accelerator.process_index * mine
        self._scores_B = found_B1[first : first + mine, 0]
        return found_B1

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Add values and returns, and replace the advantages of answers by those of tokens."""
        with self.phases.during("scores"):
            return self._with_values(inputs)

    def _with_values(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mask_BT = found["completion_mask"]
        ids_BL = torch.cat([found["prompt_ids"], found["completion_ids"]], 1)
        seen_BL = torch.cat([found["prompt_mask"], mask_BT], 1)
        tokens = mask_BT.shape[1]
        with torch.no_grad(), self._autocast():
            old_BT, values_BT = self._logprobs_and_values(ids_BL, seen_BL, tokens)
            reference_BT = self._reference(ids_BL, seen_BL, tokens) if self._needs_reference else old_BT
        known_B = ~self._scores_B.isnan()
        ended_B = torch.tensor(self._ended, device=mask_BT.device)
        score_B = self._scores_B.nan_to_num() - self._policy.missing_eos_penalty * (~ended_B).float()
        rewards_BT = ppo.token_rewards(score_B, old_BT, reference_BT, mask_BT, self._policy.kl_coef)
        learned_BT = mask_BT * known_B[:, None]
        advantages_BT = ppo.advantages(rewards_BT, values_BT, mask_BT, self._policy.gamma, self._policy.lam)
        returns_BT = (advantages_BT + values_BT) * mask_BT
        self._record(values_BT, returns_BT, learned_BT, (old_BT - reference_BT) * mask_BT)
        if self._policy.whiten:
            advantages_BT = ppo.whiten(advantages_BT, learned_BT, sum_over_ranks)
        found |= {
            "advantages": advantages_BT * learned_BT,
            "old_per_token_logps": old_BT,
            "values": values_BT,
            "returns": returns_BT,
            "value_mask": learned_BT,
        }
        return found

    def _logprobs_and_values(self, ids_BL: Tensor, seen_BL: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """(log-probabilities, values) of the answers' tokens."""
        size = self.args.per_device_train_batch_size
        both: list[tuple[Tensor, Tensor]] = []
        for at in range(0, len(ids_BL), size):
            part = (ids_BL[at : at + size], seen_BL[at : at + size], tokens)
            self._critic.begin()
            with self._showing(self._asked[at : at + size]):
                logps_BT = self._get_per_token_logps_and_entropies(self.model, *part)[0]
            both.append((logps_BT, self._critic.values(*part).float()))
        return torch.cat([logps for logps, _ in both]), torch.cat([values for _, values in both])

    def _reference(self, ids_BL: Tensor, seen_BL: Tensor, tokens: int) -> Tensor:
        """Log-probabilities of the answers' tokens under the untrained student."""
        size = self.args.per_device_train_batch_size
        with self._as_it_started() as model:
            found_BT: Tensor = self._get_per_token_logps_and_entropies(model, ids_BL, seen_BL, tokens, size)[0]
        return found_BT

    @contextlib.contextmanager
    def _as_it_started(self) -> Iterator[Any]:
        if self.ref_model is not None:
            yield self.ref_model
            return
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            yield self.model

    def _record(self, values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, kl_BT: Tensor) -> None:
        figures = {
            "kl": float(ppo.masked_mean(kl_BT, mask_BT, sum_over_ranks)) if self._needs_reference else None,
            "value": float(ppo.masked_mean(values_BT, mask_BT, sum_over_ranks)),
            "return": float(ppo.masked_mean(returns_BT, mask_BT, sum_over_ranks)),
            "explained_variance": ppo.explained_variance(values_BT, returns_BT, mask_BT, gather_rows),
        }
        self._watch.figures.append({name: value for name, value in figures.items() if value is not None})

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The policy loss plus the value loss, both means over the tokens of the optimiser step."""
        self._critic.begin()
        policy_loss = super()._compute_loss(model, inputs)
        ids_BL = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        seen_BL = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        values_BT = self._critic.values(ids_BL, seen_BL, inputs["completion_ids"].shape[1]).float()
        total = ppo.value_loss(
            values_BT, inputs["values"], inputs["returns"], inputs["value_mask"], self._policy.value_clip
        )
        rounds = self.args.steps_per_generation / self.current_gradient_accumulation_steps
        value_loss = total * rounds * self.accelerator.num_processes / inputs["num_items_in_batch"].clamp(min=1)
        shared = sum_over_ranks(value_loss.detach().clone()) / world_size()
        logged = float(shared) * self.current_gradient_accumulation_steps
        self._watch.figures.append({"value_loss": logged})
        return policy_loss + self._policy.vf_coef * value_loss

    def step_critic(self) -> None:
        """One step of the critic's optimiser, with the gradients of the step's losses."""
        for value in self._critic.parameters():
            if value.grad is not None and self.accelerator.num_processes > 1:
                value.grad = self.accelerator.reduce(value.grad, reduction="mean")
        if self._config.max_grad_norm:
            nn.utils.clip_grad_norm_(self._critic.parameters(), self._config.max_grad_norm)
        self._critic_optimizer.step()
        self._critic_optimizer.zero_grad()

    def finish(self) -> None:
        """Remove the critic's hook from the policy."""
        self._critic.close()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            state = {"critic": self._critic.state_dict(), "optimizer": self._critic_optimizer.state_dict()}
            torch.save(state, Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / CRITIC)

    def recall_critic(self, checkpoint: Path) -> None:
        """Read the critic and its optimiser again: whole in each process, whatever shares the policy."""
        state = torch.load(checkpoint / CRITIC, map_location="cpu", weights_only=True)
        self._critic.load_state_dict(state["critic"])
        self._critic_optimizer.load_state_dict(state["optimizer"])
