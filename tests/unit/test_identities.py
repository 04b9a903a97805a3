"""Identities: what was paid for and what is finished stays valid when a section gets an option."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, create_model
from tests.support.frozen import (
    FROZEN,
    ROOT,
    fingerprints,
    prepare,
    request_keys,
    sets_ignored_keys,
    without_ignored_keys,
)
from tests.support.sections import by_recorded_name, section_classes, with_field

from easydistill.config import identity as identities
from easydistill.config.base import Secret, Section
from easydistill.config.identity import Record, record_of, recorded_name, records, same
from easydistill.config.inference import ApiInferenceConfig, AutoInferenceConfig
from easydistill.config.job import JobConfig
from easydistill.config.training import LoraConfig
from easydistill.contracts.metric import MetricConfig
from easydistill.data.records import content_hash
from easydistill.evaluation.config import UNNAMED, metrics_identity
from easydistill.evaluation.metrics import METRICS
from easydistill.methods.sft.config import TrainingConfig
from easydistill.teachers import TEACHERS
from easydistill.teachers.sections import white_box

_frozen: dict[str, Any] = json.loads(FROZEN.read_text(encoding="utf-8"))


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frozen configs' files, in the current directory."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("API_KEY", "sk-unused")


def _short(found: dict[str, str]) -> dict[str, str]:
    return {name: value[:16] for name, value in found.items()}


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _with_values(config: dict[str, Any], path: str, values: dict[str, Any]) -> dict[str, Any]:
    """A config with other values in one section."""
    changed: dict[str, Any] = _copy(config)
    section = changed
    for key in path.split("."):
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    section.update(values)
    return changed


def compare() -> list[str]:
    """Which frozen values differ now, in the prepared current directory."""
    wrong: list[str] = []
    for name, entry in _frozen["configs"].items():
        found = _short(fingerprints(without_ignored_keys(entry["config"])))
        wrong += [
            f"{name}: stage {stage}"
            for stage in entry["fingerprints"]
            if entry["fingerprints"][stage] != found.get(stage)
        ]
        if _short(request_keys(without_ignored_keys(entry["config"]))) != entry["keys"]:
            wrong.append(f"{name}: request keys")
    for name, path, values, expected in _frozen["variants"]:
        if sets_ignored_keys(_frozen["configs"][name]["config"], path, values):
            continue
        config = without_ignored_keys(_with_values(_frozen["configs"][name]["config"], path, values))
        whole = {"fingerprints": fingerprints(_copy(config)), "keys": request_keys(_copy(config))}
        if content_hash(whole)[:16] != expected:
            wrong.append(f"{name}: {path} with {values}")
    return wrong


def test_fingerprints_and_request_keys_are_those_of_the_first_release(prepared: None) -> None:
    """Of every example, of jobs that no example shows, and of each with other values in each section."""
    assert compare() == []


def test_every_example_is_frozen() -> None:
    found = {str(path.relative_to(ROOT / "examples").with_suffix("")) for path in (ROOT / "examples").rglob("*.json")}
    assert {name for name in _frozen["configs"] if "/" in name} <= found


def test_sections_say_what_they_said_in_the_first_release(prepared: None) -> None:
    """Each class at its defaults, and with one other value in each of its fields."""
    classes = by_recorded_name()

    def section(name: str, values: dict[str, Any]) -> Section:
        # What was one class is a class a backend now.
        if name in {"LocalInferenceConfig", "WhiteBoxInferenceConfig"}:
            config = TEACHERS.module(values.get("backend", "auto")).Config
            made: Section = (white_box(config) if name.startswith("White") else config).model_validate(values)
            return made
        return classes[name].model_validate(values)

    wrong = [
        (name, values)
        for name, entries in _frozen["sections"].items()
        for values, expected in entries
        if not (values.keys() & REFUSED.get(name, set()))
        and content_hash(section(name, FORMER.get(name, {}) | values).identity())[:16] != expected
    ]
    assert wrong == []


REFUSED = {
    "PolicyTrainingConfig": {"packing", "loss_chunk_bytes", "group_by_length"},
    "RewardTrainingConfig": {"packing", "loss_chunk_bytes"},
    "PairTrainingConfig": {"packing", "loss_chunk_bytes"},
}
"""Fields that did nothing and are gone; `DpoTrainingConfig` has `loss_chunk_bytes`."""
FORMER = {"OnPolicyConfig": {"beta": 0.5}}
"""Defaults that are others now. Written out they say what they said, so only runs that left the choice to us run again."""


def test_an_option_in_every_section_changes_no_fingerprint_and_no_request_key(tmp_path: Path) -> None:
    """`Section` itself gets an optional field, before any other class is made, so every section of every job has it."""
    prepare(tmp_path)
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from easydistill.config import base
class Section(base.Section):
    later_option: int | None = None
    later_list: list[float] = []
    later_share: float = 1
base.Section = Section
from tests.unit import test_identities
from tests.support.sections import section_classes
lacking = [cls for cls in section_classes() if cls is not base.Section and "later_option" not in cls.model_fields]
assert not lacking, lacking
wrong = test_identities.compare()
print(wrong[:5])
sys.exit(bool(wrong))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT)],
        cwd=tmp_path,
        env={**os.environ, "API_KEY": "sk-unused"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


_VALUES = {name: entries[0][0] for name, entries in _frozen["sections"].items()} | {
    "MetricsSection": {"kl": {}},
    "PromptText": {"text": "Hi."},
    "TeacherDatasetConfig": {"instruction_path": "train.json"},
    **{f"{white}TransformersInferenceConfig": {"backend": "transformers"} for white in ("", "WhiteBox")},
    **{f"{white}VllmInferenceConfig": {"backend": "vllm"} for white in ("", "WhiteBox")},
    "RayInferenceConfig": {"backend": "ray"},
    "RewardsSection": {"verify": {}},
    "operator.code_selection": {"allow_execution": True},
    "loss.lk": {"distillation_type": "lk"},
    "FunctionTools": {"kind": "functions", "file": "tools.py"},
    "RecordedTools": {"kind": "recorded", "path": "results.jsonl"},
    "ContaminationConfig": {"data": ["train.jsonl"]},
    "ComparedRowsConfig": {"labeled_path": "rows.jsonl"},
    "BenchmarksConfig": {"benchmarks": ["problems.jsonl"]},
    "InputConfig": {"path": "rows.jsonl"},
    "MixtureConfig": {"inputs": {"rows": {"path": "rows.jsonl"}}},
    "ReleasedRowsConfig": {"labeled_path": "rows.jsonl"},
    "ExportedModels": {"student": "path/of/model"},
    "EvaluatedModel": {"model": "path/of/model"},
    "LmEvalConfig": {"lm_eval": "own.yaml"},
    **{f"task.{name}": {"task": name, "data": "rows.jsonl"} for name in ("gsm8k", "math500", "aime", "ifeval")},
    **{
        f"task.{name}": {"task": name, "data": "rows.jsonl", "allow_execution": True}
        for name in ("humaneval", "mbpp", "livecodebench")
    },
    "task.custom": {"task": "custom", "data": "rows.jsonl", "score": "choice"},
}
_ABSTRACT = {
    *("MetricsConfig", "RewardsConfig", "operator.preference_data", "SampledConfig", "JudgedConfig", "WholeMassConfig"),
    *(
        "InferenceConfig",
        "LocalInferenceConfig",
        "TransformersOptions",
        "VllmOptions",
        "AnyLocalOptions",
        "WorkersOptions",
        "WhiteBoxInferenceConfig",
    ),
    *("SampledTask", "TaskConfig", "ProgramTask"),
}
"""Sections that exist to be derived from, and are never made themselves."""


def _instances() -> list[tuple[type[Section], dict[str, Any]]]:
    """Every class whose identity is asked for, with values that make it. Jobs have none; their sections do."""
    found: list[tuple[type[Section], dict[str, Any]]] = []
    for cls in section_classes():
        name = recorded_name(cls)
        asked = not cls.__module__.startswith("easydistill.cloud")  # where a run is sent is no part of it
        if asked and name not in _ABSTRACT and not issubclass(cls, JobConfig):
            found.append((cls, _VALUES.get(name or "", {})))
    return found


class _Inner(Section):
    value: int = 1


_KINDS: list[tuple[Any, Any, Any]] = [
    (int | None, None, 0),
    (bool, False, True),
    (float, 1, 2.5),
    (str, "", "x"),
    (list[int], [], [0]),
    (dict[str, int], {}, {"a": 1}),
    (Literal["a", "b"], "a", "b"),
    (tuple[int, ...], (), [1]),
    (_Inner, _Inner(), {"value": 2}),
    (_Inner | None, None, {}),
    (list[_Inner], [], [{"value": 3}]),
    (list[int], Field(default_factory=list), [1]),
    (int, Field(default_factory=lambda data: len(data)), 10_000),
]


@pytest.mark.parametrize(
    "cls, values", _instances(), ids=lambda value: value.__qualname__ if isinstance(value, type) else ""
)
def test_a_new_field_counts_once_it_is_set(cls: type[Section], values: dict[str, Any], prepared: None) -> None:
    before = cls.model_validate(values)
    kinds = _KINDS if cls is TrainingConfig else [_KINDS[len(cls.__qualname__ + cls.__module__) % len(_KINDS)]]
    for kind, default, other in kinds:
        later = with_field(cls, "later_option", kind, default)
        unset = later.model_validate(values)
        assert unset.identity() == before.identity()
        written = {**values, "later_option": _copy(unset.model_dump(mode="json")["later_option"])}
        assert later.model_validate(written).identity() == before.identity(), "the default, written out"
        found = later.model_validate({**values, "later_option": other}).identity()
        assert found.keys() - before.identity().keys() == {"later_option"}
        assert {name: value for name, value in found.items() if name != "later_option"} == before.identity()


def test_a_new_field_inside_a_section_counts_once_it_is_set() -> None:
    lora = with_field(LoraConfig, "later_option", int, 3)
    training: Any = create_model("Training", __base__=TrainingConfig, lora=(lora | None, None), more=(list[lora], []))  # type: ignore[valid-type]
    told = TrainingConfig(lora=LoraConfig(r=4)).identity()
    assert training(lora={"r": 4}).identity() == told
    assert training(lora={"r": 4, "later_option": 3}).identity() == told
    changed = training(lora={"r": 4, "later_option": 5}).identity()
    assert changed == told | {"lora": told["lora"] | {"later_option": 5}}
    assert training(more=[{"r": 4}, {"later_option": 5}]).identity()["more"][0] == told["lora"]
    assert training(more=[{"r": 4}, {"later_option": 5}]).identity()["more"][1]["later_option"] == 5


def test_request_keys_follow_a_new_field_of_sampling() -> None:
    later: Any = with_field(ApiInferenceConfig, "min_p", float | None, None)
    values = {"base_url": "http://localhost:8000/v1"}
    assert later(**values).sampling() == ApiInferenceConfig.model_validate(values).sampling()
    assert later(**values, min_p=0.1).sampling() == later(**values).sampling() | {"min_p": 0.1}


def test_every_record_has_its_class() -> None:
    """A class that is renamed, or moved into others, goes on stating the name of its record."""
    assert records().keys() - by_recorded_name().keys() == set()


def test_names_are_shared_on_purpose_alone() -> None:
    names = [
        name
        for cls in section_classes()
        if "identity_name" not in vars(cls) and (name := recorded_name(cls)) in records()
    ]
    assert len(names) == len(set(names))
    # A subclass may go on under its base's name: where its own fields are at their defaults, it is that section.
    stated = {
        name
        for cls in section_classes()
        if (name := vars(cls).get("identity_name")) is not None
        and name not in {base.__name__ for base in cls.__mro__[1:]}
    }
    assert not stated & set(names)
    unclear = [cls for cls in section_classes() if cls.__name__ == "Config" and "identity_name" not in vars(cls)]
    assert all(record_of(cls) in (record_of(base) for base in cls.__mro__[1:]) for cls in unclear)


# --- how records work, on sections of the test's own --------------------------------------------------------------


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes a record of a class, for one test."""

    def write(
        name: str, defaults: dict[str, Any], required: set[str] | None = None, left_out: set[str] | None = None
    ) -> None:
        known = {**identities.records(), name: Record(defaults, frozenset(required or ()), frozenset(left_out or ()))}
        monkeypatch.setattr(identities, "records", lambda: known)
        record_of.cache_clear()

    yield write  # type: ignore[misc]
    monkeypatch.undo()
    record_of.cache_clear()


