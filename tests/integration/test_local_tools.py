"""Teachers on this machine: their template and variables, tools in prompts, and answers read as they were written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from easydistill.api import load
from easydistill.asking.answers import read_answer
from easydistill.config.inference import SamplingConfig, TransformersInferenceConfig
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome
from easydistill.data.messages import Chat, Message
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.stage import Dated
from easydistill.errors import TeacherError
from easydistill.jobs import stages_of
from easydistill.models.sampling import Answer
from easydistill.teachers.backends.transformers import plan
from easydistill.teachers.transformers import TransformersTeacher

CHAT = Path(__file__).resolve().parents[2] / "examples/agent_traces/chat.jinja"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
USER: Message = {"role": "user", "content": "Go."}
WITH_TOOL = Chat((USER,), (TOOL,))
LEADING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if think %}<think>\n{% endif %}{% endif %}"
)
"""A template whose variable decides whether the prompt opens the thoughts."""


class Script:
    """Stands in for generation: remembers the prompts and writes a given text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.text, self.ended = "", True
        self.prompts: list[str] = []
        monkeypatch.setattr("easydistill.teachers.transformers.generate_batch", self._generate)

    def _generate(self, model: Any, prompts: Sequence[list[int]], *arguments: Any) -> list[Answer]:
        self.prompts += [self.tokenizer.decode(prompt) for prompt in prompts]
        ids = self.tokenizer(self.text, add_special_tokens=False)["input_ids"]
        return [Answer(ids, self.ended) for _ in prompts]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Script:
    return Script(monkeypatch, tiny_model)


def ask(model: Path, chat: Chat, fallback: str | None = None, **values: Any) -> Outcome:
    config = TransformersInferenceConfig(backend="transformers", **values)
    found: list[Outcome] = []
    teacher = TransformersTeacher(str(model), config, fallback)
    teacher.generate([GenerationRequest.of("k", chat)], lambda key: False, found.extend, StopSignal())
    (outcome,) = found
    return outcome


def answered(*arguments: Any, **values: Any) -> Completion:
    outcome = ask(*arguments, **values)
    assert isinstance(outcome, Completion), outcome
    return outcome


def test_tools_are_in_the_prompt_and_calls_are_read(tiny_model: Path, script: Script) -> None:
    script.text = 'I look.\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    received = answered(tiny_model, WITH_TOOL, template=str(CHAT))
    assert '"name": "f"' in script.prompts[0]
    calls = [{"name": "f", "arguments": {"a": 1}}]
    assert read_answer(received) == {"role": "assistant", "content": "I look.", "tool_calls": calls}
    assert received.extra["written"] == script.text


def test_a_template_without_tools_is_not_asked_for_calls(tiny_model: Path, script: Script) -> None:
    """SmolLM2's own template shows no tools."""
    outcome = ask(tiny_model, WITH_TOOL)
    assert isinstance(outcome, Failure) and outcome.reason == "template_refused"
    assert "inference.template" in outcome.detail and not script.prompts


