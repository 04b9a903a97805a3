"""On-policy distillation without models: the loss by hand, the choice of sequences, the server's replies, the config."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.configs import DELETE, changed, complaints, write

from easydistill import api
from easydistill.data.chat import Rendered
from easydistill.jobs import stages_of
from easydistill.methods.on_policy.alarms import Alarms
from easydistill.methods.on_policy.stage import split_label
from easydistill.methods.on_policy.trainer import sampled_reverse_kl
from easydistill.methods.shared.rollouts import PromptOrder, repetition, rolled_positions
from easydistill.teachers.openai.retry import Fault, Verdict
from easydistill.teachers.openai.scores import NO_LOGPROBS, target_logprobs

LOCAL: dict[str, Any] = {
    "job_type": "on_policy_kd",
    "dataset": {"instruction_path": "train.json"},
    "models": {"teacher": "teacher/", "student": "student/"},
}
SERVER: dict[str, Any] = {
    "job_type": "on_policy_kd",
    "dataset": {"instruction_path": "train.json"},
    "inference": {"base_url": "http://localhost:8000/v1", "api_key": "sk-never-print-this"},
    "models": {"student": "student/"},
    "on_policy": {"objective": "sampled_reverse_kl"},
}


# --- the loss ---------------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    """Two tokens that have not moved since they were sampled: the loss is the sampled reverse KL, −ΣA."""
    old = torch.tensor([-1.0, -2.0])
    teacher = torch.tensor([-3.0, -0.5])
    logprobs = old.clone().requires_grad_()
    loss = sampled_reverse_kl(logprobs, old, teacher, 0.2)
    assert float(loss.detach()) == pytest.approx((-1.0 - -3.0) + (-2.0 - -0.5))
    loss.backward()
    # d/dlogp = −r·A: the teacher finds the first token less probable than the student, the second one more.
    assert torch.equal(logprobs.grad, torch.tensor([2.0, -1.5]))


@pytest.mark.parametrize(
    ("moved", "advantage", "loss", "slope"),
    [
        (math.log(1.5), 1.0, -1.2, 0.0),  # ratio above 1 + ε already: no gradient
        (math.log(1.5), -1.0, 1.5, 1.5),  # moved the wrong way: gradient without a limit
        (math.log(0.5), -1.0, 0.8, 0.0),  # ratio below 1 − ε already: no gradient
        (math.log(0.5), 1.0, -0.5, -0.5),
        (math.log(1.1), 2.0, -2.2, -2.2),  # inside the clip
    ],
)
def test_the_ratio_is_clipped_on_the_side_that_lowers_the_loss(
    moved: float, advantage: float, loss: float, slope: float
) -> None:
    old = torch.tensor([-2.0])
    logprobs = (old + moved).requires_grad_()
    found = sampled_reverse_kl(logprobs, old, old + advantage, 0.2)
    assert float(found.detach()) == pytest.approx(loss, rel=1e-5)
    found.backward()
    assert float(logprobs.grad) == pytest.approx(slope, rel=1e-5)


def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient() -> None:
    logprobs = torch.tensor([-0.3, -4.0]).requires_grad_()
    loss = sampled_reverse_kl(logprobs, logprobs.detach(), logprobs.detach(), 0.2)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logprobs.grad.any()


def test_the_expected_gradient_is_that_of_the_reverse_kl() -> None:
    """Σ_y p_S(y) · gradient(y) = ∇ KL(p_S ‖ p_T), over a vocabulary small enough to sum."""
    torch.manual_seed(0)
    logits_V, teacher_V = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64).log_softmax(0)
    exact_V = logits_V.clone().requires_grad_()
    student_V = exact_V.log_softmax(0)
    (student_V.exp() * (student_V - teacher_V)).sum().backward()
    sampled_V = logits_V.clone().requires_grad_()
    drawn_V = sampled_V.log_softmax(0)
    probs_V = drawn_V.detach().exp()
    total = sum(
        probs_V[y] * sampled_reverse_kl(drawn_V[y : y + 1], drawn_V[y : y + 1].detach(), teacher_V[y : y + 1], 0.2)
        for y in range(5)
    )
    total.backward()
    torch.testing.assert_close(sampled_V.grad, exact_V.grad)


# --- alarms -------------------------------------------------------------------------------------------------------

GOOD = {"reverse_kl": 1.3, "entropy": 2.6, "repetition": 0.1, "ended": 0.8}


def told(*entries: dict[str, float]) -> dict[str, str]:
    alarms = Alarms()
    for step, entry in enumerate(entries, 1):
        alarms.step(step, entry)
        # A run that is killed here goes on alike.
        resumed = Alarms()
        resumed.restore(json.loads(json.dumps(alarms.state())))
        alarms = resumed
    return {name: alarm["told"] for name, alarm in alarms.raised.items()}


@pytest.mark.parametrize(
    ("worse", "words"),
    [
        ({"repetition": 0.85}, "rose from 10% to 85%"),
        ({"ended": 0.2}, "80% to 20%"),
        ({"entropy": 0.4}, "2.60 to 0.40"),
    ],
)
def test_a_falling_reverse_kl_is_no_success_where_answers_get_worse(worse: dict[str, float], words: str) -> None:
    fallen = GOOD | {"reverse_kl": 0.88}
    assert words in told(*[GOOD] * 3, *[fallen | worse] * 3)["gamed"]
    assert not told(*[GOOD] * 3, *[fallen] * 3)
    assert not told(*[GOOD] * 3, *[GOOD | worse] * 3)
    assert not told(*[GOOD] * 3, *[fallen | worse] * 2)


def test_not_every_entry_tells_of_rollouts() -> None:
    """Steps between two rounds of rollouts have only the figures of their loss."""
    fallen = GOOD | {"reverse_kl": 0.88}
    between = {name: GOOD[name] for name in ("reverse_kl", "entropy")}
    later = between | {"reverse_kl": 0.88}
    assert not told(*[GOOD, between] * 2, *[fallen, later] * 3)
    assert "rose from 10% to 85%" in told(*[GOOD, between] * 2, *[fallen | {"repetition": 0.85}, later] * 3)["gamed"]
    assert not told(*[between] * 3, *[fallen | {"repetition": 0.85}] * 3)
    assert not told(*[GOOD] * 3, *[{"reverse_kl": 0.88}] * 3)


def test_a_student_that_cannot_write_yet_is_told_once_and_at_the_start() -> None:
    weak = GOOD | {"entropy": 4.6}
    assert "4.6 nats" in told(weak, weak, weak)["weak_student"]
    assert not told(GOOD, weak, weak)
    assert not Alarms(temperature=2.0).step(1, weak)


# --- the choice of sequences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_share_of_rollouts_is_exact_over_all_steps(share: float, count: int) -> None:
    chosen = [rolled_positions(share, step, count, seed=1) for step in range(100)]
    assert sum(map(len, chosen)) == round(share * 100 * count)
    assert all(positions <= set(range(count)) for positions in chosen)
    assert max(map(len, chosen)) - min(map(len, chosen)) <= 1
    assert chosen[7] == rolled_positions(share, 7, count, seed=1)


@pytest.mark.parametrize(("rows", "batch"), [(10, 4), (3, 8), (8, 8), (1, 1)])
def test_every_row_comes_once_per_epoch_and_batches_are_full(rows: int, batch: int) -> None:
    order = PromptOrder(rows, batch, seed=3)
    first = order.batches(0)
    assert len(first) == order.steps == -(-rows // batch)
    assert all(len(part) == batch for part in first)
    assert {index for part in first for index in part} == set(range(rows))
    assert first == PromptOrder(rows, batch, seed=3).batches(0)
    assert rows < 3 or first != order.batches(1)


def test_a_repeated_order_repeats_each_batch() -> None:
    order = PromptOrder(10, 4, seed=3, repeats=2)
    order.set_epoch(1)
    expected = [index for part in order.batches(1) for index in part + part]
    assert list(order) == expected
    assert len(order) == len(expected)


def test_repetition() -> None:
    assert repetition([1, 2, 3]) == 0
    assert repetition(list(range(20))) == 0
    assert repetition([7] * 13) == pytest.approx(0.9)


def test_a_label_is_split_at_its_final_answer() -> None:
    ids, on = list(range(10)), [False, False, True, True, False, False, True, True, True, False]
    assert split_label(Rendered(ids, on)) == ([0, 1, 2, 3, 4, 5], [6, 7, 8])


# --- the server's replies ---------------------------------------------------------------------------------------


def body(logprobs: Any) -> bytes:
    return json.dumps({"choices": [{"text": "", "prompt_logprobs": logprobs}]}).encode()


def entry(token: int, logprob: Any) -> dict[str, Any]:
    return {str(token): {"logprob": logprob, "rank": 3, "decoded_token": "x"}}


def test_a_good_reply_has_every_token_but_the_first() -> None:
    # The most probable token may be listed beside the actual one.
    logprobs = [None, {**entry(9, -0.5), **entry(6, -2.5)}, entry(7, -0.25)]
    assert [token["logprob"] for token in target_logprobs(body(logprobs), [5, 6, 7])] == [-2.5, -0.25]


@pytest.mark.parametrize("value", [-9999.0, -9999, -1e30, None, float("nan"), float("-inf"), 10**400], ids=str)
def test_a_placeholder_is_no_logprob(value: Any) -> None:
    """vLLM's JSON has −9999 for −∞; others write null or NaN. The token is left out, the others are kept."""
    first, second = target_logprobs(body([None, entry(6, value), entry(7, -0.25)]), [5, 6, 7])
    assert math.isnan(first["logprob"])
    assert second["logprob"] == -0.25


