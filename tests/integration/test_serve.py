"""`easydistill serve` through transformers, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support.pictures import GREEN, RED, picture
from tests.support.serving import Script, Served, served
from tests.support.tiny import save_untied
from tests.support.vision_models import store_of, vision_model

from easydistill.asking.answers import read_answer
from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import GenerationRequest
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.models.loading import load_model
from easydistill.serving.app import Service
from easydistill.serving.rows import Ended, Event, Row, Sampling, Told
from easydistill.teachers.openai.scores import ServerScores
from easydistill.teachers.openai.teacher import OpenAITeacher

CHAT = Path(__file__).resolve().parents[2] / "examples/agent_traces/chat.jinja"
FUNCTION: dict[str, Any] = {"name": "f", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}
QUESTIONS = ["Go.", "What is a river, and where do rivers end? " * 4, "Name three.", "Why?", "a" * 90]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose answers depend on all of the prompt, and hardly repeat a token."""
    import torch

    folder = save_untied(tiny_model, tmp_path_factory.mktemp("model") / "model", seed=3)
    made = load_model(str(folder), torch.float32)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 2:
                weight.mul_(6)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(model, tmp_path_factory.mktemp("serve"), template=str(CHAT), max_concurrency=8) as found:
        yield found


@pytest.fixture
def script(server: Served, monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch, server.loaded.chats.tokenizer, 2)


def streamed(server: Served, content: Any = "Go.", **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """The message that a stream's deltas make, and its chunks."""
    chunks = list(server.ask(content, stream=True, **options))
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in chunks:
        for choice in chunk.choices:
            message["content"] += choice.delta.content or ""
            message["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
            message["tool_calls"] += [
                (call.function.name, call.function.arguments) for call in choice.delta.tool_calls or []
            ]
    return message, chunks


def is_idle(server: Served) -> bool:
    """Whether the engine has nothing to do."""
    return not server.loaded.engine._rows and not server.loaded.engine._waiting


def wait_until(true: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- answers ------------------------------------------------------------------------------------------------------


def test_answers_are_the_teacher_s_alone_together_and_streamed(server: Served) -> None:
    """Long and short prompts join while others are answered, and leave at different times."""
    wanted = {
        (text, most): server.teacher_says({"role": "user", "content": text}, max_new_tokens=most)
        for text in QUESTIONS
        for most in (4, 30)
    }

    def ask(case: tuple[str, int]) -> None:
        text, most = case
        found = server.ask(text, temperature=0, max_tokens=most)
        assert found.choices[0].message.content == wanted[case].text
        assert found.choices[0].finish_reason == "length"
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (wanted[case].prompt_tokens, most)

    for case in wanted:
        ask(case)
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(ask, [*wanted, *reversed(wanted)]))
    for (text, most), said in wanted.items():
        message, chunks = streamed(server, text, temperature=0, max_tokens=most)
        assert message["content"] == said.text
        assert chunks[-1].choices[0].finish_reason == "length"
    assert len({said.text for said in wanted.values()}) == len(wanted)
    wait_until(lambda: is_idle(server))


def test_every_end_token_ends_an_answer(server: Served, model: Path, tmp_path: Path) -> None:
    """The generation config's ends too, which the tokenizer does not know."""
    import shutil

    with server.client() as client:
        prompt = server.loaded.chats.tokenizer.decode(server.loaded.chats.check()).replace("Are you there?", "Go.")
        raw_ids = server.loaded.chats.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        extra = {"return_token_ids": True}
        told = client.completions.create(model="tiny", prompt=raw_ids, max_tokens=30, temperature=0, extra_body=extra)
    ids = told.choices[0].token_ids  # type: ignore[attr-defined]
    end = next(token for token in ids[3:] if token not in ids[:3])
    ending = Path(shutil.copytree(model, tmp_path / "model"))
    config = json.loads((ending / "generation_config.json").read_text())
    (ending / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [2, end], "temperature": 0.7}))
    with served(ending, tmp_path, template=str(CHAT)) as other:
        teacher = other.teacher_says({"role": "user", "content": "Go."}, max_new_tokens=30)
        found = other.ask(temperature=0, max_tokens=30)
        assert found.choices[0].message.content == teacher.text and teacher.finish_reason == "stop"
        assert found.choices[0].finish_reason == "stop"
        assert found.usage.completion_tokens == teacher.completion_tokens == ids.index(end) + 1
        assert streamed(other, temperature=0, max_tokens=30)[0]["content"] == teacher.text


