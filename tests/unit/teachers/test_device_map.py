"""Which devices a copy of a teacher has that is spread over several, and what is refused and told before the run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from easydistill.api import plan, validate
from easydistill.config.inference import AutoInferenceConfig, TransformersInferenceConfig, for_student
from easydistill.errors import ConfigError
from easydistill.models.spread import Spread, map_issue, spread_note
from easydistill.signals.sharing import SharedWork
from easydistill.teachers.pool import local

GB = 10**9


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with eight GPUs, of which the last is half full."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: ((40 if gpu == 7 else 80) * GB, 80 * GB))


@pytest.mark.usefixtures("eight_gpus")
def test_copies_share_the_gpus_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(Spread("auto").gpus()) == list(range(8))
    given = Spread("auto", copies=2)
    found: list[Any] = []
    for rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        found.append(given.of_rank())
    assert [list(copy.gpus()) for copy in found[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    # The other processes of the machine have none.
    assert found[2:] == [None, None]
    # There are no more copies than GPUs.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", "7")
    last = Spread("auto", copies=12).of_rank()
    assert last is not None and list(last.gpus()) == [7]
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    alone = given.of_rank()
    assert alone is not None and list(alone.gpus()) == list(range(8))


@pytest.mark.usefixtures("eight_gpus")
def test_weights_fill_the_gpus_of_a_copy_then_the_memory_that_is_free() -> None:
    options = Spread("auto", copies=2, number=1).options()
    assert options["device_map"] == "auto"
    cpu = options["max_memory"].pop("cpu")
    assert options["max_memory"] == {4: 72 * GB, 5: 72 * GB, 6: 72 * GB, 7: 36 * GB}
    assert cpu < psutil.virtual_memory().total / 2


@pytest.mark.usefixtures("eight_gpus")
def test_a_map_numbers_the_gpus_of_its_copy() -> None:
    mapped: Any = {"model.embed_tokens": 0, "model.layers": 1, "lm_head": "cpu"}
    assert Spread(mapped, copies=2, number=1).options() == {
        "device_map": {"model.embed_tokens": 4, "model.layers": 5, "lm_head": "cpu"}
    }
    with pytest.raises(ConfigError) as raised:
        Spread({"": 2}, copies=4).options()
    (issue,) = raised.value.issues
    assert issue.problem == "it names GPU 2, and a copy of the teacher has 2 GPUs, numbered from 0"


def test_a_machine_without_gpus_has_none_to_name() -> None:
    assert map_issue("auto", 0) is map_issue({"": "disk"}, 0) is None
    issue = map_issue({"": 0}, 0)
    assert issue is not None and issue.problem == "it names GPU 0, and a copy of the teacher has no GPU"


def test_workers_share_the_gpus_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "2", "5", "7"])

    def config(**values: Any) -> TransformersInferenceConfig:
        return TransformersInferenceConfig(backend="transformers", device_map="auto", **values)

    assert local.devices_of("transformers", config(workers=2)) == [("0", "2"), ("5", "7")]
    assert local.worker_issues("transformers", config(workers=2)) == []
    assert "need as many GPUs" in local.worker_issues("transformers", config(workers=5))[0].problem
    named = config(workers=2).model_copy(update={"device_map": {"": 2}})
    assert "a copy of the teacher has 2 GPUs" in local.worker_issues("transformers", named)[0].problem
    assert local.worker_notes("transformers", config(workers=2), 140 * GB) == [
        "2 workers of the teacher, 2 GPUs each",
        "the layers of each of 2 copies of the teacher (140.0 GB of weights) on a machine lie on 2 GPUs, about 70.0 GB "
        "each; what does not fit waits in the CPU's memory, then on the disk, which is slow",
    ]


@pytest.mark.parametrize(
    ("gpus", "gpu_bytes", "told"),
    [
        (8, None, "lie on 8 GPUs, about 17.5 GB each"),
        (0, 80 * GB, "need at least 2 GPUs of 80 GB"),
        (0, 180 * GB, "need at least one GPU of 180 GB"),
        (0, None, "lie on the GPUs that it has"),
    ],
)
def test_what_a_gpu_holds_is_told(gpus: int, gpu_bytes: int | None, told: str) -> None:
    assert told in spread_note(Spread("auto"), 140 * GB, gpus, gpu_bytes)


def white_box(folder: Path, student: Path, **sections: Any) -> dict[str, Any]:
    (folder / "rows.json").write_text(json.dumps([{"instruction": "Why?", "output": "Because."}] * 3))
    return {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "rows.json")},
        "models": {"teacher": str(student), "student": str(student)},
        **sections,
    }


@pytest.mark.parametrize(
    ("inference", "told"),
    [
        ({"device_map": "auto", "workers": "auto"}, "set workers to the number of copies"),
        ({"device_map": {"": -1}}, 'inference.device_map: -1 is no place for ""'),
        ({"device_map": {"": "cuda:0"}}, 'inference.device_map: "cuda:0" is no place for ""'),
        ({"device_map": {"lm_head": True}}, 'inference.device_map: true is no place for "lm_head"'),
        ({"device_map": {"lm_head": None}}, 'inference.device_map: null is no place for "lm_head"'),
        ({"device_map": {}}, "inference.device_map: {} gives no places for modules"),
        ({"device_map": []}, "inference.device_map: [] gives no places for modules"),
        ({"device_map": "cuda"}, 'inference.device_map: "cuda" gives no places for modules'),
        ({"device_map": {"": "cpu", "model.layers.0": "disk"}}, '"model.layers.0" (disk) is part of "" (cpu)'),
        ({"device_map": {"model": "disk", "model.norm": 0}}, '"model.norm" (0) is part of "model" (disk)'),
    ],
)
def test_impossible_sections_are_refused(
    inference: dict[str, Any], told: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        validate(white_box(tmp_path, tiny_model, inference=inference))
    assert told in str(raised.value)
    assert not re.search(r"typing|functools|pydantic", str(raised.value))


def test_actors_must_have_a_number_of_gpus(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps([{"instruction": "Why?"}]))
    job = {
        "job_type": "black_box_kd_local",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"instruction_path": str(tmp_path / "p.json")},
        "models": {"teacher": str(tiny_model), "student": str(tiny_model)},
        "inference": {"backend": "ray", "engine": "transformers", "device_map": "auto"},
    }
    with pytest.raises(ConfigError, match="set num_gpus"):
        validate(job)
    validate({**job, "inference": {**job["inference"], "num_gpus": 2}})  # type: ignore[dict-item]


def test_a_teacher_beside_a_student_in_training_is_not_spread(tiny_model: Path, tmp_path: Path) -> None:
    job = white_box(tmp_path, tiny_model, inference={"device_map": "auto"})
    job |= {"job_type": "on_policy_kd", "on_policy": {"max_new_tokens": 8}, "training": {"max_length": 64}}
    with pytest.raises(ConfigError, match=r"remove inference\.device_map"):
        validate(job)


def test_a_plan_tells_how_many_gpus_a_teacher_needs(tiny_model: Path, tmp_path: Path) -> None:
    launch = {"processes": 2, "gpu_memory_gb": 0.0005}
    job = white_box(tmp_path, tiny_model, inference={"device_map": "auto"}, launch=launch)
    (score,) = [stage for stage in plan(job) if stage.name == "score"]
    assert "need at least" in " ".join(score.notes)


def test_a_student_that_answers_is_whole() -> None:
    assert for_student(AutoInferenceConfig(device_map="auto")).device_map is None


def test_a_process_without_devices_takes_no_shard(tmp_path: Path) -> None:
    SharedWork.clear(tmp_path / "work")
    without, scoring = (SharedWork(tmp_path / "work", rank, 2, scores=rank == 0) for rank in (1, 0))
    assert not without.take(3) and scoring.take(3)
    assert without.taken == set()
