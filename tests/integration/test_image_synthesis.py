"""Operators over rows with images: what models are shown, what the rows keep, and that nothing is asked twice."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.pictures import BLUE, GREEN, RED, LookingServer, looking, picture, sent_images

import easydistill
from easydistill import api
from easydistill.asking.answers import JOURNAL
from easydistill.contracts.operator import Ask
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.images.reader import NOT_SEEN
from easydistill.data.images.store import digest_of
from easydistill.data.manifest import NAME as MANIFEST
from easydistill.data.reading import read_rows
from easydistill.data.records import Sample
from easydistill.errors import ConfigError, DataError
from easydistill.jobs import stages_of
from easydistill.synthesis.images import ImageNovelty, reworded, with_images
from easydistill.synthesis.operators import OPERATORS
from easydistill.synthesis.replies import Unusable

PICTURES = {"r.png": picture(RED), "g.png": picture(GREEN), "b.png": picture(BLUE)}
CHAIN = "The left one is red, as is seen. So the answer is 3."
ROWS: list[dict[str, Any]] = [
    {"id": "alpha", "instruction": "Say alpha: how many of these are red?", "images": ["r.png"]},
    {"id": "beta", "instruction": "Say beta: how many of these are red?", "images": ["b.png"]},
    {"id": "gamma", "instruction": "<image> gamma <image> compare how many are red.", "images": ["r.png", "g.png"]},
    {"id": "delta", "instruction": "Say delta: how much is one and two, all in all?"},
]
SHOWN = {row["id"]: [PICTURES[name] for name in row.get("images", ())] for row in ROWS}


@pytest.fixture
def server() -> Iterator[LookingServer]:
    with looking() as made:
        made.answers = reply
        yield made


def text_of(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def about(text: str) -> str:
    return next(name for name in SHOWN if name in text)


WORDS = ("harbour", "lantern", "violin", "granite", "meadow", "saffron", "glacier", "compass", "orchard", "walnut")


def reply(body: dict[str, Any]) -> str:
    """A usable reply to any of the built-in prompts, which depends on what was sent."""
    text = text_of(body)
    name = next((name for name in SHOWN if name in text), "")
    mark = sum(map(ord, json.dumps(body)))
    fresh = " ".join(WORDS[mark // 10**step % 10] + WORDS[(mark + step) % 10] for step in range(3))
    fields = {
        "instruction": f"Please tell {name or 'omega'} now: {fresh}?",
        "thought": f"{CHAIN} " * (1 if "much shorter" in text else 3) + "\\boxed{3}",
        "label": "Math",
        **dict.fromkeys(("rv", "cd", "informativeness", "helpfulness", "generalisation", "score"), "7"),
        **dict.fromkeys(("correct", "correctness", "same", "answerable", "needs_image"), "1"),
        "first": "9",
        "second": "2",
    }
    if "rewritten solution" in text:
        return f"<thought>{fields['thought']}</thought>"
    if "Write [image]" in text and name == "gamma":
        fields["instruction"] = f"[image] gamma: compare with [image], {fresh}."
    wanted = [field for field in re.findall(r"<(\w+)>", text) if field in fields]
    return "".join(f"<{field}>{fields[field]}</{field}>" for field in wanted) or f"{CHAIN} \\boxed{{3}}"


def job(folder: Path, url: str, kind: str, rows: Any = ROWS, **synthesis: Any) -> dict[str, Any]:
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    if rows is not None and not (folder / "in.json").exists():
        (folder / "in.json").write_text(json.dumps(rows))
    return {
        "job_type": kind,
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "in.json"), "labeled_path": str(folder / "out.json")},
        "inference": {"base_url": url, "model": "m", "api_key": "k", "max_new_tokens": 1024},
        **({"synthesis": synthesis} if synthesis else {}),
    }


def answered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "output": CHAIN + " It is so." * 4, "reference": "3"} for row in rows]


def written(folder: Path, name: str = "out.json") -> dict[str, Sample]:
    found = read_rows(folder / name, labelled=None, images=ImageReader(ImageStore(folder / "read")))
    assert not found.rejected
    return {sample.id: sample for sample in found.samples}


def stage_of(folder: Path) -> Path:
    (stage,) = (folder / "run/stages").iterdir()
    return stage


def check_nothing_shows_bytes(folder: Path) -> None:
    """The bytes of images are in the folders of images alone."""
    for path in (folder / "run").rglob("*"):
        if path.is_file() and path.parent.name != "images" and path.suffix not in {".html", ".parquet"}:
            content = path.read_bytes()
            assert b";base64," not in content, path
            for data in PICTURES.values():
                assert base64.b64encode(data)[:60] not in content, path


ASKING: dict[str, tuple[Callable[[list[dict[str, Any]]], list[dict[str, Any]]], dict[str, Any]]] = {
    "cot_generation": (list, {}),
    "cot_long2short": (answered, {}),
    "cot_short2long": (answered, {}),
    "cot_scoring": (answered, {}),
    "instruction_scoring": (answered, {}),
    "task_labelling": (list, {}),
    "instruction_refinement": (list, {"keep_numbers": False}),
}
"""Operators whose rows are those that they read: what they read, and their settings."""


@pytest.mark.parametrize("kind", ASKING)
def test_models_are_shown_a_rows_own_images(kind: str, tmp_path: Path, server: LookingServer) -> None:
    make, settings = ASKING[kind]
    config = job(tmp_path, server.url, kind, make(ROWS), **settings)
    assert easydistill.run(config, quiet=True).exit_code == 0
    bodies = list(server.bodies)
    assert len(bodies) == len(ROWS) * (2 if kind == "instruction_refinement" else 1)
    for body in bodies:
        assert sent_images(body) == SHOWN[about(text_of(body))]
    found = written(tmp_path)
    assert found.keys() == SHOWN.keys()
    for name, sample in found.items():
        assert sample.images == tuple(map(digest_of, SHOWN[name]))
    check_nothing_shows_bytes(tmp_path)
    check_it_resumes(tmp_path, server, config)


def check_it_resumes(folder: Path, server: LookingServer, config: dict[str, Any]) -> None:
    """A run that was killed in the middle of writing an answer asks for that one, and what follows, and is then the
    run that was never killed."""
    stage = stage_of(folder)
    before, answers = (folder / "out.json").read_bytes(), (stage / JOURNAL).read_bytes().splitlines(keepends=True)
    (stage / MANIFEST).unlink()
    kept = answers[: len(answers) // 2]
    (stage / JOURNAL).write_bytes(b"".join(kept) + answers[len(kept)][:20])
    server.bodies.clear()
    assert easydistill.run(config, quiet=True).exit_code == 0
    assert len(server.bodies) == len(answers) - len(kept)
    assert (folder / "out.json").read_bytes() == before
    server.bodies.clear()
    assert easydistill.run(config, quiet=True).exit_code == 0
    assert not server.bodies


def test_images_stand_where_the_instruction_has_them(tmp_path: Path, server: LookingServer) -> None:
    config = job(tmp_path, server.url, "cot_long2short", answered(ROWS))
    assert easydistill.run(config, quiet=True).exit_code == 0
    (content,) = (body["messages"][-1]["content"] for body in server.bodies if "gamma" in text_of(body))
    kinds = [part["type"] for part in content]
    assert kinds == ["text", "image_url", "text", "image_url", "text"] and content[2]["text"] == " gamma "
    (alone,) = (body["messages"][-1]["content"] for body in server.bodies if "delta" in text_of(body))
    assert isinstance(alone, str) and "image" not in alone
    assert "with what they take from the images" in content[4]["text"]


def test_a_chain_for_a_chat_keeps_the_images_of_earlier_turns(tmp_path: Path, server: LookingServer) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image", "image": "g.png"}, {"type": "text", "text": "Say alpha."}]},
        {"role": "assistant", "content": "Alpha."},
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "image", "image": "b.png"}]},
    ]
    config = job(tmp_path, server.url, "cot_generation", [{"messages": turns}])
    assert easydistill.run(config, quiet=True).exit_code == 0
    (body,) = server.bodies
    assert sent_images(body) == [PICTURES["g.png"], PICTURES["b.png"]]
    assert [len(sent_images({"messages": [message]})) for message in body["messages"]] == [1, 0, 1]
    (sample,) = written(tmp_path).values()
    assert sample.images == (digest_of(PICTURES["g.png"]), digest_of(PICTURES["b.png"]))


# --- new instructions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"variant": "evolve"}], ids=["self_instruct", "evolve"])
def test_new_instructions_are_about_the_images_that_were_shown(
    settings: dict[str, Any], tmp_path: Path, server: LookingServer
) -> None:
    config = job(tmp_path, server.url, "instruction_expansion", num_output_samples=12, **settings)
    assert easydistill.run(config, quiet=True).exit_code == 0
    shown = {tuple(sent_images(body)) for body in server.bodies}
    assert shown == {tuple(images) for images in SHOWN.values()}
    found = written(tmp_path)
    assert len(found) == 12
    made = Counter(sample.images for sample in found.values())
    assert made.keys() <= {tuple(map(digest_of, images)) for images in SHOWN.values()} and len(made) > 2
    for sample in found.values():
        first = sample.meta["sources"][0]
        if first in SHOWN:
            assert sample.images == tuple(map(digest_of, SHOWN[first]))
    for body in server.bodies:
        asked = text_of(body)
        # Images never stand beside the words for instructions without any.
        assert ("without pictures" in asked) == (not sent_images(body) and not settings)
        assert "<image>" not in asked
    check_nothing_shows_bytes(tmp_path)
    check_it_resumes(tmp_path, server, config)


def test_the_same_question_about_another_image_is_new(tmp_path: Path, server: LookingServer) -> None:
    server.answers = lambda body: "<instruction>What colour is shown in the middle of it?</instruction>"
    config = job(tmp_path, server.url, "instruction_expansion", ROWS[:2], num_output_samples=2, budget=10)
    assert easydistill.run(config, quiet=True).exit_code == 0
    assert {sample.images for sample in written(tmp_path).values()} == {
        (digest_of(PICTURES["r.png"]),),
        (digest_of(PICTURES["b.png"]),),
    }


def test_a_rewriting_keeps_the_places_of_images(tmp_path: Path, server: LookingServer) -> None:
    texts = {"alpha": "Count the red ones in it.", "gamma": "See [image] and then [image]: compare them."}
    places = {"instruction_refinement": lambda name: f"<instruction>{texts[name]}</instruction>"}

    def answers(body: dict[str, Any]) -> str:
        text = text_of(body)
        return "<same>1</same>" if "[First]" in text else places["instruction_refinement"](about(text))

    server.answers = answers
    config = job(tmp_path, server.url, "instruction_refinement", [ROWS[0], ROWS[2]])
    assert easydistill.run(config, quiet=True).exit_code == 0
    found = written(tmp_path)
    assert found["gamma"].messages[0]["content"] == [
        {"type": "text", "text": "See "},
        {"type": "image", "image": digest_of(PICTURES["r.png"])},
        {"type": "text", "text": " and then "},
        {"type": "image", "image": digest_of(PICTURES["g.png"])},
        {"type": "text", "text": ": compare them."},
    ]
    assert [part["type"] for part in found["alpha"].messages[0]["content"]] == ["image", "text"]
    # The judge sees the images too, once, and no tags that stand for none.
    judged = [body for body in server.bodies if "[First]" in text_of(body)]
    assert [len(sent_images(body)) for body in judged] == [1, 2] or [len(sent_images(body)) for body in judged] == [
        2,
        1,
    ]
    assert not any("<image>" in text_of(body) for body in server.bodies)


def test_a_rewriting_that_loses_places_is_rejected() -> None:
    inside: Any = {
        "role": "user",
        "content": [{"type": "text", "text": "See "}, {"type": "image", "image": "sha256:1"}],
    }
    with pytest.raises(Unusable, match="image_places"):
        reworded(inside, "See this.")
    before: Any = {"role": "user", "content": [{"type": "image", "image": "sha256:1"}, {"type": "text", "text": "See"}]}
    assert reworded(before, "What?")["content"][0] == {"type": "image", "image": "sha256:1"}
    assert reworded({"role": "user", "content": "a"}, "b [image]") == {"role": "user", "content": "b [image]"}


def test_a_tag_that_a_model_wrote_moves_no_image() -> None:
    ask = Ask(({"role": "user", "content": "<image> What? It says <image>."},))
    (message,) = with_images(ask, ("sha256:1",)).messages
    assert message["content"] == [
        {"type": "image", "image": "sha256:1"},
        {"type": "text", "text": "[image] What? It says [image]."},
    ]


def test_novelty_is_asked_of_the_same_images() -> None:
    novelty = ImageNovelty(0.8, 0.7)
    for number in range(40):
        text = f"{WORDS[number % 10]} {WORDS[number // 10]} {number} words of a question {number * 7}"
        assert novelty.offer(f"r{number}", ("a",), text) is None
        near = novelty.offer(f"again {number}", ("a", "a"), text)
        assert near is not None and near.nearest == f"r{number}"
        assert novelty.offer(f"text {number}", (), text) is None
        assert novelty.offer(f"both {number}", ("a", "b"), text) is None
        assert novelty.offer(f"turned {number}", ("b", "a"), text) is not None


# --- a curriculum, pairs ----------------------------------------------------------------------------------------


def test_pairs_are_of_answers_to_the_images(tmp_path: Path, server: LookingServer) -> None:
    def answers(body: dict[str, Any]) -> str:
        if "[First answer]" not in text_of(body):
            return f"answer {body.get('seed', 0)} {len(sent_images(body))}"
        good = "[First answer]\nanswer 0" in text_of(body)
        return "<first>9</first><second>2</second>" if good else "<first>2</first><second>9</second>"

    server.answers = answers
    settings: dict[str, Any] = {"method": "rank", "teacher_samples": 2, "student_samples": 0}
    config = job(tmp_path, server.url, "preference_data", **settings)
    config["inference"] |= {"seed": 0}
    assert easydistill.run(config, quiet=True).exit_code == 0
    for body in server.bodies:
        assert sent_images(body) == SHOWN[about(text_of(body))]
    rows = {row["source"]: row for row in json.loads((tmp_path / "out.json").read_text())}
    assert {name: len(row.get("images", ())) for name, row in rows.items()} == {
        name: len(images) for name, images in SHOWN.items()
    }
    for row in rows.values():
        for name in row.get("images", ()):
            assert (tmp_path / name).is_file()
    check_nothing_shows_bytes(tmp_path)


# --- operators that ask no model --------------------------------------------------------------------------------


def scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    marks = {"informativeness": 9, "helpfulness": 9, "generalisation": 9, "correctness": 1}
    return [{**row, **marks, "rv": 5, "cd": 5, "correct": 1, "task": "Math"} for row in answered(rows)]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("deduplicate", {}),
        ("instruction_selection", {}),
        ("cot_selection", {}),
        ("task_balancing", {}),
        ("decontaminate", {"benchmarks": ["bench.jsonl"]}),
    ],
)
def test_selections_keep_images(kind: str, settings: dict[str, Any], tmp_path: Path, server: LookingServer) -> None:
    (tmp_path / "bench.jsonl").write_text('{"question": "Nothing of the kind is here"}\n')
    if "benchmarks" in settings:
        settings = {"benchmarks": [str(tmp_path / "bench.jsonl")]}
    config = job(tmp_path, server.url, kind, scored(ROWS), **settings)
    del config["inference"]
    assert easydistill.run(config, quiet=True).exit_code == 0
    found = written(tmp_path)
    assert {name: sample.images for name, sample in found.items()} == {
        name: tuple(map(digest_of, images)) for name, images in SHOWN.items()
    }
    check_nothing_shows_bytes(tmp_path)


def test_duplicates_show_the_same_images(tmp_path: Path, server: LookingServer) -> None:
    rows = [
        {"id": "a", "instruction": "How many are red?", "images": ["r.png"]},
        {"id": "b", "instruction": "How many are red?", "images": ["b.png"]},
        {"id": "c", "instruction": "How many are red?", "images": ["r.png"]},
        {"id": "d", "instruction": "How many are red?"},
        {"id": "e", "instruction": "How many are red?", "images": ["r.png", "b.png"]},
    ]
    config = job(tmp_path, server.url, "deduplicate", rows)
    del config["inference"]
    assert easydistill.run(config, quiet=True).exit_code == 0
    assert len(written(tmp_path)) == 4


def test_images_of_benchmarks_are_kept_out_of_training(tmp_path: Path, server: LookingServer) -> None:
    bench = [
        {"question": "What is in the picture?", "image": "g.png"},
        {"question": "Find the sum of all the numbers that stand on the two dice in the picture, please."},
    ]
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    rows = [
        {"id": "other image", "instruction": "What is in the picture?", "images": ["r.png"]},
        {"id": "same image", "instruction": "Is it green?", "images": ["b.png", "g.png"]},
        {"id": "same words", "instruction": bench[1]["question"], "images": ["r.png"]},
        {"id": "text", "instruction": "What is in the picture?"},
    ]
    config = job(tmp_path, server.url, "decontaminate", rows, benchmarks=[str(tmp_path / "bench.json")])
    del config["inference"]
    assert easydistill.run(config, quiet=True).exit_code == 0
    assert written(tmp_path).keys() == {"other image", "text"}
    dropped = [json.loads(line) for line in (stage_of(tmp_path) / "rejected.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in dropped} == {
        "same image": "benchmark_image",
        "same words": "benchmark_exact",
    }


# --- who would not see ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*ASKING, "instruction_expansion"])
def test_a_model_of_text_is_given_no_images(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    config = job(tmp_path, "http://127.0.0.1:9/v1", kind, answered(ROWS))
    config |= {"inference": {"backend": "transformers"}, "models": {"teacher": str(tiny_model)}}
    (stage,) = stages_of(api.load(config).job)
    found = stage._read()  # type: ignore[attr-defined]
    assert [sample.id for sample in found.samples] == ["delta"]
    assert {row.reason for row in found.rejected} == {NOT_SEEN} and len(found.rejected) == 3
    told = stage.foretell()
    assert any("3 of 4 rows are refused (image_not_supported)" in line for line in told), told


def test_operators_that_show_no_images_refuse_rows_with_them(
    tmp_path: Path, server: LookingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of other packages, which know of no images."""
    monkeypatch.setattr(OPERATORS.module("task_labelling"), "SHOWS_IMAGES", ())
    config = job(tmp_path, server.url, "task_labelling", ROWS[:3])
    (stage,) = stages_of(api.load(config).job)
    with pytest.raises(DataError, match="task_labelling reads text alone"):
        stage._read()  # type: ignore[attr-defined]