def test_seeds_and_several_answers(server: Served) -> None:
    options = {"n": 3, "max_tokens": 8, "seed": 5, "temperature": 1.0, "top_p": 0.9, "extra_body": {"top_k": 50}}
    texts = [[choice.message.content for choice in server.ask(**options).choices] for _ in range(2)]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3
    assert [choice.message.content for choice in server.ask(**{**options, "seed": 6}).choices] != texts[0]
    unseeded = [server.ask(max_tokens=8).choices[0].message.content for _ in range(3)]
    assert len(set(unseeded)) > 1
    told = ["", "", ""]
    chunks = list(server.ask(stream=True, stream_options={"include_usage": True}, **options))
    for chunk in chunks:
        for choice in chunk.choices:
            told[choice.index] += choice.delta.content or ""
    assert told == texts[0]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24


def test_stop_texts_end_an_answer_before_them(server: Served, script: Script) -> None:
    script.texts = ["One, two and three; then nothing."]
    for stop, said in (("two", "One, "), ([" and thr", "xyz"], "One, two"), (["nothing at all"], script.texts[0])):
        found = server.ask(stop=stop)
        assert found.choices[0].message.content == said and found.choices[0].finish_reason == "stop"
        message, chunks = streamed(server, stop=stop)
        assert message["content"] == said and chunks[-1].choices[0].finish_reason == "stop"


def test_thoughts_are_apart(server: Served, script: Script) -> None:
    script.texts = ["<think>\nHm, < 3.\n</think>\n\nIt is 2 < 3."]
    found = server.ask().choices[0].message
    assert (found.reasoning_content, found.content) == ("Hm, < 3.", "It is 2 < 3.")
    message, _ = streamed(server)
    assert (message["reasoning_content"], message["content"]) == ("Hm, < 3.", "It is 2 < 3.")


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools(server: Served, script: Script, stream: bool) -> None:
    script.texts = [
        '<think>\nWell.\n</think>\n\nI look.\n<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>'
    ]
    if stream:
        message, chunks = streamed(server, tools=[TOOL])
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert message["reasoning_content"] == "Well." and message["content"] == "I look."
        ((name, arguments),) = message["tool_calls"]
        assert (name, json.loads(arguments)) == ("f", {"a": "é"})
        return
    choice = server.ask(tools=[TOOL], tool_choice="auto").choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    (call,) = choice.message.tool_calls
    assert call.id and (call.function.name, json.loads(call.function.arguments)) == ("f", {"a": "é"})
    # Without tools nothing is a call.
    plain = server.ask(tools=[TOOL], tool_choice="none").choices[0]
    assert plain.finish_reason == "stop" and "<tool_call>" in plain.message.content


def test_a_chat_with_calls_and_results_is_rendered_as_the_teacher_renders_it(server: Served) -> None:
    call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Go."}]},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "call00001"},
    ]
    found = server.ask(messages=messages, temperature=0, max_tokens=6)
    said = server.teacher_says(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Go."},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "call00001", "name": "f", "arguments": {"a": 1}}],
        },
        {"role": "tool", "content": "7", "tool_call_id": "call00001"},
        max_new_tokens=6,
    )
    assert found.choices[0].message.content == said.text and found.usage.prompt_tokens == said.prompt_tokens


