"""A teacher in this process, through transformers: the default without vLLM.

Batches depend on the whole list of requests alone, each row's randomness on its own key, and a batch is recorded as one
unit. A run resumed after a kill therefore gives the same answers as one that was never interrupted.
"""

from __future__ import annotations

import copy
import datetime
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from easydistill.config.inference import TransformersOptions
from easydistill.contracts.teacher import (
    Completion,
    Failure,
    GenerationRequest,
    RecordOutcomes,
    row_seed,
)
from easydistill.data.batches import batches_by_length
from easydistill.data.messages import images_of
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.models.allocation import reused_memory
from easydistill.models.loading import choose_dtype, device, eos_ids, import_torch, load_tokenizer
from easydistill.models.padding import reads_padding
from easydistill.models.reference import resolve
from easydistill.models.sampling import SeededSampler, generate_batch
from easydistill.models.spread import is_spread, load_placed, spread_of
from easydistill.models.structured import SchemaGrammars
from easydistill.teachers.backends._local import template_identity
from easydistill.teachers.local import LocalChat, vision_of

if TYPE_CHECKING:
    import torch

    from easydistill.data.images import ImageStore
    from easydistill.models.decoding.graphs import DecodeGraphs
    from easydistill.models.multimodal import Vision
    from easydistill.models.student import Student

MAX_BATCH_ROWS = 128
"""A step reads all weights, whatever the number of rows; beyond this it is hardly faster, and a kill loses more."""
_Asked = tuple[GenerationRequest, list[int]]
"""A request and its prompt's tokens."""


