"""Variants of a sweep: what is read from the command line, and what they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.config.job import JobConfig
from easydistill.engine.stage import Estimate, PlannedStage
from easydistill.errors import ConfigError
from easydistill.sweeping.plan import planned
from easydistill.sweeping.table import Outcome, deciding, is_metric, lines, ordered
from easydistill.sweeping.variants import read_list, variants_of


def test_every_combination_is_a_variant_with_a_name_that_can_be_read() -> None:
    found = variants_of(["training.learning_rate=1e-5,3e-5", "training.seed=1,2"])
    assert [variant.name for variant in found] == [
        "learning_rate=1e-5,seed=1",
        "learning_rate=1e-5,seed=2",
        "learning_rate=3e-5,seed=1",
        "learning_rate=3e-5,seed=2",
    ]
    assert found[2].overrides == ("training.learning_rate=3e-5", "training.seed=1")


def test_commas_inside_a_value_separate_nothing() -> None:
    (one, two, three, four) = variants_of(['training.lora={"r": 4, "alpha": [1,2]},null,"a,b",-1'])
    assert one.values == (("training.lora", '{"r": 4, "alpha": [1,2]}'),)
    assert (two.name, three.name, four.name) == ("lora=null", "lora=a-b", "lora=-1")


def test_keys_with_the_same_end_keep_as_much_as_tells_them_apart() -> None:
    (found,) = variants_of(["jobs.sft.training.seed=1", "jobs.dpo.training.seed=1", "dataset.seed=1"])
    assert found.name == "sft.training.seed=1,dpo.training.seed=1,dataset.seed=1"


def test_no_two_variants_share_a_folder() -> None:
    found = variants_of(["models.student=a/b,a-b," + "x" * 50 + "1," + "x" * 50 + "2", f"dataset.template={'y' * 300}"])
    names = [variant.name for variant in found]
    assert len(set(names)) == 4
    assert all("/" not in name and len(name) < 140 for name in names)


def test_names_of_any_script_fit_a_file_system() -> None:
    prompts = ",".join(f"{'请简短地回答' * 10}{number}" for number in range(2))
    found = variants_of([f"jobs.{job}.inference.system_prompt={prompts}" for job in ("a", "b", "c")])
    assert len({variant.name for variant in found}) == 8
    assert all(len(variant.name.encode()) < 140 for variant in found)


def test_a_random_choice_is_the_same_each_time_and_keeps_the_order() -> None:
    grid = ["training.seed=" + ",".join(map(str, range(50)))]
    some = variants_of(grid, most=5, seed=3)
    assert some == variants_of(grid, most=5, seed=3) != variants_of(grid, most=5, seed=4)
    assert [int(variant.values[0][1]) for variant in some] == sorted(int(variant.values[0][1]) for variant in some)
    assert len(variants_of(grid, most=500)) == 50


def test_a_list_names_variants_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"training.seed": 1, "training.learning_rate": 1e-5}, {"training.seed": 2}]))
    found = variants_of(["evaluation.heldout=4,8"], read_list(path))
    assert [variant.name for variant in found] == [
        "seed=1,learning_rate=1e-05,heldout=4",
        "seed=2,heldout=4",
        "seed=1,learning_rate=1e-05,heldout=8",
        "seed=2,heldout=8",
    ]
    for text in ("{}", "[]", "[{}]", "nothing"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="--list"):
            read_list(path)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (["training.seed"], "not of the form path=value,value"),
        (["training.seed=1,"], "not of the form"),
        (["training.seed=1,1"], "1 is there twice"),
        (["training.seed=1", "training.seed=2"], "list all its values once"),
        (["output_dir=a,b"], "a sweep sets this itself"),
        (["answers_cache=a,b"], "a sweep sets this itself"),
        (["inference.api_key=a,b"], "a secret would be in the names"),
        (['inference={"model": "a", "api_key": "b"}'], "a secret inside it would be in the names"),
        ([], "nothing varies"),
        (['inference.system_prompt="Be brief, Be long'], "has no other end"),
        (["training.lora=null],null"], "has no other end"),
        (["training.lora=null", "training.lora.r=4,8"], "it is a part of training.lora, which varies too"),
    ],
)
def test_what_is_no_grid_is_refused(grid: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        variants_of(grid)


def outcome(name: str, **metrics: float) -> Outcome:
    return Outcome(name, Path(name), "done" if metrics else "failed", 0, "", metrics, 61.0)


def test_the_best_variant_comes_first_in_the_direction_of_the_metric() -> None:
    found = [outcome("a", kl=0.3, agreement=0.2), outcome("b"), outcome("c", kl=0.1, agreement=0.1)]
    assert deciding(None, found) == "kl"
    assert [one.name for one in ordered(found, "kl")] == ["c", "a", "b"]
    assert [one.name for one in ordered(found, "agreement")] == ["a", "c", "b"]
    told = lines(found, "agreement")
    assert told[0].split() == ["variant", "state", "agreement", "kl", "time"]
    assert [line.split()[0] for line in told[1:4]] == ["a", "c", "b"]
    assert told[1].split()[2] == "20.0%" and "higher is better" in told[-1]
    assert "no variant measured rouge_l; measured are kl, agreement" in lines(found, "rouge_l")[-1]
    assert is_metric("kl/math") and is_metric("reward/brevity") and not is_metric("k")


def test_the_plan_says_who_pays_for_what(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text('[{"instruction": "a"}, {"instruction": "b"}]')

    def job(**sampling: Any) -> JobConfig:
        return api.load(
            {
                "job_type": "black_box_kd_api",
                "dataset": {"instruction_path": str(tmp_path / "prompts.json")},
                "inference": {"base_url": "http://127.0.0.1:9/v1", "model": "teacher", **sampling},
                "models": {"student": "org/student"},
            },
            [f"training.learning_rate={sampling.get('seed', 0) + 1}e-5"],
        ).job

    stages = [PlannedStage("label", "pending", Estimate(calls=2)), PlannedStage("train", "pending", Estimate())]
    done = [PlannedStage("label", "done", Estimate(calls=0)), stages[1]]
    found = planned([("a", job(), stages), ("b", job(), stages), ("c", job(seed=7), stages), ("d", job(), done)])
    assert [variant.shared for variant in found] == [{}, {"label": "a"}, {}, {}]
    paid = [[stage.estimate.calls for stage in variant.paid()] for variant in found]
    assert paid == [[2, None], [None, None], [2, None], [None]]
