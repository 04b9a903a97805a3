"""ROUGE-L: the F-measure of the longest common subsequence of two lists of tokens (Lin, 2004)."""

from __future__ import annotations

from collections.abc import Sequence

from easydistill.errors import MissingExtra


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """2·LCS / (m + n) of two lists with m and n tokens; 0 if either is empty.

    Raises:
        MissingExtra: rapidfuzz, which the extras `train` and `synth` bring, is not installed.
    """
    try:
        from rapidfuzz.distance import LCSseq
    except ImportError:
        raise MissingExtra("synth", "ROUGE-L") from None
    if not first or not second:
        return 0.0
    return 2 * LCSseq.similarity(first, second) / (len(first) + len(second))
