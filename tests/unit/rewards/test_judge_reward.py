"""`judge`: a strict score or none, each question asked and paid for once, and a round judged whole."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.rollouts import in_threads, rollout
from tests.support.scripted_server import ScriptedServer

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome, RecordOutcomes
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.errors import ConfigError, DataError, TeacherError
from easydistill.rewards import UNJUDGED, Reward, RewardContext
from easydistill.rewards.judge import Config, language_of, make
from easydistill.teachers.openai.teacher import OpenAITeacher


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    opened = ScriptedServer()
    yield opened
    opened.close()


def asking(server: ScriptedServer, config: Config) -> Reward:
    inference = ApiInferenceConfig.model_validate({"base_url": server.url, "api_key": "k", "model": "m"})
    return make(config, RewardContext(judge=OpenAITeacher(inference, Redactor())))


class Scripted:
    """A teacher in this process that says what a function says of a prompt's text."""

    def __init__(self, say: Callable[[str], Outcome | str | None]) -> None:
        self.say, self.asked = say, 0

    def identity(self) -> dict[str, Any]:
        return {"model": "scripted"}

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        for request in requests:
            if stop.requested:
                return
            if not done(request.key):
                self.asked += 1
                said = self.say(request.messages[-1]["content"])
                record([said if isinstance(said, Completion | Failure) else Completion(request.key, said)])

    def close(self) -> None:
        raise AssertionError("the teacher belongs to whoever made it")


def test_scores_through_a_real_api(server: ScriptedServer) -> None:
    replies = {"good": "<score>9</score>", "fair": "Hm. <score>3</score>", "bad": "<score>0</score>"}
    server.say = lambda text, number: next((said for word, said in replies.items() if f"{word} answer" in text), "7")
    reward = asking(server, Config())
    batch = [rollout(f"a {word} answer") for word in ("good", "fair", "bad", "strange", "good")]
    assert reward(batch) == [1.0, pytest.approx(1 / 3), 0.0, UNJUDGED, 1.0]
    assert len(server.asked) == 4
    assert in_threads(reward, [batch, batch[:2], batch[3:]]) == [
        [1.0, pytest.approx(1 / 3), 0.0, UNJUDGED, 1.0],
        [1.0, pytest.approx(1 / 3)],
        [UNJUDGED, 1.0],
    ]
    assert len(server.asked) == 4
    assert "user: What is 6 times 7?" in server.asked[0] and "an integer from 0 to 9" in server.asked[0]
    reward.close()


def test_json_replies_have_their_schema(server: ScriptedServer) -> None:
    server.say = lambda text, number: json.dumps({"score": 4})
    reward = asking(server, Config(reply="json", low=2, high=6))
    assert reward([rollout("x")]) == [0.5]


@pytest.mark.parametrize(
    "said",
    [
        None,
        "",
        "9",
        "<score>10</score>",
        "<score>-1</score>",
        "<score>nine</score>",
        "<score>7.5</score>",
        "<score>7",
        "<score>1</score><score>2</score>",
        "Score: 7",
    ],
)
def test_what_does_not_parse_is_no_score(said: str | None) -> None:
    assert make(Config(), RewardContext(judge=Scripted(lambda text: said)))([rollout("x")]) == [UNJUDGED]


@given(st.text(max_size=40), st.integers(0, 5), st.integers(1, 5))
def test_no_reply_brings_a_score_outside_the_range(reply: str, low: int, wide: int) -> None:
    for said in (reply, f"<score>{reply}</score>"):
        (value,) = make(Config(low=low, high=low + wide), RewardContext(judge=Scripted(lambda text, said=said: said)))(
            [rollout("x")]
        )
        assert value == UNJUDGED or (value is not None and 0.0 <= value <= 1.0 and said.strip() != "")


def test_a_reply_that_was_cut_off_is_no_score() -> None:
    cut = Completion("", "<score>9</score>", finish_reason="length")
    teacher = Scripted(lambda text: "<score>9</score>")
    assert make(Config(), RewardContext(judge=teacher))([rollout("x")]) == [1.0]

    class Cut(Scripted):
        def generate(self, requests: Any, done: Any, record: Any, stop: Any) -> None:
            record([Completion(requests[0].key, cut.text, finish_reason="length")])

    assert make(Config(), RewardContext(judge=Cut(lambda text: None)))([rollout("x")]) == [UNJUDGED]


@pytest.mark.parametrize(("passing", "asked", "value"), [(True, 2, None), (False, 1, UNJUDGED)])
def test_passing_failures_abstain_and_are_tried_again(passing: bool, asked: int, value: float | None) -> None:
    class Fails(Scripted):
        def generate(self, requests: Any, done: Any, record: Any, stop: Any) -> None:
            if not done(requests[0].key):
                self.asked += 1
                record([Failure(requests[0].key, "timeout", "late", 1, passing=passing)])

    teacher = Fails(lambda text: None)
    reward = make(Config(), RewardContext(judge=teacher))
    assert reward([rollout("x")]) == [value]
    assert reward([rollout("x")]) == [value]
    assert teacher.asked == asked


