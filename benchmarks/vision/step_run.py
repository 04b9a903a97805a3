"""Seconds a step and peak memory of SFT on rows with images: our trainer against TRL's SFTTrainer.

The model is the teacher of `examples/vision` (DINOv2-small, 8 layers of SmolLM2-135M, 36 tokens an image), the rows are
its training rows. Same rows, batch and number types (float32 weights, bfloat16 compute), one thread. Arms:

    ours_all     everything is trained           trl_all      the same with TRL
    ours         the tower stays as it is, and is given pixels in every step
    ours_cached  the same, and each image goes through the tower once (`training.cache_image_features`)
    trl          the tower stays as it is, with TRL

A step lasts from the end of one to the end of the next, so that reading and processing images is part of it. What the
features of `ours_cached` cost once is measured too, and shared among the steps of three epochs (`with_making`). Each
arm runs in processes of its own, in turn; the first steps are left out.

    python -m benchmarks.vision.step_run [--made runs/vision] [--rounds 3] [--steps 8]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULT, alternate, ratios, run_worker, save, spread

HERE = Path(__file__).parent
BATCH, LENGTH, WARM_UP, SEED, EPOCHS = 16, 128, 2, 0, 3
END = "<|im_end|>"


def rows(made: Path, count: int, processor: Any) -> list[tuple[str, str, Path]]:
    """(prompt, completion, picture) of the first rows, rendered with bare placeholders."""
    found = []
    with (made / "data" / "train.jsonl").open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(count), strict=False):
            row = json.loads(line)
            asked, answer = (message["content"] for message in row["messages"])
            question = asked.replace("<image>", processor.image_token)
            prompt = processor.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            found.append((prompt, answer + END, made / "data" / row["images"][0]))
    if len(found) < count:
        raise SystemExit(f"{made} has {len(found)} rows and {count} are needed: python examples/vision/make_teacher.py")
    return found


def clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.at: list[tuple[float, float]] = []

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.on_step_end()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.at.append((time.perf_counter(), time.process_time()))

        def between(self) -> tuple[list[float], list[float]]:
            """(wall-clock, CPU) seconds of each step."""
            pairs = list(zip(self.at, self.at[1:], strict=False))
            return [two[0] - one[0] for one, two in pairs], [two[1] - one[1] for one, two in pairs]

    return Clock()


def ours(made: Path, steps: int, directory: Path, parts: list[str] | None, cached: bool) -> dict[str, Any]:
    """What our trainer takes.

    Args:
        parts: `training.train_parts`.
    """
    import numpy as np
    import torch
    from transformers import PrinterCallback

    from easydistill.data.images import ImageStore
    from easydistill.engine.interrupt import StopSignal
    from easydistill.engine.progress import Reporter
    from easydistill.methods.sft.batching import TokenRow
    from easydistill.methods.sft.config import TrainingConfig
    from easydistill.methods.sft.feeding import Feed
    from easydistill.methods.sft.image_features import on_features
    from easydistill.methods.shared.adapters import with_adapters
    from easydistill.methods.shared.compat import FusedTrainer, cross_entropy_loss, fuse_loss, training_arguments
    from easydistill.models.loading import load_model
    from easydistill.models.multimodal import Vision, load_processor

    teacher = str(made / "teacher")
    model, store = load_model(teacher, torch.float32), ImageStore(directory / "images")
    vision = Vision(load_processor(teacher), store.path)
    tokenizer = vision.processor.tokenizer
    found: list[list[TokenRow]] = []
    for prompt, completion, picture in rows(made, (steps + WARM_UP) * BATCH, vision.processor.wrapped):
        digest = store.add(picture.read_bytes())
        before = tokenizer(vision.expand(prompt, [digest]), add_special_tokens=False)["input_ids"]
        after = tokenizer(completion, add_special_tokens=False)["input_ids"]
        learned = np.arange(len(before) + len(after)) >= len(before)
        found.append([TokenRow(str(len(found)), [*before, *after], learned, images=(digest,))])
    config = TrainingConfig(
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        bf16=True,
        max_length=LENGTH,
        group_by_length=False,
        logging_steps=1000,
        save_steps=100_000,
        train_parts=parts,
        cache_image_features=cached,
    )
    feed = Feed(found, config, tokenizer.pad_token_id, vision=vision)
    fuse_loss(model, cross_entropy_loss(None))
    with_adapters(model, config)
    timer, making = clock(), (time.perf_counter(), time.process_time())
    with contextlib.ExitStack() as undo:
        feed = on_features(
            model, feed, directory / "features", True, Reporter(directory / "metrics.jsonl"), StopSignal(), undo
        )
        making = (time.perf_counter() - making[0], time.process_time() - making[1])
        trainer = FusedTrainer(
            model=model,
            args=training_arguments(config, directory, torch.device("cpu")),
            train_dataset=feed.dataset,
            data_collator=feed.collate,
            callbacks=[timer],
            sampler=feed.sampler,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {**told(timer), "making": {"seconds": making[0], "cpu_seconds": making[1], "images": len(found)}}


def trl(made: Path, steps: int, directory: Path, frozen: bool) -> dict[str, Any]:
    """What TRL's SFTTrainer takes, given prompts and completions that are rendered already."""
    import torch
    from datasets import Dataset, Image, Sequence
    from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    teacher = made / "teacher"
    model = AutoModelForImageTextToText.from_pretrained(teacher, dtype=torch.float32).train()
    if frozen:
        model.model.vision_tower.requires_grad_(False)
    processor = AutoProcessor.from_pretrained(teacher)
    found = rows(made, (steps + WARM_UP) * BATCH, processor)
    dataset = Dataset.from_dict(
        {
            "prompt": [prompt for prompt, _, _ in found],
            "completion": [completion for _, completion, _ in found],
            "images": [[str(picture)] for _, _, picture in found],
        }
    ).cast_column("images", Sequence(Image()))
    config = SFTConfig(
        output_dir=str(directory),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        learning_rate=2e-5,
        weight_decay=0.05,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        bf16=True,
        gradient_checkpointing=False,
        completion_only_loss=True,
        max_length=None,
        packing=False,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    timer = clock()
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=processor, callbacks=[timer])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return told(timer)


