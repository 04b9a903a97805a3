"""Extensions in plain files: how they are found, checked, given what they ask for, and known again when they change."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import easydistill
from easydistill import api
from easydistill.config.plain_functions import FunctionFailed
from easydistill.contracts.operator import Ask, OperatorConfig, Reply, answer_with
from easydistill.contracts.reward import RewardContext, Rollout
from easydistill.contracts.teacher import Completion, GenerationRequest
from easydistill.data.records import Sample
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import ConfigError
from easydistill.jobs import stages_of
from easydistill.plain_files import Reference, load, short_names
from easydistill.rewards import REWARDS, build
from easydistill.synthesis.operators import OPERATORS
from easydistill.teachers import TEACHERS

REWARD_FILE = '''
from helper_of_rewards import LIMIT

def brevity(completions, *, words: int = 20, **columns):
    """Few words are good."""
    return [min(1.0, words / max(1, len(chat[0]["content"].split()))) for chat in completions]

def right(prompts, completions, answer):
    return [float(chat[-1]["content"] == known) if known else None for chat, known in zip(completions, answer)]

async def later(completions, **columns):
    import asyncio
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]

def fails(completions):
    return [chat["content"] for chat in completions]

def too_few(completions):
    return [1.0]

def words(completions):
    return ["good" for _ in completions]

def wants_state(completions, trainer_state): ...
def nothing(): ...
def positional(completions, /): ...
def clashes(completions, *, weight: float = 1.0): ...
NUMBER = 3
class Judge: ...
'''


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    (tmp_path / "my_rewards.py").write_text(REWARD_FILE)
    (tmp_path / "helper_of_rewards.py").write_text("LIMIT = 3\n")
    return tmp_path / "my_rewards.py"


def config(folder: Path, rewards: dict[str, Any], name: str = "grpo.json") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    job = {"job_type": "grpo", "dataset": {"instruction_path": "x.json"}, "models": {"student": "org/student"}}
    path.write_text(json.dumps({**job, "rewards": rewards}, indent=1))
    return path


def said(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        easydistill.validate(path)
    return str(error.value)


def rollout(text: str, **meta: Any) -> Rollout:
    return Rollout(({"role": "user", "content": "Say."},), text, (), (), True, meta)


def scores(path: Path, name: str, rollouts: Sequence[Rollout], **settings: Any) -> list[float | None]:
    job: Any = easydistill.validate(config(path.parent, {f"my_rewards.py:{name}": settings}))
    with build(job.rewards, RewardContext()) as made:
        (values,) = made.values(rollouts).values()
    return values


def test_a_reward_is_called_as_trl_calls_it(rewards: Path) -> None:
    two = [rollout("one two three four", answer="5"), rollout("5", answer="5"), rollout("", answer=None)]
    assert scores(rewards, "brevity", two, words=2) == [0.5, 1.0, 1.0]
    assert scores(rewards, "right", two) == [0.0, 1.0, None]


CALLABLES = """
import asyncio, functools

def keeping(call):
    @functools.wraps(call)
    def kept(*given, **named):
        return call(*given, **named)
    return kept

def waiting(call):
    @functools.wraps(call)
    def waited(*given, **named):
        return asyncio.run(call(*given, **named))
    return waited

class Constant:
    def __call__(self, completions, *, value: float = 2.0): return [value for _ in completions]

def scaled(completions, factor, *, value: float = 2.0): return [factor * value for _ in completions]

constant = Constant()
partial = functools.partial(scaled, factor=3)
shorter = lambda completions: [1.0 for _ in completions]

@keeping
async def later(completions): return [4.0 for _ in completions]

@waiting
async def already(completions): return [5.0 for _ in completions]

