"""EasyDistill 2's `backend`, and what its stages say of sampling: the `inference` sections here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from easydistill.config.values import show
from easydistill.migration.draft import Draft, Old, pop

_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
_PICTURES = ("wanx", "qwen_image", "pai_diffusion", "pai_video", "pai_token_video")
TEMPERATURE, MAX_TOKENS = 0.7, 2048
"""What is sampled with where a config says nothing."""


@dataclass(frozen=True)
class _Kind:
    """What a kind of backend calls its address and key, and where they come from without a word."""

    url: str
    key: str
    url_from: str
    key_from: str


_KINDS = {
    "pai_eas": _Kind("endpoint_url", "token", "EAS_ENDPOINT_URL", "EAS_TOKEN"),
    "pai_token": _Kind("base_url", "api_key", "PAI_TOKEN_BASE_URL", "PAI_TOKEN_API_KEY"),
    "openai": _Kind("base_url", "api_key", "OPENAI_BASE_URL", "OPENAI_API_KEY"),
}
_SAMPLING = {
    "temperature": "temperature",
    "max_tokens": "max_new_tokens",
    "system_prompt": "system_prompt",
    "model_id": "model",
    "max_workers": "max_concurrency",
    "retry_attempts": "max_retries",
}
_NO_EFFECT = {
    "show_progress": "progress is shown unless a run is --quiet",
    "raise_on_error": "a row that fails is a rejected row, with its reason",
    "retry_backoff_base": "pauses grow by themselves",
    "retry_max_wait": "inference.max_retry_wait is its name, in seconds",
    "round_retry_attempts": "malformed replies are rejected rows, and `easydistill retry` asks again",
}


def env(value: Any) -> Any:
    """Text with `${NAME}` and `$NAME` as `${env:NAME}`; everything inside other values likewise."""
    if isinstance(value, dict):
        return {key: env(item) for key, item in value.items()}
    if isinstance(value, list):
        return [env(item) for item in value]
    return _VARIABLE.sub(lambda found: f"${{env:{found[1] or found[2]}}}", value) if isinstance(value, str) else value


def server(old: Old, draft: Draft) -> dict[str, Any]:
    """Address, key and model: what all jobs of the file have of `inference`."""
    backend = old.section("backend")
    kind = _KINDS.get(name := str(backend.pop("type", "openai")).lower())
    if kind is None:
        problem = f"{show(name)} is no kind of chat server that is known here"
        if name in _PICTURES:
            problem = f"{name} makes pictures or videos, which has no equal here"
        old.refuse(("backend", "type"), problem, f"known are {', '.join(_KINDS)}")
        return {}
    url, key = pop(backend, kind.url, str, "backend"), pop(backend, kind.key, str, "backend")
    inference: dict[str, Any] = {"base_url": _url(url, kind, draft), "api_key": _key(key, kind, draft)}
    draft.mapped.append(f"backend.{kind.url} and backend.{kind.key} are inference.base_url and inference.api_key")
    for name, new in (("model_id", "model"), ("timeout", "timeout"), ("max_retries", "max_retries")):
        if (value := backend.pop(name, None)) is not None:
            inference[new] = env(value)
    old.refuse_unread(backend, "backend")
    return inference


def _url(url: str | None, kind: _Kind, draft: Draft) -> str:
    if url is None:
        draft.changed.append(f"backend.{kind.url} was not given: inference.base_url is taken from {kind.url_from}")
        return f"${{env:{kind.url_from}}}"
    if _VARIABLE.search(url):
        if kind.url == "endpoint_url":
            said = f"what {url} stands for must end in /v1, which EasyDistill 2 added by itself"
            draft.change((), said + ".")
        return str(env(url))
    plain = re.sub(r"/chat/completions$", "", url.rstrip("/"))
    if kind.url == "endpoint_url" and not plain.endswith("/v1"):
        plain += "/v1"
        draft.changed.append(f"inference.base_url ends in /v1, which was added by itself: {plain}")
    return plain


def _key(key: str | None, kind: _Kind, draft: Draft) -> str:
    if key is not None and _VARIABLE.search(key):
        return str(env(key))
    if key is not None:
        draft.changed.append(f"the key is taken from the environment, and not copied: export {kind.key_from}=…")
    return f"${{env:{kind.key_from}}}"


def sampling(section: dict[str, Any], draft: Draft, where: str, max_tokens: int = MAX_TOKENS) -> dict[str, Any]:
    """How a stage asks, beside address and key; what it says of that is taken out of `section`."""
    made = {new: env(section.pop(name)) for name, new in _SAMPLING.items() if section.get(name) is not None}
    for name in [name for name in section if name in _NO_EFFECT]:
        del section[name]
        draft.left_out.append(f"{name}: {_NO_EFFECT[name]}")
    said = [name for name in ("temperature", "max_new_tokens") if name not in made]
    made = {"temperature": TEMPERATURE, "max_new_tokens": max_tokens, **made}
    if said:
        draft.mapped.append(f"{where}: {' and '.join(said)} had EasyDistill 2's defaults, which are written out")
    return made