def test_text_is_not_extracted_from_rows_with_images(tmp_path: Path, server: LookingServer) -> None:
    rows = [{"text": "A long text. " * 20, "image": "r.png"}, {"text": "Another text. " * 20}]
    config = job(tmp_path, server.url, "instruction_response_extraction", rows)
    (stage,) = stages_of(api.load(config).job)
    found = stage._read()  # type: ignore[attr-defined]
    (refused,) = found.rejected
    assert refused.reason == NOT_SEEN and "image_instruction_generation" in refused.detail


def test_every_operator_has_decided() -> None:
    """Shown, kept, or refused with words of its own."""
    for name, module in OPERATORS.loaded().items():
        decided = bool(module.SHOWS_IMAGES) + bool(module.KEEPS_IMAGES) + bool(module.REFUSES_IMAGES)
        assert decided == 1, name


# --- instructions about images ----------------------------------------------------------------------------------


def folder_of_images(folder: Path) -> Path:
    images = folder / "pictures"
    (images / "more").mkdir(parents=True)
    shutil.copy(folder / "r.png", images / "one.png")
    shutil.copy(folder / "g.png", images / "more/two.PNG")
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (images / "notes.txt").write_text("not an image")
    (images / ".hidden.png").write_bytes(b"")
    return images


def test_a_folder_of_images_becomes_instructions(tmp_path: Path, server: LookingServer) -> None:
    config = job(tmp_path, server.url, "image_instruction_generation", None)
    config["dataset"] |= {"instruction_path": str(folder_of_images(tmp_path))}
    assert easydistill.run(config, quiet=True).exit_code == 0
    shown = Counter(tuple(sent_images(body)) for body in server.bodies)
    # Two instructions each, and a look of the judge at each of them.
    assert shown == {(PICTURES["r.png"],): 4, (PICTURES["g.png"],): 4}
    found = list(written(tmp_path).values())
    assert Counter(sample.images[0] for sample in found) == {
        digest_of(PICTURES["r.png"]): 2,
        digest_of(PICTURES["g.png"]): 2,
    }
    assert {sample.meta["image_source"] for sample in found} == {"one.png", "more/two.PNG"}
    assert len({(sample.images, sample.meta["kind"]) for sample in found}) == 4
    assert all([part["type"] for part in sample.messages[0]["content"]] == ["image", "text"] for sample in found)
    (refused,) = [json.loads(line) for line in (stage_of(tmp_path) / "rejected.jsonl").read_text().splitlines()]
    assert refused["raw"] == "broken.jpg"
    assert "notes.txt" in (tmp_path / "run/summary.json").read_text() or "notes.txt" in _log(tmp_path)
    check_nothing_shows_bytes(tmp_path)
    check_it_resumes(tmp_path, server, config)
    # Another image, and the stage runs again: only about that one.
    (tmp_path / "pictures/one.png").write_bytes(PICTURES["b.png"])
    assert easydistill.run(config, quiet=True).exit_code == 0
    assert {tuple(sent_images(body)) for body in server.bodies} == {(PICTURES["b.png"],)}


