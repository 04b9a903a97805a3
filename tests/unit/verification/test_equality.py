"""Equal answers are equal, others are not, and nothing that a model writes stops the comparison of the next pair."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from easydistill.errors import EasyDistillError, MissingExtra
from easydistill.verification.answers import find_answer
from easydistill.verification.equality import Verifier, verify_many
from easydistill.verification.plain import compare_plainly

pytest.importorskip("math_verify", reason="needs the extra 'synth'")
HANGS = ("9^{9^{9^{9}}}", "5")


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(workers=2, seconds=30) as opened:
        yield opened


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def groups(verifier: Verifier) -> list[int]:
    return [worker._process.pid for worker in verifier._live]


@pytest.mark.parametrize(
    ("reference", "candidate", "outcome"),
    [
        ("18", "18.0", "equal"),
        ("0.3", "3/10", "equal"),
        ("1234", "$1,234.00", "equal"),
        ("18", "18 dollars", "equal"),
        ("0.1", "0.1000000000000000055511151231257827", "different"),
        ("1/3", "0.333", "different"),
        ("9007199254740993", "9007199254740992", "different"),
        ("50%", "0.5", "equal"),
        ("50", "50%", "equal"),
        ("50", "0.5", "different"),
        ("5 dollars", "5 cents", "undecided"),
        ("30000", "3万", "equal"),
        ("Paris", " **paris**.", "equal"),
        ("Paris", "London", "different"),
        ("巴黎", "巴黎。", "equal"),
        ("B", "(B)", "equal"),
        ("B", "C", "different"),
        ("2", "two", "different"),
        ("6", "not 5, it is 6", "undecided"),
        ("5x", "f}\\boxed{5x", "undecided"),
        ("", "5", "undecided"),
        ("5", "5" * 10_000_000, "undecided"),
        ("1e3", "10^3", "equal"),
        ("1e-05", r"1 \times 10^{-5}", "equal"),
        ("6.02e+23", r"6.02 \times 10^{23}", "equal"),
        ("0.0000001", "10^{-9}", "different"),
        ("3 1/2", r"3\frac{1}{2}", "equal"),
        ("3 1/2", "3½", "equal"),
        ("3.5", r"3\frac12", "equal"),
        ("3 1/2", r"\frac32", "different"),
        ("½", "1⁄2", "equal"),
        ("Zürich", "Zu\u0308rich", "equal"),
        ("Zu\u0308rich", "zürich", "equal"),
        ("5 m/s", "5", "equal"),
        ("9.8 m/s^2", "9.8 m/s²", "equal"),
        ("5 m/s", "5 km/h", "undecided"),
        ("5 m²", "25", "different"),
        ("-20 °C", r"-20^\circ C", "equal"),
        ("2024-01-05", "2018", "different"),
        ("2024-01-05", "**2024-01-05**.", "equal"),
        ("1/5/2024", r"\frac{1}{10120}", "different"),
        ("1/5/2024", "1/5/2024", "equal"),
        ("C", "C) Paris", "equal"),
        ("C", "C. Paris", "equal"),
        ("C", "C: Paris", "equal"),
        ("C", r"\text{(C) } 12", "equal"),
        ("C", "option C", "equal"),
        ("C. A dog", "(C)", "equal"),
        ("C", "D) Paris", "different"),
        ("C", "Cats", "different"),
        ("TF", "FT", "different"),
        ("TF", r"\text{TF}", "equal"),
        ("TFT", "TTF", "different"),
        ("no", "on", "different"),
        ("No", "no.", "equal"),
        ("True, False", "False, True", "undecided"),
        ("True, False", "(true, false)", "equal"),
        ("True, False", "True, True", "different"),
        ("T, F, T", "T, F, F", "different"),
        (r"\{apples, pears\}", r"\{pears, apples\}", "equal"),
        ("red and blue", "red, blue", "equal"),
        ("CO2", "2CO", "different"),
        ("H_2O", "H2O", "equal"),
        ("CO2", r"\mathrm{CO_2}", "equal"),
        ("C2H6", "C6H2", "different"),
        ("4/11", r"0.\overline{36}", "equal"),
        ("4/11", r"0.\overline{37}", "different"),
        ("4/11", "0.363636", "different"),
        ("1/6", r"0.1\overline{6}", "equal"),
        ("1/3", "0.(3)", "equal"),
        ("1/3", r"0.\dot{3}", "equal"),
        ("1/7", r"0.\dot{1}4285\dot{7}", "equal"),
        ("1/3", "0.333...", "equal"),
        ("1/3", "0.3\u0305", "equal"),
        ("-7/3", r"-2.\bar{3}", "equal"),
        ("1", r"0.\overline{9}", "equal"),
        ("1/3", r"33.\overline{3}\%", "equal"),
        ("1/3 dollars", "0.(3) dollars", "equal"),
        ("101_2", "101_3", "different"),
        ("101_2", "5", "equal"),
        ("5", "101_{2}", "equal"),
        ("101_2", r"(101)_{\text{two}}", "equal"),
        ("101_2", "101 base 2", "equal"),
        ("101_2", "101 in base 3", "different"),
        ("101_2", "12_3", "equal"),
        ("101_2", "101", "undecided"),
        ("12_3", "12_{10}", "different"),
        ("FF_{16}", "255", "equal"),
        ("0xFF", "255", "equal"),
        ("0x1F", "0x2A", "different"),
        ("0b101", "0b110", "different"),
        ("-11_2", "-3", "equal"),
        ("0.1_2", "1/2", "equal"),
        ("(1,2)", r"\{1,2\}", "undecided"),
    ],
)
def test_what_can_be_said_without_algebra(reference: str, candidate: str, outcome: str) -> None:
    verdict = compare_plainly(reference, candidate)
    assert verdict is not None
    other_way = compare_plainly(candidate, reference)
    assert other_way is not None
    assert other_way.outcome == outcome, "asked the other way"
    assert verdict.outcome == outcome
    assert bool(verdict.reason) == (outcome == "undecided")


@pytest.mark.parametrize(
    ("reference", "candidate", "outcome"),
    [
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt 2}", "equal"),
        ("(x+1)^2", "x^2+2x+1", "equal"),
        ("x^2", "x^3", "different"),
        ("x=5", "5", "equal"),
        (r"\{1,2\}", r"\{2,1\}", "equal"),
        ("(1,2)", "(2,1)", "different"),
        (r"2\pi", "2 pi", "equal"),
        (r"\frac{\pi}{2}", "π/2", "equal"),
        (r"2\sqrt{3}", "2*sqrt(3)", "equal"),
        (r"2\sqrt{3}", "2√3", "equal"),
        (r"2\sqrt{3}", "2√5", "different"),
        (r"\sin(x)", "sin(x)", "equal"),
        ("2^{3}", "8", "equal"),
        ("1e3", "3e", "different"),
        ("1e3", "e3", "different"),
        ("1e99999", "99999e", "different"),
        ("1e-12", "e-12", "different"),
        ("3e+5", "5+3e", "equal"),
        ("1e3", "x=1000", "equal"),
        ("1e3 m", "3em", "different"),
        ("[1e-3, 2]", "[10^{-3}, 2]", "equal"),
        ("0.0000001", r"\sqrt{10^{-18}}", "different"),
        ("1.414214", r"\sqrt{2}", "equal"),
        ("3 1/2", r"\sqrt{12.25}", "equal"),
        ("3 1/2", r"3 \cdot \frac12", "different"),
        ("½x", r"\frac{x}{2}", "equal"),
        ("50%", r"\frac{\sqrt{1}}{2}", "equal"),
        ("10-12", "-2", "equal"),
        ("1/5", r"\frac{\sqrt{1}}{5}", "equal"),
        ("5m^2", "5", "different"),
        ("6", "between 5 and 6", "different"),
        ("e^{-100}", "e^{-99}", "different"),
        ("e^{-100}", r"\frac{1}{e^{100}}", "equal"),
        ("e^{-100000}", "e^{-100001}", "different"),
        ("2^{-100}", "3^{-70}", "different"),
        (r"10^{-20}\sqrt{2}", r"10^{-21}\sqrt{3}", "different"),
        (r"10^{-20}\sqrt{8}", r"2\sqrt{2} \cdot 10^{-20}", "equal"),
        ("e^{-50}", "0", "different"),
        ("e^{-50}", r"e^{-50}x", "different"),
        (r"\sqrt{2}+10^{-20}", r"\sqrt{2}", "different"),
        (r"\sqrt{2} \cdot \sqrt{3}", r"\sqrt{6}", "equal"),
        ("(0.0000001, 1)", "(0.0000002, 1)", "different"),
        ("(0.0000001, 1)", "(10^{-7}, 1)", "equal"),
        ("(0.5, 1)", r"(\frac12, 1)", "equal"),
        (r"\{e^{-100}, 1\}", r"\{e^{-99}, 1\}", "different"),
        (r"\begin{pmatrix}e^{-100}\\1\end{pmatrix}", r"\begin{pmatrix}e^{-99}\\1\end{pmatrix}", "different"),
        (r"1 \pm 10^{-20}", r"1 \pm 10^{-21}", "different"),
        ("0.5x", r"\frac{x}{2}", "equal"),
        ("10^{-20}x", "10^{-21}x", "different"),
        ("2^{1000}", "2^{1000}+1", "different"),
        ("3.14", r"\pi", "different"),
        (r"(-\infty, 3)", "x<3", "equal"),
        (r"(-\infty, 3]", "x<3", "different"),
        ("[0,1]", r"0 \le x \le 1", "equal"),
        ("x>3", r"(-\infty,3)", "different"),
        (r"(-\infty,1) \cup (2,\infty)", r"(2,\infty) \cup (-\infty,1)", "equal"),
        ("x^2+y^2=4", "4", "undecided"),
        ("x=5", "x=6", "different"),
        (r"x=0.\overline{3}", r"x=\frac13", "equal"),
        (r"101_2 + \sqrt{4}", "7", "equal"),
        ("ab", "ba", "equal"),
        ("xy", "yx", "equal"),
        ("3:00", "4:00", "undecided"),
        ("x+1", "{" * 300 + "1" + "}" * 300, None),
        ("x+1", r"\sqrt{" * 200 + "2" + "}" * 200, None),
        ("x+1", "__import__('os').system('false')", "undecided"),
        ("x+1", "\ud800", "undecided"),
    ],
)
def test_what_needs_algebra(verifier: Verifier, reference: str, candidate: str, outcome: str | None) -> None:
    verdict = verifier.verify(reference, candidate)
    assert verdict.by == "math"
    assert verdict.outcome == outcome or (outcome is None and not verdict.equal)
    if outcome is not None:
        assert verifier.verify(candidate, reference).outcome == outcome, "asked the other way"


@pytest.mark.parametrize(
    "candidate", ["C major", "C or D", "C) Paris or D) Rome", "C: 5, D: 7", "C) 5 (d) 7", "C) yes\nno", "C.2", "CC)"]
)
def test_what_only_begins_with_a_choices_letter_is_not_that_choice(verifier: Verifier, candidate: str) -> None:
    assert not verifier.verify("C", candidate).equal
    assert not verifier.verify(candidate, "C").equal


def test_a_worker_that_hangs_is_replaced_and_the_others_go_on() -> None:
    with Verifier(workers=1, seconds=2) as verifier:
        assert verifier.verify("x+1", "1+x").equal
        (first,) = groups(verifier)
        began = time.monotonic()
        verdict = verifier.verify(*HANGS)
        assert time.monotonic() - began < 10
        assert verdict.outcome == "undecided"
        assert verdict.reason == "no answer within 2 seconds"
        assert not alive(first)
        assert verifier.replaced == 1
        assert verifier.verify("x+1", "1+x").equal
        assert groups(verifier) != [first]


@pytest.mark.parametrize("candidate", ["(10^9)!", "1000000000!", "2^{2^{60}}", r"\sum_{i=1}^{10^{12}} \frac{1}{i}"])
def test_hostile_sums_neither_hang_nor_eat_memory(candidate: str) -> None:
    with Verifier(workers=1, seconds=1.5, memory=256 << 20) as verifier:
        began = time.monotonic()
        # Where sympy gives up of itself, they are simply not equal.
        assert not verifier.verify("x+1", candidate).equal
        assert time.monotonic() - began < 30
        assert verifier.verify("x+1", "1+x").equal


def test_a_workers_address_space_is_limited() -> None:
    with Verifier(workers=1, memory=300 << 20) as verifier:
        assert verifier.verify("x+1", "1+x").equal
        (pid,) = groups(verifier)
        limits = Path(f"/proc/{pid}/limits")
        if not limits.exists():
            pytest.skip("there is no /proc here")
        (line,) = [line for line in limits.read_text().splitlines() if line.startswith("Max address space")]
        assert line.split()[3] == str(300 << 20)


def test_a_worker_that_dies_costs_one_comparison() -> None:
    with Verifier(workers=1, seconds=30) as verifier:
        assert verifier.verify("x+1", "1+x").equal
        (pid,) = groups(verifier)
        os.kill(pid, 9)
        verdict = verifier.verify("x+2", "2+x")
        assert verdict.outcome == "undecided"
        assert "its process ended" in verdict.reason
        assert verifier.verify("x+2", "2+x").equal


def test_many_pairs_keep_their_order_and_a_hanging_one_stays_alone() -> None:
    pairs = [(f"x+{number}", f"{number + number % 2}+x") for number in range(40)]
    pairs[11:11] = [HANGS]
    pairs += [("1", "1.0")]
    outcomes = [verdict.outcome for verdict in verify_many(pairs, workers=2, seconds=2)]
    expected = ["different" if number % 2 else "equal" for number in range(40)]
    assert outcomes == [*expected[:11], "undecided", *expected[11:], "equal"]


def test_threads_share_a_verifier(verifier: Verifier) -> None:
    def compare(number: int) -> bool:
        return verifier.verify(f"y+{number}", f"{number}+y").equal and not verifier.verify(f"y+{number}", "y").equal

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(compare, range(1, 33)))
    assert len(groups(verifier)) <= 2


def test_closing_ends_what_is_under_way() -> None:
    verifier = Verifier(workers=1, seconds=120)
    assert verifier.verify("x+1", "1+x").equal
    pids = groups(verifier)
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(verifier.verify(*HANGS).outcome))
    thread.start()
    time.sleep(0.5)
    began = time.monotonic()
    verifier.close()
    verifier.close()
    thread.join()
    assert time.monotonic() - began < 10
    assert outcomes == ["undecided"]
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        verifier.verify("x+1", "1+x")


def test_a_forgotten_verifier_leaves_no_process() -> None:
    verifier = Verifier(workers=1)
    assert verifier.verify("x+1", "1+x").equal
    pids = groups(verifier)
    del verifier
    gc.collect()
    assert not any(alive(pid) for pid in pids)


def test_a_worker_ends_when_its_caller_is_killed() -> None:
    code = (
        "import time\nfrom easydistill.verification.equality import Verifier\n"
        "v = Verifier(workers=1, seconds=300)\nassert v.verify('x+1', '1+x').equal\n"
        "print(next(iter(v._live))._process.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        assert alive(pid)
        caller.kill()
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_a_worker_inherits_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    with Verifier(workers=1) as verifier:
        assert verifier.verify("x+1", "1+x").equal
        (pid,) = groups(verifier)
        if not Path(f"/proc/{pid}/environ").exists():
            pytest.skip("there is no /proc here")
        assert b"sk-hidden" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_workers_that_do_not_start_are_the_machines_fault() -> None:
    with (
        Verifier(workers=1, memory=30 << 20) as verifier,
        pytest.raises(EasyDistillError, match="give it more than 30 MB"),
    ):
        verifier.verify("x+1", "1+x")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MissingExtra, match=r"easydistill-toolkit\[synth\]"):
        Verifier()


def test_no_heavy_library_is_loaded_in_the_caller() -> None:
    code = (
        "import sys\nimport easydistill.data.documents\n"
        "from easydistill.verification import answers, equality, evidence, fields, scores\n"
        "assert equality.verify_many([('x+1', '1+x')])[0].equal\n"
        "heavy = ('sympy', 'math_verify', 'rapidfuzz', 'selectolax', 'pypdf', 'pyarrow')\n"
        "assert not [name for name in heavy if name in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_gsm8k_references_verify_against_themselves_and_changed_ones_do_not(corpus: Path, own_data: Path) -> None:
    references = []
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        with (corpus / name).open(encoding="utf-8") as lines:
            for line in lines:
                found = find_answer(json.loads(line)["answer"])
                assert found is not None
                references.append(found.text)
    assert len(references) == (24 + 22 if corpus == own_data else 7473 + 1319)
    assert all(verdict.equal for verdict in verify_many(zip(references, references, strict=True)))
    boxed = [find_answer(f"so it is $\\boxed{{{text}}}$.") for text in references]
    assert all(
        verdict.equal for verdict in verify_many((a, b.text) for a, b in zip(references, boxed, strict=True) if b)
    )
    for change in (lambda text: f"{text}1", lambda text: f"1{text.lstrip('-')}", lambda text: f"{text}.5"):
        changed = [(text, change(text)) for text in references]
        assert {verdict.outcome for verdict in verify_many(changed)} == {"different"}


SMALL = ["e^{-%d}", r"10^{-%d}\sqrt{2}", r"\frac{\pi}{10^{%d}}", "(e^{-%d}, 1)", r"\{10^{-%d}\sqrt{3}\}", "2^{-%d}x"]


@pytest.mark.parametrize("form", SMALL)
@pytest.mark.parametrize("power", [12, 17, 40, 400])
def test_no_two_small_values_are_equal(verifier: Verifier, form: str, power: int) -> None:
    assert verifier.verify(form % power, form % (power + 1)).outcome == "different"
    assert verifier.verify(form % power, "0").outcome == "different"


def test_math_verify_compares_numbers_where_we_do() -> None:
    """Contract of `_math_worker.py`: every comparison of numbers in math-verify goes through this name."""
    import inspect

    from math_verify import grader

    assert list(inspect.signature(grader.sympy_numeric_eq).parameters) == [
        "a",
        "b",
        "float_rounding",
        "numeric_precision",
    ]
    assert "sympy_numeric_eq(gold, pred" in inspect.getsource(grader.sympy_expr_eq)
