#!/usr/bin/env bash
# lm-eval 0.4.13 scores one problem of IFEval by a letter that it draws anew for every check: `keywords:letter_frequency`
# takes letters from a to z only, and problem 1122 ("at least 4 hashtags, starting with '#'") asks for `#`. The same reply
# is right in one run and wrong in the next, and may be right strictly and wrong loosely, although loose scores are meant
# as an upper bound. Importing the checkers also tries a download of nltk's data and prints that it was "Downloaded",
# whether it was or not.
# Source: lm_eval/tasks/ifeval/instructions.py, LetterFrequencyChecker.build_description; instructions_util.py.
# A user would expect `#` to be counted, and equal scores for equal replies.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lm-eval==0.4.13 langdetect==1.0.9 immutabledict nltk
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import io
import sys

import nltk

nltk.download = lambda *names, **options: False
said = io.StringIO()
with contextlib.redirect_stdout(said):
    from lm_eval.tasks.ifeval.utils import process_results

problem = {
    "key": 1122,
    "prompt": "make a tweet without using capital letters. Include at least 4 hashtags, starting with '#'",
    "instruction_id_list": ["keywords:letter_frequency"],
    "kwargs": [{"let_relation": "at least", "letter": "#", "let_frequency": 4}],
}
reply = "we see the trees and bees here"
scores = [process_results(problem, [reply]) for _ in range(200)]
strict = [score["prompt_level_strict_acc"] for score in scores]
upside_down = sum(score["prompt_level_strict_acc"] and not score["prompt_level_loose_acc"] for score in scores)
print(f"a reply without any #: right in {sum(strict)} of 200 checks; strictly right but loosely wrong: {upside_down}")
print(f"said on import: {said.getvalue().strip()!r}")
seen = 0 < sum(strict) < 200 and upside_down > 0
sys.exit(0 if seen else "lm-eval behaves otherwise than recorded here")
PYTHON
