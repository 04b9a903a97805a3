"""A scripted model for agent trajectories: assistant, user and judge of a small shop behind OpenAI's protocol.

It needs no weights. Start it with `python examples/agent_trajectories/server.py`, and stop it with Ctrl-C; it answers
at http://127.0.0.1:8432/v1. One of its habits is bad: where the user has given no reason for cancelling, it takes one
that the tool does not know, is told so, and does better.
"""

from __future__ import annotations

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8432
MODEL = "scripted-shop"
ORDER = re.compile(r"\b[A-Z]\d{3}\b")
EMAIL = re.compile(r"\b[\w.]+@[\w.]+\w")
REASONS = {"too late": "too_late", "wrong": "wrong_item", "twice": "no_longer_needed"}


def message_for(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The next message: the assistant's if there are tools, else the reply to a question about a chat."""
    if tools:
        return assistant(messages)
    asked = str(messages[-1]["content"])
    said = user(asked) if asked.startswith("You play a person") else judge(asked)
    return {"role": "assistant", "content": said}


def assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    last, told = messages[-1], " ".join(str(item["content"]) for item in messages if item["role"] == "user")
    if last["role"] == "tool":
        return _after(json.loads(last["content"]), messages, told)
    cancels = "cancel" in told
    if cancels and (found := ORDER.search(told)):
        return _call("I look the order up first.", "get_order", order_id=found[0])
    if not cancels and (mail := EMAIL.search(told)):
        return _call("The address leads to the order.", "find_orders", email=mail[0])
    return _say("Which order is it, and why?" if cancels else "Which address did you order with?")


def _after(result: dict[str, Any], messages: list[dict[str, Any]], told: str) -> dict[str, Any]:
    name = messages[-1]["name"]
    if "error" in result and "invalid arguments" in result["error"]:
        return _call("The reason must be one that the tool knows.", name, **_arguments(messages), reason=_reason(told))
    if "error" in result:
        return _say(f"I am sorry, that did not work: {result['error']}.")
    if name == "find_orders":
        return _call("Now its status.", "get_order", order_id=result["orders"][0])
    if name == "get_order" and "cancel" in told and result["status"] == "open":
        reason = next((value for words, value in REASONS.items() if words in told), "changed_mind")
        return _call("It is open, so it can be cancelled.", "cancel_order", order_id=result["order_id"], reason=reason)
    if name == "cancel_order":
        return _say(f"Order {result['order_id']} is cancelled.")
    no = " Shipped orders cannot be cancelled." if "cancel" in told else ""
    return _say(f"Order {result['order_id']} is {result['status']}.{no}")


def _arguments(messages: list[dict[str, Any]]) -> dict[str, Any]:
    called = next(item for item in reversed(messages) if item.get("tool_calls"))
    found: dict[str, Any] = json.loads(called["tool_calls"][0]["function"]["arguments"])
    return {name: value for name, value in found.items() if name != "reason"}


def _reason(told: str) -> str:
    return next((value for words, value in REASONS.items() if words in told), "no_longer_needed")


def _say(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _call(thoughts: str, name: str, **arguments: Any) -> dict[str, Any]:
    call = {"id": "x", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {"role": "assistant", "content": None, "reasoning_content": thoughts, "tool_calls": [call]}


def user(asked: str) -> str:
    """The user's reply to a prompt that has what it wants, and the chat so far."""
    goal = asked.partition("]\n")[2].partition("\n\n")[0]
    said = re.findall(r"^Assistant: (.*)$", asked, re.MULTILINE)
    if not said:
        return _decided("continue", goal.partition(". ")[0])
    if "Which order" in said[-1]:
        number = ORDER.search(goal)
        why = "" if "mistake" in goal else goal.split(". ")[1]
        return _decided("continue", f"It is {number[0] if number else 'the last one'}. {why}".strip())
    if "Which address" in said[-1]:
        mail = EMAIL.search(goal)
        return _decided("continue", f"{mail[0]}" if mail else "I do not know.")
    return _decided("satisfied", "I have been told.")


def _decided(decision: str, message: str) -> str:
    return f"<decision>{decision}</decision>\n<message>{message}</message>"


def judge(asked: str) -> str:
    """Scores for each criterion: an apology is a small flaw."""
    names = re.findall(r"^- (\w+): ", asked, re.MULTILINE)
    score = 4 if "I am sorry" in asked else 5
    return "\n".join(f"<{name}>{score}</{name}>" for name in names)


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
