"""Teachers that read chats and images in a form of their own, and the student's answers token by token."""

from __future__ import annotations

import json
import shutil
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.killed import Killed, killed_at
from tests.support.own_forms import OTHER_TEMPLATE, coarse_llava, rows_with_images, white_box
from tests.support.pictures import GREEN, RED, picture
from tests.support.vision_llm import Llm
from tests.support.vision_models import END, vision_model

import easydistill
from easydistill.data.images import ImageStore
from easydistill.data.messages import answer_message
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, DataError, TeacherError
from easydistill.evaluation.measure import Measured, token_metrics
from easydistill.evaluation.metrics import METRICS
from easydistill.methods.distil.rescore import scorer_of_store
from easydistill.models.compatibility import Side, compare, side_of
from easydistill.models.head import body_of
from easydistill.models.loading import load_model
from easydistill.models.multimodal import Vision, load_processor
from easydistill.signals import from_vllm
from easydistill.signals.answers import AnswersAligner, UnlikeAnswer, compare_answers
from easydistill.signals.config import (
    SampledSignals,
    SignalsConfig,
    ThresholdSignals,
    TopKSampledSignals,
    TopKSignals,
    TopPSignals,
)
from easydistill.signals.extract import SignalShape
from easydistill.signals.score import ModelScorer, RowToScore
from easydistill.signals.store import ScoredSample, SignalStore, StoreManifest, shard_path, write_shard
from easydistill.signals.verify import verify

PAIRS = {"fewer": "llava", "qwen2_5_vl": "llava", "idefics3": "gemma3", "llava": "qwen3_vl", "gemma3": "idefics3"}
"""Teacher → student; `fewer` reads an image as 4 tokens, and the student as 16."""
SHARED = 259
"""Tokens that all families number alike: bytes, padding, and the two marks of turns."""


def teacher_of(name: str) -> Path:
    return coarse_llava() if name == "fewer" else vision_model(name, 1)


@cache
def side(reference: Path, name: str) -> Side:
    return side_of(str(reference), name)


def chat(*images: str, answer: str = "This one.") -> list[Any]:
    content: Any = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "Which?"}]
    return [{"role": "user", "content": content if images else "Which?"}, answer_message(answer)]


def seen(reference: Path, store: ImageStore) -> Vision:
    return Vision(load_processor(str(reference)), store.path)


class Forms:
    """A teacher and a student that read the same chats."""

    def __init__(self, teacher: Path, student: Path, store: ImageStore, template: str | None = OTHER_TEMPLATE) -> None:
        self.reference, self.store = teacher, store
        self.vision = seen(teacher, store)
        other = side(teacher, "teacher")
        if template is not None:
            other = Side(other.name, other.tokenizer, other.eos_ids, other.rows, self._own_marks(template))
        self.aligner = AnswersAligner(side(student, "student"), other, 512, images=self.vision)
        self.student = side(student, "student").renderer(None, seen(student, store))

    def _own_marks(self, template: str) -> str:
        mark = self.vision.processor.mark
        shown = f"<|vision_start|>{mark}<|vision_end|>" if mark == "<|image_pad|>" else mark
        return template.replace("<image>", shown)

    def row(self, messages: list[Any], longest: int | None = None, name: str = "row") -> Any:
        written = self.student.render(messages, longest)
        row = RowToScore(name, written.ids_T, written.learned, images=written.images)
        return self.aligner.row(row, messages, truncated=written.truncated)

    def logprobs(self, row: RowToScore) -> torch.Tensor:
        """By the teacher's own forward: of the shared tokens, [learned tokens, SHARED]."""
        assert row.read is not None
        ids = torch.tensor(np.asarray(row.read.ids))[None].long()
        model = load_model(str(self.reference), torch.float32).eval()
        with torch.inference_mode():
            given = self.vision.inputs(ids, [(row.read.ids, row.images)])
            logits = model(input_ids=ids, **given).logits[0, :-1, :SHARED]
        return logits[torch.tensor(np.asarray(row.read.learned)[1:])].double().log_softmax(-1)


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def two(images: ImageStore) -> tuple[str, str]:
    return images.add(picture(RED, (24, 24))), images.add(picture(GREEN, (40, 28)))


