"""Parts of `easydistill serve`: what is told of an answer while it is written, stop texts, rows that come and go, and the
command's arguments."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny import tiny_llama

from easydistill.cli import main
from easydistill.data.answers import MalformedCall, split_thoughts
from easydistill.models.decoding.attention import grouped_attention
from easydistill.models.decoding.flow import Flow
from easydistill.models.draws import SeededSampler
from easydistill.models.sampling import generate_batch
from easydistill.serving.command import _argument_issues, served_model
from easydistill.serving.loading import load
from easydistill.serving.rows import Ended, Event, Row, Sampling, StopTexts, Told
from easydistill.serving.settings import ServeSettings
from easydistill.teachers.parsing.form import Form
from easydistill.teachers.parsing.forms import FORMS
from easydistill.teachers.parsing.stream import AnswerStream, Marks

HERMES: Form = next(form for form in FORMS if form.name == "hermes")
LLAMA: Form = next(form for form in FORMS if form.name == "llama")
CALL = '{"name": "f", "arguments": {}}'
PIECES = ("<think>", "</think>", "\n", "\n\n", " ", "Hello", "a < b", "<", "<th", "[THINK]", "[/THINK]", "x", "  ")


def told(text: str, marks: Marks, chance: random.Random, whole: tuple[str, str], opened: str = "") -> tuple[str, str]:
    """What is told of a text that comes in pieces, and is read as `whole`."""
    stream, found, at = AnswerStream(marks, opened), ["", ""], 0
    parts = []
    while at < len(text):
        size = chance.randrange(1, 6)
        parts.append(stream.add(text[at : at + size]))
        at += size
    for thoughts, said in [*parts, stream.end(*whole)]:
        found[0] += thoughts
        found[1] += said
    return found[0], found[1]


def plain(form: Form | None = None, waits: bool = False, frame: tuple[str, str] = ("", "")) -> Marks:
    return Marks(own=("", ""), frame=frame, form=form, whole_only=False, text_waits=waits)


def test_what_is_told_is_what_is_read() -> None:
    chance = random.Random(1)
    for _ in range(4000):
        text = "".join(chance.choice(PIECES) for _ in range(chance.randrange(1, 9)))
        thoughts, said = split_thoughts(text)
        whole = (thoughts or "", said)
        # Thoughts that nobody has begun were told as text.
        begun = said == text or text.lstrip().startswith(("<think>", "[THINK]"))
        assert told(text, plain(), chance, whole) == (whole if begun else ("", text)), text


def test_thoughts_that_the_prompt_opens_are_told_as_thoughts() -> None:
    stream = AnswerStream(plain(), "<think>\n")
    assert [stream.add(piece) for piece in ("Hm", ", yes", ".\n</th", "ink>\n\nIt", " is.")] == [
        ("Hm", ""),
        (", yes", ""),
        (".", ""),
        ("", "It"),
        ("", " is."),
    ]


@pytest.mark.parametrize("form", [HERMES, LLAMA, None])
def test_no_part_of_a_call_is_told_as_text(form: Form | None) -> None:
    chance = random.Random(2)
    marked = f"<tool_call>{CALL}</tool_call>" if form is HERMES else CALL
    for text in (
        "I look.\n" + marked,
        marked,
        "<think>\nHm.\n</think>\n\n" + marked,
        "No <tool_ call.",
        "{ is a brace.",
    ):
        thoughts, said = split_thoughts(text)
        try:
            rest, calls = (said, []) if form is None else form.parse(said)
        except MalformedCall:
            rest, calls = said, []
        for _ in range(20):
            found = told(text, plain(form, waits=form is None), chance, (thoughts or "", rest))
            assert found == (thoughts or "", rest) and not (calls and "arguments" in found[1])


def test_what_a_template_writes_around_answers_is_not_told() -> None:
    chance = random.Random(3)
    marks = plain(frame=("<|START|>", "<|END|>"))
    for text, said in (("<|START|>Yes.<|END|>", "Yes."), ("Yes <|E no.", "Yes <|E no."), ("<|STAR", "<|STAR")):
        for _ in range(20):
            assert told(text, marks, chance, ("", said)) == ("", said)


def test_text_before_a_stop_text_is_told_once_it_is_certain() -> None:
    stops = StopTexts(("END", "###"))
    assert [stops.add(piece) for piece in ("a", "bE", "N", "x", "#", "#", "y", "E", "NDz")] == [
        "a", "b", "", "ENx", "", "", "##y", "", ""
    ]  # fmt: skip
    assert stops.found and stops.text == "abENx##y" and stops.rest() == ""
    held = StopTexts(("END",))
    assert (held.add("EN"), held.rest(), held.found) == ("", "EN", False)


def test_characters_of_several_tokens_are_told_whole() -> None:
    """A token a byte; the last character is cut off by the length."""
    data = list("né 知🙂é".encode())[:-1]
    events: list[Event] = []
    row = Row(
        [1],
        Sampling(0, None, None, 0),
        len(data),
        frozenset({999}),
        lambda ids: bytes(ids).decode("utf-8", "replace"),
        events.append,
        stops=("never",),
    )
    for byte in data:
        row.take(byte, None)
    texts = [event.text for event in events if isinstance(event, Told)]
    (ended,) = [event for event in events if isinstance(event, Ended)]
    assert "".join(texts) == ended.text == "né 知🙂\ufffd" and ended.reason == "length"
    assert all("\ufffd" not in text for text in texts[:-1])


def test_rows_that_come_and_go_are_answered_as_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from transformers import LlamaForCausalLM

        model: Any = LlamaForCausalLM(tiny_llama(512, tie_word_embeddings=False)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(6)
    chance = random.Random(0)
    prompts = [[chance.randrange(3, 500) for _ in range(size)] for size in (5, 140, 12, 3, 90, 17, 17)]
    lengths = [20 + 17 * number for number in range(len(prompts))]
    alone = [
        generate_batch(model, [prompt], frozenset(), most, SeededSampler([1], temperature=0))[0].ids
        for prompt, most in zip(prompts, lengths, strict=True)
    ]
    written: list[list[int]] = [[] for _ in prompts]
    rows, waiting, widths = list[int](), list(range(len(prompts))), list[int]()
    flow = Flow(model)
    with torch.inference_mode(), grouped_attention(model):
        for turn in range(1000):
            if waiting and turn % 9 == 0:
                new, waiting = waiting[:2], waiting[2:]
                flow.add([prompts[row] for row in new])
                rows += new
            if not rows:
                continue
            tokens_B = flow.logits.argmax(-1)
            for row, token in zip(rows, tokens_B.tolist(), strict=True):
                written[row].append(token)
            left = [place for place, row in enumerate(rows) if len(written[row]) < lengths[row]]
            if len(left) < len(rows):
                flow.keep(left)
                rows, tokens_B = [rows[place] for place in left], tokens_B[left]
            if rows:
                flow.step(tokens_B)
                widths.append(flow.width)
            elif not waiting:
                break
    assert written == alone and len({tuple(ids[:20]) for ids in alone}) == len(alone)
    # What only the row with the long prompt had seen is gone with it.
    assert len(flow) == 0 and widths[-1] < max(widths)


# --- the command --------------------------------------------------------------------------------------------------


def test_the_student_of_a_run_directory_is_meant(tmp_path: Path) -> None:
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "student" / "config.json").write_text("{}")
    assert served_model(str(tmp_path / "run")) == str(tmp_path / "run" / "student")
    assert served_model(str(tmp_path / "run" / "student")) == str(tmp_path / "run" / "student")
    assert served_model("org/name") == "org/name"


def test_what_is_wrong_with_the_arguments_is_told_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    given = ["serve", str(tmp_path), "--backend", "transformers", "--template", "nowhere.jinja"]
    given += ["--api-key-env", "NO_SUCH_KEY", "--", "--swap-space", "1"]
    assert main(given) == 2
    said = capsys.readouterr().err
    for words in ("no config.json", "nowhere.jinja: no such file", "NO_SUCH_KEY", "--swap-space is for vLLM"):
        assert words in said, said
    (issue,) = _argument_issues(ServeSettings("x", port=0), "vllm")
    assert issue.path == "--port"
    with pytest.raises(SystemExit):
        main(["serve", "x", "--port", "70000"])


def test_a_port_that_is_taken_is_told(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", str(tiny_model), "--backend", "transformers", "--port", port]) == 2
    assert port in capsys.readouterr().err


def test_a_model_without_a_template_needs_one(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    bare = Path(shutil.copytree(tiny_model, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    assert main(["serve", str(bare), "--backend", "transformers", "--port", "0"]) == 1
    assert "--template FILE" in capsys.readouterr().err
    assert main(["serve", str(tiny_model), "--backend", "transformers", "--port", "0", "--max-model-len", "9999"]) == 1
    assert "--max-model-len 9999" in capsys.readouterr().err


def test_a_short_context_is_not_taken_for_a_missing_template(tiny_model: Path, tmp_path: Path) -> None:
    settings = ServeSettings(str(tiny_model), dtype="float32", max_model_len=4)
    assert load(settings, settings.model, tmp_path).chats.context == 4


def test_the_arguments_of_vllm(tiny_model: Path) -> None:
    from easydistill.serving.vllm import server_command

    chat = Path(__file__).resolve().parents[2] / "examples/agent_traces/chat.jinja"
    settings = ServeSettings(str(tiny_model), served_name="tiny", port=8001, max_concurrency=4, template=str(chat))
    command = server_command(settings, settings.model)
    options = dict(pairwise(command))
    assert options["--model"] == str(tiny_model) and options["--served-model-name"] == "tiny"
    assert options["--generation-config"] == "vllm" and options["--max-num-seqs"] == "4"
    assert options["--chat-template"] == str(chat) and options["--tool-call-parser"] == "hermes"
    assert "--enable-auto-tool-choice" in command and "--max-model-len" not in command
    # What the user says wins, in any spelling.
    own = ("--tool_call_parser=qwen3_xml", "--no-enable-auto-tool-choice", "--generation-config", "auto")
    command = server_command(ServeSettings(str(tiny_model), template=str(chat), vllm_arguments=own), str(tiny_model))
    assert command[-4:] == list(own) and "--tool-call-parser" not in command
    assert command.count("--generation-config") == 1 and "--enable-auto-tool-choice" not in command


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom easydistill.cli import main\n"
        "try:\n    main(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "found = {'torch', 'transformers', 'starlette', 'uvicorn', 'pydantic', 'openai'} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--max-concurrency" in done.stdout, done.stderr
