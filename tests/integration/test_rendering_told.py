"""What a template cannot show, and a student that cannot be loaded, are told before anything is asked or trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.engine.run_directory import RunDirectory
from easydistill.errors import ConfigError, DataError
from easydistill.methods.on_policy.stage import OnPolicyStage

THOUGHTFUL = [
    {
        "messages": [
            {"role": "user", "content": f"Why {number}?"},
            {"role": "assistant", "content": "Because.", "reasoning_content": f"Thought {number}."},
        ]
    }
    for number in range(4)
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", THOUGHTFUL)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def training(rows: Path, student: Path | str, output: Path, **dataset: Any) -> dict[str, Any]:
    return {
        "job_type": "black_box_kd_local",
        "dataset": {"labeled_path": str(rows), **dataset},
        "models": {"student": str(student)},
        "training": {"max_steps": 1, "max_length": 128},
        "evaluation": {"enabled": False},
        "output_dir": str(output),
    }


def notes(config: dict[str, Any]) -> str:
    return "\n".join(note for stage in api.plan(config) for note in stage.notes)


def test_thoughts_that_are_not_shown_are_refused(rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = training(rows, tiny_model, tmp_path / "run")
    assert "the chat template does not show the thoughts of 4 of 4 rows" in notes(config)
    assert "dataset.thoughts" in notes(config)
    with pytest.raises(ConfigError, match="does not show the thoughts of 4 of 4 rows") as refused:
        api.run(config, quiet=True)
    (issue,) = refused.value.issues
    assert issue.path == "dataset.thoughts" and '"inline"' in issue.hint and '"drop"' in issue.hint
    assert not RunDirectory(tmp_path / "run").stage_directories()
    for how in ("inline", "drop"):
        assert api.run(training(rows, tiny_model, tmp_path / how, thoughts=how), quiet=True).fresh


def in_two_rounds(first: str | None, last: str | None) -> dict[str, Any]:
    """A chat of two rounds with thoughts in some of its answers."""
    answers = [{"role": "assistant", "content": "Because."} for _ in range(2)]
    for answer, thoughts in zip(answers, (first, last), strict=True):
        if thoughts:
            answer["reasoning_content"] = thoughts
    asked = {"role": "user", "content": "Why?"}
    return {"messages": [asked, answers[0], asked, answers[1]]}


LAST_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.reasoning_content %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_may_leave_out_the_thoughts_of_earlier_rounds(tiny_model: Path, tmp_path: Path) -> None:
    """As Qwen3's does: generation is given no more. It is told, and no reason to refuse the rows."""
    template = tmp_path / "t.jinja"
    template.write_text(LAST_THOUGHTS)
    rows = write(tmp_path / "rows.jsonl", [in_two_rounds("At first.", "In the end.")])
    config = training(rows, tiny_model, tmp_path / "run", template=str(template))
    assert "does not show the thoughts of 1 of 1 rows" in notes(config)
    result = api.run(config, quiet=True)
    assert result.summary["stages"]["train"]["metrics"]["not_shown"] == {"thoughts": 1}
    assert "What the chat template does not show" in result.report.read_text()


