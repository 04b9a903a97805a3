"""Runs jobs one after the other on one engine of vLLM's: `python -m tests.support.shared_vllm CONFIG...`.

Starting vLLM takes most of the time that such a job takes. The first job's engine serves the others; what each of them
asks for is still parsed and checked by vLLM. Ends with the exit code of the first job that fails.
"""

from __future__ import annotations

import sys
from typing import Any

from easydistill.cli import main
from easydistill.models.loading import device
from easydistill.models.vllm import prepare_environment

# What scoring needs of an engine beyond what labelling asks for.
ADDED: dict[str, Any] = {"max_logprobs": 20, "enable_prefix_caching": False}
SHARED = ("model", "dtype", "trust_remote_code", "enforce_eager", "tensor_parallel_size")


def share() -> list[Any]:
    """Let `vllm.LLM` start an engine the first time, and give the same one afterwards; returns what was started."""
    prepare_environment(on_cpu=device().type == "cpu")
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    start, first, started = vllm.LLM, dict[str, Any](), list[Any]()

    def shared(**options: Any) -> Any:
        if not started:
            first.update(options)
            started.append(start(**(options | ADDED)))
        else:
            EngineArgs(**options).create_engine_config()
            assert {name: options[name] for name in SHARED} == {name: first[name] for name in SHARED}
            assert options["max_model_len"] <= first["max_model_len"]
            assert options.get("max_logprobs", 0) <= ADDED["max_logprobs"]
        return started[0]

    vllm.__dict__["LLM"] = shared
    return started


if __name__ == "__main__":
    engines = share()
    for config in sys.argv[1:]:
        code = main(["run", config])
        if code:
            sys.exit(code)
    assert len(engines) == 1, "no job asked vLLM anything"
