"""Reward functions of plain files get from us what TRL's own trainer gives them, and their values count the same."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from easydistill.contracts.reward import RewardContext, Rollout
from easydistill.methods.shared.compat import importing_trl
from easydistill.plain_files import load
from easydistill.rewards import REWARDS

FILE = """
SEEN = []

def judged(prompts, completions, completion_ids, solution, **columns):
    given = {"prompts": prompts, "completions": completions, "ids": completion_ids, "solution": solution}
    SEEN.append({**given, **columns})
    return [len(ids) / 10 if known is not None else None for ids, known in zip(completion_ids, solution)]
"""
ROWS = [
    {"solution": "4", "level": 1},
    {"solution": None, "level": 2},
]
TEXTS = [("4", (5, 6)), ("maybe 3", (7, 8, 9))]


def by_trl(function: Any, prompts: list[Any], completions: list[Any]) -> list[float | None]:
    """What TRL's trainer makes of the function."""
    with importing_trl():
        from trl import GRPOTrainer

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
        args=SimpleNamespace(report_to=[]),
        state=SimpleNamespace(global_step=0),
        environments=None,
        # Where no function judges an answer, it warns through accelerate, which has not been started.
        reward_funcs=[function, lambda completions, **columns: [0.0] * len(completions)],
        reward_processing_classes=[None, None],
        reward_func_names=["judged", "none"],
        _log_completion_extra=None,
        _log_metric=None,
    )
    inputs = [{"prompt": prompt, **row} for prompt, row in zip(prompts, ROWS, strict=True)]
    ids = [list(ids) for _, ids in TEXTS]
    found = GRPOTrainer._calculate_rewards(trainer, inputs, prompts, completions, ids)[:, 0].tolist()
    return [None if math.isnan(value) else value for value in found]


@pytest.mark.parametrize("form", ["conversational", "standard"])
def test_ours_is_theirs(form: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    path = tmp_path / "rewards.py"
    path.write_text(FILE)
    function = load(str(path)).module.judged
    chats = [({"role": "user", "content": f"2+{number}?"},) for number in range(2)]
    rollouts = [
        Rollout(chat, text, (), ids, True, row) for chat, (text, ids), row in zip(chats, TEXTS, ROWS, strict=True)
    ]
    decoded = {ids: text for text, ids in TEXTS}
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: decoded[tuple(ids)])
    module = REWARDS.module(f"{path}:judged")
    ours = module.make(module.Config(form=form), RewardContext(tokenizer=tokenizer))(rollouts)
    chat_form = form == "conversational"
    prompts: list[Any] = [list(chat) if chat_form else chat[0]["content"] for chat in chats]
    completions: list[Any] = [[{"role": "assistant", "content": t}] if chat_form else t for t, _ in TEXTS]
    theirs = by_trl(function, prompts, completions)
    assert ours == pytest.approx([0.2, None]) and theirs == pytest.approx([0.2, None])
    mine, trls = load(str(path)).module.SEEN
    for name in ("trainer_state", "log_extra", "log_metric"):
        trls.pop(name)
    assert mine == trls
