"""PPO's arithmetic: rewards and advantages of tokens, the value's loss. Pure functions of tensors.

Shapes: B answers, T tokens (padded on the right); `mask_BT` is 1 on tokens of the answer, its end token included.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def token_rewards(score_B: Tensor, old_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """The reward of each token: −kl_coef (log π_old − log π_ref), plus the answer's score at its last token."""
    rewards_BT = -kl_coef * (old_BT - reference_BT) * mask_BT
    last_B = mask_BT.sum(1).long() - 1
    whole_B = last_B >= 0
    rows_B = torch.arange(len(score_B), device=score_B.device)[whole_B]
    rewards_BT[rows_B, last_B[whole_B]] += score_B[whole_B]
    return rewards_BT


def advantages(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16).

    δ_t = r_t + γ V_{t+1} − V_t,  A_t = δ_t + γ λ A_{t+1};  V and A are 0 after the answer's end.
    """
    found_BT = torch.zeros_like(rewards_BT)
    next_value_B = following_B = torch.zeros_like(rewards_BT[:, 0])
    for at in range(rewards_BT.shape[1] - 1, -1, -1):
        on_B = mask_BT[:, at].to(rewards_BT)
        delta_B = rewards_BT[:, at] + gamma * next_value_B - values_BT[:, at]
        following_B = (delta_B + gamma * lam * following_B) * on_B
        next_value_B = values_BT[:, at] * on_B
        found_BT[:, at] = following_B
    return found_BT


def alone(values: Tensor) -> Tensor:
    """What a process that trains alone takes from the others."""
    return values


def masked_mean(values_BT: Tensor, mask_BT: Tensor, total: Callable[[Tensor], Tensor] = alone) -> Tensor:
    """The mean over the answers' tokens; 0 if there are none.

    Args:
        total: the sum of a tensor over the processes that share the answers.
    """
    return total((values_BT * mask_BT).sum()) / total(mask_BT.sum()).clamp(min=1)


def whiten(values_BT: Tensor, mask_BT: Tensor, total: Callable[[Tensor], Tensor] = alone) -> Tensor:
    """Normalise to mean 0 and standard deviation 1 over the answers' tokens; padding becomes 0.

    Args:
        total: as for `masked_mean`.
    """
    mean = masked_mean(values_BT, mask_BT, total)
    variance = masked_mean((values_BT - mean) ** 2, mask_BT, total)
    return (values_BT - mean) * (variance + 1e-8).rsqrt() * mask_BT


def value_loss(values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float) -> Tensor:
    """½ Σ max((V − R)², (clip(V, V_old ± clip) − R)²) over the answers' tokens: PPO's usual value loss, summed."""
    clipped_BT = torch.maximum(torch.minimum(values_BT, old_BT + clip), old_BT - clip)
    worst_BT = torch.maximum((values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2)
    return 0.5 * (worst_BT * mask_BT).sum()


def explained_variance(
    values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, joined: Callable[[Tensor], Tensor] = alone
) -> float | None:
    """1 − Var(R − V) / Var(R) over the answers' tokens: 1 for a perfect critic, 0 for an uninformed one.

    Args:
        joined: the rows of a tensor of all processes that share the answers.
    """
    keep_BT = mask_BT.bool()
    returns_N, errors_N = joined(returns_BT[keep_BT]), joined((returns_BT - values_BT)[keep_BT])
    if len(returns_N) < 2 or not float(returns_N.var()) > 0:
        return None
    return float(1 - errors_N.var() / returns_N.var())