KINDS: list[SignalsConfig] = [
    TopKSignals(kind="top_k", k=SHARED, dtype="float32"),
    TopPSignals(kind="top_p", top_p=0.6, k_max=64, dtype="float32"),
    SampledSignals(kind="sampled", draws=40, dtype="float32"),
    TopKSampledSignals(kind="top_k_sampled", k=8, draws=8, dtype="float32"),
    ThresholdSignals(n=64, dtype="float32"),
]


@pytest.mark.parametrize("teacher", PAIRS)
def test_signals_are_the_teachers_for_the_same_answer_token(teacher: str, images: ImageStore) -> None:
    """In a batch of rows with no, one and two images; of every kind."""
    red, green = two(images)
    forms = Forms(teacher_of(teacher), vision_model(PAIRS[teacher]), images)
    shown = [(), (red,), (green, red), (green,)]
    rows = [forms.row(chat(*each), name=f"row{at}") for at, each in enumerate(shown)]
    assert all(isinstance(row, RowToScore) for row in rows)
    assert any(len(row.ids) != len(row.read_ids) for row in rows[1:])
    expected = [forms.logprobs(row) for row in rows]
    for config in KINDS:
        scorer = ModelScorer([str(forms.reference)], [1.0], config, SHARED, 1.0, images=images.path)
        for row, scored, own_NV in zip(rows, scorer.score(rows), expected, strict=True):
            ids = np.asarray(row.ids)[np.asarray(row.learned)]
            assert np.allclose(scored.signal.target_logprob_N, own_NV[range(len(ids)), ids.tolist()], atol=1e-4)
            used = np.isfinite(scored.signal.head_logprobs_NK)
            at, place = np.nonzero(used)
            listed = scored.signal.head_ids_NK[at, place]
            assert np.allclose(scored.signal.head_logprobs_NK[used], own_NV[at.tolist(), listed.tolist()], atol=1e-4)
            assert scored.present.all() and scored.images == row.images and scored.read == row.read
    assert not np.allclose(expected[1], expected[3][: len(expected[1])], atol=1e-3)


def test_a_teacher_with_the_students_form_gives_what_it_gives_without(images: ImageStore) -> None:
    """The same draws, too; what follows the last learned token is not read."""
    red, green = two(images)
    forms = Forms(vision_model("llava", 1), vision_model("llava"), images, None)
    rows = [forms.row(chat(*each), name=f"row{at}") for at, each in enumerate([(), (red,), (green, red)])]
    plain = [RowToScore(row.id, row.ids, row.learned, images=row.images) for row in rows]
    scorer = ModelScorer([str(forms.reference)], [1.0], KINDS[-1], SHARED, 1.0, images=images.path)
    for ours, theirs in zip(scorer.score(rows), scorer.score(plain), strict=True):
        for name in ("head_ids_NK", "draw_ids_ND", "draw_counts_ND"):
            assert np.array_equal(getattr(ours.signal, name), getattr(theirs.signal, name))
        for name in ("head_logprobs_NK", "log_rest_N", "target_logprob_N"):
            assert np.allclose(getattr(ours.signal, name), getattr(theirs.signal, name), atol=1e-5)


def test_rows_that_are_cut_are_scored_as_far_as_they_go(images: ImageStore) -> None:
    red, green = two(images)
    forms = Forms(coarse_llava(), vision_model("llava"), images)
    messages = chat(red, answer="The first one is red.") + chat(green, answer="The other.")
    whole = forms.row(messages)
    learned = np.flatnonzero(whole.learned)
    for length in (int(learned[5]), int(learned[-1]) - 2):
        try:
            cut = forms.row(messages, length)
        except DataError as error:
            assert "image" in str(error)
            continue
        count = int(np.sum(cut.learned))
        assert 0 < count < len(learned) and int(np.sum(cut.read.learned)) == count
        # Every image is whole for the teacher, even if nothing is learned behind it.
        assert forms.vision.batch([(cut.read.ids, cut.images)])
    (gap,) = np.flatnonzero(np.diff(learned) > 1)
    behind_images = int(learned[gap + 1])
    cut = forms.row(messages, behind_images)
    assert int(np.sum(cut.learned)) == gap + 1 and cut.images == (red, green)
    assert forms.vision.batch([(cut.read.ids, cut.images)])


