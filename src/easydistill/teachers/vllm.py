"""A teacher in vLLM's offline engine.

The engine is kept full: a row enters as soon as another leaves, and each answer is recorded as soon as it is complete,
so that a kill loses only the rows in flight.

On GPUs every row has its own seed. On CPUs vLLM cannot seed single requests (its sampler crashes): a resumed run may
draw other answers for its remaining rows than an uninterrupted run would have.
"""

from __future__ import annotations

import copy
import datetime
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from easydistill.config.inference import VllmOptions
from easydistill.contracts.teacher import (
    Completion,
    Failure,
    GenerationRequest,
    RecordOutcomes,
    row_seed,
)
from easydistill.data.messages import images_of
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import MissingExtra, TeacherError
from easydistill.models.loading import choose_dtype, device, eos_ids, load_generation_config, load_tokenizer
from easydistill.models.reference import model_directory, resolve
from easydistill.models.vllm import engine_prompt, load_engine, prepare_environment, tensor_parallel_size
from easydistill.teachers.backends._local import template_identity
from easydistill.teachers.local import LocalChat, vision_of

if TYPE_CHECKING:
    from easydistill.data.images import ImageStore
    from easydistill.models.multimodal import Vision

_NEVER = -100.0
"""The least that vLLM adds to a logit."""
_Started = tuple[GenerationRequest, list[int], float]
"""A request, its prompt's tokens, and when it was started."""