def test_thoughts_beyond_the_first_rows_are_found_before_training(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easydistill.methods.shared.foretelling.FORETOLD", 3)
    rows = write(tmp_path / "rows.jsonl", [*[{"instruction": "Why?", "output": "Because."}] * 3, THOUGHTFUL[0]])
    with pytest.raises(ConfigError, match="does not show the thoughts of 1 of 4 rows"):
        api.run(training(rows, tiny_model, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run/student").exists()


def test_a_context_that_was_thought_about_is_no_reason_to_refuse(tiny_model: Path, tmp_path: Path) -> None:
    chat = in_two_rounds("At first.", "")
    chat["messages"][1]["weight"] = 0
    rows = write(tmp_path / "rows.jsonl", [chat])
    assert api.run(training(rows, tiny_model, tmp_path / "run"), quiet=True).fresh


def test_thoughts_that_a_template_cuts_out_of_the_answer(tiny_model: Path, tmp_path: Path) -> None:
    """`inline` is no way out where the template cuts the thoughts out again; `drop` is."""
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    inline = {"instruction": "Why?", "output": "<think>It is so.</think>Because."}
    rows = write(tmp_path / "rows.jsonl", [inline])
    with pytest.raises(ConfigError) as refused:
        api.run(training(rows, tiny_model, tmp_path / "run", template=str(template)), quiet=True)
    (issue,) = refused.value.issues
    assert "drop" in issue.hint and "inline" not in issue.hint
    rows = write(tmp_path / "rows.jsonl", THOUGHTFUL)
    with pytest.raises(ConfigError) as refused:
        api.run(training(rows, tiny_model, tmp_path / "run", template=str(template), thoughts="inline"), quiet=True)
    assert "inline" not in refused.value.issues[0].hint
    assert api.run(training(rows, tiny_model, tmp_path / "run", template=str(template), thoughts="drop"), quiet=True)


@pytest.mark.parametrize("job", ["dpo", "reward_model"])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_thoughts_of_pairs_that_are_not_shown_are_refused(
    job: str, side: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pair(number: int) -> dict[str, Any]:
        answers = {name: {"role": "assistant", "content": f"{name} {number}"} for name in ("chosen", "rejected")}
        return {"prompt": f"Why {number}?", **{name: [answer] for name, answer in answers.items()}}

    rows = [pair(number) for number in range(3)]
    rows[2][side][0]["reasoning_content"] = "It is so."
    config = training(write(tmp_path / "pairs.jsonl", rows), tiny_model, tmp_path / "run") | {"job_type": job}
    with pytest.raises(ConfigError, match=r"thoughts of 1 of 6 answers.*\n.*inline"):
        api.run(config, quiet=True)
    assert not RunDirectory(tmp_path / "run").stage_directories()
    monkeypatch.setattr("easydistill.methods.shared.foretelling.FORETOLD", 2)
    with pytest.raises(ConfigError, match="does not show the thoughts of 1 of 1 answers"):
        api.run(config, quiet=True)
    assert not (tmp_path / "run/student").exists()
    config["dataset"]["thoughts"] = "drop"
    assert api.run(config, quiet=True).fresh


@pytest.mark.parametrize("how", ["inline", "drop"])
def test_nothing_is_told_once_it_is_decided(how: str, rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert notes(training(rows, tiny_model, tmp_path / "run", thoughts=how)) == ""


def test_how_chats_are_rendered_is_part_of_what_was_trained(rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    api.run(training(rows, tiny_model, tmp_path / "run", thoughts="inline"), quiet=True)
    assert not api.run(training(rows, tiny_model, tmp_path / "run", thoughts="inline"), quiet=True).fresh
    for more in ({"thoughts": "drop"}, {"template_kwargs": {"enable_thinking": False}}):
        (stage,) = api.plan(training(rows, tiny_model, tmp_path / "run", **more))
        assert stage.state == "pending"


def test_rows_that_the_template_refuses_are_told_with_its_reason(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ raise_exception('no such chats') }}")
    with pytest.raises(ConfigError, match=r"takes none of the first 4 rows: .*no such chats"):
        api.run(training(rows, tiny_model, tmp_path / "run", template=str(template)), quiet=True)


def test_rejected_rows_are_on_disk_when_none_is_left(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    config = training(rows, tiny_model, tmp_path / "run")
    config["training"]["max_length"] = 3
    config["dataset"]["thoughts"] = "drop"
    with pytest.raises(DataError, match=r"no_trainable_tokens, 4 of 4.*\n *→ raise training\.max_length"):
        api.run(config, quiet=True)
    (stage,) = RunDirectory(tmp_path / "run").stage_directories()
    assert len((stage / "rejected.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda path: (path / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda path: (path / "config.json").write_text("{}"), "names no model_type"),
        (lambda path: [found.unlink() for found in path.glob("*.safetensors")], "no weights"),
        (lambda path: [found.unlink() for found in path.glob("tokenizer*")], "no tokenizer"),
    ],
)
def test_a_student_that_is_not_whole(harm: Any, problem: str, rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "student")
    harm(tmp_path / "student")
    with pytest.raises(ConfigError, match=problem) as told:
        api.plan(training(rows, tmp_path / "student", tmp_path / "run"))
    assert told.value.issues[0].path == "models.student"
    assert "→" in str(told.value)


@pytest.mark.parametrize(
    ("harm", "where"),
    [
        (lambda path: (path / "tokenizer.json").write_text("{}"), "models.student"),
        (lambda path: (path / "chat_template.jinja").unlink(), "dataset.template"),
        (lambda path: (path / "chat_template.jinja").write_text("{% if %}"), "dataset.template"),
    ],
)
def test_a_student_is_loaded_before_a_teacher_is_asked(
    harm: Any, where: str, rows: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "student")
    harm(tmp_path / "student")
    config = {
        "job_type": "black_box_kd_api",
        "dataset": {"instruction_path": str(rows)},
        "inference": {"base_url": "http://127.0.0.1:9/v1", "model": "nobody"},
        "models": {"student": str(tmp_path / "student")},
        "training": {"max_steps": 1},
        "output_dir": str(tmp_path / "run"),
    }
    with pytest.raises(ConfigError) as told:
        api.run(config, quiet=True)
    assert [issue.path for issue in told.value.issues] == [where]
    assert not RunDirectory(tmp_path / "run").stage_directories()


def labelling(rows: Path, student: Any, output: Path, **training: Any) -> dict[str, Any]:
    """A job whose teacher does not answer: whatever is told is told before it is asked."""
    return {
        "job_type": "black_box_kd_api",
        "dataset": {"instruction_path": str(rows)},
        "inference": {"base_url": "http://127.0.0.1:9/v1", "model": "nobody"},
        "models": {"student": student},
        "training": {"max_steps": 1, "max_length": 128, **training},
        "output_dir": str(output),
    }


def refused(config: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as told:
        api.run(config, quiet=True)
    assert not RunDirectory(Path(config["output_dir"])).stage_directories()
    return [(issue.path, issue.problem) for issue in told.value.issues]


def test_answers_that_a_teacher_replaces_are_not_looked_at(rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The thoughts of a file's own answers are no reason to refuse it as prompts."""
    told = notes(labelling(rows, str(tiny_model), tmp_path / "run"))
    assert "thoughts of" not in told
    with pytest.raises(DataError, match="the teacher gave no usable answer"):
        api.run(labelling(rows, str(tiny_model), tmp_path / "run"), quiet=True)


def on_policy(rows: Path, student: Path, output: Path, share: float) -> dict[str, Any]:
    return {
        "job_type": "on_policy_kd",
        "dataset": {"labeled_path": str(rows)},
        "models": {"teacher": str(student), "student": str(student)},
        "on_policy": {"rollout_share": share, "max_new_tokens": 4},
        "training": {"max_steps": 1, "max_length": 128, "gradient_accumulation_steps": 1},
        "evaluation": {"enabled": False},
        "output_dir": str(output),
    }


def test_thoughts_matter_to_on_policy_training_where_answers_are_learned(
    rows: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(on_policy(rows, tiny_model, tmp_path / "half", 0.5))[0][0] == "dataset.thoughts"
    # As where a teacher gives the answers, or only later rows have thoughts.
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="does not show the thoughts of 4 of 4 rows"):
        patch.setattr(OnPolicyStage, "examine", lambda stage: [])
        api.run(on_policy(rows, tiny_model, tmp_path / "late", 0.5), quiet=True)
    # The student answers all prompts itself.
    assert api.run(on_policy(rows, tiny_model, tmp_path / "all", 1.0), quiet=True).fresh


def test_a_student_that_cannot_be_made_is_told_before_a_teacher_is_asked(
    rows: Path, tiny_model: Path, tmp_path: Path
) -> None:
    small = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    name = str(tiny_model)
    for student, key in (
        ({"from": name, "keep_layers": 99}, "models.student.keep_layers"),
        ({"config": {**small, "num_attention_heads": 5}, "tokenizer": name}, "models.student.config"),
        ({"config": {**small, "vocab_size": 100}, "tokenizer": name}, "models.student.config.vocab_size"),
    ):
        ((where, _),) = refused(labelling(rows, student, tmp_path / "run"))
        assert where == key
    assert notes(labelling(rows, {"from": name, "keep_layers": 2}, tmp_path / "run"))


def test_rows_that_cannot_be_packed_are_told_before_a_teacher_is_asked(
    rows: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    leaking = tmp_path / "leaking"
    shutil.copytree(tiny_model, leaking)
    AutoConfig.for_model("lfm2", layer_types=["conv", "full_attention"], num_hidden_layers=2).save_pretrained(leaking)
    ((where, problem),) = refused(labelling(rows, str(leaking), tmp_path / "run", packing=True))
    assert where == "training.packing" and "sees the one before it" in problem


def test_the_ends_of_a_student_are_told_before_a_teacher_is_asked(tiny_model: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(tiny_model, student)
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    asked = [{"instruction": "Why?"}, {"instruction": "Is that so?"}, {"instruction": "Why? " * 100}]
    rows = write(tmp_path / "rows.jsonl", asked)
    told = notes(labelling(rows, str(student), tmp_path / "run"))
    assert "the student has 64 positions and training.max_length is 128" in told and "1 of 3 rows are longer" in told
    assert "the prompt alone fills the student's 64 positions in 1 of 3 rows" in told
    assert "positions" not in notes(labelling(rows, str(student), tmp_path / "run", max_length=64))
    vocabulary = json.loads((student / "tokenizer.json").read_text())["model"]["vocab"]
    last, rare = max((at, token) for token, at in vocabulary.items() if token.isascii() and token.isalpha())
    (student / "config.json").write_text(json.dumps(config | {"vocab_size": last}))
    rows = write(tmp_path / "rows.jsonl", [{"instruction": "Why?"}, {"instruction": rare}])
    told = notes(labelling(rows, str(student), tmp_path / "run"))
    assert "1 of 2 rows have tokens that the student's embedding" in told


def test_the_date_is_that_of_the_first_start(rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(
        "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = training(rows, tiny_model, tmp_path / "run", template=str(template), thoughts="drop")
    started = tmp_path / "run/started.json"
    started.parent.mkdir()
    started.write_text(json.dumps({"started": "2024-05-01T10:00:00"}))
    assert api.run(config, quiet=True).fresh
    assert json.loads(started.read_text()) == {"started": "2024-05-01T10:00:00"}
    manifest = json.loads((tmp_path / "run/stages/1-train/manifest.json").read_text())
    assert manifest["fingerprint_of"]["date"] == "2024-05-01T10:00:00"
    # Another day, the run is still done.
    assert not api.run(config, quiet=True).fresh
    # A template without a date leaves fingerprints as they were.
    plain = training(rows, tiny_model, tmp_path / "plain", thoughts="drop")
    api.run(plain, quiet=True)
    manifest = json.loads((tmp_path / "plain/stages/1-train/manifest.json").read_text())
    assert "date" not in manifest["fingerprint_of"]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nOPENED{% endif %}"
)


def test_a_thought_that_only_generation_is_given_is_told(tiny_model: Path, tmp_path: Path) -> None:
    plain = [{"instruction": f"Why {number}?", "output": "Because."} for number in range(3)]
    path = write(tmp_path / "plain.jsonl", plain)
    template = tmp_path / "t.jinja"
    template.write_text(CHATML.replace("OPENED", "<think>\n"))
    told = notes(training(path, tiny_model, tmp_path / "run", template=str(template)))
    assert "generation is given '<think>\\n'" in told
    assert "in 3 of 3 rows" in told
    template.write_text(CHATML.replace("OPENED", ""))
    assert notes(training(path, tiny_model, tmp_path / "run", template=str(template))) == ""


def test_calls_that_are_not_shown_are_told_before_the_run(tiny_model: Path, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "count", "arguments": {"animal": "spider"}}}
    calling = {
        "messages": [
            {"role": "user", "content": "Legs?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "8", "name": "count"},
            {"role": "assistant", "content": "Eight."},
        ]
    }
    template = tmp_path / "t.jinja"
    template.write_text(CHATML.replace("OPENED", ""))
    rows = write(tmp_path / "calls.jsonl", [calling, {"instruction": "Why?", "output": "Because."}])
    told = notes(training(rows, tiny_model, tmp_path / "run", template=str(template)))
    assert "1 of 2 rows cannot be rendered for training" in told
    assert "does not show the tool calls of message 2" in told
    rows = write(tmp_path / "only_calls.jsonl", [calling])
    with pytest.raises(ConfigError, match="does not show the tool calls") as refused:
        api.run(training(rows, tiny_model, tmp_path / "run", template=str(template)), quiet=True)
    assert "tool calls" in refused.value.issues[0].hint


def test_marks_without_the_end_of_a_turn_are_told(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    template = tmp_path / "marks.jinja"
    template.write_text(
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
        "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    told = notes(training(rows, tiny_model, tmp_path / "run", template=str(template)))
    assert "no end token is learned in" in told
    assert "whose marks include the end of a turn" in told


SWITCHED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


@pytest.mark.parametrize("where", ["own", "dataset"])
def test_a_saved_student_is_rendered_as_it_was_trained(where: str, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows = write(tmp_path / "rows.jsonl", THOUGHTFUL)
    base, template = tmp_path / "base", tmp_path / "t.jinja"
    shutil.copytree(tiny_model, base)
    (base / "chat_template.jinja").write_text(SWITCHED)
    template.write_text(SWITCHED)
    chats: dict[str, Any] = {"template_kwargs": {"enable_thinking": False}, "thoughts": "drop"}
    chats |= {"template": str(template)} if where == "dataset" else {}
    found = api.run(training(rows, base if where == "own" else tiny_model, tmp_path / "run", **chats), quiet=True)
    student = AutoTokenizer.from_pretrained(found.student)
    prompt = student.apply_chat_template(
        [{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<think>\n\n</think>\n\n")
    thinking = student.apply_chat_template(
        [{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert thinking.endswith("assistant\n")
    said = json.loads((found.student / "chat_settings.json").read_text())
    assert said == {"thoughts": "drop", "template_kwargs": {"enable_thinking": False}}
    card, report = (found.student / "README.md").read_text(), found.report.read_text()
    assert "enable\\_thinking=false, thoughts left out" in card and "enable_thinking=false" in report
    assert "Its chat template sets the variables" in card
    # A job that goes on from this student says what it was trained with.
    more = training(rows, found.student, tmp_path / "more", thoughts="inline")
    assert 'trained with dataset.thoughts "drop", which is "inline" here' in notes(more)
    assert "template_kwargs" not in notes(more)
    more["dataset"]["template"] = str(template)
    assert 'trained with dataset.template_kwargs {"enable_thinking": false}' in notes(more)
    more["dataset"] |= chats
    assert "trained with" not in notes(more)


def test_a_student_of_the_defaults_is_saved_as_before(tiny_model: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"instruction": "Why?", "output": "Because."}])
    found = api.run(training(rows, tiny_model, tmp_path / "run"), quiet=True)
    assert not (found.student / "chat_settings.json").exists()
    assert (found.student / "chat_template.jinja").read_text() == (tiny_model / "chat_template.jinja").read_text()
    assert "Chats:" not in (found.student / "README.md").read_text()
