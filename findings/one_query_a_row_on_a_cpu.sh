#!/usr/bin/env bash
# torch 2.13.0 and transformers 5.19.0 on a CPU: a decoding step of a padded batch with grouped query heads (SmolLM2: 9 query
# heads on 3 key heads) spends several times longer in attention than the same kernel needs for the same numbers. With a
# mask, transformers copies keys and values for every query head; `enable_gqa=True` of torch saves the copy and hardly any
# time, because the CPU kernel reads and packs the keys once per query head. Given as the queries of one key head, which for
# one token per row they are, the same kernel returns the same bits.
# Source: `use_gqa_in_sdpa` (transformers) and the loop over query heads in torch's flash attention for CPUs. A user would
# expect grouped heads to make decoding faster, as on a GPU, and `enable_gqa` to be the fast way.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0 numpy
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import time

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ROWS, KEY_HEADS, GROUP, TOKENS, WIDTH = 64, 3, 3, 128, 64
torch.manual_seed(0)
query = torch.randn(ROWS, KEY_HEADS * GROUP, 1, WIDTH).bfloat16()
key, value = (torch.randn(ROWS, KEY_HEADS, TOKENS, WIDTH).bfloat16() for _ in range(2))
mask = torch.ones(ROWS, 1, 1, TOKENS, dtype=torch.bool)
mask[:, :, :, :5] = False
module = torch.nn.Module()
module.num_key_value_groups = GROUP


def transformers_sdpa():
    return sdpa_attention_forward(module, query, key, value, mask)[0].transpose(1, 2)


def enable_gqa():
    return sdpa(query, key, value, attn_mask=mask, enable_gqa=True)


def as_queries_of_one_head():
    grouped = query.view(ROWS, KEY_HEADS, GROUP, WIDTH)
    return sdpa(grouped, key, value, attn_mask=mask).view_as(query)


def milliseconds(function):
    """The least CPU time of several calls, which other work on the machine disturbs least."""
    found = []
    for _ in range(15):
        started = time.process_time()
        function()
        found.append(time.process_time() - started)
    return 1000 * min(found)


ways = (transformers_sdpa, enable_gqa, as_queries_of_one_head)
spent = {way.__name__: milliseconds(way) for way in ways}
for name, value_ in spent.items():
    print(f"{name:24} {value_:.2f} ms")
print("same bits:", all(torch.equal(transformers_sdpa(), way()) for way in ways))
assert torch.equal(transformers_sdpa(), as_queries_of_one_head())
assert spent["enable_gqa"] > 2 * spent["as_queries_of_one_head"], spent
assert spent["transformers_sdpa"] > 2 * spent["as_queries_of_one_head"], spent
PYTHON
