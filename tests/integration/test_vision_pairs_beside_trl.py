"""One step on pairs about images beside TRL's own trainers, with TRL's own collator and processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from tests.support.pictures import BLUE, GREEN, RED, picture
from tests.support.vision_models import FAMILIES, store_of
from tests.unit.test_vision_pairs import loss_of, preference, rendered, student_of, trainer_of, vision_of

from easydistill.models.student import Student

pytestmark = pytest.mark.slow


def moved(model: Any) -> Any:
    """The model after a step of some kind, so that the policy is not the reference."""
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    return model


def tight(student: Student) -> Student:
    """With a template that writes nothing behind the end of an answer: TRL learns that too, and we do not."""
    template = student.tokenizer.chat_template
    student.tokenizer.chat_template = template.replace("<|im_end|>\n{% endfor", "<|im_end|>{% endfor")
    assert student.tokenizer.chat_template != template
    return student


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_and_its_gradients_are_those_of_trl(family: str, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    store, digests = store_of(tmp_path / "images", [picture(colour, (24, 24)) for colour in (RED, GREEN, BLUE)])
    student = tight(student_of(family))
    vision = vision_of(student, store)
    pairs = [preference(number, [digest], f"Which colour is number {number}?") for number, digest in enumerate(digests)]
    rows = rendered(student, vision, pairs)
    ours = trainer_of(tmp_path, student, vision, rows)
    moved(ours.model)
    own = loss_of(ours)
    own.backward()

    theirs = tight(student_of(family))
    assert theirs.processor is not None
    processor = theirs.processor.wrapped
    processor.chat_template = processor.tokenizer.chat_template
    data = [
        {
            "images": [Image.open(store.path(digest))],
            "prompt": [{"role": "user", "content": f"Which colour is number {number}?"}],
            "chosen": [{"role": "assistant", "content": "It is red."}],
            "rejected": [{"role": "assistant", "content": "Blue"}],
        }
        for number, digest in enumerate(digests)
    ]
    arguments = DPOConfig(
        str(tmp_path / "trl"), per_device_train_batch_size=3, bf16=False, use_cpu=True, report_to=[], beta=0.1,
        max_length=None, gradient_checkpointing=False, disable_dropout=False,
    )  # fmt: skip
    reference = student_of(family).model
    trainer = DPOTrainer(
        model=theirs.model,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(data),
        processing_class=processor,
    )
    moved(trainer.model)
    batch = trainer.data_collator([{**row} for row in data])
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()

    assert own.item() == pytest.approx(loss.item(), abs=1e-4)
    named = dict(trainer.model.named_parameters())
    for name, value in ours.model.named_parameters():
        if value.grad is not None and named[name].grad is not None:
            torch.testing.assert_close(value.grad, named[name].grad, rtol=1e-3, atol=1e-4, msg=name)