def test_improbable_tokens_are_no_placeholders() -> None:
    found = target_logprobs(body([None, entry(6, -200.5), entry(7, 0)]), [5, 6, 7])
    assert [token["logprob"] for token in found] == [-200.5, 0]


@pytest.mark.parametrize(
    ("content", "verdict", "reason"),
    [
        (b"<html>", Verdict.RETRY, "garbage"),
        (b'{"choices": []}', Verdict.RETRY, "garbage"),
        (b"[]", Verdict.RETRY, "garbage"),
        (b'{"choices": [7]}', Verdict.RETRY, "garbage"),
        (b'{"error": {"message": "overloaded", "code": 503}}', Verdict.RETRY, "server_error"),
        (b'{"error": {"message": "no such model", "code": "model_not_found"}}', Verdict.FATAL, "model"),
        (b'{"choices": [{"text": "x"}]}', Verdict.REJECT, NO_LOGPROBS),
        (body(None), Verdict.REJECT, NO_LOGPROBS),
        (body("x"), Verdict.REJECT, NO_LOGPROBS),
        (body([None, entry(6, -1)]), Verdict.REJECT, NO_LOGPROBS),
        (body([None, entry(6, -1), entry(8, -1)]), Verdict.REJECT, NO_LOGPROBS),
        (body([None, entry(6, -1), None]), Verdict.REJECT, NO_LOGPROBS),
        (body([None, entry(6, -1), entry(7, "low")]), Verdict.REJECT, NO_LOGPROBS),
        (body([None, entry(6, -1), {"7": {"rank": 3}}]), Verdict.REJECT, NO_LOGPROBS),
        (body([None, entry(6, -1), entry(7, True)]), Verdict.REJECT, NO_LOGPROBS),
        (body([None, entry(6, -1), entry(7, 0.5)]), Verdict.REJECT, NO_LOGPROBS),
    ],
)
def test_bad_replies_are_classified(content: bytes, verdict: Verdict, reason: str) -> None:
    with pytest.raises(Fault) as raised:
        target_logprobs(content, [5, 6, 7])
    assert (raised.value.verdict, raised.value.reason) == (verdict, reason)