class VllmTeacher:
    """Answers with vLLM on this machine's devices.

    Args:
        reference: the teacher model.
        template: chat template for a teacher without one of its own.
        date: of the run, for templates that write it.
        images: of the run, for a teacher that sees them.
    """

    def __init__(
        self,
        reference: str,
        inference: VllmOptions,
        template: str | None = None,
        date: datetime.date | None = None,
        images: ImageStore | None = None,
    ) -> None:
        self._images = images
        self._vision: Vision | None = None
        self._reference = reference
        self._inference = inference
        self._template = template
        self._date = date
        self._engine: Any = None
        self._started: dict[str, _Started] = {}

    def identity(self) -> dict[str, Any]:
        weights = resolve(self._reference).identity()
        return {"backend": "vllm", **weights, **template_identity(self._inference)}

    def _load(self, first: str) -> None:
        """Load the model; on a CPU its seed depends on the key of the first request."""
        if self._engine is not None:
            return
        config = self._inference
        on = device()
        self._on_cpu = on.type == "cpu"
        prepare_environment(on_cpu=self._on_cpu)
        if self._on_cpu and config.temperature > 0:
            LOGGER.warning("vLLM on a CPU cannot seed single requests: a resumed run may draw other answers")
        try:
            from vllm import LLM
        except ImportError:
            raise MissingExtra("vllm", "inference.backend=vllm") from None
        directory = model_directory(resolve(self._reference))
        eager = config.enforce_eager if config.enforce_eager is not None else self._on_cpu
        options: dict[str, Any] = {
            "model": directory,
            # Without a seed for each row, a resumed run would repeat the draws of the first rows for other rows.
            "seed": row_seed(config.seed, first) % 2**32 if self._on_cpu else config.seed,
            "dtype": str(choose_dtype(config.dtype, on)).removeprefix("torch."),
            "trust_remote_code": config.trust_remote_code,
            "enforce_eager": eager,
            "max_model_len": config.max_model_len,
            "tensor_parallel_size": config.tensor_parallel_size or tensor_parallel_size(on_cpu=self._on_cpu),
            "max_num_seqs": config.chunk_size,
            "disable_log_stats": True,
        }
        if not self._on_cpu:
            options["gpu_memory_utilization"] = config.gpu_memory_utilization
        if config.enable_chunked_prefill is not None:
            options["enable_chunked_prefill"] = config.enable_chunked_prefill
        try:
            self._llm = load_engine(LLM, self._reference, options)
        except (ValueError, RuntimeError, OSError) as error:
            raise TeacherError(f"vLLM cannot load {self._reference}: {str(error).splitlines()[0]}") from error
        self._engine = self._llm.llm_engine
        self._context = int(self._llm.model_config.max_model_len)
        self._tokenizer = load_tokenizer(self._reference, trust_remote_code=config.trust_remote_code)
        self._ends = eos_ids(self._tokenizer, load_generation_config(directory))
        self._vision = vision_of(self._reference, self._images, config)
        self._chat = LocalChat(self._tokenizer, self._ends, config, self._template, self._date, self._vision)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        waiting = (request for request in requests if not done(request.key))
        while True:
            while self.in_flight < self._inference.chunk_size and not stop.requested:
                request = next(waiting, None)
                if request is None:
                    break
                failure = self.submit(request)
                if failure is not None:
                    record([failure])
            if not self.in_flight:
                return
            for completion in self.step():
                record([completion])

    @property
    def in_flight(self) -> int:
        """Requests that have been submitted and not been answered."""
        return len(self._started)

    def submit(self, request: GenerationRequest) -> Failure | None:
        """Begin to answer a request; the failure if it does not fit the model."""
        self._load(request.key)
        prompt = self._chat.prompt(request, self._context)
        if isinstance(prompt, Failure):
            return prompt
        room = min(self._inference.max_new_tokens, self._context - len(prompt))
        params = self._params(request, room)
        self._engine.add_request(request.key, self._given(request, prompt), params)
        self._started[request.key] = request, prompt, time.monotonic()
        return None

    def _given(self, request: GenerationRequest, prompt: list[int]) -> dict[str, Any]:
        digests = images_of(*request.messages)
        if not digests:
            return {"prompt_token_ids": prompt}
        assert self._vision is not None, "the chat has refused the request"
        return engine_prompt(self._vision, self._chat.marked(request), digests)

    def step(self) -> list[Completion]:
        """Compute the next tokens; the answers that they complete."""
        finished = [output for output in self._engine.step() if output.finished]
        return [self._completion(output, self._started.pop(output.request_id)) for output in finished]

    def _params(self, request: GenerationRequest, max_tokens: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        config = self._inference
        structure = None
        if request.schema is not None:
            structure = StructuredOutputsParams(json=request.schema, disable_any_whitespace=True)
        temperature = config.temperature if request.temperature is None else request.temperature
        return SamplingParams(
            temperature=temperature,
            top_p=config.top_p or 1.0,
            top_k=config.top_k or 0,
            max_tokens=max_tokens,
            stop_token_ids=sorted(self._ends),
            seed=None if self._on_cpu or temperature == 0 else row_seed(config.seed, request.key),
            structured_outputs=structure,
            logit_bias=self._never_written(request),
            output_kind=RequestOutputKind.FINAL_ONLY,
            # The answer is read from its tokens: special ones mark thoughts and calls.
            detokenize=False,
        )

    def _never_written(self, request: GenerationRequest) -> dict[int, float] | None:
        """Placeholders of images are no part of an answer to some."""
        if self._vision is None or not images_of(*request.messages):
            return None
        return dict.fromkeys(self._vision.processor.reserved_ids, _NEVER)

    def _completion(self, output: Any, asked: _Started) -> Completion:
        answer = output.outputs[0]
        request, prompt, started = asked
        if images_of(*request.messages) and list(output.prompt_token_ids) != prompt:
            read, given = len(output.prompt_token_ids), len(prompt)
            raise TeacherError(
                f"{self._reference}: vLLM reads the images of a prompt otherwise than transformers: {read} tokens, not "
                f'{given}\n    → set inference.backend="transformers"'
            )
        return self._chat.completion(
            request,
            output.prompt_token_ids,
            answer.token_ids,
            finish_reason=answer.finish_reason,
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=len(answer.token_ids),
            model=self._reference,
            seconds=round(time.monotonic() - started, 3),
        )

    def limited(self, max_new_tokens: int) -> VllmTeacher:
        """The same engine with another longest answer, while this one answers nothing. It is closed with this one."""
        other = copy.copy(self)
        other._inference = self._inference.model_copy(update={"max_new_tokens": max_new_tokens})
        return other

    def close(self) -> None:
        self._engine = self._llm = None
