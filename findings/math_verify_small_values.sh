#!/usr/bin/env bash
# math-verify 0.9.0 calls different answers equal:
#   - any two exact numbers below about 1e-15, because grader.sympy_numeric_eq evaluates their difference with
#     `chop=True`, which turns what is small into 0;
#   - numerals with different bases, because the parser drops the subscript of a number;
#   - two words of the same letters, because words are read as products of one-letter variables.
# An interval and its inequality are equal or different, depending on which of the two is the reference (documented).
# Source: math_verify/grader.py, sympy_numeric_eq, sympy_expr_eq. A user would expect "different" for the first three.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2 sympy==1.14.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

from math_verify import parse, verify


def equal(gold, answer):
    return verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}"))


seen = {
    "e^-100 = e^-99": equal("e^{-100}", "e^{-99}"),
    "2^-100 = 3^-70": equal("2^{-100}", "3^{-70}"),
    "101_2 = 101_3": equal("101_2", "101_3"),
    "TF = FT": equal("TF", "FT"),
    "(-oo, 3) = (x<3)": equal(r"(-\infty,3)", "x<3"),
    "(x<3) = (-oo, 3)": equal("x<3", r"(-\infty,3)"),
}
for name, value in seen.items():
    print(f"{name}: {value}")
expected = [True, True, True, True, False, True]
sys.exit(0 if list(seen.values()) == expected else "math-verify behaves otherwise than recorded here")
PYTHON