def _log(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "run").rglob("*.log"))


def test_rows_of_images_alone_become_instructions(tmp_path: Path, server: LookingServer) -> None:
    rows = [
        {"id": "two", "images": ["r.png", "b.png"], "place": "kitchen"},
        {"id": "one", "image": "g.png"},
        {"id": "chat", "messages": [{"role": "user", "content": [{"type": "image", "image": "b.png"}]}]},
        {"id": "asks", "instruction": "What is it?", "image": "g.png"},
        {"id": "none", "caption": "A cat."},
        {"id": "gone", "image": "missing.png"},
    ]
    config = job(tmp_path, server.url, "image_instruction_generation", rows, instructions_per_image=1, check=False)
    assert easydistill.run(config, quiet=True).exit_code == 0
    found = {sample.meta["source"]: sample for sample in written(tmp_path).values()}
    assert {name: len(sample.images) for name, sample in found.items()} == {"two": 2, "one": 1, "chat": 1}
    assert found["two"].meta["place"] == "kitchen"
    dropped = [json.loads(line) for line in (stage_of(tmp_path) / "rejected.jsonl").read_text().splitlines()]
    assert Counter(row["reason"] for row in dropped) == {"has_instruction": 1, "no_image": 1, "image_missing": 1}
    assert "instruction_expansion" in next(row["detail"] for row in dropped if row["reason"] == "has_instruction")


