"""How much there is to ask: calls to a server, or what a model on this machine computes to answer them."""

from __future__ import annotations

from easydistill.config.inference import ApiInferenceConfig, SamplingConfig
from easydistill.contracts.teacher import TeacherPlan
from easydistill.engine.devices import kind_of_device
from easydistill.engine.stage import Work
from easydistill.teachers.sizes import BYTES_A_TOKEN


def asking_work(inference: SamplingConfig, plan: TeacherPlan, calls: int, prompt_bytes: int) -> Work | None:
    """So many calls, answers as long as they may be; None of a model whose size is not known.

    Args:
        prompt_bytes: of all calls together.
    """
    if isinstance(inference, ApiInferenceConfig):
        identity = plan.identity()
        return Work("ask", calls, f"{identity.get('base_url')} {identity.get('model')}")
    weights = plan.memory_bytes()
    if weights is None:
        return None
    tokens = prompt_bytes // BYTES_A_TOKEN + calls * inference.max_new_tokens
    # Two operations a weight, which has two bytes.
    return Work(f"answer with {getattr(inference, 'backend', 'auto')}", weights * tokens, kind_of_device())
