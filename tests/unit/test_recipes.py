"""Every recipe's configs are valid and planned; a copy of one runs where it is."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.cli import main
from easydistill.config.pipeline import citations
from easydistill.data.row_files import rows_of
from easydistill.engine.stage import total_of
from easydistill.errors import ConfigError
from easydistill.jobs import stages_of
from easydistill.recipes import SIZES, Recipe, Size, config_of, recipes

ROOT = Path(__file__).parents[2]
COSTS: dict[str, Any] = runpy.run_path(str(ROOT / "docs/recipe_costs.py"))
RECIPES = list(recipes())
EVERY = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
WANTED = {
    "code",
    "distilqwen-data",
    "distilqwen2",
    "distilqwen2.5",
    "distilqwen2.5-ds3-0324",
    "distilqwen2.5-r1",
    "omnithought",
    "thoughtx",
    "thoughty",
}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "sk-none")


def test_all_are_there() -> None:
    assert {recipe.name for recipe in RECIPES} == WANTED


@EVERY
@pytest.mark.parametrize("size", SIZES)
def test_configs_are_valid_and_have_their_data(recipe: Recipe, size: Size) -> None:
    job: Any = api.validate(f"recipe:{recipe.name}:{size}")
    for inner in job.jobs.values():
        assert stages_of(inner)
    for name, path in job.data.items():
        # LiveCodeBench is not ours to ship.
        assert (name == "benchmark" and size == "full") or next(iter(rows_of(path)))
    # Two runs never share a directory.
    assert job.output_dir.endswith(recipe.name if size == "full" else f"{recipe.name}-small")


@EVERY
def test_small_has_the_jobs_of_full(recipe: Recipe) -> None:
    """The same methods in the same order. `small` may leave some out, and asks for answers in its own way."""
    small, full = (
        [inner.job_type for name, inner in _jobs(recipe, size).items() if name != "pool"] for size in ("small", "full")
    )
    asks = {"label", "cot_generation"}
    left = iter(full)
    assert all(kind in left for kind in small if kind not in asks), (small, full)
    assert len(small) >= len(full) - 3


def _jobs(recipe: Recipe, size: Size) -> Any:
    return api.load(recipe.config(size)).job.jobs  # type: ignore[attr-defined]


@EVERY
def test_full_is_planned_with_cost_and_memory(recipe: Recipe) -> None:
    stages = COSTS["planned"](recipe, 20, 8)
    total = total_of(stages)
    assert total.calls and total.calls >= 20
    assert total.prompt_tokens and 0 < total.prompt_tokens[0] < total.prompt_tokens[1]
    assert total.cost and 0 < total.cost[0] < total.cost[1]
    asking = [stage for stage in stages if stage.estimate.calls]
    # A student on this machine has no price.
    priced = [stage for stage in asking if not stage.name.startswith(("evaluate.", "pairs.", "cogpo."))]
    assert priced and all(stage.estimate.cost for stage in priced)
    trained = [stage for stage in stages if stage.name.rpartition(".")[2].startswith("train")]
    assert bool(trained) == (recipe.students != "no student")
    assert all(stage.estimate.memory_bytes and stage.estimate.disk_bytes for stage in trained)


@EVERY
def test_the_published_settings_are_in_full(recipe: Recipe) -> None:
    job: Any = api.load(recipe.config("full")).job
    for inner in job.jobs.values():
        if inner.job_type != "black_box_kd_local":
            continue
        training, launch = inner.training, inner.launch
        assert (training.num_train_epochs, training.learning_rate, training.seed) == (3, 2e-5, 42)
        assert (training.weight_decay, training.warmup_ratio, training.lr_scheduler_type) == (0.05, 0.1, "cosine")
        assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (1, 8)
        assert launch.strategy == "fsdp2"


@pytest.mark.parametrize(("name", "ratio", "length"), [("distilqwen2.5", 0.5, 512), ("code", 0.1, 1024)])
def test_the_published_white_box_settings(name: str, ratio: float, length: int) -> None:
    job: Any = api.load(f"recipe:{name}").job.jobs["distil"]  # type: ignore[attr-defined]
    loss = job.distillation
    assert (loss.kd_ratio, loss.max_seq_length, loss.distillation_type) == (ratio, length, "forward_kld")
    assert job.kept().k == 10


def test_two_models_are_changed_at_once() -> None:
    changes = ["models.teacher=org/teacher", "models.student=org/student"]
    for name in ("distilqwen2", "thoughtx", "code"):
        job: Any = api.load(f"recipe:{name}", changes).job
        named = [value for inner in job.jobs.values() for value in _texts(inner.model_dump(mode="json"))]
        assert "org/student" in named and "org/teacher" in named
        assert not {"qwen-max", "Qwen/Qwen2-1.5B-Instruct", "Qwen/Qwen2.5-3B-Instruct"} & set(named)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


@EVERY
@pytest.mark.parametrize("size", SIZES)
def test_a_copy_is_the_same_where_it_is(
    recipe: Recipe, size: Size, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["init", "--recipe", recipe.name, "-o", "mine", *(["--small"] if size == "small" else [])]
    assert main(arguments) == 0
    assert f"wrote mine\nread mine/README.md, then: easydistill plan mine/{size}.json" in capsys.readouterr().out
    copied: Any = api.validate(f"mine/{size}.json")
    shipped: Any = api.load(f"recipe:{recipe.name}:{size}").job
    assert list(copied.jobs) == list(shipped.jobs)
    for name, path in copied.data.items():
        if name != "benchmark":
            assert path == f"mine/data/{Path(path).name}"
            assert Path(path).read_bytes() == Path(shipped.data[name]).read_bytes()
    assert list(citations({name: inner.model_dump() for name, inner in copied.jobs.items()})) == list(
        citations({name: inner.model_dump() for name, inner in shipped.jobs.items()})
    )
    assert main(arguments) == 2
    assert "this folder is not empty" in capsys.readouterr().err


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(recipe.name in shown and recipe.does in shown and recipe.cost in shown for recipe in RECIPES)
    assert main(["recipes", "--json"]) == 0
    assert {found["name"] for found in json.loads(capsys.readouterr().out)} == WANTED
    assert all(recipe.cost.startswith("10,000 prompts: ") for recipe in RECIPES)


@EVERY
def test_the_page_has_every_section(recipe: Recipe) -> None:
    text = (recipe.folder / "README.md").read_text(encoding="utf-8")
    for title in ("Published", "What is ours", "What it costs", "Data", "On two cores"):
        assert f"\n## {title}\n" in text
    assert "| calls |" in text, "python docs/recipe_costs.py"
    assert all(f"`{name}`" in text for name in _jobs(recipe, "full"))


@pytest.mark.parametrize(
    ("reference", "problem", "hint"),
    [
        ("recipe:thougtx", 'there is no recipe "thougtx"', "did you mean thoughtx?"),
        ("recipe:", 'there is no recipe ""', "There are code"),
        ("recipe:thoughtx:tiny", 'a recipe is full or small, not "tiny"', "recipe:thoughtx or recipe:thoughtx:small"),
    ],
)
def test_a_wrong_name_is_explained(reference: str, problem: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(reference)
    assert caught.value.issues[0].problem == problem and caught.value.issues[0].hint.startswith(hint)


def test_names_are_read_in_any_case() -> None:
    assert config_of("recipe:DistilQwen2.5-R1:small").parent.name == "distilqwen2.5-r1"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["init"], "neither a job nor a recipe is named"),
        (["init", "label", "--recipe", "code"], "a job and a recipe are named"),
        (["init", "label", "--small"], "--small has no meaning without --recipe"),
    ],
)
def test_what_init_refuses(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert problem in capsys.readouterr().err