def test_a_template_whose_calls_cannot_be_read_back_ends_the_run(
    tiny_model: Path, script: Script, tmp_path: Path
) -> None:
    unreadable = tmp_path / "unreadable.jinja"
    unreadable.write_text("{{ tools | tojson }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    with pytest.raises(TeacherError, match="cannot be read back"):
        ask(tiny_model, WITH_TOOL, template=str(unreadable))


def test_a_call_that_cannot_be_read_rejects_the_row(tiny_model: Path, script: Script) -> None:
    script.text = '<tool_call>{"name": "f", "arguments": {"a": </tool_call>'
    reason, detail = read_answer(answered(tiny_model, WITH_TOOL, template=str(CHAT)))  # type: ignore[misc]
    assert reason == "malformed_call" and "JSON" in detail
    script.ended = False
    assert read_answer(answered(tiny_model, WITH_TOOL, template=str(CHAT)))[0] == "truncated"  # type: ignore[index, literal-required]


def test_variables_reach_the_template_and_the_row_s_own_win(tiny_model: Path, script: Script, tmp_path: Path) -> None:
    leading = tmp_path / "leading.jinja"
    leading.write_text(LEADING)
    given = {"template": str(leading), "chat_template_kwargs": {"think": True}}
    script.text = "Hm.\n</think>\n\nYes."
    received = answered(tiny_model, Chat((USER,)), **given)
    assert script.prompts[-1].endswith("[assistant]<think>\n")
    assert read_answer(received) == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    inline = read_answer(received, thoughts="inline")
    assert inline == {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}
    script.text = "Yes."
    received = answered(tiny_model, Chat((USER,), template_kwargs={"think": False}), **given)
    assert script.prompts[-1].endswith("[assistant]")
    assert received.text == "Yes." and received.extra == {}


def test_special_tokens_stay_and_the_end_does_not(tiny_model: Path, script: Script) -> None:
    script.text = "a<|im_start|>b"
    assert answered(tiny_model, Chat((USER,))).text == "a<|im_start|>b"


def test_which_template_a_teacher_has(tiny_model: Path, script: Script, tmp_path: Path) -> None:
    """`inference.template`, else its own, else `dataset.template`."""
    marked = tmp_path / "marked.jinja"
    marked.write_text("MARK " + LEADING)
    ask(tiny_model, Chat((USER,)), str(marked))
    ask(tiny_model, Chat((USER,)), None, template=str(marked))
    own, given = script.prompts
    assert not own.startswith("MARK") and given.startswith("MARK")
    assert given.count("<|im_start|>") == 0, "no begin token is added to what the template writes"


def test_a_template_s_text_is_part_of_the_teacher_s_identity(tiny_model: Path, tmp_path: Path) -> None:
    one, same, other = (tmp_path / f"{name}.jinja" for name in ("one", "same", "other"))
    one.write_text(LEADING)
    same.write_text(LEADING)
    other.write_text("x" + LEADING)

    def identity(template: Path | None) -> dict[str, Any]:
        config = TransformersInferenceConfig(
            backend="transformers", template=None if template is None else str(template)
        )
        planned = plan(config, str(tiny_model), None)
        assert planned.identity() == TransformersTeacher(str(tiny_model), config).identity()
        assert "template" not in config.sampling()
        return planned.identity()

    assert identity(one) == identity(same) != identity(other)
    assert "template" not in identity(None)
    config = TransformersInferenceConfig(backend="transformers", template=str(tmp_path / "missing.jinja"))
    (issue,) = plan(config, str(tiny_model), None).preflight()
    assert issue.path == "inference.template"


CLOCK = "{{ strftime_now('%Y') }}" + LEADING


@pytest.mark.parametrize(("where", "shown"), [("inference", True), ("own", True), ("dataset", True), ("beside", False)])
def test_the_date_that_a_teacher_is_shown_is_part_of_the_label_stage(
    where: str, shown: bool, tiny_model: Path, tmp_path: Path
) -> None:
    """As it is of training, where the student's template writes it."""
    clock, teacher = tmp_path / "clock.jinja", tmp_path / "teacher"
    clock.write_text(CLOCK)
    shutil.copytree(tiny_model, teacher)
    if where == "own":
        (teacher / "chat_template.jinja").write_text(CLOCK)
    if where == "dataset":
        (teacher / "chat_template.jinja").unlink()
    inference: dict[str, Any] = {"backend": "transformers"}
    job = {
        "job_type": "black_box_kd_local",
        "dataset": {"instruction_path": "rows.json"},
        "inference": inference | ({"template": str(clock)} if where == "inference" else {}),
        "models": {"teacher": str(teacher), "student": str(tiny_model)},
    }
    if where in ("dataset", "beside"):
        # For a teacher that has none of its own.
        job["dataset"] = {"instruction_path": "rows.json", "template": str(clock)}
    label, train = stages_of(load(job).job)[:2]
    assert isinstance(label, Dated) and label.shows_date() is shown
    assert isinstance(train, Dated) and train.shows_date() is (where in ("dataset", "beside"))


def test_the_defaults_change_no_reading() -> None:
    assert SamplingConfig().reading() == {}
