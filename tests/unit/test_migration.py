"""Configs of EasyDistill 1 and 2: taken as they are with notes, written anew, or refused with the reason."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.old_configs import (
    ANEW,
    API,
    AS_THEY_ARE,
    PROMPTS,
    REFUSED,
    TRAINING,
    VERSION_2,
    Config,
)
from tests.support.pictures import RED, picture

import easydistill
from easydistill import api
from easydistill.cli import main
from easydistill.config.job import JobConfig
from easydistill.config.reading.old_jobs import UNAVAILABLE
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.messages import tagged_text
from easydistill.data.reading import read_samples
from easydistill.errors import ConfigError
from easydistill.jobs import stages_of
from easydistill.migration import Migration

SECRET = "sk-never-copy-this"
VARIABLES = ("API_KEY", "EAS_ENDPOINT_URL", "EAS_TOKEN", "PAI_TOKEN_API_KEY", "PAI_TOKEN_BASE_URL")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "http://localhost:8000/v1")


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Config], tuple[Migration, Any]]:
    """Migrates a config, and reads what was written."""
    monkeypatch.chdir(tmp_path)

    def migrated(config: Config) -> tuple[Migration, Any]:
        made = api.migrate(write(config))
        Path("new.jsonc").write_text(made.text, encoding="utf-8")
        return made, easydistill.validate("new.jsonc")

    return migrated


def write(config: Config, name: str = "old.json") -> Path:
    path = Path(name)
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return path


def refusals(config: Config) -> dict[str, str]:
    """What stands in the way of migrating: path → problem and hint."""
    with pytest.raises(ConfigError) as caught:
        api.migrate(write(config))
    return {issue.path: f"{issue.problem} {issue.hint}" for issue in caught.value.issues}


def stages(job: JobConfig) -> list[str]:
    return [stage.name for stage in stages_of(job)]


# --- EasyDistill 1, as it is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_what_has_one_meaning_is_taken_with_a_note(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(AS_THEY_ARE[name])
    assert main(["validate", "--elsewhere", "old.json"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("old.json: valid (")
    lines = err.splitlines()
    assert lines[0] == f"note: old.json:2: job_type {name} is read as {easydistill.validate('old.json').job_type}"
    assert all(line.startswith("note: old.json:") for line in lines)


@pytest.mark.parametrize("job", PROMPTS)
@pytest.mark.parametrize("way", ["api", "batch"])
def test_an_old_prompt_is_a_prompt_of_the_operator(job: str, way: str) -> None:
    loaded = api.load(AS_THEY_ARE[f"{job}_{way}"])
    ((_, prompt),) = loaded.job.synthesis.prompts.items()  # type: ignore[attr-defined]
    text = prompt.text
    from easydistill.synthesis.tools import Prompt

    values: dict[str, Any] = {"form": "THE FORM", "language": "en", "boxed": True, "answer": None}
    filled = Prompt("x", text, "config").fill(
        **values, instruction="ROW", passage="ROW", thought="CHAIN", examples=["ROW", "CHAIN"]
    )
    assert "ROW" in filled
    assert ("CHAIN" in filled) == (job in {"instruction_expansion", "cot_long2short", "cot_short2long"})
    assert ("THE FORM" in filled) == (job != "cot_generation")
    assert filled.startswith(PROMPTS[job].split("<")[0].split("{")[0])
    if job == "cot_generation":
        assert filled == "Think in {steps} first:\nROW"
    assert loaded.job.synthesis.reply == ("plain" if job.endswith(("short", "long")) else "tags")  # type: ignore[attr-defined]


def test_tags_that_old_prompts_ask_for_are_those_that_are_read_now() -> None:
    expansion = api.load(AS_THEY_ARE["instruction_expansion_api"])
    extraction = api.load(AS_THEY_ARE["instruction_response_extraction_api"])
    assert "<instruction></instruction>" in expansion.job.synthesis.prompts["instruction_expansion"].text  # type: ignore[attr-defined]
    assert "<question></question> and <answer></answer>" in extraction.job.synthesis.prompts["pair_extraction"].text  # type: ignore[attr-defined]
    assert any("its <instruction> as <question> and <response> as <answer>" in note for note in extraction.notes)


def test_a_prompt_that_looks_like_jinja_stays_as_it_is() -> None:
    config = copy.deepcopy(AS_THEY_ARE["cot_generation_api"])
    config["inference"]["prompt"] = "Write {{answer}} and {% this %}."
    text = api.load(config).job.synthesis.prompts["cot_generation"].text  # type: ignore[attr-defined]
    from easydistill.synthesis.tools import Prompt

    assert Prompt("x", text, "config").fill(instruction="ROW") == "Write {{answer}} and {% this %}.\nROW"


def test_numbers_of_samples_move_and_an_override_finds_them() -> None:
    config = AS_THEY_ARE["instruction_expansion_batch"]
    job = api.load(config).job
    assert job.synthesis.num_in_context_samples == 2  # type: ignore[attr-defined]
    assert job.synthesis.num_output_samples == 5  # type: ignore[attr-defined]
    assert job.dataset.template == "chat_template.jinja"  # type: ignore[attr-defined]
    job = api.load(config, ["dataset.num_output_samples=9", "inference.prompt=Another:"]).job
    assert job.synthesis.num_output_samples == 9  # type: ignore[attr-defined]
    assert job.synthesis.prompts["instruction_expansion"].text.startswith("Another:")  # type: ignore[attr-defined]


def test_a_key_under_both_names_is_refused() -> None:
    config = {**AS_THEY_ARE["instruction_expansion_api"], "synthesis": {"num_output_samples": 3}}
    with pytest.raises(ConfigError, match=r"dataset\.num_output_samples.*both are given") as caught:
        api.load(config)
    assert "keep synthesis.num_output_samples" in str(caught.value)


def test_a_template_without_a_teacher_here_is_refused() -> None:
    config = copy.deepcopy(AS_THEY_ARE["cot_generation_api"])
    config["dataset"]["template"] = "x.jinja"
    with pytest.raises(ConfigError, match="a server has its own chat template"):
        api.load(config)


@pytest.mark.parametrize(
    ("old", "expected"),
    [("kd_black_box_train_only", ["train", "evaluate"]), ("kd_white_box_train_only", ["score", "train", "evaluate"])],
)
def test_a_job_that_only_trains_asks_nobody_for_answers(old: str, expected: list[str]) -> None:
    config = {**AS_THEY_ARE[old.replace("_train_only", "").replace("black_box", "black_box_local")], "job_type": old}
    loaded = api.load(config)
    assert stages(loaded.job) == expected
    assert any("dataset.instruction_path is not read" in note for note in loaded.notes)


def test_what_counts_now_and_did_not_is_said() -> None:
    notes = api.load(AS_THEY_ARE["kd_white_box"]).notes
    assert any("inference.temperature counts here" in note and "top_k" in note for note in notes)
    assert any("dataset.labeled_path is where the teacher's answers go" in note for note in notes)
    assert not any("temperature" in note for note in api.load(AS_THEY_ARE["kd_black_box_api"]).notes)


def test_jobs_with_images_say_what_they_did_otherwise(anew: Any) -> None:
    config = AS_THEY_ARE["mmkd_black_box_api"]
    loaded = api.load(config)
    assert loaded.job.inference.system_prompt == "You are a helpful assistant."  # type: ignore[attr-defined]
    assert any("inference.system_prompt is read as" in note for note in loaded.notes)
    assert any("learned the questions' text too" in note for note in loaded.notes)
    assert any("dataset.template counts here" in note for note in loaded.notes)
    given = copy.deepcopy(config)
    given["inference"]["system_prompt"] = "Be kind."
    del given["dataset"]["template"]
    notes = api.load(given).notes
    assert not any("system_prompt" in note or "template" in note for note in notes)
    assert any("top_k" in note for note in api.load(AS_THEY_ARE["mmkd_black_box_local"]).notes)
    made, job = anew(AS_THEY_ARE["mmkd_white_box"])
    assert [*stages(job)][:2] == ["label", "score"], "the teacher answers first, as it did"
    assert any("questions' text" in text for text in made.changed) and any("template" in text for text in made.changed)
    assert job.inference.top_k == 1


def test_rows_of_the_jobs_with_images_are_read(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(picture(RED))
    asked = [{"type": "image", "image": "red.png"}, {"type": "text", "text": "Which colour?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}
    shapes: dict[str, list[Any]] = {
        "local.json": [[{"role": "user", "content": asked}]],
        "labelled.json": [[{"role": "user", "content": asked}, answer]],
        "api.json": [{"instruction": "Which colour?", "image": "red.png"}],
        "api_labelled.json": [{"instruction": "Which colour?", "image": "red.png", "output": "Red."}],
        "mllm_demo.json": [
            {
                "messages": [
                    {"role": "user", "content": "<image>Which colour?"},
                    {"role": "assistant", "content": "Red."},
                ],
                "images": ["red.png"],
            }
        ],
    }
    for name, rows in shapes.items():
        (tmp_path / name).write_text(json.dumps(rows))
        samples, rejected = read_samples(tmp_path / name, labelled=None, images=ImageReader(ImageStore()))
        assert not rejected, (name, rejected)
        (sample,) = samples
        assert len(sample.images) == 1 and tagged_text(sample.messages[0]) == "<image>Which colour?"


def test_jobs_of_a_pipeline_may_be_old_ones() -> None:
    inner = AS_THEY_ARE["cot_generation_api"]
    loaded = api.load({"job_type": "pipeline", "jobs": {"think": inner}})
    assert sum("cot_generation_api is read as cot_generation" in note for note in loaded.notes) == 1


def test_notes_leave_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("seeds.json").write_text(json.dumps([{"instruction": "Sing."}]))
    config = copy.deepcopy(AS_THEY_ARE["cot_generation_api"])
    config["inference"] |= {"base_url": "http://localhost:8000/v1", "model": "m"}
    write(config)
    assert main(["plan", "--json", "old.json"]) == 0
    out, err = capsys.readouterr()
    assert [stage["name"] for stage in json.loads(out)["stages"]] == ["synthesise"]
    assert "note: old.json:2" in err
    assert main(["preview", "--json", "old.json"]) == 0
    out, _ = capsys.readouterr()
    assert json.loads(out)["messages"][0]["content"] == "Think in {steps} first:\nSing."


def test_a_prompt_of_ones_own_may_stand_in_the_config() -> None:
    config = {
        "job_type": "cot_generation",
        "dataset": {"instruction_path": "x.json"},
        "inference": {"base_url": "http://localhost:8000/v1"},
        "synthesis": {"prompts": {"cot_generation": {"text": "{{ instruction"}}},
    }
    (stage,) = stages_of(api.load(config).job)
    assert any(issue.path == "synthesis.prompts.cot_generation" for issue in stage.preflight())
    config["synthesis"] = {"prompts": {"cot_generation": {"txt": "x"}}}
    with pytest.raises(ConfigError, match="txt"):
        api.load(config)


# --- EasyDistill 1, written anew ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANEW)
def test_what_is_several_jobs_points_to_migrate(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        api.load(ANEW[name])
    (about,) = (issue for issue in caught.value.issues if issue.path == "job_type")
    assert "easydistill migrate" in about.hint


@pytest.mark.parametrize("name", [*AS_THEY_ARE, *ANEW])
def test_every_config_of_version_1_that_has_an_equal_is_written(name: str, anew: Any) -> None:
    old = {**AS_THEY_ARE, **ANEW}[name]
    made, job = anew(old)
    assert made.version == 1
    assert job.job_type == made.config["job_type"]
    notes = api.load("new.jsonc").notes
    assert not notes, "nothing old is left in a new file"
    assert "TOKEN" not in made.text
    assert set(made.environment) == ({"API_KEY"} if "base_url" in old.get("inference", {}) else set())


EQUAL = ("num_train_epochs", "learning_rate", "weight_decay", "warmup_ratio", "lr_scheduler_type", "output_dir")


@pytest.mark.parametrize("name", ["kd_black_box_api", "kd_black_box_local", "kd_white_box"])
def test_a_distillation_job_keeps_its_values(name: str, anew: Any) -> None:
    _, job = anew(AS_THEY_ARE[name])
    assert {field: getattr(job.training, field) for field in EQUAL} == {field: TRAINING[field] for field in EQUAL}
    if name != "kd_black_box_api":
        assert (job.inference.temperature, job.inference.top_k) == (0.8, 1)
    else:
        assert job.inference.system_prompt == "Be kind."


def test_a_white_box_job_learns_from_the_file_that_it_learned_from(anew: Any) -> None:
    made, job = anew(AS_THEY_ARE["kd_white_box"])
    assert stages(job) == ["score", "train", "evaluate"]
    assert (job.dataset.labeled_path, job.dataset.logits_path) == ("labeled.json", "logits")
    assert job.kept().k == 10
    assert any("logits_path: a directory" in line for line in made.changed)


def test_two_limits_of_length_become_one(anew: Any) -> None:
    config = copy.deepcopy(AS_THEY_ARE["kd_white_box"])
    config["distillation"]["max_seq_length"] = 128
    made, job = anew(config)
    assert job.max_length == 512
    assert any("max_seq_length 128" in line for line in made.changed)


def test_defaults_of_the_old_trainer_are_written_out(anew: Any) -> None:
    config = copy.deepcopy(AS_THEY_ARE["kd_black_box_api"])
    config["training"] = {"output_dir": "result/", "warmup_steps": 5}
    made, job = anew(config)
    taken = job.training
    assert (taken.per_device_train_batch_size, taken.gradient_accumulation_steps, taken.weight_decay) == (8, 1, 0.0)
    assert (taken.lr_scheduler_type, taken.warmup_steps) == ("linear", 5)
    assert "warmup_ratio" not in made.config["training"]
    assert any("old trainer's defaults" in line for line in made.changed)


def test_settings_of_the_old_trainer_are_left_out_or_refused(anew: Any) -> None:
    config = copy.deepcopy(AS_THEY_ARE["kd_black_box_api"])
    config["training"] |= {"report_to": "none", "fp16": False, "bf16": True}
    made, job = anew(config)
    assert job.training.bf16 is True
    assert sum(line.startswith(("training.report_to", "training.fp16")) for line in made.left_out) == 2
    config["training"]["neftune_noise_alpha"] = 5
    assert "may change what the student learns" in refusals(config)["training.neftune_noise_alpha"]


@pytest.mark.parametrize("job", PROMPTS)
def test_an_operator_refuses_no_more_than_before(job: str, anew: Any) -> None:
    made, new = anew(AS_THEY_ARE[f"{job}_batch"])
    settings = new.synthesis.model_dump()
    expected: dict[str, Any] = {
        "instruction_expansion": {"num_output_samples": 5},
        "instruction_refinement": {"veto": False, "keep_numbers": False, "max_growth": 100},
        "instruction_response_extraction": {"pairs_per_chunk": 1, "evidence_score": 0, "check_answers": False},
        "cot_generation": {"verify": "never"},
        "cot_long2short": {"ratio": 1, "require_answer": False, "reply": "plain"},
        "cot_short2long": {"ratio": 1, "require_answer": False, "reply": "plain"},
    }[job]
    assert expected.items() <= settings.items()
    assert new.inference.top_k == 1
    assert made.changed


def test_preferences_are_pairs_and_training(anew: Any) -> None:
    made, job = anew(ANEW["rank_dpo_api"])
    assert stages(job) == ["pairs", "train"]
    pairs, train = job.jobs["pairs"], job.jobs["train"]
    assert (pairs.job_type, train.job_type) == ("preference_data", "dpo")
    assert (pairs.dataset.instruction_path, pairs.dataset.labeled_path) == ("rows.json", "labeled.json")
    assert (pairs.models.student, pairs.inference.system_prompt) == ("org/student", "Be kind.")
    assert pairs.student_inference.system_prompt == "Be kind."
    assert (train.dataset.labeled_path, train.preference.beta) == ("@pairs/labeled", 0.3)
    assert train.training.learning_rate == 1e-5
    assert made.config["output_dir"] == "result/"
    assert any("the teacher also judges" in line for line in made.changed)
    assert "The teacher also judges" in made.text


def test_a_config_under_the_other_ones_job_type_is_understood(anew: Any) -> None:
    _, job = anew(ANEW["rank_dpo_local"])
    pairs = job.jobs["pairs"]
    assert pairs.models.teacher == "org/teacher"
    assert (pairs.inference.top_k, pairs.student_inference.temperature) == (1, 0.0)


def test_pairs_that_are_there_already_are_trained_on(anew: Any) -> None:
    config = copy.deepcopy(ANEW["rank_dpo_api"])
    del config["inference"]
    made, job = anew(config)
    assert job.job_type == "dpo"
    assert (job.dataset.labeled_path, job.preference.beta) == ("labeled.json", 0.3)
    assert any("no teacher is asked" in line for line in made.changed)


@pytest.mark.parametrize("way", ["api", "local"])
def test_a_reward_model_is_pairs_under_two_system_prompts_and_training(way: str, anew: Any) -> None:
    made, job = anew(ANEW[f"rl_reward_{way}"])
    pairs, train = job.jobs["pairs"], job.jobs["train"]
    assert pairs.synthesis.method == "contrastive_prompt"
    assert {name: each.text for name, each in pairs.synthesis.prompts.items()} == {
        "good_answer": "Be good.",
        "bad_answer": "Be bad.",
    }
    assert train.reward_model.center_rewards_coefficient == 0
    assert any(line.startswith("dataset.template") for line in made.left_out)


def test_grpo_has_its_reward_by_name(anew: Any) -> None:
    made, job = anew(ANEW["rl_grpo"])
    assert job.rewards.reward_model.model == "org/reward"
    assert job.evaluation.heldout == 0.3
    assert "dataset.train_ratio is what evaluation.heldout leaves" in made.mapped


def test_ppo_counts_steps_where_the_old_one_counted_answers(anew: Any) -> None:
    _, job = anew(ANEW["rl_ppo"])
    # 100 answers, 8 in a round: 13 rounds, and 4 passes over each.
    assert job.training.max_steps == 52
    assert (job.policy.max_new_tokens, job.policy.missing_eos_penalty, job.policy.temperature) == (300, 0.5, 0.7)
    config = copy.deepcopy(ANEW["rl_ppo"])
    config["training"]["stop_token"] = "period"
    assert "end token" in refusals(config)["training.stop_token"]


def test_several_teachers_are_a_mixture(anew: Any) -> None:
    made, job = anew(ANEW["kd_white_box_train_only_multi"])
    assert stages(job) == ["score", "train", "evaluate"]
    assert [each.model for each in job.signals.teachers] == ["org/a", "org/b"]
    # (1 − r) CE + r (KL₁ + KL₂) and (1 − r') CE + r' mean(KL₁, KL₂) are the same but for a factor.
    ratio = job.distillation.kd_ratio
    assert ratio / (1 - ratio) == pytest.approx(2 * 0.2 / 0.8, abs=1e-3)
    assert any("a.jsonl" in line for line in made.left_out)


def test_balancing_is_labelling_and_drawing(anew: Any) -> None:
    _, job = anew(ANEW["instruct_sample_api"])
    assert [each.job_type for each in job.jobs.values()] == ["task_labelling", "task_balancing"]
    assert job.jobs["balance"].dataset.labeled_path == "out.json"


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_equal_is_refused_with_the_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config, reason = REFUSED[name]
    write({**config, "job_type": name})
    for arguments in (["validate", "old.json"], ["migrate", "old.json", "-o", "new.json"]):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("error: 1 problem in the config\n"), "one reason, not a list of keys"
        assert "old.json:" in err and reason in err
    assert not Path("new.json").exists()


def test_every_reason_says_what_is_missing() -> None:
    for job, reason in UNAVAILABLE.items():
        assert len(reason) > 30, job


# --- EasyDistill 2 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERSION_2)
def test_every_text_job_of_version_2_is_written(name: str, anew: Any) -> None:
    made, job = anew(VERSION_2[name])
    assert made.version == 2
    assert "out.jsonl" in made.text and "seeds.jsonl" in made.text
    backend = VERSION_2[name]["backend"]["type"]
    expected = {"pai_eas": {"EAS_ENDPOINT_URL", "EAS_TOKEN"}, "pai_token": {"PAI_TOKEN_API_KEY", "PAI_TOKEN_BASE_URL"}}
    assert set(made.environment) == expected[backend]
    assert any("end in /v1" in line for line in made.changed) == (backend == "pai_eas")
    assert stages(job)


def test_answers_are_a_label_job(anew: Any) -> None:
    made, job = anew(VERSION_2["instruct_distill"])
    assert job.job_type == "label"
    asked = job.inference
    assert (asked.temperature, asked.max_new_tokens, asked.system_prompt) == (0.5, 700, "Be brief.")
    assert (asked.model, asked.timeout, asked.max_retries, asked.max_concurrency) == ("teacher-4b", 60.0, 3, 3)
    assert any("min_length 10" in line for line in made.left_out)
    assert any("system_prompt" in line for line in made.changed)


def test_settings_that_were_not_given_had_defaults(anew: Any) -> None:
    config = copy.deepcopy(VERSION_2["cot_distill"])
    config["cot"] = {}
    made, job = anew(config)
    assert (job.inference.temperature, job.inference.max_new_tokens) == (0.7, 4096)
    assert any("defaults" in line for line in made.mapped)


def test_a_pipeline_cites_what_each_job_made(anew: Any) -> None:
    _, job = anew(VERSION_2["advanced_instruct_distill"])
    assert list(job.jobs) == ["expand", "refine", "answer", "score", "select"]
    sources = [each.dataset.instruction_path for each in job.jobs.values()]
    assert sources == ["seeds.jsonl", "@expand/labeled", "@refine/labeled", "@answer/labeled", "@score/labeled"]
    targets = [each.dataset.labeled_path for each in job.jobs.values()]
    assert targets == ["one.jsonl", "two.jsonl", "three.jsonl", "four.jsonl", "out.jsonl"]
    assert job.jobs["expand"].synthesis.num_output_samples == 3
    chosen = job.jobs["select"].synthesis
    assert (chosen.informativeness, chosen.helpfulness, chosen.generalisation, chosen.correct_only) == (6, 5, 4, True)
    assert job.jobs["score"].inference.max_new_tokens == 512


def test_thresholds_that_are_not_named_refuse_nothing(anew: Any) -> None:
    config = copy.deepcopy(VERSION_2["advanced_instruct_distill"])
    config["pipeline"][4]["config"] = {"min_scores": {"helpfulness": 3}}
    _, job = anew(config)
    chosen = job.jobs["select"].synthesis
    assert (chosen.informativeness, chosen.helpfulness, chosen.generalisation, chosen.correct_only) == (0, 3, 0, False)


def test_balancing_keeps_its_categories_and_prompt(anew: Any) -> None:
    _, job = anew(VERSION_2["balanced_instruct_distill"])
    assert list(job.jobs) == ["expand", "classify", "balance", "answer"]
    labelling = job.jobs["classify"].synthesis
    assert labelling.labels == ("General", "Others")
    text = labelling.prompts["task_labelling"].text
    assert '{{ labels | join(", ") }}' in text and "<label>…</label>" in text and "{{ form }}" in text
    assert job.jobs["balance"].synthesis.targets == {"General": 1.0}
    assert job.jobs["balance"].dataset.labeled_path == "two.jsonl"


def test_chains_are_mixed_by_difficulty(anew: Any) -> None:
    _, job = anew(VERSION_2["advanced_cot_distill"])
    mix = job.jobs["select"].synthesis.mix
    assert (mix.bins, mix.rv, mix.counts) == ((0, 3, 6, 10), (2, 6, 9), (100, 100, 100))
    config = copy.deepcopy(VERSION_2["advanced_cot_distill"])
    config["pipeline"][2]["config"] = {"cd_bins": [2, 5], "rv_target": "low"}
    _, job = anew(config)
    assert (job.jobs["select"].synthesis.cd, job.jobs["select"].synthesis.mix) == ((2, 5), None)


def test_chains_are_filtered_by_their_scores(anew: Any) -> None:
    config = copy.deepcopy(VERSION_2["advanced_cot_distill"])
    config["pipeline"][1:3] = [
        {"stage": "cot_eval", "config": {}},
        {"stage": "quality_filter", "config": {"min_scores": {"reasoning_verbosity": 2, "logical_correctness": 1}}},
    ]
    _, job = anew(config)
    assert job.jobs["select"].job_type == "cot_selection"
    assert tuple(job.jobs["select"].synthesis.rv) == (2, 9)


def test_preferences_by_a_judge_and_by_known_answers(anew: Any) -> None:
    made, job = anew(VERSION_2["dpo_instruct"])
    assert (job.synthesis.method, job.synthesis.teacher_samples, job.synthesis.student_samples) == ("rank", 2, 0)
    assert (job.judge.inference.temperature, job.judge.inference.max_new_tokens) == (0.0, 512)
    assert job.inference.temperature == 0.5
    assert any("side by side" in line for line in made.changed)
    made, job = anew(VERSION_2["dpo_cot"])
    assert (job.synthesis.method, job.judge) == ("verifiable", None)
    assert any("verifiable" in line for line in made.changed)


def test_a_prompt_file_that_is_here_becomes_a_template(anew: Any, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "think.txt").write_text("Use {{braces}} and think.\n\n{problem}\n")
    (folder / "expand.txt").write_text("Like these:\n{examples}\nIn <answer>…</answer>, for {audience}.")
    made, job = anew(VERSION_2["cot_distill"])
    from easydistill.synthesis.tools import Prompt

    text = job.synthesis.prompts["cot_generation"].text
    assert Prompt("x", text, "config").fill(instruction="ROW") == "Use {braces} and think.\n\nROW"
    made, job = anew(VERSION_2["instruction_expansion"])
    assert not job.synthesis.prompts
    assert any("{audience}" in line for line in made.left_out)
    (folder / "expand.txt").write_text("Like these:\n{examples}\nIn <answer>…</answer>.")
    made, job = anew(VERSION_2["instruction_expansion"])
    text = job.synthesis.prompts["instruction_expansion"].text
    filled = Prompt("x", text, "config").fill(examples=["one", "two"], form="THE FORM")
    assert filled == "Like these:\none\n\ntwo\n\n\nIn <instruction>…</instruction>.\n\nTHE FORM"
    (folder / "expand.txt").unlink()
    made, job = anew(VERSION_2["instruction_expansion"])
    assert any("expand.txt is not here" in line for line in made.left_out)


def test_keys_and_addresses_that_stand_in_the_file(anew: Any) -> None:
    config = copy.deepcopy(VERSION_2["instruct_distill"])
    config["backend"] = {"type": "pai_eas", "endpoint_url": "http://host/api/predict/x/", "token": SECRET}
    made, job = anew(config)
    assert job.inference.base_url == "http://host/api/predict/x/v1"
    assert SECRET not in made.text and made.environment == ("EAS_TOKEN",)
    config["backend"]["endpoint_url"] = "http://host/v1/chat/completions"
    assert anew(config)[1].inference.base_url == "http://host/v1"
    config["backend"] = {}
    made, _ = anew(config)
    assert made.environment == ("OPENAI_BASE_URL", "OPENAI_API_KEY")


@pytest.fixture(autouse=True)
def more_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "http://localhost:8000/v1")
    yield


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"backend": {"type": "wanx"}}, "backend.type", "pictures or videos"),
        ({"backend": {"type": "mystery"}}, "backend.type", "no kind of chat server"),
        ({"backend": {"type": "openai", "zone": 1}}, "backend.zone", "not known"),
        ({"dataset": {"input_path": "x", "instruction_key": "ask"}}, "dataset.instruction_key", "rename it"),
        ({"generation": {"prompt_template": "Say {instruction}"}}, "generation.prompt_template", "cot_generation"),
        ({"generation": {"penalty": 2}}, "generation.penalty", "not known"),
        ({"extra": {"a": 1}}, "extra", "not known"),
    ],
)
def test_what_would_be_lost_is_refused(change: Config, path: str, words: str, anew: Any) -> None:
    assert words in refusals({**VERSION_2["instruct_distill"], **change})[path]


@pytest.mark.parametrize("stage", ["agentic_rewrite", "seed_anchored_expansion", "search_trajectory"])
def test_a_stage_without_an_equal_stops_the_whole(stage: str, anew: Any) -> None:
    config = copy.deepcopy(VERSION_2["augmented_instruct_distill"])
    config["pipeline"].insert(1, {"stage": stage, "config": {}})
    assert "has no equal" in refusals(config)["pipeline.1"]


@pytest.mark.parametrize(
    "job",
    ["mm_instruct_distill", "t2i_distill", "t2v_eval", "agent_distill", "search_agent_distill", "system1_distill"],
)
def test_jobs_of_version_2_without_an_equal(job: str, anew: Any) -> None:
    config = {**VERSION_2["instruct_distill"], "job_type": job}
    assert UNAVAILABLE[job] in refusals(config)["job_type"]


@pytest.mark.parametrize("name", VERSION_2)
def test_jobs_of_version_2_point_to_migrate(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        api.load(VERSION_2[name])
    (issue,) = caught.value.issues
    assert "easydistill migrate" in issue.hint


def test_the_page_names_every_old_job() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/migration.md").read_text()
    families = set(re.findall(r"`([a-z0-9_]+)\*`", page))
    for job in [*AS_THEY_ARE, *ANEW, *REFUSED, *VERSION_2, *UNAVAILABLE]:
        alone = re.sub(r"_batch$", "_api", job)
        known = f"`{alone}`" in page or any(job.startswith(family) for family in families)
        # Older names of jobs that are there, and two configs of one job.
        assert known or job in {"agentkd_local", "rl_grounding", "dpo_instruct", "dpo_cot"}, job


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_what_validate_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = copy.deepcopy(AS_THEY_ARE["kd_black_box_api"])
    config["inference"]["api_key"] = SECRET
    write(config)
    assert main(["migrate", "old.json", "-o", "new.json"]) == 0
    out, err = capsys.readouterr()
    assert out == "wrote new.json\n"
    assert "now called:\n  job_type kd_black_box_api is read as black_box_kd_api\n" in err
    assert "set before a run: API_KEY" in err
    assert SECRET not in Path("new.json").read_text() + err
    assert main(["validate", "--elsewhere", "new.json"]) == 0
    capsys.readouterr()
    assert main(["migrate", "old.json", "-o", "new.json"]) == 2
    assert "the file exists" in capsys.readouterr().err
    for arguments in (["migrate", "old.json"], ["migrate", "old.json", "-o", "-"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out == Path("new.json").read_text()


def test_yaml_is_read_with_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").write_text(
        "job_type: cot_distill\nbackend:\n  type: pai_token\n  zone: 3\ndataset:\n  input_path: a.jsonl\n"
    )
    assert main(["migrate", "old.yaml"]) == 2
    assert "old.yaml:4: backend.zone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"job_type": "black_box_kd_api"}, "is run as it is"),
        ({"dataset": {}}, "there is no job_type"),
        ({**AS_THEY_ARE["kd_black_box_api"], "training": {"learning_rate": "fast"}}, "a number is needed"),
        ({**AS_THEY_ARE["kd_black_box_api"], "inference": {**API, "prompt": "x"}}, "no key 'prompt'"),
        ({**AS_THEY_ARE["kd_black_box_api"], "training": 5}, "a section is needed"),
    ],
)
def test_what_cannot_be_migrated(config: Config, words: str, anew: Any) -> None:
    assert any(words in text for text in refusals(config).values())


WRONG: list[Any] = [None, 7, "x", [1, "a"], {"a": 1}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


FUZZED = {
    name: {**AS_THEY_ARE, **ANEW, **VERSION_2}[name]
    for name in (
        "kd_white_box",
        "rl_ppo",
        "rank_dpo_api",
        "balanced_instruct_distill",
        "advanced_cot_distill",
        "dpo_cot",
    )
}


@pytest.mark.parametrize("name", FUZZED)
def test_a_wrong_value_anywhere_is_an_issue_and_no_traceback(name: str, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    for number, place in enumerate(places(FUZZED[name])):
        config = copy.deepcopy(FUZZED[name])
        inner = config
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = WRONG[number % len(WRONG)]
        path.write_text(json.dumps(config))
        try:
            api.migrate(path)
        except ConfigError as error:
            assert all(issue.where and issue.problem for issue in error.issues)