def leaves(completions): raise SystemExit(0)
def copies(completions, *, copy: int = 1): return [0.0 for _ in completions]
"""


@pytest.mark.parametrize(
    ("name", "value"), [("constant", 2.0), ("partial", 6.0), ("shorter", 1.0), ("later", 4.0), ("already", 5.0)]
)
def test_whatever_can_be_called_is_a_function(rewards: Path, name: str, value: float) -> None:
    rewards.write_text(CALLABLES)
    assert scores(rewards, name, [rollout("a"), rollout("b")]) == [value, value]


def test_a_function_does_not_end_the_run_as_if_all_was_well(rewards: Path) -> None:
    rewards.write_text(CALLABLES)
    with pytest.raises(FunctionFailed, match=r"my_rewards.py:\d+: SystemExit: 0"):
        scores(rewards, "leaves", [rollout("a")])


def test_an_error_without_a_line_names_the_file_alone(rewards: Path) -> None:
    rewards.write_text("x = '\0'\n")
    assert ": my_rewards.py: source code " in said(config(rewards.parent, {"my_rewards.py:x": {}}))


def test_a_setting_with_the_name_of_a_method_of_sections_is_refused(rewards: Path) -> None:
    rewards.write_text(CALLABLES)
    assert "`copy` has the name of something that sections need" in said(
        config(rewards.parent, {"my_rewards.py:copies": {}})
    )


def test_a_coroutine_runs_beside_a_loop_that_runs(rewards: Path) -> None:
    import asyncio

    async def in_a_notebook() -> list[float | None]:
        return scores(rewards, "later", [rollout("12345")], form="standard")

    assert asyncio.run(in_a_notebook()) == [5.0]
    assert not [thread for thread in threading.enumerate() if thread.name == "reward"], "it is closed"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", r"my_rewards.py:17: TypeError: list indices .*\n    → my_rewards.py:fails failed"),
        ("too_few", "too_few returned 1 values for 2 completions"),
        ("words", "returned 'good', which is no number"),
    ],
)
def test_what_fails_is_told_with_its_line(rewards: Path, name: str, words: str) -> None:
    with pytest.raises(FunctionFailed, match=words):
        scores(rewards, name, [rollout("a"), rollout("b")])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wants_state", "`trainer_state` is not given here"),
        ("nothing", "a reward has a parameter `completions`, the answers"),
        ("positional", "its parameter `completions` has no name for the caller"),
        ("clashes", "its setting `weight` has the name of a key that every section has"),
        ("NUMBER", "is a int, not a function"),
        ("Judge", "is a class, not a function"),
        ("brevty", "did you mean 'brevity'?"),
    ],
)
def test_what_is_missing_is_told_when_the_config_is_read(rewards: Path, name: str, words: str) -> None:
    text = said(config(rewards.parent, {f"my_rewards.py:{name}": {}}))
    assert words in text and f"grpo.json:10: rewards.my_rewards.py:{name}: " in text


def test_other_mistakes_are_told_too(rewards: Path) -> None:
    folder = rewards.parent
    assert "there is no file " in said(config(folder, {"gone.py:brevity": {}}))
    assert "did you mean 'words'?" in said(config(folder, {"my_rewards.py:brevity": {"wrods": 3}}))
    assert "declares no `Config`" in said(config(folder, {"my_rewards.py": {}}))
    (folder / "broken.py").write_text("x = 1\nimport gone_helper\n")
    assert "broken.py:2: ModuleNotFoundError: No module named 'gone_helper'" in said(
        config(folder, {"broken.py:f": {}})
    )
    (folder / "half.py").write_text("def f(:\n")
    assert "half.py:1: invalid syntax" in said(config(folder, {"half.py:f": {}}))
    (folder / "dotted.py").write_text("from .helper_of_rewards import LIMIT\n")
    assert "without a dot" in said(config(folder, {"dotted.py:f": {}}))
    (folder / "ends.py").write_text("import sys\nsys.exit(3)\n")
    assert "ends.py:2: SystemExit: 3" in said(config(folder, {"ends.py:f": {}}))


def test_a_row_without_what_the_function_reads_is_refused(rewards: Path) -> None:
    module = REWARDS.module(f"{rewards}:right")
    problem = module.check(module.Config(), {"solution": 4})
    assert problem == "the row has no field 'answer', which the function reads; it has solution"
    assert module.check(module.Config(), {"answer": None}) is None


def test_a_file_is_known_by_what_it_says_and_not_by_where_it_is(
    rewards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity() -> dict[str, Any]:
        job: Any = easydistill.validate(config(tmp_path, {"my_rewards.py:brevity": {}}))
        found: dict[str, Any] = job.rewards.identity()
        return found

    first = identity()
    assert list(first) == ["my_rewards.py:brevity"]
    monkeypatch.chdir(tmp_path)
    assert identity() == first, "the same from another working directory"
    rewards.write_text(REWARD_FILE + "\n")
    changed = identity()
    assert changed != first, "the function's file has changed"
    (tmp_path / "helper_of_rewards.py").write_text("LIMIT = 4\n")
    assert identity() != changed, "what it imports has changed"


def test_a_changed_file_is_imported_again(rewards: Path) -> None:
    """Also within the second of its last change, and with a text of the same length."""
    assert scores(rewards, "brevity", [rollout("a b c d")], words=2) == [0.5]
    rewards.write_text(REWARD_FILE.replace("words /", "3.00 /"))
    assert scores(rewards, "brevity", [rollout("a b c d")], words=2) == [0.75]
    helper = load(str(rewards)).files[1]
    helper.write_text("LIMIT = 7\n")
    assert load(str(rewards)).module.LIMIT == 7
    assert load(str(rewards)) is load(str(rewards)), "an unchanged one is not"
    assert not list(rewards.parent.rglob("*.pyc"))


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    paths = []
    for number, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"def f(completions): return [{number}.0 for _ in completions]\n")
        paths.append(f"{folder}/same.py:f")
    job: Any = easydistill.validate(config(tmp_path, {path: {} for path in paths}))
    with build(job.rewards, RewardContext()) as made:
        assert sorted(made.values([rollout("x")]).values()) == [[0.0], [1.0]]
    assert len(job.rewards.identity()) == 2


def test_modules_beside_files_are_in_nobodys_way(tmp_path: Path) -> None:
    """Two folders have a module of one name, which an installed library has too; one of them is a package."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        text = (
            "import yaml\ndef f(completions):\n    import yaml.inner\n    return [yaml.inner.WHO] * len(completions)\n"
        )
        (tmp_path / folder / "uses.py").write_text(text)
        package = tmp_path / folder / "yaml"
        package.mkdir()
        (package / "__init__.py").write_text("from . import inner\nfrom beside_package import *\n")
        (package / "inner.py").write_text("from yaml.deep import WHO\n")
        (package / "deep.py").write_text(f"from beside_package import NUMBER\nWHO = NUMBER + {len(folder)}\n")
        (tmp_path / folder / "beside_package.py").write_text(
            f"NUMBER = {len(folder) * (1 if folder == 'one' else 10)}\n"
        )
    job: Any = easydistill.validate(config(tmp_path, {"one/uses.py:f": {}, "two/uses.py:f": {}}))
    with build(job.rewards, RewardContext()) as made:
        assert sorted(made.values([rollout("x")]).values()) == [[6.0], [33.0]]
    import yaml

    assert hasattr(yaml, "safe_load")
    assert len(load(str(tmp_path / "one/uses.py")).files) == 5