def filtered(by: str) -> str:
    """A template that changes what is said."""
    return OTHER_TEMPLATE.replace("m.content }}", f"m.content | {by} }}}}").replace(
        "part.text }}", f"part.text | {by} }}}}"
    )


REFUSALS = {
    filtered("upper"): ("answers_differ", "answer token 2 of"),
    OTHER_TEMPLATE.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ raise_exception('no') }}{% endif %}",
    ): ("teacher_refused", "refuses the chat"),
}


@pytest.mark.parametrize("template", REFUSALS)
def test_answers_that_are_others_to_the_teacher_are_refused(template: str, images: ImageStore) -> None:
    (red, _), (reason, detail) = two(images), REFUSALS[template]
    found = Forms(coarse_llava(), vision_model("llava"), images, template).row(chat(red))
    assert isinstance(found, UnlikeAnswer) and found.reason == reason and detail in found.detail
    if reason == "answers_differ":
        assert (
            "'h' (id" in found.detail and "'H' (id" in found.detail and "→ give the teacher a template" in found.detail
        )


def test_rows_beyond_the_teachers_positions_are_refused(images: ImageStore) -> None:
    forms = Forms(coarse_llava(), vision_model("llava"), images)
    forms.aligner._context = 20
    found = forms.row(chat(two(images)[0], answer="long " * 10))
    assert isinstance(found, UnlikeAnswer) and found.reason == "teacher_too_short" and "20 positions" in found.detail


def test_the_heldout_kl_is_of_the_same_answer_tokens(images: ImageStore) -> None:
    """Against both models' own forwards, of batches with rows of no, one and two images."""
    red, green = two(images)
    forms = Forms(vision_model("qwen2_5_vl", 1), vision_model("llava"), images)
    rows = [forms.row(chat(*each)) for each in ((), (red,), (green, red), (green,))]
    vision = seen(vision_model("llava"), images)
    student, teacher = (
        load_model(str(path), torch.float32).eval() for path in (vision_model("llava"), forms.reference)
    )
    total = count = 0.0
    for row in rows:
        ids = torch.tensor(np.asarray(row.ids))[None].long()
        with torch.inference_mode():
            logits = student(input_ids=ids, **vision.inputs(ids, [(row.ids, row.images)])).logits[0, :-1, :SHARED]
        own = logits[torch.tensor(np.asarray(row.learned)[1:])].double().log_softmax(-1)
        theirs = forms.logprobs(row)
        total += float((theirs.exp() * (theirs - own)).sum())
        count += len(own)
    with Reporter(None, quiet=True).task("", 4) as task:
        found = token_metrics(
            Measured(student, body_of(student), vision),
            Measured(teacher, body_of(teacher), forms.vision),
            SHARED,
            [(row.ids, row.learned) for row in rows],
            0,
            3,
            task,
            StopSignal(),
            chosen={"kl": METRICS.module("kl").Config()},
            images=[row.images for row in rows],
            teachers_rows=[(row.read_ids, row.read_learned) for row in rows],
        )
    assert found["kl"] == pytest.approx(total / count, rel=1e-4)


# --- the comparison before a run ------------------------------------------------------------------------------------


def problems(found: list[Any]) -> list[tuple[str, str]]:
    return [(each.problem, each.hint) for each in found if each.fatal]


def test_what_families_share_is_known_before_a_run(tiny_model: Path) -> None:
    llava, qwen = side(vision_model("llava"), "student"), side(vision_model("qwen2_5_vl", 1), "teacher")
    assert problems(compare_answers(llava, qwen)) == []
    assert any(f"share the first {SHARED} tokens" in each.problem for each in compare_answers(llava, qwen))
    ((problem, hint),) = problems(compare(side(vision_model("qwen2_5_vl"), "student"), side(coarse_llava(), "teacher")))
    assert "number their tokens differently" in problem and '"answers"' in hint
    ((_, hint),) = problems(compare_answers(llava, side_of(str(tiny_model), "teacher")))
    assert '"bytes"' in hint


