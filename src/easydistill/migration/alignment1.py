"""EasyDistill 1's preference and reinforcement jobs: pairs and training apart, rewards by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from easydistill.config.reading.version1 import literal
from easydistill.config.values import KeyPath
from easydistill.migration.draft import Draft, Old, of_kind, pop, without_key
from easydistill.migration.training import GRPO, PAIRS, PPO, REWARD, training

PPO_EPOCHS = 4
_TRL_TEMPERATURE = 0.7


def _dpo(old: Old, made: Draft) -> None:
    beta = old.take("training", "beta", default=0.1)
    train = {"job_type": "dpo", "preference": {"beta": beta}}
    made.mapped.append("training.beta is preference.beta")
    pairs = _pairs_or_none(old, made, train, PAIRS)
    if pairs is None:
        return
    inference, student = pairs["inference"], dict(pairs["inference"])
    local = "base_url" not in inference
    pairs["models"] |= _student_of(train)
    kept = {"system_prompt", "max_new_tokens"}
    pairs["student_inference"] = {name: value for name, value in student.items() if name in kept}
    if local:
        pairs["student_inference"]["temperature"] = 0.0
    pairs["synthesis"] = {"method": "student", "student_samples": 1, "given_answers": False}
    made.change(
        ("jobs", "pairs", "synthesis"),
        "the teacher also judges: a pair is kept where its own answer scores higher than the student's. The old job "
        "kept every pair, also where the student was right.",
    )


def _student_of(train: dict[str, Any]) -> dict[str, Any]:
    """The student, where there is one."""
    return {name: value for name, value in train["models"].items() if name == "student"}


def _reward(old: Old, made: Draft) -> None:
    train = {"job_type": "reward_model", "reward_model": {"center_rewards_coefficient": 0.0}}
    made.comment(("jobs", "train", "reward_model", "center_rewards_coefficient"), "Scores were not centred.")
    prompts = {
        "good_answer": old.take("inference", "positive_system_prompt"),
        "bad_answer": old.take("inference", "negative_system_prompt"),
    }
    if old.take("dataset", "template") is not None:
        made.left_out.append("dataset.template: a reward model is saved with the student's own chat template")
    pairs = _pairs_or_none(old, made, train, REWARD)
    if pairs is None:
        return
    given = {name: {"text": literal(text)} for name, text in prompts.items() if isinstance(text, str)}
    pairs["synthesis"] = {"method": "contrastive_prompt", **({"prompts": given} if given else {})}
    made.mapped.append("inference.positive_system_prompt and negative_system_prompt are synthesis.prompts")


def _pairs_or_none(old: Old, made: Draft, train: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any] | None:
    """Fill in both jobs: one that makes pairs and `train`, which learns from them.

    Returns:
        The job that makes pairs; None where the config has no teacher, and the pairs are there already.
    """
    dataset, inference = old.section("dataset"), old.section("inference")
    section = old.section("training")
    output = section.pop("output_dir", None)
    models = old.section("models")
    prompts, labeled = dataset.pop("instruction_path", None), dataset.pop("labeled_path", None)
    teacher = models.pop("teacher", None)
    asked = prompts is not None and (bool(inference) or teacher is not None)
    where: KeyPath = ("jobs", "train") if asked else ()
    train["dataset"] = {"labeled_path": "@pairs/labeled" if asked else labeled, **dataset}
    train["models"] = models
    train["training"] = training(old, made, (*where, "training"), defaults, section)
    top = {} if output is None else {"output_dir": output}
    if not asked:
        for path in [path for path in made.comments if path[:2] == ("jobs", "train")]:
            made.comments[path[2:]] = made.comments.pop(path)
        made.config = {"job_type": train.pop("job_type"), **top, **train}
        made.changed.append("no teacher is asked: the job trains on the pairs in dataset.labeled_path")
        return None
    target = {} if labeled is None else {"labeled_path": labeled}
    pairs = _pairs(made, {"instruction_path": prompts, **target}, inference, teacher)
    made.config = {"job_type": "pipeline", **top, "jobs": {"pairs": pairs, "train": train}}
    made.mapped.append(f"two jobs: preference_data makes pairs, {train['job_type']} learns from them")
    made.changed.append("an answer that inference.max_new_tokens cut off makes no pair; the old job kept it")
    made.changed.append("a share of the pairs is held out and measured on (evaluation.heldout); the old job had none")
    return pairs


def _pairs(made: Draft, dataset: dict[str, Any], inference: dict[str, Any], teacher: Any) -> dict[str, Any]:
    """The job that makes pairs, as far as both kinds of pairs have it in common."""
    without_key(inference, made, ("jobs", "pairs", "inference"))
    if "base_url" in inference and teacher is not None:
        made.left_out.append("models.teacher: the teacher is the server")
        teacher = None
    if "base_url" not in inference:
        inference["top_k"] = 1
        made.comment(("jobs", "pairs", "inference", "top_k"), "The old job always took the most probable token.")
    return {
        "job_type": "preference_data",
        "dataset": dataset,
        "inference": inference,
        "models": {} if teacher is None else {"teacher": teacher},
    }


def _policy(old: Old, made: Draft, job_type: str) -> dict[str, Any]:
    dataset, models = old.section("dataset"), old.section("models")
    share = pop(dataset, "train_ratio", float, "dataset")
    reward = models.pop("reward", None)
    section = old.section("training")
    config = {
        "job_type": job_type,
        "dataset": dataset,
        "models": models,
        "rewards": {"reward_model": {"model": reward}},
        "policy": {},
        "training": section,
    }
    if share is not None:
        config["evaluation"] = {"heldout": round(1 - share, 6)}
        made.mapped.append("dataset.train_ratio is what evaluation.heldout leaves")
        made.change(
            ("evaluation", "heldout"),
            "of many rows, no more than evaluation.max_heldout (200) are held out",
        )
    made.mapped.append("models.reward is rewards.reward_model.model")
    made.config = config
    return config


def _grpo(old: Old, made: Draft) -> None:
    config = _policy(old, made, "grpo")
    section = config["training"]
    names = {"num_generations": "num_generations", "max_completion_length": "max_new_tokens", "beta": "beta"}
    _move(section, config["policy"], {**names, "temperature": "temperature", "epsilon": "epsilon"}, made)
    config["training"] = training(old, made, ("training",), GRPO, section)
    made.change(
        ("policy",),
        "what the old file does not say has this version's defaults (DAPO's), where the old job had those of the "
        "installed TRL: beta, loss_type, epsilon_high",
    )
    _make_room(config, made)


def _ppo(old: Old, made: Draft) -> None:
    config = _policy(old, made, "ppo")
    section, policy = config["training"], config["policy"]
    episodes, stop = pop(section, "total_episodes", int, "training"), section.pop("stop_token", None)
    names = {"response_length": "max_new_tokens", "missing_eos_penalty": "missing_eos_penalty"}
    names |= {name: name for name in ("kl_coef", "gamma", "lam", "vf_coef", "temperature")}
    names |= {"num_ppo_epochs": "num_iterations", "cliprange": "epsilon", "cliprange_value": "value_clip"}
    _move(section, policy, names, made)
    if stop not in (None, "eos"):
        old.refuse(("training", "stop_token"), "answers end with the model's own end token alone", "remove it")
    if stop is not None:
        made.mapped.append('training.stop_token "eos" is how answers end')
    if "temperature" not in policy:
        policy["temperature"] = _TRL_TEMPERATURE
        made.comment(("policy", "temperature"), "What the old trainer took where nothing was said.")
    config["training"] = training(old, made, ("training",), PPO, section)
    if episodes is not None:
        taken = config["training"]
        sizes = ("per_device_train_batch_size", "gradient_accumulation_steps")
        answers = math.prod(max(1, of_kind(taken[name], int, f"training.{name}")) for name in sizes)
        rounds = math.ceil(episodes / answers)
        taken["max_steps"] = rounds * of_kind(policy.get("num_iterations", PPO_EPOCHS), int, "training.num_ppo_epochs")
        said = f"total_episodes {episodes} on one device: {rounds} rounds of optimiser steps on each round's answers"
        made.change(("training", "max_steps"), said)
    _make_room(config, made)


def _make_room(config: dict[str, Any], made: Draft) -> None:
    """Have rows be longer than their answers."""
    answer, taken = config["policy"].get("max_new_tokens", 256), config["training"]
    if isinstance(answer, int) and taken.get("max_length", 1024) <= answer:
        taken["max_length"] = answer + 512
        made.change(("training", "max_length"), "longest prompt with its answer")


def _move(section: dict[str, Any], to: dict[str, Any], names: dict[str, str], made: Draft) -> None:
    for old_name, name in names.items():
        if old_name in section:
            to[name] = section.pop(old_name)
            made.mapped.append(f"training.{old_name} is policy.{name}")


JOBS: dict[str, Callable[[Old, Draft], None]] = {
    **dict.fromkeys(("rank_dpo_api", "rank_dpo_local"), _dpo),
    **dict.fromkeys(("rl_reward_api", "rl_reward_local"), _reward),
    "rl_grpo": _grpo,
    "rl_ppo": _ppo,
}