def test_a_path_is_relative_to_the_config(rewards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    below = config(tmp_path / "configs", {"../my_rewards.py:brevity": {"words": 4}})
    job: Any = easydistill.validate(below, ["rewards.../my_rewards.py:brevity.words=5"])
    assert job.rewards.chosen()["my_rewards.py:brevity"].words == 5
    again = type(job).model_validate(job.model_dump(by_alias=True, exclude_unset=True))
    assert again.rewards.chosen() == job.rewards.chosen(), "as the processes of a stage read it"
    assert json.loads(job.model_dump_json())["rewards"]["my_rewards.py:brevity"]["words"] == 5


def test_a_function_can_be_sent_to_another_process(rewards: Path) -> None:
    sent = pickle.dumps(load(str(rewards)).module.brevity)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)([[{'content': 'a b'}]], words=1))"
    source = str(Path(easydistill.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], input=sent, capture_output=True, env={**os.environ, "PYTHONPATH": source}
    )
    assert done.stdout.split() == [b"[0.5]"], done.stderr


def test_names_are_short_where_that_tells_them_apart() -> None:
    assert short_names(["a/b.py:f", "verify"]) == {"a/b.py:f": "b.py:f", "verify": "verify"}
    assert short_names(["a/b.py:f", "c/b.py:f"]) == {"a/b.py:f": "a/b.py:f", "c/b.py:f": "c/b.py:f"}
    assert Reference.read("forward_kld") is None and Reference.read("a.py:b c") is None


