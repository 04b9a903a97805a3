"""Rows that are measured with the images of others: who gets whose, and what a metric is told."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.pictures import picture
from tests.support.vision_models import END, make_model, vision_model

from easydistill.contracts.metric import TokenRows
from easydistill.data.chat import ChatRenderer
from easydistill.data.images import ImageStore
from easydistill.data.messages import answer_message
from easydistill.data.records import Sample
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.evaluation.measure import Measured, image_metrics, token_metrics
from easydistill.evaluation.metrics import METRICS
from easydistill.evaluation.swapping import CrossEntropies, swapped
from easydistill.models.head import body_of
from easydistill.models.multimodal import Vision, load_processor


@cache
def processor() -> Any:
    return load_processor(str(vision_model("idefics3")))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def renderer(store: ImageStore) -> ChatRenderer:
    ends = frozenset({processor().tokenizer.convert_tokens_to_ids(END)})
    return ChatRenderer(processor().tokenizer, ends, images=Vision(processor(), store.path))


def sample(name: str, *images: str) -> Sample:
    content: Any = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "?"}]
    return Sample(name, ({"role": "user", "content": content if images else "?"}, answer_message(f"It is {name}.")))


def test_each_row_gets_another_ones_images(store: ImageStore) -> None:
    # Sizes that take different numbers of tokens.
    digests = [store.add(picture((n * 20, 0, 0), (8 + 9 * n, 24))) for n in range(8)]
    samples = [
        *(sample(f"one{n}", digests[n]) for n in range(5)),
        sample("text"),
        sample("two", digests[0], digests[1]),
        sample("pair", digests[6], digests[7]),
        sample("three", *digests[:3]),
    ]
    chats = renderer(store)
    rows = [chats.render(one) for one in samples]
    found = swapped(samples, rows, chats)
    # The text has none to give away, and nobody has as many images as the last one.
    assert sorted(found) == [0, 1, 2, 3, 4, 6, 7]
    for at, row in found.items():
        assert len(row.images) == len(rows[at].images) and not set(row.images) & set(rows[at].images)
        assert row.ids_T[row.mask_T].tolist() == rows[at].ids_T[rows[at].mask_T].tolist()
    assert (found[6].images, found[7].images) == (rows[7].images, rows[6].images)
    assert any(len(row) != len(rows[at]) for at, row in found.items())


def test_an_answer_that_was_cut_is_compared_as_far_as_it_goes(store: ImageStore) -> None:
    digests = [store.add(picture((n * 20, 0, 0), (24, 24))) for n in range(2)]
    samples = [sample(f"row{n}", digests[n]) for n in range(2)]
    chats = renderer(store)
    longest = len(chats.render(samples[0])) - 3
    rows = [chats.render(one, longest) for one in samples]
    found = swapped(samples, rows, chats)
    assert [row.ids_T[row.mask_T].tolist() for row in found.values()] == [
        rows[at].ids_T[rows[at].mask_T].tolist() for at in found
    ]
    whole = int(chats.render(samples[0]).mask_T.sum())
    assert all(0 < int(row.mask_T.sum()) < whole for row in found.values()) and len(found) == 2


def test_rows_that_all_show_one_image_are_not_compared(store: ImageStore) -> None:
    digest = store.add(picture())
    samples = [sample(f"row{n}", digest) for n in range(3)]
    chats = renderer(store)
    assert swapped(samples, [chats.render(one) for one in samples], chats) == {}
    assert image_metrics(None) == {"image_gain": None}
    assert image_metrics((1.5, 2.25)) == {"image_gain": 0.75}


def test_cross_entropies_by_row() -> None:
    logprobs = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]).log()
    place = torch.tensor([0, 2, 2]), torch.tensor([3, 3, 4]), torch.tensor([1, 1, 2])
    found = CrossEntropies()
    rows = TokenRows(torch.tensor([0, 1, 1]), logprobs, None, None, *place)
    found.update(rows.part(slice(0, 2)))
    found.update(rows.part(slice(2, 3)))
    assert found.mean([0]) == pytest.approx(-math.log(0.5))
    assert found.mean([0, 2]) == pytest.approx(-(math.log(0.5) + math.log(0.75) + math.log(0.1)) / 3, rel=1e-6)


def test_metrics_are_those_of_what_each_row_shows(store: ImageStore) -> None:
    """Batches of rows with none, one and two images; against each row by itself through the model's own forward."""
    digests = [store.add(picture((n * 80, 90, 0), (30 - 6 * n, 24))) for n in range(3)]
    samples = [sample("none"), sample("one", digests[0]), sample("two", digests[1], digests[2])]
    chats = renderer(store)
    rows = [chats.render(one) for one in samples]
    model, vision = make_model("idefics3", processor().tokenizer), Vision(processor(), store.path)
    own = CrossEntropies()
    with Reporter(None, quiet=True).task("", 6) as task:
        metrics = token_metrics(
            Measured(model, body_of(model), vision),
            None,
            0,
            [(row.ids_T, row.mask_T) for row in rows],
            0,
            3,
            task,
            StopSignal(),
            [own],
            {"cross_entropy": METRICS.module("cross_entropy").Config()},
            [row.images for row in rows],
        )
    total = count = 0.0
    for at, row in enumerate(rows):
        ids, learned = torch.tensor(row.ids_T)[None].long(), torch.tensor(row.mask_T)
        with torch.inference_mode():
            seen = {**vision.batch([(row.ids_T, row.images)]), **vision.type_ids(ids)}
            logprobs = model(input_ids=ids, **seen).logits[0, :-1].float().log_softmax(-1)
        losses = -logprobs.gather(1, ids[0, 1:, None])[:, 0][learned[1:]]
        assert own.mean([at]) == pytest.approx(float(losses.mean()), rel=1e-4)
        total, count = total + float(losses.sum()), count + len(losses)
    assert metrics["cross_entropy"] == pytest.approx(total / count, rel=1e-4)
