"""Teacher and student token by token: against brute force in float64, and independent of batches and slices."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from easydistill.config.dataset import DatasetConfig
from easydistill.config.evaluation import EvaluationConfig
from easydistill.config.models import ModelsConfig
from easydistill.contracts.metric import TokenRows
from easydistill.data.manifest import Manifest, RowCounts
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import Artifact, StageContext, StageResult
from easydistill.evaluation import disagreement as _disagreement
from easydistill.evaluation import measure as _measure
from easydistill.evaluation import stage as stage_module
from easydistill.evaluation.disagreement import LARGEST_PER_ROW, SHOWN, TOP, Disagreement, Figures
from easydistill.evaluation.measure import Measured, positions, token_metrics
from easydistill.evaluation.measurement import Measurement
from easydistill.evaluation.ranking import Highest, top
from easydistill.evaluation.stage import DISAGREEMENT, EvaluateStage
from easydistill.evaluation.token_text import CONTEXT_CHARACTERS, TokenText, described
from easydistill.methods.shared.rows import LabelledRows
from easydistill.methods.shared.student import MODEL
from easydistill.models.head import body_of

Rows = list[tuple[list[int], list[bool]]]


def model(seed: int, vocabulary: int, width: int = 16) -> Any:
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def some_rows(count: int, vocabulary: int, seed: int = 0) -> Rows:
    """Chats of prompts and answers, some with two answers, one that begins with an answer."""
    generator = random.Random(seed)
    rows: Rows = []
    for n in range(count):
        mask: list[bool] = [True] * 2 if n == 1 else []
        for _ in range(generator.randint(1, 2)):
            mask += [False] * generator.randint(1, 6) + [True] * generator.randint(1, 23)
        rows.append(([generator.randrange(vocabulary) for _ in mask], mask))
    return rows


def watched(student: Any, teacher: Any, shared: int, rows: Rows, batch_size: int = 4) -> tuple[Figures, dict[str, Any]]:
    watch = Disagreement(shared)
    pair = [Measured(side, body_of(side)) for side in (student, teacher)]
    with Reporter(None, quiet=True).task("Evaluating", len(rows)) as task:
        metrics = token_metrics(*pair, shared, rows, 0, batch_size, task, StopSignal(), [watch])
    found = watch.figures()
    assert found is not None
    return found, metrics


def by_brute_force(student: Any, teacher: Any, shared: int, rows: Rows) -> list[dict[str, Any]]:
    """All figures of each answer token, one row at a time, in float64."""
    found = []
    for index, (ids, mask) in enumerate(rows):
        with torch.inference_mode():
            t_TV, s_TV = (
                side.double()(torch.tensor([ids])).logits[0, :, :shared].log_softmax(-1) for side in (teacher, student)
            )
        position = 0
        for column, (token, on) in enumerate(zip(ids, mask, strict=True)):
            position = position + 1 if on else 0
            if not on or column == 0:
                continue
            t, s = t_TV[column - 1].tolist(), s_TV[column - 1].tolist()
            teacher_top, student_top = (sorted(range(shared), key=lambda v: (-x[v], v))[:TOP] for x in (t, s))
            found.append({
                "row": index, "column": column, "position": position, "token": token,
                "kl": sum(math.exp(a) * (a - b) for a, b in zip(t, s, strict=True)),
                "teacher_entropy": -sum(math.exp(a) * a for a in t),
                "student_entropy": -sum(math.exp(b) * b for b in s),
                "overlap": len(set(teacher_top) & set(student_top)) / len(teacher_top),
                "teacher_mass_on_teacher_top": sum(math.exp(t[v]) for v in teacher_top),
                "student_mass_on_teacher_top": sum(math.exp(s[v]) for v in teacher_top),
                "teacher_mass_on_student_top": sum(math.exp(t[v]) for v in student_top),
                "teacher_probability": math.exp(t[token]), "student_probability": math.exp(s[token]),
                "teacher": [(v, math.exp(t[v])) for v in teacher_top[:SHOWN]],
                "student": [(v, math.exp(s[v])) for v in student_top[:SHOWN]],
            })  # fmt: skip
    return found


def largest_of(tokens: list[dict[str, Any]], most: int, per_row: int) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    taken: Counter[int] = Counter()
    for token in sorted(tokens, key=lambda token: (-token["kl"], token["row"], token["column"])):
        if len(kept) < most and taken[token["row"]] < per_row:
            taken[token["row"]] += 1
            kept.append(token)
    return kept


def close(value: Any) -> Any:
    return pytest.approx(value, rel=2e-4, abs=2e-6)


@pytest.mark.parametrize(
    ("student_vocabulary", "teacher_vocabulary", "shared", "count", "batch_size"),
    [
        (61, 61, 61, 30, 4),
        (64, 61, 61, 7, 3),  # the student's vocabulary is padded
        (61, 72, 60, 7, 16),  # the teacher's is
        (80, 96, 70, 1, 1),
        (5, 5, 5, 4, 2),  # fewer tokens than a top ten
        (3000, 3072, 2999, 3, 2),  # wide enough for ranking by blocks
    ],
)
def test_all_figures_by_brute_force(
    student_vocabulary: int, teacher_vocabulary: int, shared: int, count: int, batch_size: int
) -> None:
    student, teacher = model(1, student_vocabulary), model(2, teacher_vocabulary, width=24)
    rows = some_rows(count, shared)
    found, metrics = watched(student, teacher, shared, rows, batch_size)
    tokens = by_brute_force(student, teacher, shared, rows)
    assert (found.tokens, found.not_finite) == (len(tokens), 0)
    for name, value in vars(found.shares).items():
        assert value == close(sum(token[name] for token in tokens) / len(tokens)), name
    assert found.shares.kl == pytest.approx(metrics["kl"], rel=1e-5)

    buckets = defaultdict(list)
    for token in tokens:
        last = 1
        while last < token["position"]:
            last *= 2
        buckets[1 if last == 1 else last // 2 + 1, last].append(token["kl"])
    assert [(item.first, item.last, item.tokens, item.kl) for item in found.positions] == [
        (*key, len(kls), close(sum(kls) / len(kls))) for key, kls in sorted(buckets.items())
    ]

    expected = largest_of(tokens, _disagreement.LARGEST, LARGEST_PER_ROW)
    assert len(found.largest) == len(expected)
    for item, token in zip(found.largest, expected, strict=True):
        for name in ("row", "column", "position", "token"):
            assert getattr(item, name) == token[name]
        for name in ("kl", "teacher_probability", "student_probability"):
            assert getattr(item, name) == close(token[name])
        for ours, theirs in ((item.teacher, token["teacher"]), (item.student, token["student"])):
            assert [v for v, _ in ours] == [v for v, _ in theirs]
            assert [p for _, p in ours] == close([p for _, p in theirs])

    sums: defaultdict[int, list[float]] = defaultdict(list)
    for token in tokens:
        sums[token["token"]].append(token["kl"])
    costliest = sorted(sums.items(), key=lambda item: -sum(item[1]))[: _disagreement.TOKENS]
    assert [(item.token, item.count, item.kl) for item in found.costly] == [
        (token, len(kls), close(sum(kls) / len(kls))) for token, kls in costliest
    ]


def test_small_divergences_keep_their_precision() -> None:
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(0)).double()
    other = logits + 1e-3 * torch.randn(6, 500, generator=torch.Generator().manual_seed(1)).double()
    t, s = logits.log_softmax(-1), other.log_softmax(-1)
    watch = Disagreement(500)
    watch.update(slice_of(t.float(), s.float()))
    found = watch.figures()
    assert found is not None
    expected = float((t.exp() * (t - s)).sum(-1).mean())
    assert 1e-7 < expected < 1e-6
    assert found.shares.kl == pytest.approx(expected, rel=0.05)


def slice_of(teacher_NV: torch.Tensor, student_NV: torch.Tensor, row: int = 0) -> TokenRows:
    count = len(teacher_NV)
    return TokenRows(
        torch.arange(count) % teacher_NV.shape[1], student_NV, student_NV, teacher_NV,
        torch.full((count,), row), torch.arange(count) + 1, torch.arange(count) + 1,
    )  # fmt: skip


def test_a_student_equal_to_its_teacher() -> None:
    twin = model(3, 40)
    found, metrics = watched(twin, twin, 40, some_rows(5, 40))
    assert found.shares.kl == metrics["kl"] == 0.0
    assert found.shares.overlap == 1.0
    assert found.shares.student_entropy == found.shares.teacher_entropy
    assert (
        found.shares.student_mass_on_teacher_top
        == found.shares.teacher_mass_on_teacher_top
        == found.shares.teacher_mass_on_student_top
    )
    assert all(bucket.kl == 0.0 for bucket in found.positions)
    # Equal distributions are not a disagreement.
    assert found.largest == () and found.costly == ()


def same(found: Figures, other: Figures) -> None:
    """Equal up to rounding, which depends on the width of a batch."""
    pick: Callable[[Figures], list[Any]] = lambda figures: [  # noqa: E731
        [(item.row, item.column, item.token) for item in figures.largest],
        [(item.token, item.count) for item in figures.costly],
        [(item.first, item.tokens) for item in figures.positions],
    ]
    assert pick(found) == pick(other)
    assert list(vars(found.shares).values()) == close(list(vars(other.shares).values()))


def test_batches_padding_and_slices_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = model(1, 61), model(2, 64)
    rows = some_rows(20, 61)
    found, _ = watched(student, teacher, 61, rows, batch_size=4)
    assert watched(student, teacher, 61, rows, batch_size=4)[0] == found
    for batch_size in (1, 20):
        same(watched(student, teacher, 61, rows, batch_size)[0], found)
    # Slices of 3 tokens, cut once more into single ones.
    monkeypatch.setattr(_measure, "SLICE_BYTES", 3 * 4 * 64)
    monkeypatch.setattr(_disagreement, "CACHED_BYTES", 1)
    same(watched(student, teacher, 61, rows, batch_size=4)[0], found)


def test_no_slice_is_larger_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    compared: list[int] = []
    of = _disagreement._Compared.of

    class Watch(Disagreement):
        def update(self, rows: TokenRows) -> None:
            seen.append(len(rows.target_N))
            super().update(rows)

    def counted(rows: TokenRows) -> Any:
        compared.append(len(rows.target_N))
        return of(rows)

    monkeypatch.setattr(_disagreement, "Disagreement", Watch)
    monkeypatch.setattr(_disagreement._Compared, "of", staticmethod(counted))
    monkeypatch.setattr(_measure, "SLICE_BYTES", 10 * 4 * 64)
    monkeypatch.setattr(_disagreement, "CACHED_BYTES", 4 * 4 * 61)
    monkeypatch.setitem(globals(), "Disagreement", Watch)
    found, _ = watched(model(1, 61), model(2, 64), 61, some_rows(20, 61), batch_size=20)
    assert sum(seen) == sum(compared) == found.tokens > 200
    assert max(compared) == 4 and max(seen) <= 10


def test_the_state_does_not_grow_with_the_rows() -> None:
    watch = Disagreement(32)
    generator = torch.Generator().manual_seed(0)
    for row in range(300):
        t, s = (torch.randn(20, 32, generator=generator).log_softmax(-1) for _ in range(2))
        watch.update(slice_of(t, s, row))
    found = watch.figures()
    assert found is not None
    assert found.tokens == 6000
    assert len(found.largest) == _disagreement.LARGEST and len(found.costly) == _disagreement.TOKENS
    assert max(Counter(item.row for item in found.largest).values()) <= LARGEST_PER_ROW
    assert [item.kl for item in found.largest] == sorted((item.kl for item in found.largest), reverse=True)


def test_tokens_without_a_finite_divergence_are_counted_and_left_out() -> None:
    t, s = (torch.randn(4, 20, generator=torch.Generator().manual_seed(n)).log_softmax(-1) for n in (0, 1))
    whole, broken = Disagreement(20), Disagreement(20)
    whole.update(slice_of(t[:2], s[:2]))
    s[2], s[3, 5] = math.nan, -math.inf
    broken.update(slice_of(t, s))
    expected, found = whole.figures(), broken.figures()
    assert expected is not None
    assert found == replace(expected, not_finite=2)
    nothing = Disagreement(20)
    nothing.update(slice_of(t[2:], s[2:]))
    assert nothing.figures() is None


def test_equal_disagreements_are_ordered_by_row_and_column() -> None:
    t, s = (torch.randn(1, 20, generator=torch.Generator().manual_seed(n)).log_softmax(-1) for n in (0, 1))
    parts = [slice_of(t.expand(5, -1), s.expand(5, -1), row) for row in range(30)]
    expected = [(row, column) for row in range(14) for column in (1, 2, 3)][: _disagreement.LARGEST]
    for order in (parts, parts[::-1]):
        watch = Disagreement(20)
        for part in order:
            watch.update(part)
        found = watch.figures()
        assert found is not None
        assert [(item.row, item.column) for item in found.largest] == expected
        assert [item.token for item in found.costly] == [0, 1, 2, 3, 4]


# --- ranking ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 7, 10, 2048, 2049, 5000, 49_152])
@pytest.mark.parametrize("levels", [2, 50, 10**6])
def test_the_highest_values_with_ties(width: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(width)
    values = torch.randint(0, levels, (6, width), generator=generator).float()
    values[0] = 1.0
    values[1] = -math.inf
    values[2, : width // 2] = -math.inf
    # The highest is the last of all, its neighbours are no better than the first.
    values[3], values[3, -1] = 0.0, 2.0
    found, indices = top(values, TOP)
    expected = torch.sort(values, dim=1, descending=True, stable=True)
    assert torch.equal(indices, expected.indices[:, :TOP])
    assert torch.equal(found, expected.values[:, :TOP])


def test_the_largest_are_kept_in_any_order() -> None:
    generator = random.Random(0)
    for _ in range(100):
        offers = [(generator.randrange(4) / 4, generator.randrange(5), column) for column in range(40)]
        kept = []
        for _ in range(2):
            generator.shuffle(offers)
            highest: Highest[tuple[int, int]] = Highest(most=8, per_row=2)
            for value, row, column in offers:
                highest.offer(value, row, column, lambda row=row, column=column: (row, column))  # type: ignore[misc]
            kept.append(highest.entries)
        tokens = [{"kl": value, "row": row, "column": column} for value, row, column in offers]
        assert kept == [[(token["row"], token["column"]) for token in largest_of(tokens, 8, 2)]] * 2


def test_positions_count_each_answer_from_one() -> None:
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1], [1, 1, 0, 1, 0, 0, 0, 0]]).bool()
    assert positions(mask).tolist() == [[0, 1, 2, 0, 0, 1, 2, 3], [1, 2, 0, 1, 0, 0, 0, 0]]


# --- texts ------------------------------------------------------------------------------------------------------


class Bytes:
    """A tokenizer of UTF-8 bytes that drops the space before a text, as sentencepiece does; 256 is a special token."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not skip_special_tokens and not clean_up_tokenization_spaces
        text = b"".join(b"<|end|>" if token == 256 else bytes([token]) if token < 256 else b"" for token in ids)
        return text.decode("utf-8", "replace").removeprefix(" ")