def test_the_schema_knows_them() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(api.job_schema())
    job: dict[str, Any] = {"job_type": "white_box_kd_local", "dataset": {"instruction_path": "x.json"}}
    job |= {"models": {"teacher": "a/b", "student": "c/d"}}
    ours = {
        "distillation": {"distillation_type": "mine.py:loss", "power": 2},
        "evaluation": {"metrics": {"mine.py:f": {}}},
    }
    assert validator.is_valid(job | ours)
    for wrong in ({"distillation": {"distillation_type": "mine"}}, {"evaluation": {"metrics": {"mine.txt:f": {}}}}):
        assert not validator.is_valid(job | wrong)


OPERATORS_FILE = '''
from easydistill.synthesis.replies import Unusable
REASONS = ("no_title",)

def short(row, *, most: int = 10):
    """Rows with short prompts."""
    return row if len(row["messages"][0]["content"]) <= most else None

def titled(row):
    title = yield "Title: " + row["messages"][0]["content"]
    if not title:
        raise Unusable("no_title", "it is empty")
    return {**row, "title": title}

def twice(row):
    one, two = yield ("One.", [{"role": "user", "content": "Two."}])
    return [{"instruction": text, "kind": row["kind"]} for text in (one, two)]

def wrong(row):
    return 3
'''


def operate(path: Path, name: str, rows: list[Sample], reply: str = "T") -> Any:
    module = OPERATORS.module(f"{path}:{name}")
    asked: list[Ask] = []

    def answer(asks: Sequence[Ask]) -> list[Reply]:
        asked.extend(asks)
        return [Reply(reply) for _ in asks]

    return answer_with(module.run(module.Config(), rows, None), answer), asked


def test_an_operator_is_a_function_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "my_operators.py"
    path.write_text(OPERATORS_FILE)
    rows = [Sample(str(n), ({"role": "user", "content": "x" * 9 * n},), {"kind": n}) for n in (1, 2)]
    short, _ = operate(path, "short", rows)
    assert short.accepted == rows[:1] and [(each.id, each.reason) for each in short.rejected] == [("2", "dropped")]
    titled, asked = operate(path, "titled", rows)
    assert [row.meta for row in titled.accepted] == [{"kind": 1, "title": "T"}, {"kind": 2, "title": "T"}]
    assert asked[0].messages == ({"role": "user", "content": "Title: " + "x" * 9},)
    empty, _ = operate(path, "titled", rows, "")
    assert {each.reason for each in empty.rejected} == {"no_title"}
    twice, asked = operate(path, "twice", rows[:1])
    assert [(row.id, row.meta) for row in twice.accepted] == [("1-1", {"kind": 1}), ("1-2", {"kind": 1})]
    assert len(asked) == 2
    with pytest.raises(FunctionFailed, match="returned a int, and a row is a dict"):
        operate(path, "wrong", rows)


