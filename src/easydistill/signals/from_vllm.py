"""Signals from vLLM's offline engine: the log-probabilities that it returns for a prompt's tokens.

The engine gets each row's token ids as a prompt and returns the k most probable tokens at every position
(`prompt_logprobs`); the one token that it must generate is discarded. So only `top_k` signals are possible, at
temperature 1.

vLLM's softmax covers all rows of the output layer, padding included, and k of them (and the target token) are returned.
Padding ids among these are left out, and the others are divided by the remaining mass. The mass of unlisted padding
stays in the rest: each such token is less probable than the k-th listed one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from easydistill.errors import DataError, MissingExtra, TeacherError
from easydistill.models.loading import choose_dtype, device
from easydistill.models.reference import model_directory, resolve
from easydistill.models.vllm import engine_prompt, load_engine, prepare_environment, tensor_parallel_size
from easydistill.signals.codec import Codec
from easydistill.signals.config import TopKSignals
from easydistill.signals.score import RowToScore, batch_tokens
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import ScoredSample

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision


def codec_of(config: TopKSignals, vocabulary: int) -> Codec:
    """The encoding of these signals: if padding is listed, fewer than k entries remain."""
    return Codec(vocabulary, head=-1, most=min(config.k, vocabulary), draws=0)


class VllmScorer:
    """Scores rows with vLLM on this machine's devices.

    Args:
        reference: the teacher, with the student's vocabulary.
        vocabulary: token ids below this are real for teacher and student.
        longest: tokens of the longest row.
        vision: what it sees of images.

    Raises:
        MissingExtra: vLLM is not installed.
        TeacherError: vLLM cannot load the model for rows of this length.
    """

    def __init__(
        self,
        reference: str,
        config: TopKSignals,
        vocabulary: int,
        longest: int,
        *,
        trust_remote_code: bool = False,
        vision: Vision | None = None,
    ) -> None:
        self._vision = vision
        self._k = min(config.k, vocabulary)
        self._vocabulary = vocabulary
        self._llm: Any = _engine(reference, config, self._k, longest, trust_remote_code)

    def score(self, rows: Sequence[RowToScore]) -> list[ScoredSample]:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=self._k, detokenize=False)
        outputs = self._llm.generate([self._prompt(row) for row in rows], params, use_tqdm=False)
        for row, output in zip(rows, outputs, strict=True):
            if row.images and list(output.prompt_token_ids) != [*map(int, row.read_ids)]:
                raise TeacherError(_other_tokens(row))
        return [
            ScoredSample(
                row.id,
                row.ids,
                row.learned,
                self._signal(row, output.prompt_logprobs),
                _all_of(row),
                row.images,
                row.read,
            )
            for row, output in zip(rows, outputs, strict=True)
        ]

    def _prompt(self, row: RowToScore) -> dict[str, Any]:
        if not row.images:
            return {"prompt_token_ids": [*map(int, row.read_ids)]}
        assert self._vision is not None, "rows with images are refused for a teacher of text"
        try:
            return engine_prompt(self._vision, self._vision.marked(row.read_ids, row.images), row.images)
        except DataError as error:
            raise TeacherError(f"{_other_tokens(row)} ({error})") from error

    def _signal(self, row: RowToScore, places: Sequence[Mapping[int, Any] | None]) -> TeacherSignal:
        """Signals of a row's learned tokens; `places[t]` describes the distribution that predicts token t."""
        learned = np.flatnonzero(np.asarray(row.read_learned))
        head_ids_NK = np.zeros((len(learned), self._k), np.int64)
        head_NK = np.full((len(learned), self._k), -np.inf)
        target_logprob_N = np.zeros(len(learned))
        for n, t in enumerate(learned):
            entries = places[t]
            assert entries is not None, "the first token is never learned"
            ids, logprobs = real_entries(entries, self._vocabulary)
            target_logprob_N[n] = logprobs[ids == row.read_ids[t]][0]
            top = np.argsort(-logprobs, kind="stable")[: self._k]
            head_ids_NK[n, : len(top)], head_NK[n, : len(top)] = ids[top], logprobs[top]
        with np.errstate(divide="ignore"):
            log_rest_N = np.log1p(-np.minimum(np.exp(head_NK).sum(-1), 1.0))
        return TeacherSignal.without_draws(head_ids_NK, head_NK, log_rest_N, target_logprob_N)

    def close(self) -> None:
        self._llm = None


def real_entries(entries: Mapping[int, Any], vocabulary: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(ids, log-probabilities) of a position's real listed tokens, normalised as if listed padding had no mass.

    Args:
        entries: token id → something with a `logprob`, in nats, as vLLM gives them.
    """
    ids = np.fromiter(entries, np.int64, len(entries))
    logprobs = np.array([entry.logprob for entry in entries.values()], np.float64)
    real = ids < vocabulary
    padding = min(float(np.exp(logprobs[~real]).sum()), 1.0 - 1e-12)
    return ids[real], logprobs[real] - np.log1p(-padding)


def _other_tokens(row: RowToScore) -> str:
    other = "the student" if row.read is None else "transformers"
    return (
        f"vLLM reads the images of row {row.id} as other tokens than {other}\n"
        '    → set signals.backend to "transformers"'
    )


def _all_of(row: RowToScore) -> np.ndarray[Any, Any]:
    return np.ones(row.learned_tokens, bool)


def _engine(reference: str, config: TopKSignals, k: int, longest: int, trust_remote_code: bool) -> Any:
    on = device()
    on_cpu = on.type == "cpu"
    prepare_environment(on_cpu=on_cpu)
    try:
        from vllm import LLM
    except ImportError:
        raise MissingExtra("vllm", "signals.backend=vllm") from None
    # One token more than the row: vLLM cannot score without generating.
    room = longest + 1
    options: dict[str, Any] = {
        "model": model_directory(resolve(reference)),
        "seed": config.seed,
        "dtype": str(choose_dtype(config.dtype, on)).removeprefix("torch."),
        "trust_remote_code": trust_remote_code,
        "enforce_eager": on_cpu,
        "max_model_len": room,
        "max_num_batched_tokens": max(room, batch_tokens(config)),
        "max_logprobs": k,
        "tensor_parallel_size": tensor_parallel_size(on_cpu=on_cpu),
        # A prompt in the prefix cache has no log-probabilities.
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }
    try:
        return load_engine(LLM, reference, options)
    except (ValueError, RuntimeError, OSError) as error:
        raise TeacherError(
            f"vLLM cannot load {reference} for rows of {longest} tokens: {str(error).splitlines()[0]}"
        ) from error