def test_tokens_keep_their_space_and_parts_of_characters_are_marked() -> None:
    text = TokenText(Bytes())
    assert [text.token(token)["text"] for token in (ord("x"), ord(" "), ord("\n"), 0, 0xC3, 256, 300)] == [
        "x", " ", "\n", "\0", "\ufffd", "<|end|>", ""
    ]  # fmt: skip


def test_the_json_holds_texts_and_row_ids() -> None:
    student, teacher = model(1, 300), model(2, 300)
    answer = list(("é" * 200).encode())
    rows = [([1, 2, *answer], [False] * 2 + [True] * 400), ([1, 2, 65, 66], [False] * 2 + [True] * 2)]
    found, _ = watched(student, teacher, 300, [(ids[:128], mask[:128]) for ids, mask in rows])
    value = described(found, ["first", "second"], [ids for ids, _ in rows], TokenText(Bytes()))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["tokens"] == 128 and value["top"] == TOP and set(vars(found.shares)) < set(value)
    assert sum(bucket["tokens"] for bucket in value["kl_by_position"]) == 128
    for item in value["largest"]:
        assert len(item["context"]) <= CONTEXT_CHARACTERS
        assert len(item["teacher"]) == len(item["student"]) == SHOWN
        if item["row"] == "second":
            assert item["context"] == "A" * (item["position"] - 1)
        else:
            assert set(item["context"]) <= {"é", "\ufffd"} and "\ufffd" not in item["context"][:-1]
    assert {item["row"] for item in value["largest"]} == {"first", "second"}


