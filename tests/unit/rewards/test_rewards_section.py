"""The `rewards` section: each reward's own keys, mistakes explained, the sum, and what third parties add."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.rollouts import in_threads, rollout

import easydistill.rewards as rewards
from easydistill.config.job import JobConfig
from easydistill.config.load import load_config
from easydistill.contracts.reward import RewardConfig
from easydistill.errors import ConfigError, EasyDistillError
from easydistill.rewards import (
    REWARDS,
    UNJUDGED,
    RewardContext,
    Rollout,
    WeightedRewards,
    build,
    malformed,
    rewards_section,
)
from easydistill.rewards._weighted import close_all

Rewards: Any = rewards_section()


class Toy(JobConfig):
    """A job with rewards."""

    job_type: Literal["toy"]
    """Which job this is."""
    rewards: Rewards
    """What answers are worth."""


def section(written: Any) -> Any:
    job: Any = load_config({"job_type": "toy", "rewards": written}, lambda: {"toy": Toy}).job
    return job.rewards


def test_each_reward_has_its_own_keys() -> None:
    found = section({"verify": {}, "format": {"weight": 0.2, "style": "boxed"}, "length": None}).chosen()
    assert list(found) == ["format", "verify"]
    assert found["format"].weight == 0.2 and found["verify"].weight == 1.0
    assert type(found["verify"]) is REWARDS.module("verify").Config


@pytest.mark.parametrize(
    ("written", "path", "words"),
    [
        ({"verfy": {}}, "rewards.verfy", "verify"),
        ({"verify": {"weigth": 2}}, "rewards.verify.weigth", "weight"),
        ({"verify": {"pattern": "a"}}, "rewards.verify.pattern", "belongs in `rewards.format`"),
        ({"verify": {"weight": -1}}, "rewards.verify.weight", "at least 0"),
        ({"verify": {"weight": True}}, "rewards.verify.weight", "number"),
        ({"verify": {"right": True}}, "rewards.verify.right", "number"),
        ({"verify": 1}, "rewards.verify", "section"),
        ({}, "rewards", "there is no reward"),
        ({"verify": None}, "rewards", "there is no reward"),
        ({"verify": {"weight": 0}}, "rewards", "weight 0"),
        ({"verify": {"wrong": 1.0}}, "rewards.verify", "not more than"),
        ({"verify": {"strategies": []}}, "rewards.verify.strategies", "empty"),
        ({"verify": {"strategies": ["box"]}}, "rewards.verify.strategies.0|rewards.verify.strategies", "boxed"),
        ({"format": {}}, "rewards.format", "no form"),
        ({"format": {"style": "boxed", "pattern": "a"}}, "rewards.format", "both"),
        ({"format": {"style": "boxed", "seconds": 2}}, "rewards.format", "remove seconds"),
        ({"format": {"style": "box"}}, "rewards.format.style", 'did you mean "boxed"'),
        ({"format": {"pattern": "(a"}}, "rewards.format.pattern", "regular expression"),
        ({"length": {}}, "rewards.length", "every length"),
        ({"length": {"min_tokens": 3, "buffer": 2}}, "rewards.length", "without max_tokens"),
        ({"length": {"min_tokens": 9, "max_tokens": 10, "buffer": 4}}, "rewards.length", "no length"),
        ({"length": {"max_tokens": 10, "buffer": 11}}, "rewards.length", "no length"),
        ({"judge": {"low": 5, "high": 5}}, "rewards.judge", "not below"),
        ({"reward_model": {}}, "rewards.reward_model.model", "missing"),
        ({"teacher_kl": {"model": ""}}, "rewards.teacher_kl.model", "empty"),
        ({"code": {}}, "rewards.code", "allow_execution"),
        ({"code": {"allow_execution": False}}, "rewards.code", "allow_execution"),
    ],
)
def test_mistakes_are_told_where_they_are(written: Any, path: str, words: str) -> None:
    with pytest.raises(ConfigError) as told:
        section(written)
    issue = told.value.issues[0]
    assert issue.path in path.split("|")
    assert any(word in str(issue) for word in words.split("|")), str(issue)


def test_the_schema_knows_every_reward() -> None:
    keys = Toy.model_json_schema()["$defs"]["RewardsSection"]["properties"]
    assert set(keys) == set(REWARDS.names())
    assert all(key["description"] for key in keys.values())


def test_files_and_models_are_told_by_their_keys() -> None:
    found = section({"judge": {"prompt": "mine.txt"}, "teacher_kl": {"model": "t/"}, "reward_model": {"model": "r/"}})
    assert rewards.files(found) == {"judge.prompt": "mine.txt"}
    assert rewards.models(found) == {"teacher_kl.model": "t/", "reward_model.model": "r/"}
    assert found.needs_judge and not section({"verify": {}}).needs_judge


def test_what_only_steers_a_run_is_no_part_of_what_it_is() -> None:
    slow, fast = ({"verify": {"workers": n}, "teacher_kl": {"model": "t", "max_batch_tokens": n}} for n in (1, 8))
    assert section(slow).identity() == section(fast).identity()
    other = {**slow, "verify": {"workers": 1, "right": 2}}
    assert section(slow).identity() != section(other).identity()
    assert set(section(slow).identity()) == {"verify", "teacher_kl"}


def test_nothing_heavy_is_loaded_for_configs() -> None:
    heavy = ("torch", "transformers", "numpy", "openai", "jinja2", "math_verify", "pyarrow", "rich", "huggingface_hub")
    code = (
        "import sys\nfrom easydistill.rewards import rewards_section\n"
        "rewards_section().model_validate({'verify': {}, 'judge': {}, 'reward_model': {'model': 'x'}})\n"
        f"found = [name for name in {heavy!r} if name in sys.modules]\nassert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the sum ----------------------------------------------------------------------------------------------


class Says:
    """A reward that says what it is told."""

    def __init__(self, values: Sequence[float | None]) -> None:
        self.values, self.closed = list(values), 0

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return self.values

    def close(self) -> None:
        self.closed += 1


def test_the_sum_and_each_reward_by_name() -> None:
    combined = WeightedRewards(
        {"a": Says([1.0, None, None, 0.5]), "b": Says([2.0, 3.0, None, None]), "logged": Says([9.0, 9.0, 9.0, None])},
        {"a": 1.0, "b": 0.5, "logged": 0.0},
    )
    scored = combined.score([rollout("x")] * 4)
    assert scored.totals == [2.0, 1.5, None, 0.5]
    assert scored.by_reward["b"] == [2.0, 3.0, None, None]
    assert scored.summary() == {
        "reward": pytest.approx(4 / 3),
        "reward/abstained": 0.25,
        "reward/a": 0.75,
        "reward/a/abstained": 0.5,
        "reward/b": 2.5,
        "reward/b/abstained": 0.5,
        "reward/logged": 9.0,
        "reward/logged/abstained": 0.25,
    }


def test_where_nobody_says_anything_there_is_no_mean() -> None:
    combined = WeightedRewards({"a": Says([None])}, {"a": 1.0})
    assert combined([rollout("x")]) == [None]
    assert combined.score([rollout("x")]).summary() == {"reward/abstained": 1.0, "reward/a/abstained": 1.0}
    assert WeightedRewards({"a": Says([])}, {"a": 1.0}).score([]).summary() == {}


def test_what_an_answer_kept_from_being_judged_counts_as_the_lowest() -> None:
    combined = WeightedRewards(
        {"model": Says([-3.0, UNJUDGED, -1.0, None, UNJUDGED]), "verify": Says([0.0, 1.0, None, None, None])},
        {"model": 2.0, "verify": 1.0},
    )
    scored = combined.score([rollout("x")] * 5)
    assert scored.totals == [-6.0, -5.0, -2.0, None, -6.0]
    assert scored.by_reward["model"] == [-3.0, None, -1.0, None, None]
    assert scored.summary()["reward/model"] == -2.0
    assert scored.summary()["reward/model/abstained"] == pytest.approx(0.6)


def test_where_nobody_was_judged_escaping_brings_nothing() -> None:
    def totals(weight: float) -> list[float | None]:
        parts = {"model": Says([UNJUDGED, None, UNJUDGED]), "verify": Says([1.0, 1.0, None])}
        return WeightedRewards(parts, {"model": weight, "verify": 1.0})([rollout("x")] * 3)

    assert totals(1.0) == [None, 1.0, None]
    # What is only logged decides nothing.
    assert totals(0.0) == [1.0, 1.0, None]


judgements = st.one_of(st.none(), st.just(UNJUDGED), st.floats(-100, 100))


@given(st.lists(judgements, min_size=1, max_size=8), st.floats(0.01, 10))
def test_escaping_never_pays(given_: list[float | None], weight: float) -> None:
    totals = WeightedRewards({"a": Says(given_)}, {"a": weight})([rollout("x")] * len(given_))
    judged = [total for total, value in zip(totals, given_, strict=True) if value not in (None, UNJUDGED)]
    for total, value in zip(totals, given_, strict=True):
        if value == UNJUDGED:
            assert total == min((one for one in judged if one is not None), default=None)


values = st.one_of(st.none(), st.floats(-100, 100))


@given(st.lists(st.tuples(values, values), min_size=1, max_size=8), st.floats(0.01, 10), st.floats(0.01, 10))
def test_each_rollouts_total_depends_on_it_alone(rows: list[Any], first: float, second: float) -> None:
    weights = {"a": first, "b": second}

    def totals(kept: Sequence[Any]) -> list[float | None]:
        parts = {"a": Says([row[0] for row in kept]), "b": Says([row[1] for row in kept])}
        return WeightedRewards(parts, weights)([rollout("x")] * len(kept))

    together = totals(rows)
    assert together == [totals([row])[0] for row in rows]
    for total, row in zip(together, rows, strict=True):
        assert (total is None) == (row == (None, None))
        if total is not None:
            assert total == pytest.approx(first * (row[0] or 0) + second * (row[1] or 0))


@pytest.mark.parametrize("bad", [[1.0], [1.0, float("nan")], [float("inf"), 1.0]])
def test_a_reward_that_breaks_its_promise_is_named(bad: list[float | None]) -> None:
    with pytest.raises(EasyDistillError, match="mine"):
        WeightedRewards({"mine": Says(bad)}, {"mine": 1.0})([rollout("x")] * 2)


def test_all_are_closed_though_one_fails() -> None:
    class Breaks(Says):
        def close(self) -> None:
            raise OSError("stuck")

    first, last = Says([]), Says([])
    with pytest.raises(OSError, match="stuck"):
        close_all([first, Breaks([]), last])
    assert first.closed == last.closed == 1
    with WeightedRewards({"a": first}, {"a": 1.0}):
        pass
    assert first.closed == 2


# --- made from a config -----------------------------------------------------------------------------------


def test_a_section_is_built_and_used_in_threads() -> None:
    pytest.importorskip("math_verify", reason="needs the extra 'synth'")
    written = {"verify": {}, "format": {"weight": 0.5, "style": "boxed"}, "length": {"max_tokens": 4, "buffer": 2}}
    batch = [
        rollout(r"It is \boxed{42}.", answer="42"),
        rollout("It is 42.", answer="42", tokens=4),
        rollout("It is 41."),
    ]
    with build(section(written), RewardContext()) as combined:
        assert combined(batch) == [1.0, 0.0, -0.5]
        assert in_threads(combined, [batch, batch[::-1], batch]) == [
            [1.0, 0.0, -0.5],
            [-0.5, 0.0, 1.0],
            [1.0, 0.0, -0.5],
        ]


def test_rows_that_a_reward_cannot_read_are_told_before_training() -> None:
    found = section({"verify": {}, "code": {"allow_execution": True, "weight": 0}, "length": {"max_tokens": 9}})
    assert malformed(found, {}) is None
    assert malformed(found, {"answer": 42, "tests": ["assert f(1) == 2", {"stdout": "1"}]}) is None
    assert (
        malformed(found, {"answer": ["42"]})
        == "rewards.verify: the row's field 'answer' is a list, not text or a number"
    )
    assert str(malformed(found, {"answer": "42", "tests": "assert 1"})).startswith(
        "rewards.code: the row's field 'tests' does not contain tests: it is a str"
    )
    elsewhere = section({"verify": {"field": "key"}})
    assert malformed(elsewhere, {"answer": ["42"]}) is None
    assert "'key' is a dict" in str(malformed(elsewhere, {"key": {}}))
    assert malformed(section({"length": {"max_tokens": 9}}), {"answer": ["42"]}) is None


def test_what_was_made_is_closed_where_another_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Says([])
    monkeypatch.setattr(REWARDS.module("format"), "make", lambda config, context: made)
    with pytest.raises(ConfigError, match="there is no judge model"):
        build(section({"format": {"style": "boxed"}, "judge": {}}), RewardContext())
    assert made.closed == 1


def test_third_parties_add_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    class Config(RewardConfig):
        """How polite the answer is."""

        word: str = "please"
        """What counts."""

    class Polite(Says):
        def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
            return [float(self.word in item.text) for item in rollouts]

        word = ""

    def make(config: Config, context: RewardContext) -> Polite:
        reward = Polite([])
        reward.word = config.word
        return reward

    module: Any = ModuleType("polite_reward")
    module.Config, module.make = Config, make
    monkeypatch.setitem(sys.modules, "polite_reward", module)
    point = EntryPoint("politeness", "polite_reward", "easydistill.rewards")
    monkeypatch.setitem(REWARDS.__dict__, "_external", {"politeness": point})
    chosen = rewards_section().model_validate({"politeness": {"weight": 2, "word": "thanks"}})
    with build(chosen, RewardContext()) as combined:
        assert combined([rollout("thanks"), rollout("no")]) == [2.0, 0.0]


def test_every_reward_has_what_a_reward_needs() -> None:
    for name in REWARDS.names():
        module = REWARDS.module(name)
        make: Callable[..., Any] = module.make
        assert issubclass(module.Config, RewardConfig) and callable(make)
        assert all(field.description for field in module.Config.model_fields.values()), name
