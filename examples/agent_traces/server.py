"""A scripted teacher for agent traces: an OpenAI-style server that needs no model.

It calls `count_legs` with the animal that the user names, or reads the result of that call out. Start it with
`python examples/agent_traces/server.py`, and stop it with Ctrl-C; it answers at http://127.0.0.1:8431/v1.
"""

from __future__ import annotations

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8431
MODEL = "scripted-agent"
ANIMALS = re.compile(r"\b(spider|dog|ant|hen|crab|cat|bee|owl|fly|cow|robin|tick)s?\b", re.IGNORECASE)


def message_for(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The next message of a chat: a call if the user asks and there are tools, else what the last result says."""
    last = messages[-1]
    if last["role"] == "tool":
        found = json.loads(last["content"])
        if "legs" not in found:
            return {"role": "assistant", "content": f"I could not find that out: {found['error']}."}
        return {"role": "assistant", "content": f"The {found['animal']} has {found['legs']} legs."}
    named = ANIMALS.search(str(last["content"]))
    if named is None or not tools:
        return {"role": "assistant", "content": "I can only count the legs of animals."}
    animal = named[1].lower()
    call = {
        "id": f"call_{animal}",
        "type": "function",
        "function": {"name": "count_legs", "arguments": json.dumps({"animal": animal})},
    }
    thoughts = f"The user wants to know about the {animal}. I can look it up."
    return {"role": "assistant", "content": None, "reasoning_content": thoughts, "tool_calls": [call]}


class Handler(BaseHTTPRequestHandler):
    """`GET /v1/models` and `POST /v1/chat/completions`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = message_for(body["messages"], body.get("tools", []))
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        written = json.dumps(message)
        usage = {"prompt_tokens": len(json.dumps(body)) // 4, "completion_tokens": max(1, len(written) // 4)}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        self._send({"id": "scripted", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage})

    def _send(self, answer: dict[str, Any]) -> None:
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


def serve(port: int = PORT) -> ThreadingHTTPServer:
    """A server on a port of this machine, 0 for any; `serve_forever` starts it."""
    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    server = serve(int(sys.argv[1]) if len(sys.argv) > 1 else PORT)
    print(f"answering at http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
