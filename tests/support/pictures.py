"""Small pictures for tests, and a server that looks at those it is sent."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def picture(
    colour: tuple[int, int, int] = RED, size: tuple[int, int] = (6, 4), kind: str = "PNG", **options: Any
) -> bytes:
    """A picture of one colour. GIFs and JPEGs come close to it."""
    return encoded(Image.new("RGB", size, colour), kind, **options)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def sent_images(body: dict[str, Any]) -> list[bytes]:
    """The images of a request, in order."""
    urls = [
        part["image_url"]["url"]
        for message in body["messages"]
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    return [base64.b64decode(url.partition(";base64,")[2], validate=True) for url in urls]


def named(colours: list[Any]) -> str:
    return " ".join(map(str, colours)) or "no image"


class LookingServer:
    """A chat API that looks at the images it is sent: `says` makes an answer of their colours."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.says: Callable[[list[Any]], str] = named
        self.answers: Callable[[dict[str, Any]], str] | None = None
        """Makes an answer of the whole body, if it is set."""
        self.status = 200
        self.error: Any = None
        """Gives the body of an error, of the request's text; with another status than 200."""
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(text)
                with lock:
                    outer.bodies.append(body)
                colours = [opened(data).convert("RGB").getpixel((0, 0)) for data in sent_images(body)]
                said = outer.says(colours) if outer.answers is None else outer.answers(body)
                message = {"role": "assistant", "content": said}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
                answer: Any = {
                    "id": "x",
                    "object": "chat.completion",
                    "model": "m",
                    "choices": [choice],
                    "usage": usage,
                }
                if outer.status != 200:
                    answer = outer.error(text.decode())
                payload = json.dumps(answer).encode()
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def looking() -> Iterator[LookingServer]:
    server = LookingServer()
    try:
        yield server
    finally:
        server.close()