# --- the config -------------------------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no teacher": (LOCAL, {"models.teacher": DELETE}, "there is no teacher", "inference.base_url"),
    "no prompts": (LOCAL, {"dataset": {}}, "there are no prompts", "dataset.instruction_path"),
    "server and jsd": (SERVER, {"on_policy": DELETE}, "full distributions", "sampled_reverse_kl"),
    "objective typo": (LOCAL, {"on_policy": {"objective": "generalised_jsd"}}, "generalised_jsd", "generalized_jsd"),
    "key typo": (LOCAL, {"on_policy": {"rolout_share": 1}}, "rolout_share", "rollout_share"),
    "share as percent": (LOCAL, {"on_policy": {"rollout_share": 50}}, "50", ""),
    "share negative": (LOCAL, {"on_policy": {"rollout_share": -0.1}}, "-0.1", ""),
    "beta of another objective": (SERVER, {"on_policy.beta": 0.4}, "`beta` has no effect", "remove beta"),
    "temperature of another": (SERVER, {"on_policy.temperature": 0.7}, "`temperature` has no effect", "remove"),
    "clip of another": (LOCAL, {"on_policy": {"ratio_clip": 0.1}}, "`ratio_clip` has no effect", "remove ratio_clip"),
    "sampling of another": (SERVER, {"on_policy.rollout_temperature": 0.7}, "`rollout_temperature` has no", "remove"),
    "temperature zero": (LOCAL, {"on_policy": {"temperature": 0}}, "0", ""),
    "k of another": (SERVER, {"on_policy.top_k": 4}, "`top_k` has no effect", "top_k_reverse_kl"),
    "clip zero": (SERVER, {"on_policy.ratio_clip": 0}, "0", ""),
    "no tokens": (LOCAL, {"on_policy": {"max_new_tokens": 0}}, "0", ""),
    "no room": (LOCAL, {"on_policy": {"max_new_tokens": 1024}}, "leaves no room", "training.max_length"),
    "start only": (LOCAL, {"training": {"max_steps": 9}, "on_policy": {"kd_steps": 9}}, "no rollouts", "max_steps"),
    "packing": (LOCAL, {"training": {"packing": True}}, "cannot be packed", "training.packing"),
    "not a url": (SERVER, {"inference.base_url": "localhost:8000"}, "not a URL", "http://"),
    "local key beside a url": (
        SERVER,
        {"inference.backend": "vllm"},
        "no key 'base_url'",
        'backend "openai", not of "vllm"',
    ),
    "list": (LOCAL, {"on_policy": [1]}, "a section", ""),
    "true for a number": (LOCAL, {"on_policy": {"sft_steps": True}}, "true", ""),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_configs_are_explained(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, changes, problem, hint = MALFORMED[name]
    found = complaints(write(tmp_path / "kd.json", changed(base, changes)), capsys)
    assert any(problem in item.text and hint in item.hint for item in found), found


@pytest.mark.parametrize("base", [LOCAL, SERVER])
def test_defaults_of_the_other_objective_are_accepted(base: dict[str, Any]) -> None:
    """As in a config of `easydistill init` whose lines are all uncommented."""
    defaults = {"beta": None, "temperature": 1.0, "ratio_clip": 0.2, "steps_per_rollout": 1, "top_k": 16}
    written = changed(base, {f"on_policy.{name}": value for name, value in defaults.items()})
    assert api.validate(written) == api.validate(base)
    # The default of an earlier version.
    assert api.validate(changed(base, {"on_policy.beta": 0.5})).on_policy.beta == 0.5


@pytest.mark.parametrize(
    ("config", "stages"),
    [
        (LOCAL, ["label", "train", "evaluate"]),
        (SERVER, ["label", "train", "evaluate"]),
        (changed(LOCAL, {"evaluation": {"enabled": False}}), ["label", "train"]),
        # The teacher only scores, so its answers are not needed.
        (
            changed(SERVER, {"evaluation": {"enabled": False}, "on_policy.rollout_share": 1}),
            ["train"],
        ),
        (
            changed(SERVER, {"evaluation": {"enabled": False}, "on_policy.rollout_share": 1, "on_policy.sft_steps": 5}),
            ["label", "train"],
        ),
        (changed(LOCAL, {"dataset": {"labeled_path": "rows.json"}}), ["train", "evaluate"]),
    ],
)
def test_the_plan(config: dict[str, Any], stages: list[str]) -> None:
    assert [stage.name for stage in stages_of(api.validate(config))] == stages


def test_the_example_is_valid() -> None:
    example = Path(__file__).resolve().parents[2] / "examples/on_policy/on_policy_kd.json"
    assert api.validate(example).job_type == "on_policy_kd"


def test_secrets_stay_out_of_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('[{"instruction": "hello", "output": "hi"}]')
    job = changed(SERVER, {"dataset": {"labeled_path": str(tmp_path / "train.json")}, "models.student": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    (stage, *_) = stages_of(api.validate(job))
    assert "sk-never" not in json.dumps(stage.fingerprint())


def test_the_job_loads_no_heavy_library() -> None:
    code = (
        "import sys\nimport easydistill.jobs.on_policy_kd\n"
        "heavy = ('torch', 'transformers', 'trl', 'openai', 'numpy', 'pyarrow', 'jinja2')\n"
        "found = [name for name in heavy if name in sys.modules]\nassert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
