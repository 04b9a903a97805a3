#!/usr/bin/env bash
# trl 1.16.0: what its training templates mark with {% generation %} (the tokens of assistant_only_loss) is not what a model
# has to generate. Gemma, Phi-3 and ChatML models learn a line break behind their end token, Phi-3 a second end token too;
# DeepSeek-R1-Distill and gpt-oss learn the header that the generation prompt already holds, Qwen2.5 its line break.
# Source: trl/chat_templates/*_training.jinja. A user would expect the marks to begin after the generation prompt and to end
# with the token at which generation stops.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.19.0 jinja2
"$folder/venv/bin/pip" install --quiet --no-deps trl==1.16.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import files
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
ENDS = {"gemma": "<end_of_turn>", "phi3": "<|end|>", "qwen2_5": "<|im_end|>", "lfm2": "<|im_end|>"}
HEADERS = ("deepseek_r1_distill", "gptoss", "qwen2_5")


def render(name, chat, **options):
    file = next(file for file in files("trl") if file.name == f"{name}_training.jinja")
    return render_jinja_template([chat], chat_template=Path(file.locate()).read_text(), bos_token="<s>",
                                 eos_token="</s>", **options)


def marks(name):
    (text,), (spans,) = render(name, CHAT, return_assistant_tokens_mask=True)
    prompt = render(name, CHAT[:1], add_generation_prompt=True)[0][0]
    return text, prompt, spans


same = True
for name, end in ENDS.items():
    text, _, spans = marks(name)
    behind = "".join(text[start:stop] for start, stop in spans).partition(end)[2]
    print(f"{name}: learned behind {end}: {behind!r}")
    same &= bool(behind)
for name in HEADERS:
    text, prompt, spans = marks(name)
    start = spans[0][0]
    shared = next((at for at, pair in enumerate(zip(text, prompt)) if pair[0] != pair[1]), min(len(text), len(prompt)))
    print(f"{name}: learned of the generation prompt: {text[start:shared]!r}")
    same &= start < shared
sys.exit(0 if same else "the marks are others than recorded here")
PYTHON
