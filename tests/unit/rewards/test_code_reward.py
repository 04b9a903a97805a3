"""`code`: passes are earned. What a program prints, returns or raises to pretend does not count."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.rollouts import after, in_threads, rollout

from easydistill.errors import DataError, EasyDistillError
from easydistill.rewards import Reward, RewardContext
from easydistill.rewards._text import after_thoughts, last_program
from easydistill.rewards.code import Case, Config, check, make

DOUBLE = "def f(x):\n    return 2 * x\n"
TESTS = ["assert f(1) == 2", "assert f(2) == 4", "assert f(0) == 1", "x = f(3)\nassert x == 6"]


@pytest.fixture(scope="module")
def code() -> Iterator[Reward]:
    reward = make(Config(allow_execution=True, seconds=30), RewardContext())
    yield reward
    reward.close()


def fenced(program: str, language: str = "python") -> str:
    return f"Here it is:\n```{language}\n{program}\n```\nIt doubles."


def test_share_of_the_tests(code: Reward) -> None:
    assert code(
        [
            rollout(fenced(DOUBLE), tests=TESTS),
            rollout(DOUBLE, tests=TESTS[:2]),
            rollout("def f(x): return 3", tests=TESTS),
            rollout("def f(x", tests=TESTS),
            rollout("", tests=TESTS),
            rollout(f"```python\n{DOUBLE}", tests=TESTS, ended=False),
            rollout(f"<think>{fenced(DOUBLE)}</think>I cannot.", tests=TESTS),
            rollout(f"{fenced(DOUBLE)}\n```\n2\n4\n```", tests=TESTS),
            rollout(DOUBLE),
            rollout(DOUBLE, tests=[]),
            rollout(DOUBLE, tests=None),
        ]
    ) == [0.75, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.75, None, None, None]
    assert code([]) == []


def test_all_or_nothing() -> None:
    reward = make(Config(allow_execution=True, score="all", field="cases", seconds=30), RewardContext())
    assert reward([rollout(DOUBLE, cases=TESTS), rollout(DOUBLE, cases=TESTS[:2])]) == [0.0, 1.0]
    reward.close()


def test_standard_input_and_output(code: Reward) -> None:
    program = "n = int(input())\nfor i in range(n):\n    print(i, end=' ')\n    print()\n"
    tests = [
        {"stdin": "2\n", "stdout": "0\n1"},
        {"stdin": "1", "stdout": "0  \n\n"},
        {"stdin": "2", "stdout": "0 1"},
        {"stdout": "0"},
    ]
    assert code([rollout(program, tests=tests)]) == [0.5]
    assert code([rollout("print('a')", tests=[{"stdout": "a"}, "assert True"])]) == [1.0]
    assert code([rollout("print('a')\nraise SystemExit(3)", tests=[{"stdout": "a"}])]) == [0.0]
    main = "if __name__ == '__main__':\n    print(input())\n"
    assert code([rollout(main, tests=[{"stdin": "é中", "stdout": "é中"}])]) == [1.0]


@pytest.mark.parametrize(
    "program",
    [
        "print('passed')",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "import sys; sys.exit()",
        "import atexit, os\ndef f(x): return 7\natexit.register(lambda: os._exit(0))",
        "import builtins\nbuiltins.AssertionError = ValueError\ndef f(x): return 7",
        "import builtins\nbuiltins.exec = lambda *a: None\nbuiltins.compile = lambda *a, **k: None\ndef f(x): return 7",
        "import os\nos.write = os.read = lambda *a: b''\ndef f(x): return 7",
        "import sys\nprint(sys.stdin.read())\ndef f(x): return 7",
        "import sys\nword = sys.stdin.read()\ndef f(x):\n    print(word)\n    raise SystemExit(0)",
        "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = lambda *a: None\ndef f(x): return 7",
        "import os\nif os.fork():\n    os._exit(0)\ndef f(x): return 7",
        "import sys\ndef skip(frame, event, arg):\n"
        "    if event == 'line' and frame.f_code.co_name == '<module>' and frame.f_lineno == 1: frame.f_lineno = 2\n"
        "    return skip\n"
        "sys.settrace(skip)\ndef f(x): return 7",
        "import sys\nsys.flags = None\ndef f(x): return 7",
        "import sys\nsys.stdout = None\ndef f(x): return 7",
        "def f(x):\n    import signal, os\n    os.kill(os.getpid(), signal.SIGKILL)",
        "'''\ndef f(x): return 2\n",
        "def f(x): return 7\n''')\nleave(0)",
    ],
)
def test_a_program_cannot_say_that_it_passed(code: Reward, program: str) -> None:
    assert code([rollout(program, tests=["assert f(1) == 2\nx = 1"])]) == [0.0]


def test_honest_programs_of_every_kind_pass(code: Reward) -> None:
    programs = [
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
        "def f(x): return P(2 * x).x",
        "import sys\nprint('noise')\nsys.stderr.write('more')\ndef f(x): return 2 * x",
        "def f(x):\n    print('no line end', end='')\n    return 2 * x",
        "s = '''quotes \\\" and {braces} and \\\\ '''\ndef f(x): return 2 * x",
        "# é中\ndef f(x): return 2 * x",
        "if __name__ == '__main__':\n    f = None\n    input()\ndef f(x): return 2 * x",
    ]
    assert code([rollout(program, tests=["assert f(1) == 2"]) for program in programs]) == [1.0] * len(programs)


def test_thoughts_that_the_prompt_opens_and_nobody_closes(smollm: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(smollm)
    reward = make(Config(allow_execution=True, seconds=30), RewardContext(tokenizer=tokenizer))
    opened = "<|im_start|>assistant\n<think>\n"
    texts = [fenced(DOUBLE), f"Doubling.</think>{fenced(DOUBLE)}"]
    assert reward([after(tokenizer, opened, text, tests=TESTS[:2]) for text in texts]) == [0.0, 1.0]


def test_seconds_are_those_of_the_clock_and_of_the_processor() -> None:
    reward: Any = make(Config(allow_execution=True, seconds=25), RewardContext())
    assert (reward._sandbox.limits.seconds, reward._sandbox.limits.cpu_seconds) == (25.0, 25.0)


def test_a_test_that_hangs_is_not_passed() -> None:
    reward = make(Config(allow_execution=True, seconds=1), RewardContext())
    program = "def f(x):\n    while x == 2: pass\n    return 2 * x"
    assert reward([rollout(program, tests=TESTS[:2])]) == [0.5]
    reward.close()


def test_where_no_sandbox_works_the_error_names_the_reward(code: Reward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(
        EasyDistillError, match=r"rewards\.code: .* needs Linux.*\n    → run it on Linux.*, or remove this"
    ):
        code([rollout(DOUBLE, tests=TESTS)])


def test_threads(code: Reward) -> None:
    good, bad = rollout(DOUBLE, tests=TESTS[:2]), rollout("f = abs", tests=TESTS[:2])
    assert in_threads(code, [[good, bad], [bad], [good]]) == [[1.0, 0.0], [0.0], [1.0]]


def test_each_run_has_a_word_of_its_own() -> None:
    first, second = (Case.of(DOUBLE, TESTS[0]) for _ in range(2))
    assert first.source == second.source and first.stdin != second.stdin
    assert first.stdin not in first.source


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ("assert f(1) == 2", "is a str"),
        ({"stdin": "", "stdout": ""}, "is a dict"),
        ([3], "neither"),
        ([{"stdin": "1"}], "neither"),
        ([{"stdout": 1}], "neither"),
        ([{"stdout": "1", "input": "2"}], "neither"),
        (["assert f(1) = 2"], "not Python"),
        (["assert '\0'"], "not Python"),
        (["assert " + "-" * 100_000 + "1"], "not Python"),
        (["assert f(1) == 2", "def check(c):\n    assert c(1) == 3\n"], "runs nothing.*call what it defines"),
    ],
)
def test_a_field_without_tests_is_a_mistake_of_the_data(code: Reward, tests: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"'tests'.*{words}"):
        code([rollout(DOUBLE, tests=tests)])


CHECK = "def check(c):\n    assert c(1) == 3\n"


@pytest.mark.parametrize(
    "test",
    [
        "",
        "# nothing",
        "'Doubles.'",
        "import math\nfrom solution import f",
        "pass",
        CHECK,
        f"{CHECK}check",
        f"{CHECK}candidate = f",
        f"METADATA = {{'author': 'x'}}\n{CHECK}",
        "check = lambda: f(1) == 2",
        "class TestDouble:\n    def test_it(self):\n        assert f(1) == 2\n",
        f"{CHECK}if __name__ == '__main__':\n    check(f)\n",
        f"try:\n    import numpy\nexcept ImportError:\n    pass\n{CHECK}",
        "async def check():\n    assert f(1) == 2\n",
        "@staticmethod\ndef check():\n    assert f(1) == 2\n",
    ],
)
def test_a_test_that_runs_nothing_is_refused_before_training(test: str) -> None:
    problem = check(Config(allow_execution=True), {"tests": ["assert f(1) == 2", test]})
    assert problem is not None and "runs nothing, so every program would pass" in problem


@pytest.mark.parametrize(
    "test",
    [
        f"{CHECK}check(f)",
        f"{CHECK}result = check(f)",
        f"{CHECK}if __name__ != '__main__':\n    check(f)\n",
        "assert True",
        "f(1)",
        "f(1) == 2",
        "x: int = f(1)",
        "for x in range(3):\n    assert f(x) == 2 * x\n",
        "class T:\n    assert f(1) == 2\n",
        "try:\n    f('')\nexcept TypeError:\n    pass\nelse:\n    raise AssertionError\n",
        "if f(1) != 2:\n    raise AssertionError\n",
        "with open('/dev/null'):\n    pass\n",
        "if " + "not " * 150 + "f(1):\n    raise AssertionError\n",
    ],
)
def test_other_tests_are_tests(test: str) -> None:
    assert check(Config(allow_execution=True), {"tests": [test]}) is None


# --- finding the program ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1"),
        ("```py\r\nx = 1\r\ny = 2\r\n```", "x = 1\ny = 2"),
        ("```\nx = 1\n```", "x = 1"),
        ("~~~Python\nx = 1\n~~~", "x = 1"),
        ("```python title='a'\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2"),
        ("```python\nx = 1\n```\nIt prints\n```text\n2\n```", "x = 1"),
        ("```python\nx = 1\n```\n```python\nx = ", "x = 1"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("```python\nx = 1\n```\nIt prints\n```\n2\n```", "x = 1"),
        ("```\nx = 1\n```\nIt prints\n```\n2\n```", "2"),
        ("```\nx = 1\n```\nor\n```py\nx = 2\n```\nthen\n```bash\nls\n```", "x = 2"),
        ("```\nx = 1\n```\n```python\nx = ", "x = 1"),
        ("  ```python\n  x = 1\n  ```", "x = 1"),
        ("1. so\n\n   ```python\n   if x:\n       y = 1\n\n  z = 2\n   ```", "if x:\n    y = 1\n\nz = 2"),
        ("\t```python\n\tx = 1\n\t```", "x = 1"),
        ("```python\n  x = 1\n```", "  x = 1"),
        ("```python\nx = '\u2028\f'\n```", "x = '\u2028\f'"),
        ("```python\nx = ", None),
        ("```bash\nls\n```", None),
        ("", ""),
    ],
)
def test_the_last_program(text: str, program: str | None) -> None:
    assert last_program(text) == program


@given(st.text(st.sampled_from("`~py \nx"), max_size=60))
def test_any_text_is_taken_and_a_block_after_it_is_found(text: str) -> None:
    last_program(text)
    closed = text.replace("`", "").replace("~", "") + "\n```python\nx = 1\n```\n"
    assert last_program(closed) == "x = 1"


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " "]), max_size=8).map("".join))
def test_after_thoughts_there_are_none(text: str) -> None:
    rest = after_thoughts(text)
    assert text.endswith(rest) and "<think>" not in rest and "</think>" not in rest