def test_instructions_that_nobody_has_to_look_for_are_rejected(tmp_path: Path, server: LookingServer) -> None:
    def answers(body: dict[str, Any]) -> str:
        text = text_of(body)
        if "answerable" not in text:
            return reply(body)
        red = sent_images(body) == [PICTURES["r.png"]]
        return f"<answerable>{int(red)}</answerable><needs_image>0</needs_image>"

    server.answers = answers
    rows = [{"id": "a", "image": "r.png"}, {"id": "b", "image": "g.png"}]
    config = job(tmp_path, server.url, "image_instruction_generation", rows, instructions_per_image=1)
    with pytest.raises(DataError, match="none of 2 candidates was accepted"):
        easydistill.run(config, quiet=True)
    dropped = [json.loads(line) for line in (stage_of(tmp_path) / "rejected.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in dropped} == {"a-1": "image_not_needed", "b-1": "not_answerable"}


def test_made_instructions_are_labelled_as_any_others(tmp_path: Path, server: LookingServer) -> None:
    rows = [{"id": "a", "image": "r.png"}, {"id": "b", "image": "g.png"}]
    config = job(tmp_path, server.url, "image_instruction_generation", rows)
    assert easydistill.run(config, quiet=True).exit_code == 0
    server.bodies.clear()
    server.answers = None
    again = {
        "job_type": "label",
        "output_dir": str(tmp_path / "label"),
        "dataset": {"instruction_path": str(tmp_path / "out.json"), "labeled_path": str(tmp_path / "labels.json")},
        "inference": config["inference"],
    }
    assert easydistill.run(again, quiet=True).exit_code == 0
    labels = written(tmp_path, "labels.json").values()
    assert {(sample.images[0], sample.answer) for sample in labels} == {
        (digest_of(PICTURES["r.png"]), str(RED)),
        (digest_of(PICTURES["g.png"]), str(GREEN)),
    }


def test_what_a_run_writes_is_not_read_with_the_images(tmp_path: Path, server: LookingServer) -> None:
    """Else the same command would find a file of rows, and copies of the images, in the folder of images."""
    config = job(tmp_path, server.url, "image_instruction_generation", None)
    images = folder_of_images(tmp_path)
    config["dataset"] |= {"instruction_path": str(images), "labeled_path": str(images / "deep/out.jsonl")}
    with pytest.raises(ConfigError, match=r"(?s)dataset.labeled_path.*beside the folder"):
        easydistill.validate(config)
    config["dataset"]["labeled_path"] = str(tmp_path / "out.json")
    config["output_dir"] = str(images / "run")
    for _ in range(2):
        assert easydistill.run(config, quiet=True).exit_code == 0
        assert len(server.bodies) == 8


def test_a_folder_without_images_says_what_they_end_in(tmp_path: Path, server: LookingServer) -> None:
    config = job(tmp_path, server.url, "image_instruction_generation", None)
    (tmp_path / "none").mkdir()
    config["dataset"]["instruction_path"] = str(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"and no image\n.*images are PNG"):
        easydistill.validate(config)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: (folder / "pictures/rows.jsonl").write_text("{}\n"), "a file of rows"),
        (lambda folder: (folder / "pictures/notes.txt").unlink(), "image_folder"),
    ],
    ids=["rows beside images", "image_folder"],
)
def test_folders_that_say_two_things_are_refused(
    prepare: Callable[[Path], Any], words: str, tmp_path: Path, server: LookingServer
) -> None:
    config = job(tmp_path, server.url, "image_instruction_generation", None)
    config["dataset"] |= {"instruction_path": str(folder_of_images(tmp_path)), "image_folder": str(tmp_path)}
    prepare(tmp_path)
    with pytest.raises(ConfigError, match=words):
        easydistill.validate(config)
