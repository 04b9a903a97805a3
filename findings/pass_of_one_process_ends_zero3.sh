#!/usr/bin/env bash
# transformers 5.19.0 with DeepSpeed 0.19.8: under ZeRO-3 a LLaVA whose tower is trained ends with its second step ("Detected a
# disagreement on list length") if one process alone made a pass before `initialize`, say to check or to score the model. After
# such a pass in both processes, or in none, the same training goes on. transformers hooks layers for their hidden states in the
# first pass that wants them, as each pass of LLaVA does in its tower. Behind DeepSpeed's hooks it takes a layer's output with
# the mark by which the backward pass tells DeepSpeed of that layer; before them, the output alone. So one process records a
# module more than the other. Source: capture_outputs, transformers/utils/output_capturing.py; _register_deepspeed_module,
# deepspeed/runtime/zero/parameter_offload.py; reset_step, partitioned_param_coordinator.py. A user would expect a pass without
# gradients to leave nothing behind.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0 deepspeed==0.19.8 numpy
cd "$folder"
cat >train.py <<'PYTHON'
import datetime
import sys

import deepspeed
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

rank = int(sys.argv[1])
passes = rank < int(sys.argv[2])
# Sums over shared memory, which would have to be compiled.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
torch.distributed.init_process_group(
    "gloo", f"file://{sys.argv[3]}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
config = LlavaConfig(
    text_config={"model_type": "llama", **small, "vocab_size": 32},
    vision_config={"model_type": "clip_vision_model", **small, "image_size": 8, "patch_size": 4},
    image_token_id=31,
)
torch.manual_seed(0)
model = LlavaForConditionalGeneration(config)
ids = torch.tensor([[1, *[31] * 4, 2, 3]])
batch = {"input_ids": ids, "labels": ids, "pixel_values": torch.randn(1, 3, 8, 8)}
if passes:
    with torch.no_grad():
        model(**batch)
settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True}
settings["zero_force_ds_cpu_optimizer"] = False
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=settings)
layer = model.model.vision_tower.encoder.layers[0]
for step in (1, 2, 3):
    try:
        loss = engine(**batch).loss
        engine.backward(loss)
        engine.step()
    except RuntimeError as error:
        print(f"process {rank}, step {step}: {' '.join(str(error).split())}", flush=True)
        break
    hooks = [hook.__name__ for hook in layer._forward_hooks.values()]
    place = hooks.index("output_capturing_hook") + 1
    told = f"loss {loss.item():.4f}; transformers' hook is number {place} of {len(hooks)}"
    print(f"process {rank}, step {step}: {told}", flush=True)
torch.distributed.destroy_process_group()
PYTHON
export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 TORCH_EXTENSIONS_DIR="$folder/extensions"
for passing in 0 1 2; do
  echo "a pass before the training in $passing of 2 processes:"
  for rank in 0 1; do
    LOCAL_RANK=$rank timeout 200 venv/bin/python -W ignore train.py $rank $passing "$folder/meeting-$passing" \
      >"$passing-$rank.txt" 2>"$passing-$rank.log" &
  done
  wait
  grep -h '^process' $passing-?.txt || tail "$passing"-?.log
done
finished() { grep -q 'step 3: loss' "$1-0.txt" && grep -q 'step 3: loss' "$1-1.txt"; }
if finished 0 && finished 2 && grep -q 'step 1: loss' 1-1.txt && grep -q 'step 2: Detected a disagreement' 1-1.txt; then
  exit 0
fi
echo "the libraries behave otherwise than recorded here" >&2
exit 1