# --- the stage --------------------------------------------------------------------------------------------------


def evaluate(folder: Path, teacher: Path | None, student: Path, trained: Path) -> tuple[StageResult, Any]:
    """Run the stage, its directory kept from earlier runs; returns the result and what `disagreement.json` holds."""
    labelled = folder / "labelled.json"
    texts = [f"the answer to question {n} is {n * n}" for n in range(12)]
    labelled.write_text(json.dumps([{"instruction": f"what of {n}?", "output": text} for n, text in enumerate(texts)]))
    models = ModelsConfig(teacher=str(teacher) if teacher is not None else None, student=str(student))
    evaluation = EvaluationConfig(heldout=6, generate=False, batch_size=4)
    rows = LabelledRows(DatasetConfig(labeled_path=str(labelled)), evaluation, from_stage=False)
    here = folder / "evaluate"
    here.mkdir(exist_ok=True)
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train" / MODEL).unlink(missing_ok=True)
    (folder / "train" / MODEL).symlink_to(trained)
    train = Artifact(folder / "train", Manifest("train", "", {}, {}, RowCounts(), {}, {}, 0.0, "", "", {}))
    reporter = Reporter(None, quiet=True)
    context = StageContext(here, folder, {"train": train}, "", StopSignal(), reporter, Redactor())
    result = EvaluateStage(rows, models, evaluation, 96).run(context)
    path = here / DISAGREEMENT
    return result, json.loads(path.read_text()) if path.is_file() else None


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights."""
    directory = tmp_path_factory.mktemp("other-model")
    shutil.copytree(tiny_model, directory, dirs_exist_ok=True)
    changed = LlamaForCausalLM.from_pretrained(tiny_model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        changed.model.embed_tokens.weight.normal_(std=0.3)
    changed.save_pretrained(directory)
    return directory


def test_the_stage_writes_both_sides(tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    result, found = evaluate(tmp_path, tiny_model, other_model, tiny_model)
    assert list(result.outputs) == ["metrics.json", "answers.jsonl", "disagreement.json"]
    assert list(found) == ["before", "after"]
    before, after = found["before"], found["after"]
    assert before["tokens"] == after["tokens"] == result.tokens["answer"]
    assert before["kl"] == pytest.approx(result.metrics["before"]["kl"], rel=1e-5) and before["kl"] > 0.1
    # After "training" the student is the teacher.
    assert (after["kl"], after["overlap"], after["largest"], after["by_token"]) == (0.0, 1.0, [], [])
    assert {item["row"] for item in before["largest"]} <= {
        json.loads(line)["id"] for line in (tmp_path / "evaluate/answers.jsonl").read_text().splitlines()
    }
    assert any(item["context"].startswith("the answer to question") for item in before["largest"])
    assert any(item["token"]["text"].startswith(" ") for item in before["largest"])
    assert set(result.metrics["after"]) == {"agreement", "cross_entropy", "kl", "rouge_l"}


def test_figures_before_training_are_reused_unless_they_are_incomplete(
    tiny_model: Path, other_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = evaluate(tmp_path, tiny_model, other_model, tiny_model)
    run, measured = Measurement.run, []

    def counted(self: Measurement, model: Any, eos_ids: frozenset[int]) -> dict[str, Any]:
        measured.append(model)
        return run(self, model, eos_ids)

    monkeypatch.setattr(Measurement, "run", counted)
    _, second = evaluate(tmp_path, tiny_model, other_model, other_model)
    assert len(measured) == 1
    assert second == {"before": first["before"], "after": first["before"]}
    # As an earlier version wrote it, without the comparison.
    kept = json.loads((tmp_path / "evaluate/before.json").read_text())
    monkeypatch.setattr(stage_module, "BEFORE_HOLDS", ("metrics", "answers", "scores"))
    evaluate(tmp_path, tiny_model, other_model, other_model)
    assert json.loads((tmp_path / "evaluate/before.json").read_text())["key"] != kept["key"]
    assert len(measured) == 3


def test_without_a_teacher_nothing_is_compared_and_nothing_old_is_left(tiny_model: Path, tmp_path: Path) -> None:
    assert evaluate(tmp_path, tiny_model, tiny_model, tiny_model)[1] is not None
    result, found = evaluate(tmp_path, None, tiny_model, tiny_model)
    assert list(result.outputs) == ["metrics.json", "answers.jsonl"]
    assert found is None
    assert result.metrics["notes"]["kl"] == "the teacher is not on this machine"