def test_log_probabilities_are_the_model_s_own(server: Served, model: Path) -> None:
    import torch

    options = {"temperature": 0.5, "seed": 1, "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    found = server.ask(**options)
    entries = found.choices[0].logprobs.content
    tokenizer, own = server.loaded.chats.tokenizer, load_model(str(model), torch.float32)
    prompt = server.loaded.chats.check()
    text = tokenizer.decode(prompt).replace("Are you there?", "Go.")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(entries) == 5
    for entry in entries:
        with torch.no_grad():
            logprobs_V = own(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        top = logprobs_V.topk(3)
        assert [other.logprob for other in entry.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-4)
        token = int((logprobs_V - entry.logprob).abs().argmin())
        assert float(logprobs_V[token]) == pytest.approx(entry.logprob, abs=1e-4)
        assert tokenizer.decode([token]) == entry.token
        ids = [*ids, token]
    chunks = list(server.ask(stream=True, **options))
    parts = [choice.logprobs.content for chunk in chunks for choice in chunk.choices if choice.logprobs]
    told = [one for part in parts for one in part]
    assert [one.token for one in told] == [one.token for one in entries]


def test_an_answer_that_follows_a_schema(server: Served) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = server.ask(temperature=0, max_tokens=60, response_format=form, n=2)
    for choice in found.choices:
        assert json.loads(choice.message.content)["n"] in (1, 2) and choice.finish_reason == "stop"


def test_a_tokenizer_without_grammars_is_told_in_words_of_the_request(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llguidance.hf

    def fail(*arguments: Any, **options: Any) -> Any:
        raise ValueError("only fast tokenizers are supported")

    monkeypatch.setattr(llguidance.hf, "from_tokenizer", fail)
    monkeypatch.setattr(server.loaded.chats, "_grammars", None)
    with pytest.raises(openai.BadRequestError, match="not support response_format: only fast tokenizers") as caught:
        server.ask(response_format={"type": "json_object"})
    assert "take tags" not in str(caught.value)


def test_an_answer_to_images_is_the_teacher_s(tmp_path: Path) -> None:
    store, digests = store_of(tmp_path / "own", [picture(RED, (40, 28)), picture(GREEN, (16, 16))])
    urls = [
        f"data:image/png;base64,{base64.b64encode(data).decode()}"
        for data in (picture(RED, (40, 28)), picture(GREEN, (16, 16)))
    ]
    question = {"type": "text", "text": "What?"}
    with served(vision_model("idefics3"), tmp_path) as server:
        with ThreadPoolExecutor(3) as pool:
            asked = [[{"type": "image_url", "image_url": {"url": url}}, question] for url in urls] + ["What?"]
            found = list(pool.map(lambda content: server.ask(content, temperature=0, max_tokens=8), asked))
        for one, digest in zip(found, [*digests, None], strict=True):
            content: Any = "What?" if digest is None else [{"type": "image", "image": digest}, question]
            said = server.teacher_says({"role": "user", "content": content}, images=store, max_new_tokens=8)
            assert one.choices[0].message.content == said.text and one.usage.prompt_tokens == said.prompt_tokens
        assert len({one.choices[0].message.content for one in found}) == 3
        assert not list(server.images.glob("*.png"))
        for url in ("http://127.0.0.1/x.png", "file:///etc/hostname", "/etc/hostname", "data:image/png;base64,AAAA"):
            with pytest.raises(openai.BadRequestError, match="image"):
                server.ask([{"type": "image_url", "image_url": {"url": url}}, question])


def test_plain_completions(server: Served) -> None:
    tokenizer = server.loaded.chats.tokenizer
    with server.client() as client:
        ids = tokenizer("Once upon a time")["input_ids"]
        greedy: Any = {"model": "tiny", "temperature": 0, "max_tokens": 6}
        found = client.completions.create(prompt="Once upon a time", logprobs=2, **greedy)
        same = client.completions.create(prompt=[ids, ids], n=2, **greedy)
        assert [choice.text for choice in same.choices] == [found.choices[0].text] * 4
        assert found.choices[0].finish_reason == "length" and len(found.choices[0].logprobs.tokens) == 6
        assert same.usage.prompt_tokens == 2 * len(ids) and same.usage.completion_tokens == 24
        parts = list(client.completions.create(prompt=ids, stream=True, **greedy))
        assert "".join(part.choices[0].text for part in parts) == found.choices[0].text


# --- our own clients ----------------------------------------------------------------------------------------------


def own_client(server: Served, **values: Any) -> ApiInferenceConfig:
    return ApiInferenceConfig(base_url=server.url, max_new_tokens=8, temperature=0.0, **values)


@pytest.mark.parametrize("stream", [False, True])
def test_it_teaches_another_job(server: Served, script: Script, stream: bool) -> None:
    script.texts = ['<tool_call>{"name": "f", "arguments": {"a": </tool_call>']
    teacher = OpenAITeacher(own_client(server, stream=stream).model_copy(update={"max_new_tokens": 60}), Redactor())
    found: list[Any] = []
    request = GenerationRequest("k", ({"role": "user", "content": "Go."},), tools=(TOOL,))
    teacher.generate([request], lambda key: False, found.extend, StopSignal())
    # As a teacher in the run's own process, and unlike servers that leave such a call as text.
    reason, detail = read_answer(found[0])  # type: ignore[misc]
    assert reason == "malformed_call" and "JSON" in detail


def test_it_scores_what_a_student_wrote(server: Served, model: Path) -> None:
    import torch

    tokenizer, own = server.loaded.chats.tokenizer, load_model(str(model), torch.float32)
    texts = ("Once upon a time.", "A river ends in the sea.", "Why not?")
    sequences = [(tokenizer(text)["input_ids"], 2) for text in texts]
    # A request of which nothing can be scored, and one whose client has gone, are no hindrance.
    sequences.append(([5], 1))
    score = server.loaded.engine.score(sequences[0][0])
    score.cancel()
    scores = ServerScores(own_client(server), Redactor(), lambda token: tokenizer.decode([token]))
    for (ids, start), found in zip(sequences, scores.score(sequences, StopSignal()), strict=True):
        with torch.no_grad():
            logprobs_TV = own(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [float(logprobs_TV[at - 1, ids[at]]) for at in range(start, len(ids))]
        assert found == pytest.approx(expected, abs=1e-4)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": 1e-5}, "too small"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 1000}, "n: "),
        ({"stop": [""]}, "at least 1 character"),
        ({"best_of_all": 1}, "best_of_all is not supported"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"name": 1}]}, "tool"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "tools": [TOOL]}, "not both"),
        ({"tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}]}, "strict"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strange"}}}}, "grammar"),
        ({"stream_options": {"include_usage": True}}, "stream"),
        ({"chat_template_kwargs": {"messages": []}}, "cannot set"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "sound"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "tokens, the model takes 2048"),
    ],
)
def test_what_is_not_supported_is_refused_in_openai_s_words(server: Served, given: dict[str, Any], said: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Go."}], "max_tokens": 2, **given}
    with server.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", cast_to=object, body=body)
    error: Any = caught.value.body
    assert said in error["message"] and error["type"] == "invalid_request_error"


def test_values_that_change_nothing_are_taken(server: Served) -> None:
    neutral = {"presence_penalty": 0, "logit_bias": {}, "parallel_tool_calls": True, "user": "me", "store": False}
    assert server.ask(max_tokens=1, extra_body=neutral).usage.completion_tokens == 1


def raw(server: Served, path: str, data: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(server.url.removesuffix("/v1") + path, data)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_other_errors_have_the_same_shape(server: Served) -> None:
    assert raw(server, "/health") == (200, {"status": "ok"})
    for path, data, status in (
        ("/v1/nothing", None, 404),
        ("/v1/chat/completions", None, 405),
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", b"[]", 400),
        ("/v1/chat/completions", b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        ("/v1/completions", b'{"model": "tiny", "prompt": "\\ud800"}', 400),
        ("/v1/models/other", None, 404),
    ):
        found, body = raw(server, path, data)
        assert found == status and body["error"]["message"] and body["error"]["type"]
    with pytest.raises(openai.NotFoundError, match="other"):
        server.ask(model="other")
    assert [model.id for model in server.client().models.list()] == ["tiny"]
    assert server.client().models.retrieve("tiny").id == "tiny"


def test_a_key_is_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    with served(tiny_model, tmp_path, key="s3cret") as server:
        with pytest.raises(openai.AuthenticationError):
            server.ask()
        assert raw(server, "/v1/models")[0] == 401 and raw(server, "/health")[0] == 200
        assert server.client(api_key="s3cret").models.list().data[0].id == "tiny"


def test_a_batch_s_failure_is_not_the_server_s_end(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from easydistill.serving import engine

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(engine, "draw_tokens", fail)
    with pytest.raises(openai.InternalServerError, match="no memory left"):
        server.ask(max_tokens=2)
    with pytest.raises(openai.APIError, match="no memory left"):
        list(server.ask(max_tokens=2, stream=True))
    monkeypatch.undo()
    assert server.ask(max_tokens=2).usage.completion_tokens == 2


def test_a_failure_while_rows_are_put_together_leaves_none_unanswered(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from easydistill.serving import engine

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(engine, "decodes", lambda *_: False)
    monkeypatch.setattr(engine, "reads_padding", fail)
    monkeypatch.setattr(server.loaded.engine, "_equal", None)
    found = server.own.completions.create(model="tiny", prompt=[[5, 6], [7, 8, 9]], max_tokens=2, timeout=30)
    assert len(found.choices) == 2


# --- coming and going ---------------------------------------------------------------------------------------------


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every token take so long."""
    from easydistill.serving import engine

    real = engine.draw_tokens

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments)

    monkeypatch.setattr(engine, "draw_tokens", slow)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_leaves_nothing_under_way(
    server: Served, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    slowly(monkeypatch, 0.1)
    if stream:
        answer = server.ask(max_tokens=2000, stream=True)
        next(iter(answer))
        answer.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.3).chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "Go."}], max_tokens=2000
            )
    wait_until(lambda: is_idle(server))


def test_a_client_that_goes_before_its_stream_begins_gives_its_answer_up(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Row] = []
    monkeypatch.setattr(server.loaded.engine, "submit", rows.extend)
    app = Service(server.loaded.engine, server.loaded.chats, "tiny", None).app()
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Go."}], "stream": True}
    events = iter([{"type": "http.request", "body": json.dumps(asked).encode()}])

    async def receive() -> Any:
        return next(events, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        pass

    place = {"method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": []}
    asyncio.run(app({"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, **place}, receive, send))
    assert rows and all(row.cancelled for row in rows)


def test_a_client_that_goes_with_its_images_spoils_no_other_s_answer(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are read when a batch begins: those of a client that has just gone are not there any more."""
    from easydistill.serving import engine

    asked: list[int] = []
    told: tuple[list[Event], list[Event]] = ([], [])
    sampling = Sampling(0, None, None, 0)
    rows = [Row([5, 6], sampling, 2, frozenset(), lambda ids: "x" * len(ids), events.append) for events in told]
    real = engine.by_generate

    def generated(model: Any, prompts: Any, *more: Any) -> Any:
        asked.append(len(prompts))
        if len(prompts) == 2:
            rows[0].cancelled = True
            raise FileNotFoundError
        return real(model, prompts, *more)

    monkeypatch.setattr(engine, "decodes", lambda *_: False)
    monkeypatch.setattr(engine, "by_generate", generated)
    server.loaded.engine.submit(rows)
    wait_until(lambda: any(isinstance(event, Ended) for event in told[1]))
    assert asked == [2, 1] and not told[0]
    assert [type(event) for event in told[1]] == [Told, Told, Ended]


def test_a_short_request_does_not_wait_for_a_long_one(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch, 0.1)
    long = server.ask(max_tokens=2000, stream=True)
    events = iter(long)
    next(events)
    assert server.ask(max_tokens=3).usage.completion_tokens == 3
    assert next(events).choices[0].finish_reason is None
    long.close()
    wait_until(lambda: is_idle(server))


def test_no_more_answers_at_once_than_allowed(server: Served, script: Script) -> None:
    script.texts = ["One two three four five six."]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda _: server.ask(n=5), range(5)))
    assert all(choice.message.content == script.texts[0] for one in found for choice in one.choices)
    assert 1 < script.most_rows <= 8


def test_the_end_waits_for_requests_under_way(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch, 0.01)
    found: list[Any] = []
    with served(tiny_model, tmp_path) as server:
        client = server.client()
        messages: Any = [{"role": "user", "content": "Go."}]
        ask = partial(client.chat.completions.create, model="tiny", messages=messages, max_tokens=60, temperature=0)
        asking = threading.Thread(target=lambda: found.append(ask()))
        asking.start()
        wait_until(lambda: server.loaded.engine._rows)
    asking.join()
    client.close()
    assert found[0].usage.completion_tokens == 60