def told(timer: Any) -> dict[str, Any]:
    seconds, cpu = timer.between()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"seconds": seconds[WARM_UP:], "cpu_seconds": cpu[WARM_UP:], "peak_mib": peak}


ARMS: dict[str, Callable[[Path, int, Path], dict[str, Any]]] = {
    "trl_all": lambda *given: trl(*given, frozen=False),
    "ours_all": lambda *given: ours(*given, parts=["language", "connector", "vision"], cached=False),
    "trl": lambda *given: trl(*given, frozen=True),
    "ours": lambda *given: ours(*given, parts=None, cached=False),
    "ours_cached": lambda *given: ours(*given, parts=None, cached=True),
}
COMPARED = (("ours_all", "trl_all"), ("ours", "trl"), ("ours_cached", "trl"), ("ours_cached", "ours"))


def worker(arm: str, made: Path, steps: int) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as directory:
        print(RESULT + json.dumps(ARMS[arm](made, steps, Path(directory))))


def compared(sides: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of our arms over those of TRL; CPU seconds beside seconds."""
    for arm, found in runs.items():
        sides[arm]["cpu_seconds_per_step"] = spread([second for run in found for second in run["cpu_seconds"]])
    making = [run["making"] for run in runs["ours_cached"]]
    each = {name: [made[name] / made["images"] for made in making] for name in ("seconds", "cpu_seconds")}
    sides["making_features_per_image"] = {name: spread(values) for name, values in each.items()}
    found: dict[str, Any] = {}
    for one, two in COMPARED:
        of, to = (sides[arm]["cpu_seconds_per_step"]["median"] for arm in (one, two))
        found[f"{one}_over_{two}"] = {**ratios(sides, one, two), "cpu_seconds_per_step": round(of / to, 4)}
    for name in ("seconds", "cpu_seconds"):
        per_step = f"{name}_per_step"
        once = BATCH * statistics.median(each[name]) / EPOCHS
        ratio = (sides["ours_cached"][per_step]["median"] + once) / sides["trl"][per_step]["median"]
        found["ours_cached_over_trl"][f"{per_step}_with_making"] = round(ratio, 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--made", type=Path, default=Path("runs/vision"), help="what examples/vision has made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--worker", choices=ARMS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.made, given.steps)
        return
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in given.arms}

    def measure(arm: str) -> dict[str, Any]:
        shared = ("--made", str(given.made), "--steps", str(given.steps))
        runs[arm].append(run_worker("benchmarks.vision.step_run", "--worker", arm, *shared))
        return runs[arm][-1]

    def show(arm: str, run: dict[str, Any]) -> None:
        medians = {name: round(statistics.median(run[name]), 3) for name in ("seconds", "cpu_seconds")}
        print(arm, medians, run["peak_mib"], "MiB", flush=True)

    sides = alternate(given.arms, given.rounds, measure, show)
    if list(given.arms) != list(ARMS):
        return
    ratio = compared(sides, runs)
    print(json.dumps(ratio, indent=2))
    settings = {"seed": SEED, "batch": BATCH, "epochs": EPOCHS, "rounds": given.rounds, "steps": given.steps}
    print(save(HERE, "step_sft", {**settings, **sides, "ratios": ratio}))


if __name__ == "__main__":
    main()
