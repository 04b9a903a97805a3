"""Raw text: reading it from files, and cutting it into chunks."""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easydistill.data.chunks import Chunk, approximate_tokens, chunks
from easydistill.data.documents import read_documents
from easydistill.errors import DataError, MissingExtra

CHINESE = "人工智能正在改变世界。它能写诗，也能算数！你信吗？"


def words(text: str) -> int:
    return len(text.split())


def pdf(*pages: str) -> bytes:
    """A PDF with one line per page."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    bodies = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        resources = "<< /Font << /F1 3 0 R >> >>"
        bodies.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {resources} /Contents {5 + 2 * number} 0 R >>"
        )
        bodies.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    raw, places = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, start=1):
        places.append(len(raw))
        raw += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n{table}"
    return raw + f"{head}trailer\n<< /Size {len(bodies) + 1} /Root 1 0 R >>\nstartxref\n{len(raw)}\n%%EOF\n".encode()


def one(path: Path, content: str | bytes, encoding: str = "utf-8") -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (document,), rejected = read_documents(path, encoding)
    assert not rejected and document.source.startswith(str(path))
    return document.text


# --- reading ----------------------------------------------------------------------------------------------


def test_plain_files_in_their_encodings(tmp_path: Path) -> None:
    assert one(tmp_path / "a.txt", "one\r\ntwo\rthree") == "one\ntwo\nthree"
    assert one(tmp_path / "a.md", f"# {CHINESE}") == f"# {CHINESE}"
    assert one(tmp_path / "bom.TXT", b"\xef\xbb\xbf" + CHINESE.encode()) == CHINESE
    assert one(tmp_path / "wide.txt", CHINESE.encode("utf-16")) == CHINESE
    assert one(tmp_path / "gb.txt", CHINESE.encode("gb18030"), "gb18030") == CHINESE


def test_html_is_read_in_paragraphs(tmp_path: Path) -> None:
    pytest.importorskip("selectolax", reason="needs the extra 'synth'")
    page = (
        "<!doctype html><html><head><title>T</title><style>p {color: red}</style></head><body><!-- no -->"
        "<h1>Head</h1><p>One <b>bold</b>\n word &amp; more.</p><script>alert(1)</script>"
        "<ul><li>a</li><li>b</li></ul><table><tr><td>x</td><td>y</td></tr></table><pre>  if a:\n    b</pre>"
        "<p>Fin<i>al</i><br>line</p></body></html>"
    )
    text = one(tmp_path / "a.html", page)
    assert text == "Head\n\nOne bold word & more.\n\na\nb\n\nx\ty\n\n  if a:\n    b\n\nFinal\nline"
    deep = "<div>" * 50_000 + "deep" + "</div>" * 50_000
    assert one(tmp_path / "deep.htm", deep) == "deep"


def test_html_names_its_encoding(tmp_path: Path) -> None:
    pytest.importorskip("selectolax", reason="needs the extra 'synth'")
    page = f"<meta charset=gb2312><p>{CHINESE}</p>"
    assert one(tmp_path / "a.html", page.encode("gb18030")) == CHINESE
    (tmp_path / "a.html").write_text("<meta charset=klingon><p>a</p>")
    with pytest.raises(DataError, match="unknown encoding, klingon"):
        read_documents(tmp_path / "a.html")


def test_pdf_is_read_page_by_page(tmp_path: Path) -> None:
    pytest.importorskip("pypdf", reason="needs the extra 'synth'")
    assert one(tmp_path / "a.pdf", pdf("Hello page one.", "And two.")) == "Hello page one.\n\nAnd two."


def test_a_pdf_without_text_is_rejected_with_the_reason(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf", reason="needs the extra 'synth'")
    (tmp_path / "scan.pdf").write_bytes(pdf(""))
    (tmp_path / "torn.pdf").write_bytes(pdf("Hello")[:60])
    (tmp_path / "not.pdf").write_bytes(b"hello")
    writer = pypdf.PdfWriter(clone_from=tmp_path / "scan.pdf")
    writer.encrypt("secret", algorithm="RC4-128")
    with warnings.catch_warnings(), (tmp_path / "locked.pdf").open("wb") as handle:
        warnings.simplefilter("ignore")
        writer.write(handle)
    (tmp_path / "a.txt").write_text("text")
    _, rejected = read_documents(tmp_path)
    reasons = {row.detail.split(":")[0].rsplit("/", 1)[1]: row.reason for row in rejected}
    assert reasons == {
        "locked.pdf": "encrypted",
        "not.pdf": "unreadable",
        "scan.pdf": "empty",
        "torn.pdf": "unreadable",
    }


def test_rows_with_data_or_text(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [{"data": "a", "id": "mine"}, {"text": "b"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pa.Table.from_pylist([{"text": "a"}, {"text": "b"}]), tmp_path / "c.parquet")
    for name in ("a.json", "b.jsonl", "c.parquet"):
        documents, rejected = read_documents(tmp_path / name)
        assert [document.text for document in documents] == ["a", "b"] and not rejected
        assert documents[1].source == f"{tmp_path / name}, row 2"
    assert read_documents(tmp_path / "a.json")[0][0].id == "mine"
    assert len({document.id for document in read_documents(tmp_path)[0]}) == 6


def test_bad_rows_are_rejected_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"data": "good"}\n{"data": 5}\n{"other": "a"}\n[1]\nbroken\n{"text": " "}\n{"text": "\\ud83d x"}\n'
    )
    documents, rejected = read_documents(path)
    assert [document.text for document in documents] == ["good"]
    assert [row.reason for row in rejected] == ["malformed_row"] * 4 + ["empty", "encoding"]
    assert all(f"{path}, row {number}: " in row.detail for number, row in enumerate(rejected, start=2))
    assert "it has: other" in rejected[1].detail


def test_every_file_of_a_folder_is_read_or_rejected(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".git").mkdir(parents=True)
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "sub" / "a.md").write_text("a")
    (tmp_path / "sub" / ".git" / "c.txt").write_text("hidden")
    (tmp_path / "gb.txt").write_bytes(f"line\n{CHINESE}".encode("gb18030"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "zero.txt").write_bytes(b"a\0b")
    (tmp_path / "torn.json").write_text("[1,")
    (tmp_path / "torn.parquet").write_text("no")
    (tmp_path / "empty.txt").write_text(" \n")
    documents, rejected = read_documents(tmp_path)
    assert [document.text for document in documents] == ["b", "a"]
    reasons = {row.detail.split(":")[0].rsplit("/", 1)[1]: row.reason for row in rejected}
    assert reasons == {
        "empty.txt": "empty",
        "gb.txt": "encoding",
        "picture.png": "unknown_format",
        "torn.json, row 1": "malformed_row",
        "torn.json": "unreadable",
        "torn.parquet": "unreadable",
        "zero.txt": "binary",
    }
    (encoding,) = [row.detail for row in rejected if row.reason == "encoding"]
    assert "line 2, byte 5: 0xc8 is not utf-8" in encoding and "gb18030" in encoding


def test_no_text_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(DataError, match="0 files or rows"):
        read_documents(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match=r"a\.txt: line 1, byte 0: 0xff is not utf-8"):
        read_documents(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="no encoding 'utf8x'"):
        read_documents(tmp_path / "a.txt", "utf8x")


@pytest.mark.parametrize(("name", "module"), [("a.html", "selectolax.lexbor"), ("a.pdf", "pypdf")])
def test_a_missing_extra_is_named(name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_text("<p>a</p>")
    with pytest.raises(MissingExtra, match="synth"):
        read_documents(tmp_path)


# --- chunks -----------------------------------------------------------------------------------------------


def check(text: str, made: list[Chunk]) -> None:
    """Chunks match their offsets, are in order, and together cover the text."""
    assert bool(made) == bool(text.strip())
    end = 0
    for number, chunk in enumerate(made):
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.start <= end < chunk.end
        assert number == 0 or chunk.start > made[number - 1].start
        end = chunk.end
    assert not made or (made[0].start == 0 and end == len(text))


prose = st.lists(
    st.sampled_from(["word ", "Word. ", "Wow! ", "Mr. Fox ", "\n", "\n\n", "句子。", "汉字", "，", " ", "x" * 30, "é"]),
    max_size=80,
).map("".join)


@given(
    prose | st.text(max_size=200),
    st.integers(1, 12),
    st.integers(0, 20),
    st.integers(0, 11),
    st.sampled_from([0, 1, 2]),
)
def test_chunks_cover_the_whole_text(text: str, least: int, more: int, overlap: int, counter: int) -> None:
    count = [len, words, approximate_tokens][counter]
    most = least + more
    made = chunks(text, least, most, min(overlap, least - 1), count, "here")
    check(text, made)
    for chunk in made:
        assert chunk.tokens == count(chunk.text)
        assert chunk.tokens <= most or len(chunk.text) == 1
        assert chunk.source == "here"
    assert chunks(text, least, most, min(overlap, least - 1), count, "here") == made


@given(prose, st.integers(1, 5))
def test_the_upper_limit_holds_for_counters_that_do_not_add_up(text: str, bias: int) -> None:
    made = chunks(text, 10, 20, 3, lambda part: len(part) + bias * (len(part) > 7))
    check(text, made)
    assert all(chunk.tokens <= 20 for chunk in made)


@given(prose, st.integers(1, 40), st.integers(1, 40))
def test_all_but_the_last_are_long_enough_when_characters_are_counted(text: str, least: int, more: int) -> None:
    made = chunks(text, least, least + more, 0, len)
    assert all(least <= chunk.tokens for chunk in made[:-1])
    assert all(first.end == second.start for first, second in itertools.pairwise(made))


def test_chunks_end_with_a_paragraph_or_else_a_sentence() -> None:
    paragraphs = [" ".join([f"{'Word ' * 7}end."] * 5) for _ in range(6)]
    made = chunks("\n\n".join(paragraphs), 60, 100, 0, words)
    assert [chunk.text.strip() for chunk in made] == ["\n\n".join(paragraphs[at : at + 2]) for at in (0, 2, 4)]
    made = chunks(" ".join(paragraphs), 60, 100, 10, words)
    assert all(chunk.text.rstrip().endswith("end.") for chunk in made)
    assert all(second.start < first.end for first, second in itertools.pairwise(made))
    assert all(words(first.text[second.start - first.start :]) <= 10 for first, second in itertools.pairwise(made))


def test_chinese_sentences_are_kept_whole() -> None:
    made = chunks(CHINESE * 40, 100, 150, 20)
    check(CHINESE * 40, made)
    assert len(made) > 5
    assert all(chunk.text[-1] in "。！？" and chunk.text[0] in "人它你" for chunk in made)


def test_a_very_long_word_is_cut() -> None:
    text = "x" * 10_000
    made = chunks(text, 80, 100, 10)
    check(text, made)
    assert all(chunk.tokens <= 100 for chunk in made) and len(made) < 60


def test_limits_are_checked() -> None:
    for least, most, overlap in ((0, 5, 0), (6, 5, 0), (5, 6, 5), (5, 6, -1)):
        with pytest.raises(ValueError, match="chunks need"):
            chunks("a", least, most, overlap)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["a", " ", "\n", "a. ", "a\n \n", ". ", "，", "。"])
def test_a_megabyte_of_anything_is_cut_quickly(part: str) -> None:
    text = "x" + part * (1_000_000 // len(part))
    check(text, chunks(text))


def test_real_passages(corpus: Path, own_data: Path) -> None:
    documents, rejected = read_documents(corpus / "passages.jsonl")
    assert len(documents) == (24 if corpus == own_data else 200) and not rejected
    text = "\n\n".join(document.text for document in documents)
    made = chunks(text)
    check(text, made)
    assert len(made) > 2
    assert all(800 <= chunk.tokens <= 1500 for chunk in made[:-1])
