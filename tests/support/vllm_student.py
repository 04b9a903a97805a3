"""On-policy training with rollouts by vLLM: `python -m tests.support.vllm_student TOKENIZER FOLDER`; prints JSON.

A process of its own, because vLLM binds threads and starts process groups.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from easydistill.config.training import LoraConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.on_policy.generalized_jsd import train as train_by_jsd
from easydistill.methods.shared.adapters import with_adapters
from easydistill.methods.shared.rollouts import Writer, roll_out
from easydistill.methods.shared.vllm_rollouts import VllmWriter
from easydistill.models.student import Student
from tests.integration.test_on_policy_kd import END, VOCABULARY, config, prompts, train

ASKED = [(row.id, row.prompt) for row in prompts(24)]
ENDS = frozenset({END})


def model(seed: int) -> Any:
    """A two-layer Llama with heads of a width that vLLM's kernels know."""
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=END,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LlamaForCausalLM(shape).eval()
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(12)
    return made


def student(tokenizer: Any) -> Student:
    return Student(model(0), tokenizer, ENDS, "float32", "tiny")


def agreement(writer: Writer, loaded: Any, own: Any) -> float:
    """Share of the most probable answers' tokens at which vLLM, with one model's weights, and another model agree."""
    writer.load(loaded)
    theirs = writer.write(loaded, ASKED, 0, ENDS, 12, 0.0, seed=1)
    mine = roll_out(own, ASKED, 0, ENDS, 12, 0.0, seed=1)
    # The answers may end at different places.
    pairs = [
        pair
        for one, other in zip(mine, theirs, strict=True)
        for pair in zip(one.completion, other.completion, strict=False)
    ]
    return sum(one == other for one, other in pairs) / len(pairs)


def weights(writer: Writer, tokenizer: Any, folder: Path, **settings: Any) -> list[torch.Tensor]:
    trained = student(tokenizer)
    train("sampled_reverse_kl", trained, model(1), prompts(12), folder, writer=writer, rollout_share=1.0, **settings)
    return [value.detach().clone() for value in trained.model.parameters()]


def main(tokenizer_path: str, folder: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    state = torch.get_rng_state()
    writer = VllmWriter(student(tokenizer), 64, 0.3)
    found: dict[str, Any] = {"random_state_kept": torch.equal(state, torch.get_rng_state())}
    found["agreement"] = [agreement(writer, model(seed), model(seed)) for seed in (0, 1, 2)]
    found["agreement_with_others"] = agreement(writer, model(0), model(1))
    adapted = with_adapters(model(3), config(lora=LoraConfig(r=4)))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    before = [value.detach().clone() for value in adapted.parameters()]
    found["agreement_with_adapters"] = agreement(writer, adapted, adapted)
    found["agreement_without_adapters"] = agreement(writer, model(3), adapted)
    found["adapters_untouched"] = all(map(torch.equal, before, adapted.parameters()))

    own = model(3)
    writer.load(own)
    drawn = [writer.write(own, ASKED, step, ENDS, 12, 1.0, seed=1) for step in (4, 4, 5)]
    found["same_step_same_answers"] = drawn[0] == drawn[1]
    found["other_step_other_answers"] = drawn[0] != drawn[2]
    ended = [item for item in drawn[0] if item.ended]
    found["ends"] = bool(ended) and all(item.completion[-1] == END for item in ended)
    found["longest"] = max(len(item.completion) for answers in drawn for item in answers)
    lengths = [len(item.completion) for item in writer.write(own, ASKED * 20, 9, ENDS, 12, 1.0, seed=1)]
    expected = [len(item.completion) for item in roll_out(own, ASKED * 20, 9, ENDS, 12, 1.0, seed=1)]
    found["mean_lengths"] = [sum(lengths) / len(lengths), sum(expected) / len(expected)]

    whole = weights(writer, tokenizer, folder / "whole")
    again = weights(writer, tokenizer, folder / "again")
    found["trains_twice_alike"] = all(map(torch.equal, whole, again))
    found["trains"] = not all(map(torch.equal, whole, student(tokenizer).model.parameters()))

    reporter = Reporter(folder / "metrics.jsonl", quiet=True)
    section = OnPolicyConfig(max_new_tokens=12, rollouts="vllm")
    trained = student(tokenizer)
    outcome = train_by_jsd(
        trained, prompts(12), model(1), config(), section, folder / "jsd", reporter, StopSignal(), writer
    )
    found["jsd_steps"] = outcome.steps
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["phases"] = sorted({name for line in lines if line["stage"] == "seconds" for name in line})
    writer.close()
    found["process_group_left"] = torch.distributed.is_initialized()
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