def test_no_row_of_an_operator_goes_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "my_operators.py"
    path.write_text("def none_of_it(row): return []\n")
    result, _ = operate(path, "none_of_it", [Sample("1", ({"role": "user", "content": "x"},))])
    assert [(each.id, each.reason) for each in result.rejected] == [("1", "dropped")]


def test_an_operator_that_asks_may_be_decorated(tmp_path: Path) -> None:
    path = tmp_path / "my_operators.py"
    path.write_text(CALLABLES + "@keeping\ndef titled(row): return {**row, 'title': (yield 'Title?')}\n")
    path.write_text(path.read_text() + "def hidden(row): return (each for each in [row])\n")
    rows = [Sample("1", ({"role": "user", "content": "x"},))]
    result, asked = operate(path, "titled", rows)
    assert len(asked) == 1 and result.accepted[0].meta["title"]
    assert issubclass(OPERATORS.module(f"{path}:titled").Config, OperatorConfig)
    with pytest.raises(FunctionFailed, match="a function that asks the teacher has `yield` itself"):
        operate(path, "hidden", rows)


def test_an_operator_is_a_job(tmp_path: Path) -> None:
    (tmp_path / "my_operators.py").write_text(OPERATORS_FILE)
    path, rows = tmp_path / "job.json", tmp_path / "x.json"
    rows.write_text('[{"instruction": "Say."}]')
    asks = {"inference": {"base_url": "http://localhost:1", "model": "m"}}
    for name, more in (("short", {"synthesis": {"most": 3}}), ("titled", asks)):
        job = {"job_type": f"my_operators.py:{name}", "dataset": {"instruction_path": str(rows)}, **more}
        path.write_text(json.dumps(job))
        (stage,) = stages_of(easydistill.validate(path))
        assert stage.fingerprint()["operator"] == f"my_operators.py:{name}"
        assert stage.fingerprint()["config"]["file"].endswith(load(str(tmp_path / "my_operators.py")).digest)
    path.write_text(json.dumps({"job_type": "my_operators.py:titld", "dataset": {"instruction_path": "x.json"}}))
    assert "job.json:1: job_type: " in said(path) and "did you mean 'titled'?" in said(path)


JOB_FILE = """
from typing import Literal
from easydistill.contracts.job import Estimate, JobConfig, StageResult

class Job(JobConfig):
    '''Says a word.'''
    job_type: Literal["hello"]
    word: str = "hello"

class Hello:
    name, inputs, offers, classifies = "hello", (), (), False

    def __init__(self, word): self.word = word
    def preflight(self): return []
    def fingerprint(self): return {"word": self.word}
    def estimate(self, directory): return Estimate()

    def run(self, context):
        (context.directory / "hello.txt").write_text(self.word)
        return StageResult(("hello.txt",))

def plan(job): return [Hello(job.word)]
"""


def test_a_job_is_a_whole_module(tmp_path: Path) -> None:
    path, config = tmp_path / "my_job.py", tmp_path / "job.json"
    path.write_text(JOB_FILE)
    config.write_text(json.dumps({"job_type": "my_job.py", "output_dir": str(tmp_path / "run"), "word": "ciao"}))
    assert easydistill.run(config, quiet=True).fresh
    assert next((tmp_path / "run").rglob("hello.txt")).read_text() == "ciao"
    assert not easydistill.run(config, quiet=True).fresh
    path.write_text(JOB_FILE.replace("self.word)\n        return", "self.word.upper())\n        return"))
    assert easydistill.run(config, quiet=True).fresh, "its stage is known by what the file says"
    assert next((tmp_path / "run").rglob("hello.txt")).read_text() == "CIAO"
    path.write_text(JOB_FILE.replace("def plan", "def planned"))
    assert "declares no `plan(job)`" in said(config)