def test_recorded_fields_stay_with_the_values_they_have(record: Callable[..., None]) -> None:
    class Early(Section):
        identity_name = "test.early"
        need: str
        kept: int = 1
        later: int = 5

    record("test.early", {"kept": 1}, {"need"})
    assert Early(need="x").identity() == {"need": "x", "kept": 1}
    assert Early(need="x", kept=2, later=6).identity() == {"need": "x", "kept": 2, "later": 6}


def test_a_changed_default_of_a_recorded_field_shows(record: Callable[..., None]) -> None:
    class Early(Section):
        identity_name = "test.early"
        kept: int = 2

    record("test.early", {"kept": 1})
    assert Early().identity() == {"kept": 2}
    assert Early(kept=1).identity() == {"kept": 1}, "as every run from before"


def test_a_field_that_is_gone_says_its_recorded_default(record: Callable[..., None]) -> None:
    class Early(Section):
        identity_name = "test.early"
        runtime_only: ClassVar[frozenset[str]] = frozenset({"shown"})
        kept: int = 1
        shown: int = 9

    class Around(Section):
        inner: Early = Early()
        others: dict[str, Early] = {}  # noqa: RUF012 (pydantic copies it)

    record("test.early", {"kept": 1, "gone": {"a": [1]}, "shown": 9, "workers": 2}, left_out={"shown", "workers"})
    assert Early(shown=3).identity() == {"kept": 1, "gone": {"a": [1]}}, "what never counted does not count now"
    nested = {"kept": 2, "gone": {"a": [1]}, "shown": 9, "workers": 2}
    assert Around(inner=Early(kept=2)).identity() == {"inner": nested}
    assert Around(others={"x": Early(kept=2)}).identity() == {"others": {"x": nested}}


