"""Files that are no config at all: the place, what is wrong with it, and how to hint it. Never a traceback."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.support.configs import SECRET, complaints

# The place of the mistake is marked ▶ (and the mark removed); then a piece of the problem, and a piece of the hint.
JSON: dict[str, tuple[str, str, str]] = {
    "only a comment": ("// nothing\n▶", "ends where a value should be", "not finished"),
    "number": ("▶3", "this is a number", '"job_type"'),
    "text": ('▶"x"', "this is text", '"job_type"'),
    "array": ("▶[1, 2]", "this is a list", '"job_type"'),
    "null": ("▶null", "this is null", '"job_type"'),
    "open brace": ("{▶", "not closed", "add a }"),
    "open section": ('{"dataset": {"seed": 1}▶', "not closed", "add a }"),
    "open section over lines": ('{\n "dataset": {\n  "seed": 1\n▶', "line 2", "add a }"),
    "open array": ('{"a": [1, 2▶', "not closed", "add a ]"),
    "wrong closer": ('{"a": [1, 2▶}', "']' was expected", "with ]"),
    "wrong closer in section": ('{"a": {"b": 1▶]}', "'}' was expected", "with }"),
    "missing comma": ('{"a": 1▶\n\n "b": 2}', "comma is missing", "add a comma"),
    "missing comma after text": ('{\n"a": "x"▶\n"b": 2}', "comma is missing", "add a comma"),
    "missing comma after section": ('{"a": {}▶ "b": 2}', "comma is missing", "add a comma"),
    "missing comma in array": ('{"a": [1▶ 2]}', "comma is missing", "add a comma"),
    "missing colon": ('{"a" ▶1}', "colon is missing", '"a": …'),
    "equals sign": ('{"a" ▶= 1}', "colon is missing", '"a": …'),
    "missing value": ('{"a": ▶}', "value is missing", "write a value, or remove the key"),
    "missing value before comma": ('{"a": ▶, "b": 1}', "value is missing", "write a value, or remove the key"),
    "missing key": ("{▶: 1}", "key is needed", "remove it"),
    "lone comma": ("{▶,}", "key is needed", "remove it"),
    "two commas": ('{"a": 1,▶, "b": 2}', "key is needed", "remove it"),
    "two commas in array": ('{"a": [1,▶, 2]}', "value is missing", "write a value"),
    "unquoted key": ("{▶job_type: 1}", "not quoted", 'write "job_type"'),
    "unquoted value": ('{"a": ▶hello}', "not quoted", 'write "hello"'),
    "unquoted path": ('{"a": ▶/data/train.json}', "not quoted", 'write "/data/train.json"'),
    "unquoted URL": ('{"a": ▶http://localhost:8000/v1}', "not quoted", 'write "http://localhost:8000/v1"'),
    "unquoted hub id": ('{"a": ▶Qwen/Qwen2.5-0.5B}', "not quoted", 'write "Qwen/Qwen2.5-0.5B"'),
    "single quotes": ("{\"a\": ▶'x'}", "single quotes", "double quotes"),
    "single quoted key": ("{▶'a': 1}", "single quotes", "double quotes"),
    "backquotes": ('{"a": ▶`x`}', "backquotes", "double quotes"),
    "curly quotes": ('{"a": ▶“x”}', "curly quotes", "straight double quotes"),
    "curly quoted key": ("{▶“a”: 1}", "curly quotes", "straight double quotes"),
    "hard space": ('{"a":▶\u00a01}', "U+00A0", "remove it"),
    "hard space before a key": ('{\n▶\u00a0"a": 1}', "U+00A0", "remove it"),
    "zero-width space": ('{"a": 1▶\u200b}', "U+200B", "remove it"),
    "number key": ("{▶1: 2}", "key is needed", "in double quotes"),
    "Python True": ('{"a": ▶True}', "True is not", "write true"),
    "Python False": ('{"a": ▶False}', "False is not", "write false"),
    "Python None": ('{"a": ▶None}', "None is not", "write null, or remove the key"),
    "shouted true": ('{"a": ▶TRUE}', "TRUE is not", "write true"),
    "yes": ('{"a": ▶yes}', "yes is not", "write true"),
    "off": ('{"a": ▶off}', "off is not", "write false"),
    "NaN": ('{"a": ▶NaN}', "NaN is not", "finite number"),
    "Infinity": ('{"a": ▶Infinity}', "Infinity is not", "finite number"),
    "minus Infinity": ('{"a": ▶-Infinity}', "-Infinity is not", "finite number"),
    "undefined": ('{"a": ▶undefined}', "undefined is not", "write null, or remove the key"),
    "leading zero": ('{"a": ▶007}', "007 is not a number", "plainly, e.g. 16"),
    "two dots": ('{"a": ▶1.2.3}', "1.2.3 is not a number", "plainly"),
    "unit": ('{"a": ▶10k}', "10k is not a number", "quote it if it is text"),
    "percent": ('{"a": ▶5%}', "5% is not a number", "plainly, e.g. 16, 0.5"),
    "bare dot": ('{"a": ▶.5}', ".5 is not a number", "0.5"),
    "trailing dot": ('{"a": ▶5.}', "5. is not a number", "plainly"),
    "plus": ('{"a": ▶+5}', "+5 is not a number", "plainly"),
    "hexadecimal": ('{"a": ▶0x1F}', "0x1F is not a number", "plainly"),
    "underscores": ('{"a": ▶1_000}', "1_000 is not a number", "plainly"),
    "thousands comma": ('{"a": 1,▶000}', "key is needed", "write numbers without commas"),
    "open exponent": ('{"a": ▶2e-}', "2e- is not a number", "2e-5"),
    "open text": ('{"a": ▶"x}', "not closed", 'end it with "'),
    "text over lines": ('{"a": ▶"You are\n  helpful"}', "continues on the next line", "\\n"),
    "text over lines, Windows": ('{"a": ▶"You are\r\n  helpful"}', "continues on the next line", "\\n"),
    "bad escape": ('{"a": ▶"C:\\dir"}', "unknown escape", "write a backslash as \\\\"),
    "bad unicode escape": ('{"a": ▶"\\u12"}', "unknown escape", "write a backslash as \\\\"),
    "escaped end": ('{"a": ▶"C:\\"}', "not closed", 'end it with "'),
    "tab in text": ('{"a": "x▶\ty"}', "control character", "\\t"),
    "bell in text": ('{"a": "x▶\x07y"}', "control character", "remove it"),
    "duplicate key": ('{"a": 1,\n ▶"a": 2}', "is repeated (first on line 1)", "keep one of them"),
    "duplicate section": ('{"dataset": {},\n\n▶"dataset": {}}', "is repeated (first on line 1)", "keep one of them"),
    "duplicate deep down": ('{"a": {"b": 1,\n▶"b": 1}}', "is repeated", "keep one of them"),
    "two documents": ('{"a": 1} ▶{"b": 2}', "after the end", "closed too early"),
    "JSON Lines": ('{"a": 1}\n▶{"a": 2}\n', "after the end", "closed too early"),
    "extra brace": ('{"a": 1}▶}', "after the end", "closed too early"),
    "open comment": ('{"a": 1 ▶/* what', "comment is not closed", "*/"),
    "hash comment": ('{\n▶# x\n"a": 1}', "starts with #", "//"),
    "hash comment after a value": ('{"a": 1 ▶# x\n}', "starts with #", "//"),
    "deep arrays": ('{"a": ' + "[" * 100 + "▶" + "[" * 5000 + "]" * 5100 + "}", "nested deeper", "no config"),
    "deep objects": ('{"a": ' * 101 + "▶" + '{"a": ' * 3000 + "1" + "}" * 3101, "nested deeper", "no config"),
    "semicolon": ('{"a": 1▶; "b": 2}', "semicolon", "commas"),
    "tuple": ('{"a": ▶(1, 2)}', "bracket", "[ … ]"),
    "sum": ('{"a": "x"▶ + "y"}', "comma is missing", "add a comma"),
    "html": ("▶<html></html>", "value is missing", "write a value"),
    "yaml in json": ("▶job_type: black_box_kd_local\n", "not quoted", 'write "job_type:"'),
    "ini in json": ("[▶dataset]\nseed = 1\n", "not quoted", 'write "dataset"'),
    "mark in the middle": ('{"a": 1, ▶\ufeff"b": 2}', "U+FEFF", "remove it"),
}
YAML: dict[str, tuple[str, str, str]] = {
    "tab": ("a:\n▶\tb: 1\n", "YAML", "spaces, not tabs"),
    "colon in text": ("a▶: b: c\n", "not allowed", "quote text that contains a colon"),
    "no space after colon": ("▶job_type:black_box_kd_local\n", "this is text", "a space after the colon"),
    "no space in the middle": ("a: 1\n▶b:2\n", "':'", "a space after the colon"),
    "indentation": ("a:\n  b: 1\n ▶c: 2\n", "YAML", "same indentation"),
    "too far in": ("a: 1\n▶  b: 2\n", "not allowed", "one key on a line"),
    "twice": ("a: 1\n▶a: 2\n", "is repeated (first on line 1)", "keep one of them"),
    "twice in a flow": ("x: 1\n▶b: {a: 1, a: 2}\n", "is repeated", "keep one of them"),
    "list": ("▶- 1\n- 2\n", "this is a list", "key: value"),
    "number": ("▶42\n", "this is a number", "key: value"),
    "number key": ("a: 1\n▶1: x\n", "the key 1 is not text", "quotes"),
    "yes key": ("a: 1\n▶yes: x\n", "the key True is not text", "quotes"),
    "list key": ("▶? [a]\n: b\n", "is not text", "quotes"),
    "two documents": ("a: 1\n▶---\nb: 2\n", "document", "keep one document"),
    "python object": ("▶a: !!python/object/apply:os.system ['true']\n", "tag", "remove the tag"),
    "own tag": ("▶a: !mine x\n", "tag", "remove the tag"),
    "open quote": ('▶a: "x\n', "end of stream", "close the quote"),
    "open bracket": ("a: [1, 2\n▶b: 3\n", "YAML", "close the bracket"),
    "anchor": ("▶a: *nowhere\n", "alias", "starts with *"),
    "at sign": ("▶a: @x\n", "'@'", "quote text"),
    "percent": ("▶a: %x\n", "'%'", "quote text"),
    "backslash": ('▶a: "C:\\dir"\n', "escape", "\\\\"),
    "control character": ("a: 1\n▶b: \x07\n", "control character", "remove it"),
    "itself": ("▶a: &x [*x]\n", "nested deeper", "no config"),
    "billion laughs": (
        "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)),
        "aliases",
        "write values out",
    ),
}
TOML: dict[str, tuple[str, str, str]] = {
    "no value": ("▶a = \n", "Invalid value", "double quotes"),
    "bare text": ("x = 1\n▶a = hello\n", "Invalid value", "double quotes"),
    "Python True": ("▶a = True\n", "Invalid value", "small letters"),
    "no equals sign": ("▶a: 1\n", "'='", "key = value"),
    "no key": ("▶= 1\n", "Invalid statement", "key = value"),
    "two values": ("▶a = 1 2\n", "newline", "one key on a line"),
    "twice": ("a = 1\n▶a = 2\n", "overwrite", "keep one"),
    "table twice": ("[a]\nb = 1\n▶[a]\n", "twice", "keep one"),
    "twice in a line": ("▶a = {b = 1, b = 2}\n", "Duplicate", "keep one"),
    "open text": ('a = 1\n▶b = "x', "Unterminated", "close the quote"),
    "text over lines": ('▶a = "x\ny"\n', "Illegal character", "close the quote"),
    "open array": ("x = 1\n▶a = [1, 2", "Unclosed array", "add a ]"),
    "open table": ("x = 1\n▶[dataset\nseed = 1\n", "']'", "add a ]"),
    "backslash": ('▶a = "C:\\data"\n', "Unescaped", "\\\\"),
    "table over lines": ("▶a = {\n b = 1 }\n", "Invalid", "on one line"),
    "JSON": ('▶{"a": 1}\n', "Invalid statement", "key = value"),
}
FILES: dict[str, tuple[str, bytes, str, str, str]] = {
    # name, content, place, problem, hint
    "not UTF-8": ("kd.json", b'{\n"a": "\xff"}', ":2", "not UTF-8", "save it as UTF-8"),
    "Latin-1": ("kd.yaml", "a: 1\nb: größe\n".encode("latin-1"), ":2", "not UTF-8", "save it as UTF-8"),
    "UTF-16": ("kd.json", '{"a": 1}'.encode("utf-16"), ":1", "not UTF-8", "save it as UTF-8"),
    "UTF-16 without a mark": ("kd.toml", "a = 1\n".encode("utf-16-le"), ":1", "not UTF-8", "save it as UTF-8"),
    "UTF-32": ("kd.json", '{"a": 1}'.encode("utf-32"), ":1", "not UTF-8", "save it as UTF-8"),
    "gzip": ("kd.json", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", ":1", "not UTF-8", "save it as UTF-8"),
    "zero bytes": ("kd.json", b"\x00\x00\x00", ":1", "not UTF-8", "save it as UTF-8"),
    "mark and garbage": ("kd.json", b"\xef\xbb\xbf nope", ":1:2", "not quoted", 'write "nope"'),
    "mark and nothing": ("kd.json", b"\xef\xbb\xbf", "", "empty", "easydistill init"),
    "mark twice": ("kd.json", b"\xef\xbb\xbf\xef\xbb\xbf{}", ":1:1", "U+FEFF", "remove it"),
    "empty": ("kd.json", b"", "", "empty", "easydistill init"),
    "blank": ("kd.yaml", b" \n\n ", "", "empty", "easydistill init"),
    "empty TOML": ("kd.toml", b"", "", "empty", "easydistill init"),
    "YAML of comments": ("kd.yaml", b"# nothing\n", "", "no value", "easydistill init"),
    "unknown suffix": ("kd.txt", b"{}", "", ".txt", ".yaml"),
    "ini": ("kd.ini", b"[a]", "", ".ini", ".toml"),
    "Python": ("kd.py", b"x = 1", "", ".py", ".json"),
    "no suffix": ("kd", b"{}", "", "needs a suffix", ".json"),
    "hidden file": (".json", b"{}", "", "needs a suffix", ".json"),
}


def check(folder: Path, name: str, case: tuple[str, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    marked, problem, hint = case
    path = folder / name
    path.write_text(marked.replace("▶", ""), encoding="utf-8", newline="")
    found = complaints(path, capsys)
    assert len(found) == 1
    assert problem in found[0].text
    assert hint in found[0].hint
    if "▶" in marked:
        before = marked.partition("▶")[0]
        line, column = before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1
        exact = f"{path}:{line}:{column}" if name.endswith("json") and "not valid" in found[0].text else ""
        assert found[0].where == exact or (not exact and found[0].where.startswith(f"{path}:{line}")), found[0].where


@pytest.mark.parametrize("name", JSON)
def test_json(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(tmp_path, "kd.json", JSON[name], capsys)


@pytest.mark.parametrize("name", YAML)
def test_yaml(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(tmp_path, "kd.yaml", YAML[name], capsys)


@pytest.mark.parametrize("name", TOML)
def test_toml(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(tmp_path, "kd.toml", TOML[name], capsys)


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, content, place, problem, hint = FILES[name]
    (tmp_path / file).write_bytes(content)
    found = complaints(tmp_path / file, capsys)
    assert len(found) == 1
    assert found[0].where == f"{tmp_path / file}{place}"
    assert problem in found[0].text
    assert hint in found[0].hint


def test_paths_that_hold_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "kd.json").write_text("{}")
    for path, problem, hint in [
        (tmp_path / "nowhere.json", "no such file", "easydistill init"),
        (tmp_path / "nowhere" / "kd.yaml", "no such file", "easydistill init"),
        (tmp_path / "folder.json", "this is a directory", "path of a config file"),
        (tmp_path, "this is a directory", "path of a config file"),
        (tmp_path / "kd.json" / "kd.json", "Not a directory", "check the path"),
        (tmp_path / f"{'x' * 300}.json", "too long", "check the path"),
        (tmp_path / "a\0b.json", "cannot be read", "check the path"),
    ]:
        found = complaints(path, capsys)
        assert len(found) == 1
        assert problem in found[0].text
        assert hint in found[0].hint


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kd.json", f'{{"inference": {{"api_key": {SECRET}}}}}'),
        ("kd.json", f'{{"inference": {{"api_key": 1{SECRET}}}}}'),
        ("kd.json", f'{{"inference": {{"api_key": "x"{SECRET}"}}}}'),
        ("kd.json", f'{{"inference": {{"api_key" "{SECRET}"}}}}'),
        ("kd.json", f'{{"inference": {{"api_key": "{SECRET}'),
        ("kd.yaml", f"inference:\n  api_key: *{SECRET}\n"),
        ("kd.yaml", f"inference:\n  api_key: !{SECRET} x\n"),
        ("kd.yaml", f"inference:\n  api_key: {SECRET}: x\n"),
        ("kd.toml", f"[inference]\napi_key = {SECRET}\n"),
    ],
)
def test_a_key_that_breaks_the_syntax_is_not_printed(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert SECRET[:6] not in str(complaints(path, capsys))


def test_merges_of_merges_do_not_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kd.yaml"
    lines = [f"  - &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], k{n}: 1}}" for n in range(1, 12)]
    path.write_text("\n".join(["extra:", "  - &a0 {k0: 1}", *lines]))
    assert any(each.text.startswith("extra: there is no key") for each in complaints(path, capsys))


def test_a_large_file_is_checked_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kd.json"
    path.write_text('{\n "a": [\n' + "  1,\n" * 200_000 + "  oops\n]}")
    started = time.process_time()
    assert complaints(path, capsys)[0].where.startswith(f"{path}:200003")
    assert time.process_time() - started < 5