def test_a_teacher_is_a_function_of_messages(tmp_path: Path) -> None:
    path = tmp_path / "my_teachers.py"
    path.write_text("def parrot(messages, *, mark: str = '!'): return messages[-1]['content'] + mark\n")
    module = TEACHERS.module(f"{path}:parrot")
    plan = module.plan(module.Config(backend=f"{path}:parrot", mark="?"), None, None)
    got: list[Any] = []
    request = GenerationRequest("k", ({"role": "user", "content": "Hi"},))
    plan.make(None).generate([request], lambda key: False, got.extend, StopSignal())
    assert isinstance(got[0], Completion) and got[0].text == "Hi?"
    assert plan.identity()["backend"] == "my_teachers.py:parrot" and plan.identity()["settings"] == {"mark": "?"}
    path.write_text(path.read_text().replace("+ mark", "+ '.'"))
    changed = TEACHERS.module(f"{path}:parrot")
    assert changed.plan(changed.Config(backend=f"{path}:parrot", mark="?"), None, None).identity() != plan.identity()


def test_losses_metrics_and_tasks_are_functions_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from easydistill.contracts.loss import Outcomes
    from easydistill.contracts.task import Reply as Answered
    from easydistill.evaluation.metrics import METRICS
    from easydistill.losses import LOSSES
    from easydistill.tasks import TASKS

    path = tmp_path / "mine.py"
    path.write_text(
        "def gap(teacher, student, *, power: float = 1.0): return (teacher.exp() - student.exp()).abs().sum(-1) ** power\n"
        "def mean(teacher, student): return (teacher - student).mean()\n"
        "def swapped(student_logprobs, teacher_logprobs): ...\n"
        "def constant(teacher, student): return teacher.exp().sum(-1)\n"
        "async def later(teacher, student): ...\n"
        "def ratio(answer, reference): return len(answer) / len(reference)\n"
        "def entropy(student): return -(student.exp() * student).sum(-1)\n"
        "def exact(reply, row): return reply.strip() == row['answer']\n"
    )
    loss = LOSSES.module(f"{path}:gap")
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 1e-9]]).log()
    settings = loss.Config(distillation_type=f"{path}:gap", power=2.0)
    assert loss.divergence(settings, teacher, student, Outcomes()).tolist() == pytest.approx([1.0])
    wrong = LOSSES.module(f"{path}:mean")
    with pytest.raises(FunctionFailed, match=r"returned the shape \[\]: a value for each token is needed, \[1\]"):
        wrong.divergence(wrong.Config(distillation_type=f"{path}:mean"), teacher, student, Outcomes())
    fixed = LOSSES.module(f"{path}:constant")
    with pytest.raises(FunctionFailed, match="returned values without a gradient"):
        fixed.divergence(
            fixed.Config(distillation_type=f"{path}:constant"), teacher, student.clone().requires_grad_(), Outcomes()
        )
    with pytest.raises(ConfigError, match="it is `async`, and only rewards may be"):
        LOSSES.module(f"{path}:later")
    with pytest.raises(ConfigError, match="nothing is given to its parameter `student_logprobs`"):
        LOSSES.module(f"{path}:swapped")
    ratio = METRICS.module(f"{path}:ratio")
    assert ratio.Metric.kind == "answers" and ratio.Metric(ratio.Config()).score("ab", "abcd") == 0.5
    entropy = METRICS.module(f"{path}:entropy")
    assert entropy.Metric.kind == "tokens" and not entropy.Metric.needs_teacher
    task = TASKS.module(f"{path}:exact")
    problem = task.problem(None, {"question": "1+1?", "answer": "2"}, 0)
    settings = task.Config(task=f"{path}:exact", data="x.jsonl")
    (score,) = task.scorer(settings, None)([(problem, Answered(" 2 "))])
    assert score.value == 1.0 and problem.messages == ({"role": "user", "content": "1+1?"},)