def test_a_template_that_changes_every_answer_is_told_before_a_run() -> None:
    student, other = side(vision_model("llava"), "student"), side(coarse_llava(), "teacher")
    upper = Side(other.name, other.tokenizer, other.eos_ids, other.rows, next(iter(REFUSALS)))
    ((problem, hint),) = problems(compare_answers(student, upper))
    assert "answer token 2" in problem and "inference.template" in hint


# --- whole jobs -----------------------------------------------------------------------------------------------------


def stage(folder: Path, name: str) -> Path:
    return next((folder / "run" / "stages").glob(f"*-{name}"))


def store_of(folder: Path) -> SignalStore:
    return SignalStore(stage(folder, "score") / "signals")


def weights(folder: Path) -> bytes:
    return (folder / "run" / "student" / "model.safetensors").read_bytes()


def shards(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((stage(folder, "score") / "signals").glob("shard-*"))]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a job whose teacher reads an image as 4 tokens and the student as 16, and its config."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "teacher.jinja").write_text(OTHER_TEMPLATE)
    config = white_box(
        folder,
        coarse_llava(),
        vision_model("llava"),
        inference={"template": str(folder / "teacher.jinja")},
        signals={"shard_tokens": 400, "max_batch_tokens": 400},
    )
    found = easydistill.run(config, quiet=True)
    assert found.exit_code == 0
    assert found.metrics["after"]["kl"] < found.metrics["before"]["kl"] / 1.5
    return folder, config


def test_the_store_of_a_job_is_of_its_images_and_verified(distilled: tuple[Path, dict[str, Any]]) -> None:
    folder, config = distilled
    store = store_of(folder)
    assert store.manifest.about["align"] == "answers" and store.manifest.shards > 2
    assert {len(store.images(name)) for name in store.ids} == {0, 1, 2}
    scorer, tolerance = scorer_of_store(store)
    assert verify(store, scorer, 1000, tolerance, 0, lambda count: None).good
    name = next(name for name in store.ids if len(store.images(name)) == 2)
    ids, learned = store.tokens(name)
    read = store.read_tokens(name)
    # 16 tokens an image for the student, 4 for the teacher.
    assert read is not None and list(ids).count(SHARED) == 32 and list(read.ids).count(SHARED) == 8
    first, second = store.images(name)
    store.read(name, ids, learned, (first, second))
    for others in ((second, first), (first,), ()):
        with pytest.raises(DataError, match="made for other images"):
            store.read(name, ids, learned, others)
    assert not easydistill.run(config, quiet=True).fresh


