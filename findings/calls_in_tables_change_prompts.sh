#!/usr/bin/env bash
# datasets 5.2.0 and the chat template of Qwen2.5 (as trl 1.16.0 ships it): two rows whose assistants call different tools
# are stored as one Arrow struct type, so each call comes back with the arguments of the other tool as None, and each
# message with tool_calls. The template writes the arguments with tojson: the prompt and the answer that are learned get
# "null" arguments that nobody wrote. Llama 3.1's template raises on the rows without calls that `tool_calls: None` makes.
# Source: Arrow has one type a column; datasets' `Json` feature avoids it. A user would expect to read back what was stored.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 transformers==5.19.0 jinja2
"$folder/venv/bin/pip" install --quiet --no-deps trl==1.16.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import files
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers.utils.chat_template_utils import render_jinja_template


def template(name):
    return Path(next(file for file in files("trl") if file.name == name).locate()).read_text()


def call(name, **arguments):
    return {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": name, "arguments": arguments}}]}


ask = {"role": "user", "content": "Go on."}
rows = [[ask, call("count_legs", animal="spider")], [ask, call("weather", city="Oslo", days=2)], [ask, ask]]
rows[2][1] = {"role": "assistant", "content": "Done."}
Dataset.from_list([{"messages": row} for row in rows]).to_parquet("rows.parquet")
back = [row["messages"] for row in load_dataset("parquet", data_files="rows.parquet", split="train", cache_dir="cache")]
qwen = template("qwen2_5.jinja")
before, after = (render_jinja_template([row], chat_template=qwen)[0][0] for row in (rows[0], back[0]))
print("stored  :", before.splitlines()[-2])
print("read    :", after.splitlines()[-2])
try:
    render_jinja_template([back[2]], chat_template=template("llama3_1.jinja"))
    plain = "rendered"
except Exception as error:
    plain = f"{type(error).__name__}: {error}"
print("Llama 3.1 on the row without calls:", plain)
same = "null" not in before and "null" in after and plain != "rendered"
sys.exit(0 if same else "datasets or the templates behave otherwise than recorded here")
PYTHON
