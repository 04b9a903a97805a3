"""One side of `run.py`: asks through bespokelabs-curator. Runs in an interpreter that has it; knows nothing of ours.

curator counts tokens with a vocabulary that tiktoken downloads. Without a network it would not start, so bytes stand
for tokens here; its token limit is set out of reach anyway.
"""

from __future__ import annotations

import json
import os
import sys
import time

settings = json.load(sys.stdin)
os.environ |= {
    "OPENAI_API_KEY": "sk-benchmark", "CURATOR_CACHE_DIR": settings["folder"], "TELEMETRY_ENABLED": "false",
    "CURATOR_DISABLE_RICH_DISPLAY": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip

import tiktoken


class Bytes:
    def encode(self, text: str, **options: object) -> list[int]:
        return list(text.encode())


tiktoken.get_encoding = tiktoken.encoding_for_model = lambda name: Bytes()

from bespokelabs import curator

started = time.perf_counter()
model = curator.LLM(
    model_name="teacher-1",
    backend="openai",
    backend_params={
        "base_url": settings["base_url"],
        "max_concurrent_requests": 256,
        "max_requests_per_minute": 1_000_000,
        "max_tokens_per_minute": 1_000_000_000,
        "request_timeout": settings["timeout"],
        "max_retries": 6,
        "require_all_responses": False,
    },
)
rows = model(settings["prompts"])
print(json.dumps({"seconds": round(time.perf_counter() - started, 2), "rows": len(getattr(rows, "dataset", rows))}))
