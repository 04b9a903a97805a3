"""`easydistill serve` in this process, on a thread: its real server, engine and a tiny real model."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import uvicorn

from easydistill.config.inference import TransformersInferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest
from easydistill.data.images import ImageStore
from easydistill.data.messages import Message
from easydistill.engine.interrupt import StopSignal
from easydistill.serving import engine as engine_module
from easydistill.serving.app import Service
from easydistill.serving.loading import Loaded, load
from easydistill.serving.settings import ServeSettings
from easydistill.teachers.transformers import TransformersTeacher
from tests.support.served import free_port


class Served:
    """A server under way."""

    def __init__(self, settings: ServeSettings, loaded: Loaded, port: int, images: Path) -> None:
        self.settings, self.loaded, self.images = settings, loaded, images
        self.url = f"http://127.0.0.1:{port}/v1"
        self.own = self.client()
        self._teachers: dict[int | None, TransformersTeacher] = {}

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": 60, **options})

    def ask(self, content: Any = "Go.", **options: Any) -> Any:
        return self.own.chat.completions.create(
            **{"model": self.settings.name, "messages": [{"role": "user", "content": content}], **options}
        )

    def teacher_says(
        self, *messages: Message, max_new_tokens: int = 12, images: ImageStore | None = None
    ) -> Completion:
        """What our teacher with these weights answers."""
        values = {"temperature": 0.0, "dtype": "float32", "template": self.settings.template}
        if id(images) not in self._teachers:
            config = TransformersInferenceConfig(backend="transformers", **values)
            self._teachers[id(images)] = TransformersTeacher(self.settings.model, config, images=images)
            self._teachers[id(images)].load()
        teacher = self._teachers[id(images)].limited(max_new_tokens)
        found: list[Any] = []
        teacher.generate([GenerationRequest("k", messages)], lambda key: False, found.extend, StopSignal())
        (completion,) = found
        assert isinstance(completion, Completion), completion
        return completion


@contextlib.contextmanager
def served(model: Path | str, folder: Path, key: str | None = None, **options: Any) -> Iterator[Served]:
    """A server of a model, in float32."""
    settings = ServeSettings(str(model), **{"dtype": "float32", "served_name": "tiny", **options})
    loaded, port = load(settings, settings.model, folder / "images"), free_port()
    service = Service(loaded.engine, loaded.chats, settings.name, key)
    server = uvicorn.Server(uvicorn.Config(service.app(), port=port, log_config=None, ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        found = Served(settings, loaded, port, folder / "images")
        with found.own:
            yield found
    finally:
        server.should_exit = True
        thread.join()


class Script:
    """Lets the model of servers write given texts, whatever it would: each row the next one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokenizer: Any, end: int) -> None:
        self.tokenizer, self._end = tokenizer, end
        self.texts = [""]
        self.most_rows = 0
        self._drawn: dict[int, list[int]] = {}
        self._real = engine_module.draw_tokens
        monkeypatch.setattr(engine_module, "draw_tokens", self._draw)

    def _draw(self, logits_BV: torch.Tensor, rows: Any, reserved: Any = ()) -> torch.Tensor:
        self.most_rows = max(self.most_rows, len(rows))
        told_BV = torch.full_like(logits_BV, -100.0)
        for place, row in enumerate(rows):
            if id(row) not in self._drawn:
                text = self.texts[0] if len(self.texts) == 1 else self.texts.pop(0)
                self._drawn[id(row)] = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self._end]
            left = self._drawn[id(row)]
            told_BV[place, left.pop(0) if left else self._end] = 100.0
        return self._real(told_BV, rows, reserved)
