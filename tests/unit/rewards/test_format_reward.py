"""`format`: patterns are matched as `re` does, in bounded time; styles are strict."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.rollouts import after, in_threads, rollout

from easydistill.errors import EasyDistillError
from easydistill.rewards import RewardContext
from easydistill.rewards import format as format_reward
from easydistill.rewards.format import Config, has_box, has_hash_line, has_thoughts, make, match_all


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("<think>a</think>b", True),
        ("\n<think>\na\n</think>\n\nb\n", True),
        ("<think></think>b", False),
        ("<think> \n</think>b", False),
        ("<think>a</think>", False),
        ("<think>a</think>  \n", False),
        ("so <think>a</think>b", False),
        ("<think>a", False),
        ("a</think>b", False),
        ("</think>a<think>b", False),
        ("<think>a<think>b</think>c", False),
        ("<think>a</think>b</think>c", False),
        ("<think>a</think>b<think>c</think>d", False),
        ("<THINK>a</THINK>b", False),
        ("", False),
    ],
)
def test_thoughts(text: str, fits: bool) -> None:
    assert has_thoughts(text) is fits


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("so\n#### 42", True),
        ("so\n#### 42\n \n", True),
        ("#### x + y", True),
        ("  #### 42", True),
        ("#### 42\nso", False),
        ("so #### 42", False),
        ("####", False),
        ("#### ", False),
        ("##### 42", False),
        ("### 42", False),
        ("", False),
    ],
)
def test_hash_line(text: str, fits: bool) -> None:
    assert has_hash_line(text) is fits


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (r"\boxed{42}", True),
        (r"so \boxed{\frac{1}{2}}.", True),
        (r"\boxed{}", False),
        (r"\boxed{4", False),
        ("42", False),
    ],
)
def test_box(text: str, fits: bool) -> None:
    assert has_box(text) is fits


@given(st.text(st.sampled_from("<>/thinka# \n"), max_size=60))
def test_styles_take_any_text(text: str) -> None:
    tagged = re.fullmatch(r"\s*<think>(?P<thoughts>.*?)</think>(?P<answer>.*)", text, re.DOTALL)
    once = text.count("<think>") == text.count("</think>") == 1
    assert has_thoughts(text) is bool(tagged and once and tagged["thoughts"].strip() and tagged["answer"].strip())
    assert has_box(text) is False
    has_hash_line(text)


def test_styles_are_fast_on_long_text() -> None:
    began = time.monotonic()
    for text in ("<think>" * 100_000, " " * 10**6, "#" * 10**6, "\n####" * 100_000, r"\boxed{" * 50_000):
        for has in (has_thoughts, has_hash_line, has_box):
            has(text)
    assert time.monotonic() - began < 20


def test_a_pattern_must_match_all_of_the_text() -> None:
    reward = make(Config(pattern="<a>.*</a>"), RewardContext())
    texts = ["<a>1</a>", "<a>1\n2</a>", "x<a>1</a>", "<a>1</a>\n", "", "<a>\ud800é中</a>"]
    assert reward([rollout(text) for text in texts]) == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert reward([]) == []
    reward.close()


patterns = st.sampled_from([r"a*b?", r"(a|b)+", r"[^a]*", r".*a.*", r"(?i)A.B", r"a\Z", r"(?=a)..", r"\s*\S+"])


@given(patterns, st.lists(st.text(st.sampled_from("abAB \n"), max_size=6), min_size=1, max_size=20))
@settings(max_examples=15, deadline=None)
def test_a_pattern_means_what_re_says(pattern: str, texts: list[str]) -> None:
    wanted = [re.fullmatch(pattern, text, re.DOTALL) is not None for text in texts]
    assert match_all(pattern, texts, 5.0) == wanted


def test_a_catastrophic_pattern_costs_its_time_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    reward = make(Config(pattern=r"(a+)+b", seconds=0.2), RewardContext())
    batch = [rollout("ab"), rollout("a" * 60), rollout("aab"), rollout("a" * 50 + "c"), rollout("b")]
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert in_threads(reward, [batch, batch]) == [[1.0, 0.0, 1.0, 0.0, 0.0]] * 2
    assert time.monotonic() - began < 20
    assert "2 of 5 answers could not be matched" in caplog.text


def test_where_the_process_is_killed_the_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = Path(format_reward.__file__).with_name("_pattern_worker.py").read_text()
    killed = source.replace(
        "        matches: bool | None = None\n", '        assert text != "die"\n        matches = None\n'
    )
    assert killed != source
    (tmp_path / "_pattern_worker.py").write_text(killed)
    monkeypatch.setattr(format_reward, "__file__", str(tmp_path / "format.py"))
    assert match_all("a", ["a", "die", "b", "die", "die", "a"], 5.0) == [True, None, False, None, None, True]


def test_a_process_that_hangs_for_good_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hangs = 'import time\nprint("ready\\ntrue\\nfal", end="", flush=True)\ntime.sleep(60)\n'
    (tmp_path / "_pattern_worker.py").write_text(hangs)
    monkeypatch.setattr(format_reward, "__file__", str(tmp_path / "format.py"))
    monkeypatch.setattr(format_reward, "_START_SECONDS", 1.0)
    assert match_all("a", ["a", "b"], 0.1) == [True, None]


def test_a_process_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(format_reward, "__file__", str(tmp_path / "format.py"))
    with pytest.raises(EasyDistillError, match="does not start"):
        match_all("a", ["a"], 1.0)


def test_thoughts_that_the_prompt_opens(smollm: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(smollm)
    reward = make(Config(style="think"), RewardContext(tokenizer=tokenizer))
    opened, plain = "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n"
    said = [(opened, "a</think>b"), (plain, "a</think>b"), (opened, "<think>a</think>b")]
    assert reward([after(tokenizer, prompt, text) for prompt, text in said]) == [1.0, 0.0, 0.0]
