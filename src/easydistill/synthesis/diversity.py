"""Diversity metrics of a set of texts: distinct n-grams, self-BLEU, similarity to the seeds, lengths.

All are computed on the tokens of `text.tokens`: words, and single characters of scripts without spaces.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from easydistill.data.records import Sample, draw_key
from easydistill.data.rouge import rouge_l
from easydistill.synthesis.images import words_of
from easydistill.synthesis.text import language_of, ngrams, tokens

BLEU_ORDER = 4
MOST_TEXTS = 20_000
"""Maximum number of texts that are measured: what they take in memory is what all their n-grams take."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Diversity:
    """Metrics of a set of texts; None where there are too few texts to compute one."""

    texts: int
    languages: dict[str, int]
    """Number of Chinese texts (`zh`) and of all others (`en`)."""
    distinct: dict[int, float | None]
    """By n: distinct n-grams as a share of all n-grams of all texts (Li et al. 2016). Falls as sets grow: compare sets
    of equal size."""
    self_bleu: float | None
    """Mean BLEU-4 of a sampled text against the other sampled ones (Zhu et al. 2018), 0–1. Lower is more diverse."""
    seed_similarity: dict[str, float] | None
    """Quantiles, over the sampled texts, of the largest ROUGE-L F-measure to any seed, 0–1."""
    lengths: dict[str, float] | None
    """Quantiles of the number of tokens."""
    sampled: int
    """Number of texts that self-BLEU and seed similarity were computed on."""

    def as_facts(self) -> dict[str, Any]:
        """The metrics as JSON types."""
        return {**asdict(self), "distinct": {str(order): share for order, share in self.distinct.items()}}


def diversity(rows: Sequence[Sample], seeds: Sequence[Sample] = ()) -> dict[str, Any]:
    """Metrics of the rows' prompts, as JSON types; raises as `measure`.

    Of more than `MOST_TEXTS` rows, so many are drawn by hash and measured; the metrics' `of` is the number of all.
    """
    drawn = heapq.nsmallest(MOST_TEXTS, ((draw_key(0, row.id), number) for number, row in enumerate(rows)))
    chosen = (rows[number] for number in sorted(number for _, number in drawn))
    facts = measure({row.id: words_of(row) for row in chosen}, [words_of(row) for row in seeds]).as_facts()
    return facts | ({"of": len(rows)} if len(rows) > MOST_TEXTS else {})


def measure(texts: Mapping[str, str], seeds: Sequence[str] = (), *, sample: int = 500, seed: int = 0) -> Diversity:
    """Measure a set of texts.

    Args:
        texts: texts by row id. The ids and `seed` decide which texts are sampled; the order has no effect.
        seeds: texts that these were made from, if any.
        sample: number of texts for the pairwise metrics, whose cost grows with this times the number of seeds.

    Raises:
        MissingExtra: there are seeds, and `synth` is not installed.
    """
    units = {identity: tokens(text) for identity, text in texts.items()}
    chosen = [units[identity] for identity in sampled(list(units), sample, seed)]
    origins = [tokens(text) for text in seeds]
    nearest = [max(rouge_l(ours, theirs) for theirs in origins) for ours in chosen] if origins else []
    return Diversity(
        texts=len(texts),
        languages=dict(sorted(Counter(map(language_of, texts.values())).items())),
        distinct={order: distinct(list(units.values()), order) for order in (1, 2, 3)},
        self_bleu=self_bleu(chosen),
        seed_similarity=quantiles(nearest),
        lengths=quantiles([len(each) for each in units.values()]),
        sampled=len(chosen),
    )


def sampled(identities: Sequence[str], count: int, seed: int) -> list[str]:
    """At most `count` ids, drawn by hash: independent of their order, and mostly stable as a set grows."""
    return sorted(identities, key=lambda identity: draw_key(seed, identity))[:count]


def distinct(texts: Sequence[Sequence[str]], order: int) -> float | None:
    """Distinct n-grams as a share of all (Li et al. 2016, arXiv 1510.03055); None if there is no n-gram."""
    total, different = 0, set[tuple[str, ...]]()
    for units in texts:
        total += max(0, len(units) - order + 1)
        different.update(ngrams(units, order))
    return len(different) / total if total else None


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """Mean BLEU-4 of each text with all the others as references (Zhu et al. 2018, arXiv 1802.01886).

    BLEU as in Papineni et al. (2002); an order without matches counts as 0.1 matches (Chen & Cherry 2014, method 1).
    Texts without tokens are ignored; None if fewer than two texts remain.
    """
    texts = [units for units in texts if units]
    if len(texts) < 2:
        return None
    counts = [[Counter(ngrams(units, order)) for units in texts] for order in range(1, BLEU_ORDER + 1)]
    most = [_two_largest(of_order) for of_order in counts]
    lengths = Counter(len(units) for units in texts)
    total = 0.0
    for number, units in enumerate(texts):
        logs = 0.0
        orders = min(BLEU_ORDER, len(units))
        for order in range(orders):
            ours = counts[order][number]
            matched = sum(min(count, _among_others(most[order][run], count)) for run, count in ours.items())
            logs += math.log(max(matched, 0.1) / sum(ours.values()))
        lengths[len(units)] -= 1
        total += math.exp(logs / orders) * _brevity(len(units), lengths)
        lengths[len(units)] += 1
    return total / len(texts)


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Minimum, 5th, 25th, 50th, 75th and 95th percentile, maximum, by linear interpolation; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    found = {}
    for share in QUANTILES:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        value = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
        found[f"p{round(100 * share)}"] = round(float(value), 4)
    return found


def _two_largest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int]]:
    """The two largest counts of each n-gram in any text: enough to leave one text out, see `_among_others`."""
    largest: dict[tuple[str, ...], tuple[int, int]] = {}
    for counter in counts:
        for run, count in counter.items():
            first, second = largest.get(run, (0, 0))
            largest[run] = (count, first) if count > first else (first, max(second, count))
    return largest


def _among_others(largest: tuple[int, int], own: int) -> int:
    """The largest count in any other text: the second largest if this text has the largest."""
    return largest[1] if own == largest[0] else largest[0]


def _brevity(length: int, others: Counter[int]) -> float:
    """BLEU's penalty for a text shorter than the reference nearest in length (the shorter of two)."""
    nearest = min((other for other, count in others.items() if count), key=lambda other: (abs(other - length), other))
    return 1.0 if length >= nearest else math.exp(1 - nearest / length)
