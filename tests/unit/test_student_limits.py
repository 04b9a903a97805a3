"""What a student cannot do is found while it is loaded: what cannot be saved, positions and tokens that it lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import tiny_model as architecture

from easydistill.config.models import ModelsConfig
from easydistill.config.training import LoraConfig
from easydistill.data.chat import ChatRenderer
from easydistill.data.preferences import Preference
from easydistill.data.records import Rejection, Sample
from easydistill.errors import ConfigError, ModelError
from easydistill.methods.dpo.rows import render_pairs
from easydistill.methods.reward_model.rows import tokenise
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.adapters import with_adapters
from easydistill.methods.shared.restored import trimmed_vocabulary
from easydistill.methods.shared.rows import fitting_prompt, render_all
from easydistill.models.limits import Limits, position_limit
from easydistill.models.loading import with_padding
from easydistill.models.sampling import SeededSampler, generate_batch
from easydistill.models.student import Student, build_student

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def loaded(directory: Path) -> Student:
    return build_student(ModelsConfig(student=str(directory)), torch.float32)


@pytest.fixture
def edited(tiny_model: Path, tmp_path: Path) -> Any:
    """Makes a copy of the tiny model with values added to some of its JSON files."""

    def make(**files: dict[str, Any]) -> Path:
        target = tmp_path / "edited"
        shutil.copytree(tiny_model, target)
        for name, values in files.items():
            path = target / f"{name}.json"
            old = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps(old | values))
        return target

    return make


# --- saving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.6}, {"top_p": 0.9, "temperature": 0.7}, {"top_k": 20}, {"min_p": 0.1, "do_sample": False}],
    ids=str,
)
def test_sampling_options_without_do_sample_are_mended(options: dict[str, Any], edited: Any, tmp_path: Path) -> None:
    """Meant is sampling: the student is saved with it, and so says a note."""
    student = loaded(edited(generation_config=options))
    assert len(student.notes) == 1
    assert "do_sample" in student.notes[0]
    student.model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    wanted = {name: value for name, value in options.items() if name != "do_sample"}
    assert wanted.items() <= saved.items()
    assert saved["do_sample"] is True
    assert loaded_again(tmp_path / "saved").do_sample is True


def loaded_again(directory: Path) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(directory)


def test_an_invalid_generation_config_is_dropped_and_its_tokens_kept(edited: Any, tmp_path: Path) -> None:
    student = loaded(edited(generation_config={"length_penalty": 0.5, "eos_token_id": [2, 5], "bos_token_id": 1}))
    assert "length_penalty" in student.notes[0]
    assert student.eos_ids == {2, 5}
    student.model.save_pretrained(tmp_path / "saved")
    assert loaded_again(tmp_path / "saved").eos_token_id == [2, 5]


def test_sampling_options_of_an_old_config_are_mended(edited: Any, tmp_path: Path) -> None:
    """Before there was a generation config they were in config.json; transformers moves them at loading."""
    directory = edited(config={"temperature": 0.6, "max_new_tokens": 99})
    (directory / "generation_config.json").unlink()
    student = loaded(directory)
    assert "do_sample" in student.notes[0]
    student.model.save_pretrained(tmp_path / "saved")
    again = loaded_again(tmp_path / "saved")
    assert (again.temperature, again.max_new_tokens, again.do_sample) == (0.6, 99, True)
    assert "temperature" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_a_sound_student_is_left_alone(tiny_model: Path, edited: Any) -> None:
    assert loaded(tiny_model).notes == ()
    sound = loaded(edited(generation_config={"do_sample": True, "temperature": 0.6, "eos_token_id": 2}))
    assert sound.notes == ()
    assert sound.model.generation_config.temperature == 0.6


def test_what_cannot_be_saved_at_all_is_an_error_before_training(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ValueError("no such field")

    monkeypatch.setattr(LlamaConfig, "save_pretrained", refuse)
    with pytest.raises(ModelError, match="can be loaded, but not saved: no such field\n"):
        loaded(tiny_model)


# --- positions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "positions"),
    [
        ("llama", {}, 256),
        ("gpt2", {"n_positions": 64}, 64),
        ("opt", {}, 256),
        ("gptj", {"n_positions": 128}, 128),
        ("bloom", {}, None),
        ("mamba2", {}, None),
        ("falcon", {"alibi": True}, None),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                       "original_max_position_embeddings": 256}}, 1024),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                       "original_max_position_embeddings": 64}}, 256),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                       "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}, 256),
    ],
)  # fmt: skip
def test_the_end_of_an_architecture(name: str, values: dict[str, Any], positions: int | None) -> None:
    model = architecture(name, **values)
    assert position_limit(model.config) == positions
    assert Limits.of(model).tokens == 64


def sample(prompt: str, answer: str, name: str = "row") -> Sample:
    return Sample(name, [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])  # type: ignore[arg-type]


@pytest.fixture
def renderer(tiny_model: Path) -> ChatRenderer:
    student = loaded(tiny_model)
    return ChatRenderer(student.tokenizer, student.eos_ids)


def test_rows_end_where_the_student_does(renderer: ChatRenderer) -> None:
    """Whatever max_length says: a row is cut there, and a prompt that fills all positions is rejected and counted."""
    rows = [sample("short", "yes", "short"), sample("why", "word " * 200, "cut"), sample("word " * 200, "yes", "full")]
    rendered, rejected = render_all(renderer, rows, 1024, "train", Limits(positions=64))
    assert [(item.id, len(row.ids) <= 64, row.truncated) for item, row in rendered] == [
        ("short", True, False),
        ("cut", True, True),
    ]
    assert [(item.id, item.reason) for item in rejected] == [("full", "no_trainable_tokens")]
    assert "the student's 64 positions" in rejected[0].detail
    unlimited, _ = render_all(renderer, rows, 1024, "train")
    assert len(unlimited) == 3


def test_prompts_leave_room_for_the_answer_within_the_student(renderer: ChatRenderer) -> None:
    fits = fitting_prompt(renderer, sample("why", ""), 1024, 16, "train", Limits(positions=64))
    assert isinstance(fits, list)
    found = fitting_prompt(renderer, sample("why " * 40, ""), 1024, 32, "train", Limits(positions=64))
    assert isinstance(found, Rejection)
    assert "the student's 64 positions − max_new_tokens leaves 32" in found.detail
    assert isinstance(fitting_prompt(renderer, sample("why " * 40, ""), 1024, 32, "train"), list)


def preference(prompt: str, chosen: str, rejected: str) -> Preference:
    answers: Any = [({"role": "assistant", "content": text},) for text in (chosen, rejected)]
    return Preference("pair", ({"role": "user", "content": prompt},), *answers)


def test_pairs_end_where_the_student_does(renderer: ChatRenderer) -> None:
    long = preference("why", "word " * 200, "other " * 200)
    (row,), _ = render_pairs(renderer, [long], 1024, "train", Limits(positions=64))
    assert row.longest == 64
    assert row.cut
    _, (dropped,) = render_pairs(renderer, [preference("w " * 99, "a", "b")], 1024, "train", Limits(positions=64))
    assert "64 positions" in dropped.detail
    _, (dropped,) = tokenise(renderer, [long], 1024, "train", use_margin=False, limits=Limits(positions=64))
    assert (dropped.reason, "last position is 64" in dropped.detail) == ("too_long", True)


def test_a_teacher_with_fewer_positions_shortens_the_rows() -> None:
    joined = Limits(positions=128, tokens=50).joined(Limits(positions=64, tokens=9))
    assert joined == Limits(positions=64, tokens=50)
    assert Limits().joined(Limits(64)).positions == 64
    assert Limits(64).joined(Limits()).within(1024) == 64


def test_answers_end_where_the_student_does() -> None:
    """A model with 64 learned positions: a longer answer would be an IndexError."""
    model = architecture("gpt2", n_positions=64)
    (answer,) = generate_batch(model, [[5] * 60], frozenset(), 100, SeededSampler([0], temperature=1.0))
    assert len(answer.ids) == 4


# --- tokens -----------------------------------------------------------------------------------------------------


@pytest.fixture
def more_tokens(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a token more in its tokenizer than its embedding has rows, which is also the padding."""
    from transformers import AutoTokenizer

    target = tmp_path / "more"
    shutil.copytree(tiny_model, target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_special_tokens({"pad_token": "<|extra|>"})
    tokenizer.save_pretrained(target)
    return target


def test_tokens_without_an_embedding_are_told_and_their_rows_rejected(more_tokens: Path) -> None:
    student = loaded(more_tokens)
    rows = student.limits.tokens
    assert rows is not None
    assert f"knows {rows + 1} tokens, its embedding has {rows} rows" in student.notes[0]
    renderer = ChatRenderer(student.tokenizer, student.eos_ids)
    # Special tokens in a row's text are text, so the template has to write it.
    known = ChatRenderer(student.tokenizer, student.eos_ids, TEMPLATE)
    strange = ChatRenderer(student.tokenizer, student.eos_ids, "<|extra|>" + TEMPLATE)
    good, bad = sample("why", "because"), preference("why", "because", "no")
    assert render_all(renderer, [good], 64, "train", student.limits)[0]
    assert render_all(known, [good], 64, "train", student.limits)[0]
    limits = student.limits
    for rejected in (
        render_all(strange, [good], 64, "train", limits)[1],
        [fitting_prompt(strange, good, 64, 8, "train", limits)],
        render_pairs(strange, [bad], 64, "train", limits)[1],
        tokenise(strange, [bad], 64, "train", use_margin=False, limits=limits)[1],
    ):
        (found,) = rejected
        assert isinstance(found, Rejection)
        assert (found.reason, str(rows) in found.detail) == ("unknown_token", True)


def test_padding_is_a_token_that_the_embedding_knows(more_tokens: Path) -> None:
    student = loaded(more_tokens)
    assert student.tokenizer.pad_token_id == student.limits.tokens
    padded = with_padding(student.tokenizer, student.limits.tokens)
    assert padded.pad_token_id == student.tokenizer.eos_token_id
    assert with_padding(student.tokenizer).pad_token_id == student.tokenizer.pad_token_id


def test_end_tokens_without_an_embedding_are_never_generated(edited: Any) -> None:
    student = loaded(edited(generation_config={"eos_token_id": [2, 99_999]}))
    assert student.eos_ids == {2}


def test_a_fresh_students_end_is_known_before_it_is_made() -> None:
    shape = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 77}
    models = ModelsConfig.model_validate({"teacher": "org/name", "student": {"config": shape}})
    assert Limits.of_student(models).positions == 77


