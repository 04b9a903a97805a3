"""A teacher with another tokenizer, shown the images of rows in its own tokens."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import tokenizers
from tests.support.own_forms import coarse_llava, white_box
from tests.support.pictures import GREEN, RED, picture
from tests.support.vision_models import save_processor, template

import easydistill
from easydistill.data.images import ImageStore
from easydistill.data.messages import answer_message
from easydistill.errors import DataError
from easydistill.methods.distil.rescore import scorer_of_store
from easydistill.models.compatibility import side_of
from easydistill.models.loading import load_model
from easydistill.models.multimodal import Vision, load_processor
from easydistill.signals.aligned import AlignedRow, AlignedScorer, Aligner
from easydistill.signals.config import TopKSignals
from easydistill.signals.score import RowToScore
from easydistill.signals.store import SignalStore

CONFIG = TopKSignals(kind="top_k", k=300, dtype="float32")


@cache
def wordy_llava() -> Path:
    """The directory of a tiny LLaVA whose tokens are words and parts of them, and whose images are 16 tokens."""
    import tempfile

    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    directory = Path(tempfile.mkdtemp(prefix="easydistill-wordy-"))
    tokenizer = copy.deepcopy(tokenizers.tokenizer("gpt2"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    shown = template("llava").replace("<|im_end|>", tokenizer.eos_token)
    tokenizer.chat_template = shown
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=shown,
    )
    save_processor("llava", processor, directory)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **small, "vocab_size": len(tokenizer), **ends},
        vision_config={"model_type": "clip_vision_model", **small, "image_size": 16, "patch_size": 4},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **ends,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = transformers.AutoModelForImageTextToText.from_config(config).eval()
        for value in model.parameters():
            if value.dim() > 1:
                value.mul_(4.0)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def aligner_of(images: ImageStore, context: int | None = None) -> Aligner:
    sights = [Vision(load_processor(str(path)), images.path) for path in (coarse_llava(), wordy_llava())]
    sides = side_of(str(coarse_llava()), "student"), side_of(str(wordy_llava()), "teacher")
    return Aligner(*sides, context, None, (sights[0], sights[1]))


def row_of(aligner: Aligner, messages: list[Any], longest: int | None = None) -> AlignedRow:
    written = aligner.student.render(messages, longest)
    row = RowToScore("row", written.ids_T, written.learned, images=written.images)
    return aligner.row(row, messages, truncated=written.truncated)


def chat(*images: str, answer: str = "The answer is that rivers are blue.") -> list[Any]:
    content: Any = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "Which?"}]
    return [{"role": "user", "content": content if images else "Which?"}, answer_message(answer)]


def test_signals_are_of_the_images_that_the_teacher_sees(images: ImageStore) -> None:
    """Rows with no, one and two images in a batch, against the teacher's own forward of each."""
    red, green = images.add(picture(RED, (24, 24))), images.add(picture(GREEN, (40, 28)))
    aligner = aligner_of(images)
    rows = [row_of(aligner, chat(*shown)) for shown in ((), (red,), (green,), (green, red))]
    scorer = AlignedScorer(str(wordy_llava()), aligner.to_student, CONFIG, 260, 1.0, by_rank=False, images=images.path)
    found = scorer.score(rows)
    model, vision = load_model(str(wordy_llava()), torch.float32).eval(), aligner.teacher.images
    assert isinstance(vision, Vision)
    for row, scored in zip(rows, found, strict=True):
        assert len(row.pairs) > 5 and scored.images == row.images
        # Images are tokens of prompts, and no token of a prompt is matched.
        assert all(row.learned[t] for t, _ in row.pairs)
        ids = torch.tensor(np.asarray(row.teacher_ids))[None].long()
        with torch.inference_mode():
            logits = model(input_ids=ids, **vision.inputs(ids, [(row.teacher_ids, row.images)])).logits[0]
        logprobs = logits[row.pairs[:, 1] - 1, : len(aligner.to_student)].double().log_softmax(-1)
        for n, (t, _) in enumerate(row.pairs):
            same = torch.from_numpy(aligner.to_student) == int(row.ids[int(t)])
            expected = logprobs[n][same].logsumexp(-1)
            assert scored.signal.target_logprob_N[n] == pytest.approx(float(expected), abs=1e-4)
    assert not np.allclose(found[1].signal.target_logprob_N, found[2].signal.target_logprob_N, atol=1e-3)


def test_images_behind_the_last_token_that_is_needed_are_shown_whole(images: ImageStore) -> None:
    red, green = images.add(picture(RED, (24, 24))), images.add(picture(GREEN, (40, 28)))
    aligner, messages = aligner_of(images), chat(red) + chat(green)
    whole = row_of(aligner, messages)
    learned = np.flatnonzero(whole.learned)
    (gap,) = np.flatnonzero(np.diff(learned) > 1)
    cut = row_of(aligner, messages, int(learned[gap + 1]))
    assert cut.images == (red, green) and cut.pairs[-1, 0] <= learned[gap]
    vision = aligner.teacher.images
    assert isinstance(vision, Vision) and vision.batch([(cut.teacher_ids, cut.images)])


def test_an_image_beyond_the_teachers_positions_leaves_the_row_to_its_labels(images: ImageStore) -> None:
    red = images.add(picture(RED, (24, 24)))
    row = row_of(aligner_of(images, context=12), chat(red))
    assert row.refused is not None and "beyond its 12 positions" in row.refused
    assert len(row.pairs) == 0 and row.images == (red,)


def test_a_job_learns_from_a_teacher_with_other_tokens(tmp_path: Path) -> None:
    config = white_box(tmp_path, wordy_llava(), coarse_llava(), "bytes", training={"num_train_epochs": 3})
    found = easydistill.run(config, quiet=True)
    assert found.exit_code == 0
    figures = found.summary["stages"]["score"]
    assert figures["rows"]["left"] == 18
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    divergences = [line["divergence"] for line in lines if "divergence" in line]
    assert divergences and all(value > 0 for value in divergences)
    store = SignalStore(next((tmp_path / "run" / "stages").glob("*-score")) / "signals")
    name = next(name for name in store.ids if store.images(name))
    ids, learned = store.tokens(name)
    store.read(name, ids, learned, store.images(name))
    with pytest.raises(DataError, match="made for other images"):
        store.read(name, ids, learned, tuple(reversed([*store.images(name), "sha256:" + "0" * 64])))
    with pytest.raises(DataError, match="cannot be verified"):
        scorer_of_store(store)
    # A changed image is scored again.
    assert not easydistill.run(config, quiet=True).fresh
    path = next(tmp_path.glob("*-0.png"))
    path.write_bytes(picture((250, 250, 0), (24, 24)))
    assert easydistill.run(config, quiet=True).fresh