def test_a_recorded_field_may_leave_its_value_to_the_device(record: Callable[..., None]) -> None:
    class Early(Section):
        identity_name = "test.early"
        recorded_for_none: ClassVar[Mapping[str, Any]] = {"size": 64}
        size: int | None = None
        other: int | None = None

    record("test.early", {"size": 64, "other": None})
    assert Early().identity() == Early(size=64).identity() == {"size": 64, "other": None}
    assert Early(size=65).identity() == {"size": 65, "other": None}
    assert TrainingConfig().identity() == TrainingConfig(loss_chunk_bytes=64 << 20).identity()


@pytest.mark.parametrize("gone", ["packing", "group_by_length", "loss_chunk_bytes"])
def test_a_training_section_may_lose_what_it_ignored(gone: str) -> None:
    """A section made anew without the field, which states the name of the old one."""
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in TrainingConfig.model_fields.items() if name != gone
    }
    hidden = TrainingConfig.runtime_only
    fewer = create_model("Fewer", __base__=_Named, **fields)
    fewer.runtime_only = hidden  # type: ignore[misc]
    fewer.recorded_for_none = TrainingConfig.recorded_for_none  # type: ignore[misc]
    assert gone not in fewer.model_fields
    assert fewer.model_validate({"learning_rate": 1e-4}).identity() == TrainingConfig(learning_rate=1e-4).identity()