def test_a_shape_that_transformers_refuses_is_a_config_error(tiny_model: Path) -> None:
    """Its validators raise exceptions of huggingface_hub, which are no ValueError."""
    shape = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 3}
    models = ModelsConfig.model_validate({"teacher": str(tiny_model), "student": {"config": shape}})
    with pytest.raises(ConfigError, match=r"models\.student\.config: .*multiple of the number of attention heads"):
        build_student(models, torch.float32)


def test_a_config_that_transformers_refuses_is_told(edited: Any) -> None:
    with pytest.raises(ModelError, match="cannot be loaded: Class validation error"):
        loaded(edited(config={"num_attention_heads": 5}))


def test_weights_that_would_be_random_are_an_error(edited: Any) -> None:
    """save_pretrained drops a head that shares its storage with the embeddings, whatever the config says."""
    with pytest.raises(ModelError, match=r"lack lm_head\.weight, which would be random(.|\n)*tie_word_embeddings"):
        loaded(edited(config={"tie_word_embeddings": False}))


# --- tied weights -----------------------------------------------------------------------------------------------


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.arange(3, 11)[None]).logits
    return found


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]], ids=str)
def test_adapters_of_a_tied_student_are_merged_without_a_change(targets: Any, tiny_model: Path, tmp_path: Path) -> None:
    """peft would add the delta of a tied layer twice; the layers that may have adapters are not tied."""
    pytest.importorskip("peft")
    student = loaded(tiny_model)
    assert student.model.get_output_embeddings().weight is student.model.get_input_embeddings().weight
    adapted = with_adapters(student.model, TrainingConfig(lora=LoraConfig(r=2, target_modules=targets)))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.1)
    before = logits(adapted)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), before, rtol=1e-4, atol=1e-5)
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]], ids=str)
def test_adapters_on_tied_layers_are_refused(targets: list[str], tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.lora\.target_modules"):
        with_adapters(loaded(tiny_model).model, TrainingConfig(lora=LoraConfig(r=2, target_modules=targets)))


@pytest.mark.parametrize("tied", [True, False])
def test_a_student_is_saved_with_its_head(tied: bool, tiny_model: Path, tmp_path: Path) -> None:
    """Contract with save_pretrained: also after its vocabulary was trimmed and restored, as on-policy training does."""
    student = loaded(tiny_model)
    model = student.model
    if not tied:
        # A head of its own; it must not share the embeddings' storage, or save_pretrained would drop it.
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 1.5)
    with trimmed_vocabulary(model, student.limits.tokens - 64 if student.limits.tokens else 0):
        pass
    model.save_pretrained(tmp_path / "saved")
    student.tokenizer.save_pretrained(tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    torch.testing.assert_close(logits(again.model), logits(model))
    same = again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight
    assert same == tied