class TransformersTeacher:
    """Answers with a model loaded into this process.

    Args:
        reference: the teacher model.
        template: chat template for a teacher without one of its own.
        make: returns the model with what belongs to it, if it is not that of `reference`.
        weights: identifies the weights, if `reference` does not.
        date: of the run, for templates that write it.
        images: of the run, for a teacher that sees them.
    """

    def __init__(
        self,
        reference: str,
        inference: TransformersOptions,
        template: str | None = None,
        make: Callable[[], Student] | None = None,
        weights: dict[str, Any] | None = None,
        date: datetime.date | None = None,
        images: ImageStore | None = None,
    ) -> None:
        self._images = images
        self._vision: Vision | None = None
        self._reference = reference
        self._weights = weights
        self._make = make
        self._inference = inference
        self._template = template
        self._date = date
        self._model: Any = None
        self._grammars: SchemaGrammars | None = None
        self._graphs: DecodeGraphs | None = None
        self._needs_equal: bool | None = None

    def identity(self) -> dict[str, Any]:
        weights = self._weights if self._weights is not None else resolve(self._reference).identity()
        return {"backend": "transformers", **weights, **template_identity(self._inference)}

    def load(self) -> None:
        """Load the model, unless it is here already."""
        if self._model is not None:
            return
        self._device: torch.device = device()
        model, self._tokenizer = self._made(self._make()) if self._make is not None else self._read()
        self._model = model if is_spread(model) else model.to(self._device)
        from easydistill.models.decoding.graphs import DecodeGraphs

        self._graphs = DecodeGraphs()
        self._ends = eos_ids(self._tokenizer, self._model.generation_config)
        self._chat = LocalChat(self._tokenizer, self._ends, self._inference, self._template, self._date, self._vision)

    def _made(self, made: Student) -> tuple[Any, Any]:
        if made.processor is not None and self._images is not None:
            from easydistill.models.multimodal import Vision

            self._vision = Vision(made.processor, self._images.path)
        return made.model, made.tokenizer

    def _read(self) -> tuple[Any, Any]:
        trust = self._inference.trust_remote_code
        dtype = choose_dtype(self._inference.dtype, self._device)
        self._vision = vision_of(self._reference, self._images, self._inference)
        tokenizer = load_tokenizer(self._reference, trust_remote_code=trust)
        spread = spread_of(self._inference.device_map)
        return load_placed(self._reference, dtype, spread, trust_remote_code=trust), tokenizer

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        if all(done(request.key) for request in requests):
            return
        self.load()
        self._load_grammars(requests)
        fitting, failures = self._fitting(requests)
        for failure in failures:
            if not done(failure.key):
                record([failure])
        with reused_memory(self._device):
            for batch in self._batches(fitting):
                if stop.requested:
                    return
                chosen = [fitting[position] for position in batch]
                if not all(done(request.key) for request, _ in chosen):
                    record(self._answer(chosen))

    def batches(self, requests: Sequence[GenerationRequest]) -> tuple[list[list[str]], list[Failure]]:
        """The batches in which requests are answered, as keys, and those that do not fit the model.

        `generate` with the requests of one batch, in this order, answers them as that batch: whoever answers it, the
        answers are those of `generate` with all requests.
        """
        self.load()
        fitting, failures = self._fitting(requests)
        return [[fitting[position][0].key for position in batch] for batch in self._batches(fitting)], failures

    def _batches(self, asked: Sequence[_Asked]) -> list[list[int]]:
        config = self._inference
        lengths = [len(prompt) for _, prompt in asked]
        rows = config.batch_size or MAX_BATCH_ROWS
        longest, most = config.max_new_tokens, config.max_batch_tokens
        return batches_by_length(lengths, rows, most, longest, equal=self._reads_padding(asked))

    def _reads_padding(self, asked: Sequence[_Asked]) -> bool:
        """Whether prompts of different lengths must not share a batch."""
        if self._needs_equal is None and len({len(prompt) for _, prompt in asked}) > 1:
            self._needs_equal = reads_padding(self._model, asked[0][1])
            if self._needs_equal:
                LOGGER.info("%s reads padding: only prompts of one length are answered together", self._reference)
        return bool(self._needs_equal)

    def _load_grammars(self, requests: Sequence[GenerationRequest]) -> None:
        if self._grammars is None and any(request.schema is not None for request in requests):
            self._grammars = SchemaGrammars(
                self._tokenizer, self._ends, self._model.config.get_text_config().vocab_size
            )

    def _fitting(self, requests: Sequence[GenerationRequest]) -> tuple[list[_Asked], list[Failure]]:
        """Requests with their prompt tokens, and those that do not fit the model."""
        context = self._inference.max_model_len or getattr(
            self._model.config.get_text_config(), "max_position_embeddings", None
        )
        fitting: list[_Asked] = []
        failures: list[Failure] = []
        for request in requests:
            prompt = self._chat.prompt(request, context)
            if isinstance(prompt, Failure):
                failures.append(prompt)
            else:
                fitting.append((request, prompt))
        return fitting, failures

    def _answer(self, asked: list[_Asked]) -> list[Completion]:
        torch = import_torch()
        config = self._inference
        started = time.monotonic()
        sampler = SeededSampler(
            [row_seed(config.seed, request.key) for request, _ in asked],
            temperature=[
                config.temperature if request.temperature is None else request.temperature for request, _ in asked
            ],
            top_p=config.top_p,
            top_k=config.top_k,
        )
        masks = None if self._grammars is None else self._grammars.masks([request.schema for request, _ in asked])
        with torch.inference_mode():
            images = [images_of(*request.messages) for request, _ in asked]
            seen: dict[str, Any] = {"vision": self._vision, "images": images} if any(images) else {}
            answers = generate_batch(
                self._model,
                [prompt for _, prompt in asked],
                self._ends,
                config.max_new_tokens,
                sampler,
                masks,
                self._graphs,
                **seen,
            )
        seconds = time.monotonic() - started
        return [
            self._chat.completion(
                request,
                prompt,
                answer.ids,
                finish_reason="stop" if answer.ended else "length",
                prompt_tokens=len(prompt),
                completion_tokens=len(answer.ids) + answer.ended,
                model=self._reference,
                seconds=round(seconds, 3),
            )
            for (request, prompt), answer in zip(asked, answers, strict=True)
        ]

    def limited(self, max_new_tokens: int) -> TransformersTeacher:
        """The same loaded model with another longest answer. It is closed with this one."""
        other = copy.copy(self)
        other._inference = self._inference.model_copy(update={"max_new_tokens": max_new_tokens})
        return other

    def close(self) -> None:
        self._model = self._grammars = self._graphs = None
