"""Signals from vLLM's offline engine: the log-probabilities it gives of a prompt's tokens.

The engine is handed each row's token ids as a prompt and asked for the k most probable tokens in every place of it
(`prompt_logprobs`); the one token that it must generate is thrown away. So there are `top_k` signals alone, at
temperature 1.

vLLM's softmax is over all rows of the output layer, padding included, and tells of k of them (and of the realised
token). Where ids that are not real are among these, they are left out and the others divided by what remains. The mass
of padding that is not listed stays in the rest: what one such token has is below the k-th listed probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from easydistill.errors import MissingExtra, TeacherError
from easydistill.models.loading import choose_dtype, device
from easydistill.models.reference import model_directory, resolve
from easydistill.models.vllm import prepare_environment, tensor_parallel_size
from easydistill.signals.codec import Codec
from easydistill.signals.config import TopKSignals
from easydistill.signals.score import RowToScore
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import ScoredSample


def codec_of(config: TopKSignals, vocabulary: int) -> Codec:
    """How these signals are written: where padding is listed, fewer than k entries remain."""
    return Codec(vocabulary, head=-1, most=min(config.k, vocabulary), draws=0)


class VllmScorer:
    """Scores with vLLM on this machine's devices.

    Args:
        reference: the teacher; it has the student's vocabulary.
        vocabulary: token ids below this are real for teacher and student.
        longest: tokens of the longest row.

    Raises:
        MissingExtra: vLLM is not installed.
        TeacherError: vLLM cannot load the model, or not for rows of such a length.
    """

    def __init__(
        self,
        reference: str,
        config: TopKSignals,
        vocabulary: int,
        longest: int,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        self._k = min(config.k, vocabulary)
        self._vocabulary = vocabulary
        self._llm: Any = _engine(reference, config, self._k, longest, trust_remote_code)

    def score(self, rows: Sequence[RowToScore]) -> list[ScoredSample]:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=self._k, detokenize=False)
        prompts = [{"prompt_token_ids": list(row.ids)} for row in rows]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [
            ScoredSample(row.id, row.ids, row.learned, self._signal(row, output.prompt_logprobs), _all_of(row))
            for row, output in zip(rows, outputs, strict=True)
        ]

    def _signal(self, row: RowToScore, places: Sequence[Mapping[int, Any] | None]) -> TeacherSignal:
        """Signals of a row's learned tokens; `places[t]` tells of what token t was drawn from."""
        learned = np.flatnonzero(np.asarray(row.learned))
        head_ids_NK = np.zeros((len(learned), self._k), np.int64)
        head_NK = np.full((len(learned), self._k), -np.inf)
        realised_N = np.zeros(len(learned))
        for n, t in enumerate(learned):
            entries = places[t]
            assert entries is not None, "the first token is never learned"
            ids, logprobs = real_entries(entries, self._vocabulary)
            realised_N[n] = logprobs[ids == row.ids[t]][0]
            top = np.argsort(-logprobs, kind="stable")[: self._k]
            head_ids_NK[n, : len(top)], head_NK[n, : len(top)] = ids[top], logprobs[top]
        with np.errstate(divide="ignore"):
            log_rest_N = np.log1p(-np.minimum(np.exp(head_NK).sum(-1), 1.0))
        none_ND = np.zeros((len(learned), 0), np.int64)
        return TeacherSignal(
            head_ids_NK=head_ids_NK,
            head_logprobs_NK=head_NK.astype(np.float32),
            log_rest_N=log_rest_N.astype(np.float32),
            draw_ids_ND=none_ND,
            draw_counts_ND=none_ND,
            draws=0,
            fixed=False,
            realised_N=realised_N.astype(np.float32),
            entropy_N=np.full(len(learned), np.nan, np.float32),
        )

    def close(self) -> None:
        self._llm = None


def real_entries(entries: Mapping[int, Any], vocabulary: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(ids, log-probabilities) of a place's listed tokens that are real, as if those listed that are not had no mass.

    Args:
        entries: token id → something with a `logprob`, in nats, as vLLM gives them.
    """
    ids = np.fromiter(entries, np.int64, len(entries))
    logprobs = np.array([entry.logprob for entry in entries.values()], np.float64)
    real = ids < vocabulary
    padding = min(float(np.exp(logprobs[~real]).sum()), 1.0 - 1e-12)
    return ids[real], logprobs[real] - np.log1p(-padding)


def _all_of(row: RowToScore) -> np.ndarray[Any, Any]:
    return np.ones(sum(row.learned), bool)


def _engine(reference: str, config: TopKSignals, k: int, longest: int, trust_remote_code: bool) -> Any:
    on = device()
    on_cpu = on.type == "cpu"
    prepare_environment(on_cpu=on_cpu)
    try:
        from vllm import LLM
    except ImportError:
        raise MissingExtra("vllm", "signals.backend=vllm") from None
    # One token more than the row: it cannot score without generating.
    room = longest + 1
    options: dict[str, Any] = {
        "model": model_directory(resolve(reference)),
        "seed": config.seed,
        "dtype": str(choose_dtype(config.dtype, on)).removeprefix("torch."),
        "trust_remote_code": trust_remote_code,
        "enforce_eager": on_cpu,
        "max_model_len": room,
        "max_num_batched_tokens": max(room, config.max_batch_tokens),
        "max_logprobs": k,
        "tensor_parallel_size": tensor_parallel_size(on_cpu=on_cpu),
        # What was computed before is not told again: a cached prompt has no log-probabilities.
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }
    try:
        return LLM(**options)
    except (ValueError, RuntimeError, OSError) as error:
        raise TeacherError(
            f"vLLM cannot load {reference} for rows of {longest} tokens: {str(error).splitlines()[0]}"
        ) from error