def test_another_teachers_template_is_another_store(distilled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, config = distilled
    (tmp_path / "plain.jinja").write_text(OTHER_TEMPLATE.replace("[", "<").replace("] ", "> "))
    shutil.copytree(folder / "run", tmp_path / "run")
    changed = {**config, "output_dir": str(tmp_path / "run"), "inference": {"template": str(tmp_path / "plain.jinja")}}
    assert easydistill.run(changed, quiet=True).fresh
    assert shards(tmp_path) != shards(folder)


@pytest.mark.parametrize("killed", ["score", "train"])
def test_a_killed_run_goes_on_bit_for_bit(
    killed: str, distilled: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = distilled
    (tmp_path / "teacher.jinja").write_text(OTHER_TEMPLATE)
    again = white_box(tmp_path, coarse_llava(), vision_model("llava"))
    again = {**config, "output_dir": again["output_dir"], "dataset": again["dataset"]}
    if killed == "score":
        hidden, left = ModelScorer._hidden, iter(range(2))

        def dying(self: ModelScorer, rows: Any, batch: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return hidden(self, rows, batch)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(ModelScorer, "_hidden", dying)
            easydistill.run(again, quiet=True)
        assert 0 < len(list((tmp_path / "run" / "stages").glob("*-score/signals/shard-*"))) < len(shards(folder))
    else:
        again["training"] = {**again["training"], "save_steps": 7}
        with killed_at(monkeypatch, 11):
            easydistill.run(again, quiet=True)
    assert easydistill.run(again, quiet=True).exit_code == 0
    assert shards(tmp_path) == shards(folder) and weights(tmp_path) == weights(folder)


PICKY = filtered("replace('blue', 'BLUE')")


def test_a_changed_answer_is_refused_and_the_others_are_learned(tmp_path: Path) -> None:
    (tmp_path / "picky.jinja").write_text(PICKY)
    config = white_box(
        tmp_path, coarse_llava(), vision_model("llava"), inference={"template": str(tmp_path / "picky.jinja")}
    )
    found = easydistill.run(config, quiet=True)
    blue = {row["id"] for row in rows_with_images(tmp_path) if "blue" in row["output"]}
    refused = set(store_of(tmp_path).manifest.about["refused"])
    assert refused and refused <= blue
    for name in ("score", "train"):
        assert found.summary["stages"][name]["rows"]["rejected"] == {"answers_differ": len(refused)}
    told = [json.loads(line) for line in (stage(tmp_path, "score") / "rejected.jsonl").read_text().splitlines()]
    assert {row["id"] for row in told} == refused
    assert all("answer token" in row["detail"] and "→" in row["detail"] for row in told)
    (tmp_path / "picky.jinja").write_text(filtered("upper"))
    with pytest.raises(ConfigError, match="answer token 2 of"):
        easydistill.run(config, quiet=True)


def test_a_published_store_refuses_other_images(distilled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = distilled
    shutil.copytree(store_of(folder).directory, tmp_path / "signals")
    config = white_box(tmp_path, coarse_llava(), vision_model("llava"), evaluation={"enabled": False})
    del config["models"]["teacher"]
    config["dataset"]["logits_path"] = str(tmp_path / "signals")
    rows = [row for row in rows_with_images(tmp_path) if row["id"] in store_of(folder).ids]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert easydistill.run({**config, "output_dir": str(tmp_path / "same")}, quiet=True).exit_code == 0
    shown = next(row for row in rows if row.get("images"))
    (tmp_path / shown["images"][0]).write_bytes(picture((0, 250, 250), (24, 24)))
    with pytest.raises(DataError, match=f"row {shown['id']} was made for other images"):
        easydistill.run(config, quiet=True)


def test_without_alignment_another_number_of_image_tokens_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'as 16 image tokens .*this teacher as 4 [\s\S]*align to "answers"'):
        easydistill.run(white_box(tmp_path, coarse_llava(), vision_model("llava"), "none"), quiet=True)


def test_a_teacher_that_sees_nothing_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    for align in ("answers", "bytes"):
        with pytest.raises(ConfigError, match=r"reads text alone|number their tokens of text"):
            easydistill.run(white_box(tmp_path, tiny_model, vision_model("llava"), align), quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["qwen2_5_vl", "idefics3", "gemma3"])
@pytest.mark.parametrize(
    ("loss", "signals"),
    [
        ({"distillation_type": "forward_kld"}, {"kind": "threshold", "n": 64}),
        ({"distillation_type": "reverse_kld"}, {"kind": "top_p", "top_p": 0.9}),
        ({"distillation_type": "jsd"}, {"kind": "top_k", "k": 32}),
        ({"distillation_type": "adaptive_kld"}, {"kind": "top_k", "k": 32}),
        ({"distillation_type": "skewed_reverse_kld"}, {"kind": "top_k", "k": 32}),
        ({"distillation_type": "tvd"}, {"kind": "top_k", "k": 64}),
        ({"distillation_type": "uld"}, {"kind": "top_k", "k": 32}),
        ({"distillation_type": "contrastive"}, {"kind": "top_k", "k": 32}),
    ],
)
def test_families_losses_and_kinds(teacher: str, loss: dict[str, Any], signals: dict[str, Any], tmp_path: Path) -> None:
    config = white_box(tmp_path, vision_model(teacher, 1), vision_model(PAIRS[teacher]), distillation=loss)
    config["signals"] = {**signals, "dtype": "float32"}
    if loss["distillation_type"] == "contrastive":
        config["inference"] = {"backend": "transformers", "max_new_tokens": 4, "dtype": "float32"}
    found = easydistill.run(config, quiet=True)
    # `uld` compares by rank, and `contrastive` pushes the student's own answers away.
    looser = loss["distillation_type"] in {"uld", "contrastive"}
    assert found.metrics["after"]["kl"] < found.metrics["before"]["kl"] * (2 if looser else 0.95)


# --- text ------------------------------------------------------------------------------------------------------------


def test_text_rows_of_a_teacher_with_a_template_of_its_own(tiny_whole: Path, tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "instruction": f"Say {n}.", "output": f"I say {n} and {n + 1}."} for n in range(16)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    template = "{% for m in messages %}### {{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    (tmp_path / "teacher.jinja").write_text(template + "{% if add_generation_prompt %}### assistant: {% endif %}")
    config: dict[str, Any] = {
        "job_type": "white_box_kd_local",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"labeled_path": str(tmp_path / "rows.json")},
        "models": {"teacher": str(tiny_whole), "student": {"from": str(tiny_whole), "keep_layers": 2}},
        "inference": {"template": str(tmp_path / "teacher.jinja")},
        "distillation": {"align": "answers", "kd_ratio": 1.0},
        "training": {"num_train_epochs": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "max_length": 128},
        "evaluation": {"heldout": 4, "generate": False},
    }
    found = easydistill.run(config, quiet=True)
    assert found.metrics["after"]["kl"] < found.metrics["before"]["kl"]
    store = store_of(tmp_path)
    read = store.read_tokens(store.ids[0])
    assert read is not None and not store.has_images
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tiny_whole).decode(read.ids).startswith("### user: Say ")
    scorer, tolerance = scorer_of_store(store)
    assert verify(store, scorer, 100, tolerance, 0, lambda count: None).good


def test_stores_without_forms_hold_nothing_of_them(images: ImageStore, tmp_path: Path) -> None:
    from safetensors import safe_open

    (red, _), codec = two(images), SignalShape.of(KINDS[0], SHARED).codec(SHARED + 1)
    forms = Forms(coarse_llava(), vision_model("llava"), images)
    row = forms.row(chat(red))
    scorer = ModelScorer([str(forms.reference)], [1.0], KINDS[0], SHARED, 1.0, images=images.path)
    for name, rows in (("own", [row]), ("plain", [RowToScore("row", row.ids, row.learned, read=None)])):
        directory = tmp_path / name
        directory.mkdir()
        scored = scorer.score([row])[0]
        kept = [
            ScoredSample(each.id, each.ids, each.learned, scored.signal, scored.present, read=each.read)
            for each in rows
        ]
        write_shard(shard_path(directory, 0), kept, codec)
        StoreManifest.of(directory, codec, {}, 1).write(directory)
        with safe_open(shard_path(directory, 0), framework="numpy") as file:
            assert any(key.startswith("read_") for key in file.keys()) is (name == "own")  # noqa: SIM118
        found = SignalStore(directory).read_tokens("row")
        assert (found is None) is (name == "plain")
        if found is not None:
            assert list(found.ids) == list(row.read.ids) and list(found.learned) == list(row.read.learned)


# --- vLLM ------------------------------------------------------------------------------------------------------------


def test_vllm_is_given_the_teachers_form(images: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    red, _ = two(images)
    forms = Forms(vision_model("qwen2_5_vl", 1), vision_model("llava"), images)
    row = forms.row(chat(red))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **values: None))
    llm = Llm([*map(int, row.read.ids)])
    monkeypatch.setattr(from_vllm, "_engine", lambda *given: llm)
    config = TopKSignals(kind="top_k", k=1, backend="vllm")
    scorer = from_vllm.VllmScorer("teacher", config, SHARED, 100, vision=forms.vision)
    (scored,) = scorer.score([row])
    assert scored.read == row.read and (scored.signal.target_logprob_N == -1.0).all()
    assert len(scored.signal) == int(np.sum(row.learned))
    (prompt,) = llm.prompts
    (token,) = forms.vision.processor.image_token_ids
    assert prompt["prompt_token_ids"].count(token) == 1 < list(row.read.ids).count(token)
    assert prompt["multi_modal_uuids"] == {"image": [red]}
    llm.reads = llm.reads[:-1]
    with pytest.raises(TeacherError, match="as other tokens than transformers"):
        scorer.score([row])


def test_control_tokens_of_turns_are_shared() -> None:
    tokenizer = side(vision_model("llava"), "student").tokenizer
    assert tokenizer.convert_tokens_to_ids(END) < SHARED == tokenizer.convert_tokens_to_ids("<image>")
