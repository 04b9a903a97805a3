"""Softmax of a slice of logits and its gradient in plain PyTorch: the reference, and what runs without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from easydistill.kernels.head_pass import HeadPass, HeadSlice


class TorchRows:
    """The log-probabilities of a slice's rows, and the way from their gradient to that of the head.

    Args:
        temperature: of the second distribution, which is over real tokens.
        real: token ids below this are real, the head's other rows padding; None for all.
    """

    def __init__(self, head_pass: HeadPass, part: HeadSlice, temperature: float = 1.0, real: int | None = None) -> None:
        self._head_pass, self._part = head_pass, part
        self._real = min(real or part.logits_NV.shape[1], part.logits_NV.shape[1])
        self.logprobs_NV = head_pass.log_softmax(part.logits_NV, "logprobs")
        self._one_softmax = temperature == 1.0
        if self._one_softmax:
            padding_NP = self.logprobs_NV[:, self._real :]
            self._log_real_N1 = torch.log1p(-padding_NP.exp().sum(-1, keepdim=True).clamp_max(1 - 1e-6))
            self._soft_NV = self.logprobs_NV[:, : self._real]
        else:
            self._log_real_N1 = torch.zeros_like(self.logprobs_NV[:, :1])
            real_NV = part.logits_NV[:, : self._real]
            self._soft_NV = head_pass.log_softmax(real_NV, "soft_logprobs", temperature)

    def top(self, count: int) -> Tensor:
        """Ids [n, count] of the most probable real tokens, most probable first."""
        return self._soft_NV.topk(count).indices

    def at(self, ids_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of some ids: over the whole head; over real tokens, at the temperature."""
        logprobs_NC = self.logprobs_NV.gather(1, ids_NC)
        soft_NC = logprobs_NC if self._one_softmax else self._soft_NV.gather(1, ids_NC)
        return logprobs_NC, soft_NC - self._log_real_N1

    def everywhere(self) -> Tensor:
        """Log-probabilities [n, real] of all real tokens, at the temperature."""
        return self._soft_NV - self._log_real_N1

    def propagate_labels(self, label_N1: Tensor) -> None:
        """Propagate the gradient of the summed cross-entropy. The log-probabilities are overwritten."""
        dlogits_NV = self.logprobs_NV.exp_()
        dlogits_NV.scatter_add_(1, label_N1, torch.full_like(label_N1, -1, dtype=self._head_pass.exact))
        self._head_pass.add(self._part, dlogits_NV)

    def propagate(self, ids_NC: Tensor, special_NC: Tensor, share_N1: Tensor, everywhere_N1: Tensor) -> None:
        """Propagate ∂loss/∂z: the row's multiples of both softmaxes, but `special_NC` at some ids.

        These few values are overwritten, not added to, because a token may be in several columns. The
        log-probabilities are overwritten.
        """
        dlogits_NV = self.logprobs_NV.exp_()
        if self._one_softmax:
            dlogits_NV[:, : self._real] *= share_N1 + everywhere_N1 * (-self._log_real_N1).exp()
            dlogits_NV[:, self._real :] *= share_N1
        else:
            dlogits_NV *= share_N1
            dlogits_NV[:, : self._real] += self._soft_NV.exp_().mul_(everywhere_N1)
        self._head_pass.add(self._part, dlogits_NV.scatter_(1, ids_NC, special_NC))

    def propagate_whole(self, whole_NV: Tensor, label_N1: Tensor, share_N1: Tensor) -> None:
        """Propagate the gradient of cross-entropy, `share_N1` of it, and ∂loss/∂z of real tokens."""
        dlogits_NV = self.logprobs_NV.exp() * share_N1
        dlogits_NV.scatter_add_(1, label_N1, -share_N1)
        dlogits_NV[:, : self._real] += whole_NV
        self._head_pass.add(self._part, dlogits_NV)
