"""A teacher in vLLM's offline engine.

The engine is kept full: a row enters as soon as another leaves, and each answer is recorded the moment it is
complete, so neither the tail of a chunk nor a kill costs more than the rows under way.

On CPUs vLLM cannot seed single requests (its sampler crashes), so there a resumed run draws other answers for
the rows that were still open than an uninterrupted one would have; on GPUs every row has a seed of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from easydistill.config.inference import LocalInferenceConfig
from easydistill.contracts.teacher import (
    Completion,
    Failure,
    GenerationRequest,
    RecordOutcomes,
    prompt_or_failure,
    row_seed,
)
from easydistill.data.chat import ChatRenderer
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import MissingExtra, TeacherError
from easydistill.models.loading import choose_dtype, device, eos_ids, load_tokenizer
from easydistill.models.reference import model_directory, resolve
from easydistill.models.vllm import prepare_environment, tensor_parallel_size


class VllmTeacher:
    """Answers with vLLM on this machine's devices.

    Args:
        reference: the teacher model.
        template: chat template to use where the teacher has none of its own.
    """

    def __init__(self, reference: str, inference: LocalInferenceConfig, template: str | None = None) -> None:
        self._reference = reference
        self._inference = inference
        self._template = template
        self._engine: Any = None

    def identity(self) -> dict[str, Any]:
        return {"backend": "vllm", **resolve(self._reference).identity()}

    def _load(self, first: str) -> None:
        """Load the model, to answer request `first` first."""
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
            # Without seeds of its own per row, a resumed run would draw for other samples what it drew before.
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
            self._llm = LLM(**options)
        except (ValueError, RuntimeError, OSError) as error:
            raise TeacherError(f"vLLM cannot load {self._reference}: {str(error).splitlines()[0]}") from error
        self._engine = self._llm.llm_engine
        self._context = int(self._llm.model_config.max_model_len)
        self._tokenizer = load_tokenizer(self._reference, trust_remote_code=config.trust_remote_code)
        self._ends = eos_ids(self._tokenizer, _generation_config(directory))
        own = getattr(self._tokenizer, "chat_template", None)
        self._chat = ChatRenderer.from_file(self._tokenizer, self._ends, None if own else self._template)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        waiting = (request for request in requests if not done(request.key))
        first = next(waiting, None)
        if first is None:
            return
        self._load(first.key)
        started: dict[str, float] = {}
        self._submit(first, started, record)
        while started or not stop.requested:
            while len(started) < self._inference.chunk_size and not stop.requested:
                request = next(waiting, None)
                if request is None:
                    break
                self._submit(request, started, record)
            if not started:
                return
            for output in self._finished():
                record([self._completion(output, started.pop(output.request_id))])

    def _submit(self, request: GenerationRequest, started: dict[str, float], record: RecordOutcomes) -> None:
        prompt = prompt_or_failure(self._chat, request, self._context)
        if isinstance(prompt, Failure):
            record([prompt])
            return
        room = min(self._inference.max_new_tokens, self._context - len(prompt))
        params = self._params(request, room)
        self._engine.add_request(request.key, {"prompt_token_ids": prompt}, params)
        started[request.key] = time.monotonic()

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
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _finished(self) -> Iterator[Any]:
        return (output for output in self._engine.step() if output.finished)

    def _completion(self, output: Any, started: float) -> Completion:
        answer = output.outputs[0]
        return Completion(
            key=output.request_id,
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=len(answer.token_ids),
            model=self._reference,
            seconds=round(time.monotonic() - started, 3),
        )

    def close(self) -> None:
        self._engine = self._llm = None


def _generation_config(directory: str) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(directory)
    except OSError:
        return None
