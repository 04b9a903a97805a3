"""Load and limits of the API teacher, on a clock of their own."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easydistill.teachers.openai.limits import BURST_SECONDS, RateLimits, TokenBucket
from easydistill.teachers.openai.window import LEAST, START, Window
from easydistill.teachers.sizes import TokenEstimator


def rounds(
    window: Window, count: int, refused: float = 0.0, seconds_of: Callable[[int], float] = lambda limit: 1.0
) -> None:
    """Rounds in which the limit is always used up; starts come too late for the rate to bound them."""
    chance, clock = random.Random(0), itertools.count()
    for _ in range(count):
        limit = max(window.limit, 16)
        numbers = [window.started(float(next(clock))) for _ in range(limit)]
        for number in numbers:
            if chance.random() < refused:
                window.refused(number)
            else:
                window.answered(number, seconds_of(window.limit), 10, window.limit)


def test_concurrency_doubles_until_the_ceiling() -> None:
    window = Window(256)
    assert window.limit == START
    rounds(window, 4)
    assert window.limit == 256


def test_concurrency_stays_at_the_ceiling_where_it_is_fixed() -> None:
    window = Window(50, adaptive=False)
    rounds(window, 5, refused=0.9)
    assert window.limit == 50


def test_a_round_of_refusals_halves_and_answers_add_one() -> None:
    window = Window(256)
    rounds(window, 4)
    rounds(window, 1, refused=1.0)
    assert window.limit == 128
    rounds(window, 3)
    assert window.limit == 131
    rounds(window, 20, refused=1.0)
    assert window.limit == LEAST


def test_some_refusals_at_any_load_are_tolerated() -> None:
    window = Window(256)
    rounds(window, 40, refused=0.15)
    assert window.limit == 256


def test_concurrency_rests_where_more_at_once_is_no_faster() -> None:
    """A server that works on 40 at once and queues the rest."""
    window = Window(512)
    rounds(window, 400, seconds_of=lambda limit: max(1.0, limit / 40))
    assert 40 <= window.limit <= 160


def test_concurrency_grows_where_each_is_slower_but_all_are_faster() -> None:
    """A batching server: seconds a token grow with the root of the batch."""
    window = Window(512)
    rounds(window, 1000, seconds_of=lambda limit: float(limit**0.5))
    assert window.limit > 256


def test_a_server_that_became_slower_is_learnt_anew() -> None:
    window = Window(256)
    rounds(window, 20)
    rounds(window, 100, seconds_of=lambda limit: 5.0)
    low = window.limit
    rounds(window, 100, seconds_of=lambda limit: 5.0)
    assert window.limit > low + 50 or window.limit == 256


def test_concurrency_that_is_not_used_does_not_grow() -> None:
    window = Window(256)
    for _ in range(1000):
        window.answered(window.started(0.0), 1.0, 10, 3)
    assert window.limit == START


@given(st.lists(st.tuples(st.sampled_from("arf"), st.integers(0, 300)), max_size=300), st.integers(1, 300))
def test_concurrency_stays_within_its_bounds(events: list[tuple[str, int]], ceiling: int) -> None:
    window, under_way, now = Window(ceiling), [], 0.0
    for kind, pending in events:
        now += window.delay(now)
        under_way.append(window.started(now))
        number = under_way.pop(pending % len(under_way)) if pending % 3 else under_way[0]
        if kind == "a":
            window.answered(number, 0.0, 0, pending)
        else:
            (window.refused if kind == "r" else window.failed)(number)
        assert 1 <= window.limit <= ceiling
        assert 0 <= window.delay(now) < math.inf


# --- starts -------------------------------------------------------------------------------------------------------


def test_a_server_that_names_a_moment_is_asked_nothing_before_it() -> None:
    window = Window(256)
    window.hold(1.0 + 20.0)
    window.hold(1.5 + 3.0)
    assert window.delay(2.0) == pytest.approx(19.0)
    assert window.delay(21.0) == 0


def test_there_is_no_pace_while_few_are_refused() -> None:
    window, now = Window(256), 0.0
    for number in range(1000):
        now += 0.001
        assert window.delay(now) == 0
        started = window.started(now)
        if number % 7 == 0:
            window.refused(started)
        else:
            window.answered(started, 0.001, 10, 1)


def test_after_a_round_of_refusals_starts_are_spread_over_the_time_of_an_answer() -> None:
    window, now = Window(256), 0.0
    rounds(window, 4)
    rounds(window, 1, refused=1.0)
    first = [window.started(now)]
    for _ in range(2 * 128):
        now += window.delay(now)
        first.append(window.started(now))
    assert now == pytest.approx(2.0, rel=0.02)  # 128 a second: as many as may be under way, a second each
    for number in first:
        window.answered(number, 1.0, 10, 64)
    assert window.limit == pytest.approx(128 * 1.05, abs=1)


@pytest.mark.parametrize("rate", [5.0, 100.0])
@pytest.mark.parametrize("retry_after", [True, False])
def test_starts_find_a_token_buckets_rate(rate: float, retry_after: bool) -> None:
    """60 clients that ask whenever they may: nearly all that the bucket allows, with few refusals in the long run."""
    window, bucket, now, taken, refused = Window(60), rate, 0.0, 0, [0, 0]
    at, free, under_way = 0.0, [0.0] * 60, list[tuple[float, int]]()
    heapq.heapify(free)
    while now < 300:
        now = max(now + 1e-4, heapq.heappop(free))
        while True:
            while under_way and (under_way[0][0] <= now or len(under_way) >= window.limit):
                pending = len(under_way)
                ended, number = heapq.heappop(under_way)
                now = max(now, ended)
                window.answered(number, 0.4, 10, pending)
            if not (wait := window.delay(now)):
                break
            now += wait
        bucket, at = min(rate, bucket + (now - at) * rate), now
        number = window.started(now)
        if bucket >= 1:
            bucket, taken = bucket - 1, taken + 1
            heapq.heappush(under_way, (now + 0.4, number))
            heapq.heappush(free, now + 0.4)
        else:
            refused[now > 60] += 1
            if retry_after:
                window.hold(now + (1 - bucket) / rate)
            window.refused(number)
            heapq.heappush(free, now + 0.3)
    assert taken >= 0.93 * min(rate * 300, 60 / 0.4 * 300)
    assert refused[1] <= 0.25 * taken


# --- the user's limits --------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.floats(1, 6000), st.lists(st.floats(0.001, 3), min_size=1, max_size=200))
def test_a_bucket_never_lets_more_through_than_its_rate(per_minute: float, gaps: list[float]) -> None:
    bucket, now, count, start = TokenBucket(per_minute), 0.0, 0, 0.0
    for gap in gaps:
        now += min(gap, bucket.delay(1, now) + gap / 100)
        if bucket.delay(1, now) == 0:
            bucket.take(1, now)
            count += 1
    allowed = per_minute / 60 * (now - start) + max(1.0, BURST_SECONDS * per_minute / 60)
    assert count <= allowed + 1e-3


def test_limits_are_spread_over_the_minute() -> None:
    limits, now, starts = RateLimits(60, None), 0.0, []
    while now < 30:
        now += limits.delay(0, now)
        limits.start(0, now)
        starts.append(now)
    assert min(b - a for a, b in itertools.pairwise(starts)) >= 0.99


def test_a_request_larger_than_the_burst_is_paid_off_afterwards() -> None:
    limits = RateLimits(None, 6000)
    limits.start(500, 0.0)
    assert limits.delay(500, 0.0) == pytest.approx(5.24, abs=0.05)
    limits.correct(500, 100, 0.0)
    assert limits.delay(500, 0.0) == pytest.approx(1.24, abs=0.05)


def test_token_estimates_learn_from_the_servers_counts() -> None:
    estimator = TokenEstimator(512)
    messages = [{"role": "user", "content": "x" * 400}]
    first = estimator.size(messages)
    assert (first.prompt, first.completion, first.worst_prompt, first.worst_completion) == (104, 512, 204, 512)
    for _ in range(10):
        estimator.learn(first, 204, 50)
    later = estimator.size(messages)
    assert (later.prompt, later.completion, later.worst_completion) == (204, 50, 512)
    assert later.worst_prompt >= later.prompt
    assert estimator.size([{"role": "user", "content": "中" * 100}]).prompt_bytes == 300
    assert estimator.size([{"role": "user", "content": [{"type": "text", "text": "abcd"}]}]).prompt_bytes == 4