def test_a_killed_run_pays_once(tmp_path: Path) -> None:
    """The first run is killed in the middle of a round; what it was told is in the journal before anything reads it."""
    journal = tmp_path / "judge.jsonl"
    batch = [rollout("good"), rollout("strange"), rollout("late")]

    class Killed(BaseException):
        """Not an error that anybody catches."""

    def say(text: str) -> str:
        if "late" in text:
            raise Killed
        return "no score" if "strange" in text else "<score>9</score>"

    def judging(teacher: Scripted, **values: Any) -> contextlib.closing[Reward]:
        return contextlib.closing(make(Config(**values), RewardContext(judge=teacher, journal=journal)))

    with judging(Scripted(say)) as reward, pytest.raises(Killed):
        reward(batch)
    second, third = Scripted(lambda text: "<score>0</score>"), Scripted(lambda text: None)
    with judging(second) as reward:
        assert reward(batch) == [1.0, UNJUDGED, 0.0]
    assert second.asked == 1
    with judging(third) as reward:
        assert reward(batch) == [1.0, UNJUDGED, 0.0]
    assert third.asked == 0
    # Another scale is another question.
    with judging(third, high=3) as reward:
        assert reward(batch) == [UNJUDGED] * 3
    assert third.asked == 3


def test_what_failed_for_a_passing_reason_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    class Fails(Scripted):
        def generate(self, requests: Any, done: Any, record: Any, stop: Any) -> None:
            record([Failure(requests[0].key, "timeout", "late", 1, passing=True)])

    for teacher, value in ((Fails(lambda text: None), None), (Scripted(lambda text: "<score>9</score>"), 1.0)):
        context = RewardContext(judge=teacher, journal=tmp_path / "judge.jsonl")
        with contextlib.closing(make(Config(), context)) as reward:
            assert reward([rollout("x")]) == [value]


def test_the_system_prompt_comes_first() -> None:
    seen: list[GenerationRequest] = []

    class Keeps(Scripted):
        def generate(self, requests: Any, done: Any, record: Any, stop: Any) -> None:
            seen.extend(requests)
            super().generate(requests, done, record, stop)

    teacher = Keeps(lambda text: "<score>9</score>")
    for told in (None, "Be severe."):
        assert make(Config(), RewardContext(judge=teacher, judge_system_prompt=told))([rollout("x")]) == [1.0]
    plain, told_first = (request.messages for request in seen)
    assert told_first == ({"role": "system", "content": "Be severe."}, *plain)
    assert seen[0].key != seen[1].key


def test_a_teacher_that_gives_up_is_heard_and_what_it_said_is_kept() -> None:
    broken = [True]

    def say(text: str) -> str:
        if "answer two" in text and broken:
            raise TeacherError("no such model")
        return "<score>9</score>"

    teacher = Scripted(say)
    reward = make(Config(), RewardContext(judge=teacher))
    with pytest.raises(TeacherError, match="no such model"):
        reward([rollout("answer one"), rollout("answer two")])
    broken.clear()
    assert reward([rollout("answer one"), rollout("answer two")]) == [1.0, 1.0]
    assert teacher.asked == 3


def test_the_prompts_language_is_that_of_the_question() -> None:
    seen: list[str] = []

    def say(text: str) -> str:
        seen.append(text)
        return "<score>9</score>"

    context = RewardContext(judge=Scripted(say))
    make(Config(), context)([rollout("四十二", asked="六乘七等于多少？"), rollout("forty-two", ended=False)])
    make(Config(language="en"), context)([rollout("四十二", asked="六乘七等于多少？")])
    assert seen[0].startswith("请评价一个回答") and "0 到 9 之间的整数" in seen[0] and "截断" not in seen[0]
    assert seen[1].startswith("Judge an answer") and "cut off" in seen[1]
    assert seen[2].startswith("Judge an answer") and "cut off" not in seen[2]
    assert language_of([{"role": "system", "content": "中文" * 9}, {"role": "user", "content": "Hi"}]) == "en"


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("{{ meta.known }} {{ answer }} {{ language }} {{ low }}-{{ high }} {{ form }}")
    seen: list[str] = []

    def say(text: str) -> str:
        seen.append(text)
        return "<score>1</score>"

    reward = make(Config(prompt=str(path), high=1), RewardContext(judge=Scripted(say)))
    assert reward([rollout("six", known="7")]) == [1.0]
    assert seen[0].startswith("7 six en 0-1 Reply in exactly this form")
    with pytest.raises(DataError, match="known"):
        reward([rollout("six")])


def test_a_prompt_cannot_reach_into_python(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("{{ answer.__class__.__mro__ }}")
    reward = make(Config(prompt=str(path)), RewardContext(judge=Scripted(lambda text: "")))
    with pytest.raises(DataError, match="unsafe"):
        reward([rollout("x")])


def test_what_cannot_be_used_is_reported_before_anything_is_asked(tmp_path: Path) -> None:
    context = RewardContext(judge=Scripted(lambda text: ""))
    with pytest.raises(ConfigError, match="there is no judge model"):
        make(Config(), RewardContext())
    with pytest.raises(ConfigError, match=r"rewards\.judge\.prompt.*cannot be read"):
        make(Config(prompt=str(tmp_path / "nowhere.txt")), context)
    (tmp_path / "bad.txt").write_text("a\n{% if %}")
    with pytest.raises(ConfigError, match=r"bad\.txt: line 2"):
        make(Config(prompt=str(tmp_path / "bad.txt")), context)


def test_a_secret_that_the_judge_repeats_is_not_in_its_journal(tmp_path: Path) -> None:
    redactor = Redactor()
    redactor.register("sk-very-secret-key")
    teacher = Scripted(lambda text: "the key sk-very-secret-key says <score>9</score>")
    context = RewardContext(judge=teacher, journal=tmp_path / "judge.jsonl", redact=redactor.value)
    with contextlib.closing(make(Config(), context)) as reward:
        assert reward([rollout("an answer")]) == [1.0]
    written = (tmp_path / "judge.jsonl").read_text(encoding="utf-8")
    assert "<score>9</score>" in written and "sk-very-secret-key" not in written
    with contextlib.closing(make(Config(), context)) as reward:
        assert reward([rollout("an answer")]) == [1.0]
    assert teacher.asked == 1