class _Named(Section):
    identity_name = "TrainingConfig"


def test_a_recorded_field_that_turns_out_not_to_matter_says_its_default(record: Callable[..., None]) -> None:
    class Early(Section):
        identity_name = "test.early"
        runtime_only: ClassVar[frozenset[str]] = frozenset({"speed"})
        speed: int = 1

    record("test.early", {"speed": 1})
    assert Early(speed=4).identity() == {"speed": 1}


def test_what_only_steers_a_run_may_come_to_matter(record: Callable[..., None]) -> None:
    class Early(Section):
        identity_name = "test.early"
        speed: int = 1

    record("test.early", {"speed": 1}, left_out={"speed"})
    assert Early().identity() == {}
    assert Early(speed=2).identity() == {"speed": 2}


def test_a_raised_version_changes_what_the_same_values_say() -> None:
    class Second(LoraConfig):
        identity_version = 2

    class Around(Section):
        lora: Second = Second()

    assert Second().identity() == LoraConfig().identity() | {"identity_version": 2}
    assert Around(lora=Second(r=2)).identity()["lora"]["identity_version"] == 2


def test_new_secrets_and_new_fields_that_only_steer_stay_out_at_every_depth() -> None:
    class Inner(Section):
        runtime_only: ClassVar[frozenset[str]] = frozenset({"workers"})
        api_key: Secret = Secret("")
        workers: int = 1
        value: int = 1

    class Outer(Section):
        inner: Inner = Inner()

    inner = Inner(api_key=Secret("sk-1"), workers=3, value=2)
    assert inner.identity() == {"value": 2}
    assert Outer(inner=inner).identity() == {"inner": {"value": 2}}
    assert Outer(inner=Inner(workers=3)).identity() == {}


def test_sections_of_others_are_not_taken_for_ours() -> None:
    """A class of the same name, in another package, has no record; one that derives from ours has our fields."""

    class LoraConfig(Section):
        rank: int = 4

    class Config(AutoInferenceConfig):
        mine: int = 1

    assert LoraConfig().identity() == {}
    assert LoraConfig(rank=8).identity() == {"rank": 8}
    assert Config().identity() == AutoInferenceConfig().identity()
    assert Config(mine=2).identity() == AutoInferenceConfig().identity() | {"mine": 2}


def test_equality_of_json_values() -> None:
    assert same(1, 1.0) and same([{"a": 0}], [{"a": 0.0}])
    assert not same(1, True) and not same(0, False) and not same([1], [1, 2]) and not same({"a": 1}, {"b": 1})
    assert not same(None, 0) and not same("1", 1)


# --- metrics ------------------------------------------------------------------------------------------------------


def test_metrics_beyond_the_first_ones_are_named() -> None:
    class Stemmed(MetricConfig):
        stem: bool = False

    built_in: dict[str, MetricConfig] = {name: MetricConfig() for name in UNNAMED}
    assert metrics_identity(built_in) == {}
    assert metrics_identity({**built_in, "bleu": MetricConfig()}) == {"bleu": {}}
    assert metrics_identity({**built_in, "rouge_l": Stemmed()}) == {}
    assert metrics_identity({**built_in, "rouge_l": Stemmed(stem=True)}) == {"rouge_l": {"stem": True}}
    assert metrics_identity({name: MetricConfig() for name in UNNAMED - {"kl"}}) == {"kl": None}
    assert set(METRICS.names()) >= UNNAMED
