#!/usr/bin/env bash
# safetensors 0.8.0: save_file writes a hidden file beside its target (`.tmpXXXXXX`) and renames it. A process that is
# killed meanwhile leaves that file, as large as what was being saved and under another random name each time: ten kills
# of a training that saves 14 GB leave up to 140 GB that no program looks for, and whoever lists the folder's files takes
# them along (uploads them, counts them among the model's). And what it saves has the temporary file's mode, 0600, whatever
# the umask: nobody else, no server under another user, can read the model. Nothing in its documentation says either.
# Whoever resumes after kills has to remove `.tmp*` from the folder first, or save into a folder of its own and rename that.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy
cd "$folder"
umask 022
mkdir saved
cat >save.py <<'PYTHON'
import numpy as np
from safetensors.numpy import save_file

while True:
    save_file({"weight": np.ones(1 << 24, np.float32)}, "saved/model.safetensors")
PYTHON
for _ in 1 2 3 4 5 6 7 8; do
    venv/bin/python save.py &
    sleep 1.$((RANDOM % 10))
    kill -9 $!
    wait $! 2>/dev/null || true
done
ls -lA saved
left=$(find saved -name '.tmp*' | wc -l)
mode=$(stat -c %a saved/model.safetensors)
echo "$left files of killed savings are left; under umask $(umask), the saved file has mode $mode"
[ "$left" -gt 0 ] && [ "$mode" = 600 ]
