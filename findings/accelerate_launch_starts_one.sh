#!/usr/bin/env bash
# accelerate 1.15.0: `accelerate launch --cpu --num_processes 2` starts one process, without RANK and WORLD_SIZE, and does
# not say so: on a CPU the number counts only with --multi_gpu or a config file that says MULTI_CPU. A script that was to be
# trained by two learns with half of the batch. Source: simple_launcher is chosen in accelerate/commands/launch.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet accelerate==1.15.0 torch==2.13.0 numpy
cd "$folder"
export HF_HOME="$folder/home"
cat >script.py <<'PYTHON'
import os

print("process", os.environ.get("RANK"), "of", os.environ.get("WORLD_SIZE"), flush=True)
PYTHON
venv/bin/accelerate launch --cpu --num_processes 2 script.py 2>&1 | tee out.txt
[ "$(grep -c '^process' out.txt)" = 1 ] && grep -q 'process None of None' out.txt
