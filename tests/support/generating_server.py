"""A server that speaks vLLM 0.32's `/inference/v1/generate` and `/completions` for a tiny model that sees."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from easydistill.data.images import ImageStore
from easydistill.models.loading import load_model
from easydistill.models.multimodal import Vision, load_processor


class GeneratingServer:
    """Answers with the model's own log-probabilities, or with what `wrong` makes of an answer.

    Attributes:
        asked: (path, body) of every request.
        statuses: (status, body) of the next answers, which are errors.
        looks: if false, images are taken and not looked at, as if their placeholders were words.
    """

    def __init__(self, reference: str, folder: Path) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.statuses: list[tuple[int, Any]] = []
        self.looks = True
        self.wrong: Any = None
        self._store = ImageStore(folder)
        self._vision = Vision(load_processor(reference), self._store.path)
        self._model = load_model(reference, torch.float32).eval()
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, status: int, value: Any) -> None:
                payload = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": "tiny"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked.append((self.path, body))
                    status, answer = outer.statuses.pop(0) if outer.statuses else (200, None)
                    if answer is None:
                        answer = outer.generated(body) if "token_ids" in body else outer.completed(body)
                        answer = outer.wrong(answer) if outer.wrong is not None else answer
                self.reply(status, answer)

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def completed(self, body: dict[str, Any]) -> Any:
        return {"choices": [{"text": "x", "prompt_logprobs": self._entries(body["prompt"], ())}]}

    def generated(self, body: dict[str, Any]) -> Any:
        sent = [base64.b64decode(part["url"].partition(";base64,")[2]) for part in body.get("content_parts", ())]
        digests = tuple(self._store.add(data) for data in sent) if self.looks else ()
        ids, places = self._expanded(body["token_ids"], digests)
        return {
            "choices": [{"index": 0, "finish_reason": "length", "token_ids": [5]}],
            "prompt_logprobs": self._entries(ids, digests),
            "prompt_token_ids": ids,
            "mm_placeholders": {"image": places} if places else None,
        }

    def _expanded(self, ids: list[int], digests: tuple[str, ...]) -> tuple[list[int], list[dict[str, int]]]:
        processor, found, places = self._vision.processor, list[int](), list[dict[str, int]]()
        (mark,) = processor.tokenizer(processor.mark, add_special_tokens=False)["input_ids"]
        waiting = list(digests)
        for token in ids:
            if token != mark or not waiting:
                found.append(token)
                continue
            text = self._vision.expand(processor.mark, [waiting.pop(0)])
            run = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            places.append({"offset": len(found), "length": len(run)})
            found += run
        return found, places

    def _entries(self, ids: list[int], digests: tuple[str, ...]) -> list[Any]:
        ids_BT = torch.tensor([ids])
        seen = self._vision.inputs(ids_BT, [(ids, digests)]) if digests else self._vision.type_ids(ids_BT)
        with torch.inference_mode():
            logprobs_TV = self._model(input_ids=ids_BT, **seen).logits[0].log_softmax(-1)
        values = logprobs_TV[:-1].gather(-1, ids_BT[0, 1:, None])[:, 0].tolist()
        spell = self._vision.processor.tokenizer.decode
        return [
            None,
            *(
                {str(token): {"logprob": value, "rank": 1, "decoded_token": spell([token])}}
                for token, value in zip(ids[1:], values, strict=True)
            ),
        ]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def generating(reference: str, folder: Path) -> Iterator[GeneratingServer]:
    server = GeneratingServer(reference, folder)
    try:
        yield server
    finally:
        server.close()
