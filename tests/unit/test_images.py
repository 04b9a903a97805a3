"""Images: which are read, as what copy, from where; what a row's images change and what they leave as it is."""

from __future__ import annotations

import base64
import json
import socket
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.pictures import BLUE, GREEN, RED, data_url, encoded, opened, picture

from easydistill.config.dataset import RowsConfig
from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import request_key
from easydistill.data.images import ImageReader, ImageStore, fetching
from easydistill.data.images.normalise import ImageProblem, inspect, normalise
from easydistill.data.images.sources import SourceRecord, changed_sources
from easydistill.data.images.store import MARKER, digest_of, scaled_down, stored_digest
from easydistill.data.messages import Message, images_of, says_something, tagged_text, text_of
from easydistill.data.plain import without_base64
from easydistill.data.preferences import read_pairs
from easydistill.data.reading import Reading, read_rows
from easydistill.data.records import Sample, split_heldout
from easydistill.data.row_files import rows_of
from easydistill.data.row_files.broken import MalformedRow
from easydistill.data.writing import write_pairs_json, write_pairs_parquet, write_paper_json, write_parquet
from easydistill.errors import DataError
from easydistill.teachers.sizes import IMAGE_BYTES, chat_bytes

ANSWER: Message = {"role": "assistant", "content": "A spider."}


def asked(*parts: str) -> Message:
    """The user's message of these parts: texts, and digests."""
    content: list[Any] = [
        {"type": "image", "image": part} if part.startswith("sha256:") else {"type": "text", "text": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def read(folder: Path, *rows: Any, name: str = "rows.json", labelled: bool | None = None, **dataset: Any) -> Reading:
    (folder / name).write_text(json.dumps(list(rows)))
    config = RowsConfig(**dataset)
    reader = ImageReader.of(config, ImageStore(folder / "run" / "images"))
    return read_rows(folder / name, labelled=labelled, columns=config.column_names, images=reader)


def only(folder: Path, row: Any, **dataset: Any) -> Sample:
    found = read(folder, row, **dataset)
    assert not found.rejected, found.rejected
    (sample,) = found.samples
    return sample


def refused(folder: Path, row: Any, **dataset: Any) -> tuple[str, str]:
    """(reason, what is said) of a row that is refused beside a good one."""
    found = read(folder, {"instruction": "Say yes.", "output": "Yes."}, row, **dataset)
    (rejection,) = found.rejected
    return rejection.reason, rejection.detail


# --- the copy that everybody looks at ---------------------------------------------------------------------------


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    halves = Image.new("RGB", (40, 20), RED)
    halves.paste(BLUE, (0, 0, 20, 20))
    return encoded(halves, "JPEG", exif=exif, quality=95)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_plain_image_keeps_its_bytes(kind: str) -> None:
    data = picture(RED, kind=kind)
    assert normalise(data).data == data


def close(colour: Any, to: tuple[int, int, int]) -> bool:
    return all(abs(one - other) <= 8 for one, other in zip(colour, to, strict=True))


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"), RED),
        (encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0))), (255, 255, 255)),
        (encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128))), (255, 127, 127)),
        (encoded(Image.new("LA", (4, 4), (0, 0))), (255, 255, 255)),
        (encoded(Image.new("L", (4, 4), 9)), (9, 9, 9)),
        (encoded(Image.new("1", (4, 4), 1)), (255, 255, 255)),
        (encoded(Image.new("I;16", (4, 4), 257 * 77)), (77, 77, 77)),
        (encoded(Image.new("P", (4, 4), 0), transparency=0), (255, 255, 255)),
        (
            encoded(
                Image.new("RGB", (4, 4), GREEN), "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), RED)]
            ),
            GREEN,
        ),
        (
            encoded(Image.new("RGB", (4, 4), GREEN), save_all=True, append_images=[Image.new("RGB", (4, 4), RED)]),
            GREEN,
        ),
    ],
    ids=["cmyk", "transparent", "half transparent", "grey", "bw", "1 bit", "16 bits", "palette", "gif", "apng"],
)
def test_another_image_becomes_rgb_without_loss(data: bytes, colour: tuple[int, int, int]) -> None:
    made = normalise(data)
    image = opened(made.data)
    assert (image.format, image.mode, made.suffix) == ("PNG", "RGB", ".png") and getattr(image, "n_frames", 1) == 1
    assert close(image.getpixel((1, 1)), colour)
    # Once more, it is what it is.
    assert normalise(made.data).data == made.data


def test_a_photograph_is_turned_upright() -> None:
    made = normalise(rotated())
    image = opened(made.data)
    assert image.size == (20, 40) == (made.width, made.height) and not image.getexif()
    assert close(image.getpixel((10, 5)), BLUE) and close(image.getpixel((10, 35)), RED)


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes with side² pixels."""
    head = side.to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"
    lines = zlib.compress(bytes((side // 8 + 1) * 16))

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


NOISE = encoded(Image.effect_noise((300, 300), 60), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "image_format", "an SVG drawing"),
        (b"<svg/>", "image_format", "an SVG drawing"),
        (encoded(Image.new("RGB", (2, 2)), "BMP"), "image_format", "a BMP"),
        (encoded(Image.new("RGB", (2, 2)), "TIFF"), "image_format", "a TIFF"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "image_format", "a HEIC"),
        (b"%PDF-1.7", "image_format", "a PDF"),
        (b"hello", "image_format", "no image"),
        (b"", "image_unreadable", "empty"),
        (NOISE[: len(NOISE) // 2], "image_unreadable", "cut off"),
        (encoded(Image.effect_noise((300, 300), 60))[:-3000], "image_unreadable", "cut off"),
        (bomb(8_000), "image_too_large", "8000×8000"),
        (bomb(60_000), "image_too_large", "far more"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_image_that_cannot_be_used_is_refused_by_name(data: bytes, reason: str, words: str) -> None:
    with pytest.raises(ImageProblem, match=words) as problem:
        normalise(data)
    assert problem.value.reason == reason


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageProblem, match="pixels"):
        inspect(bomb(8_000))
    # Only what the beginning tells is looked at.
    inspect(NOISE[: len(NOISE) // 2])


def test_scaling_down_keeps_the_shape() -> None:
    data = picture(RED, (400, 100))
    assert scaled_down(data, 40_000) is None
    made = opened(scaled_down(data, 10_000) or b"")
    assert made.size == (200, 50) and made.getpixel((0, 0)) == RED
    assert opened(scaled_down(picture(RED, (1000, 1)), 10) or b"").size[0] <= 10


# --- where images may come from ---------------------------------------------------------------------------------


SOURCES = {
    "path": "a.png",
    "file address": "file:a.png",
    "data URL": data_url(picture()),
    "bytes": {"bytes": base64.b64encode(picture()).decode(), "path": None},
    "path beside bytes": {"bytes": None, "path": "a.png"},
    "data URL in an object": {"url": data_url(picture()), "detail": "low"},
    "base 64": base64.b64encode(picture(RED, (60, 40))).decode(),
    "address object": {"url": "a.png"},
}


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "file address"])
def test_what_a_row_holds_of_an_image_is_read(source: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    held = SOURCES[source]
    sample = only(tmp_path, {"instruction": "What?", "output": "Red.", "images": [held]})
    (digest,) = sample.images
    assert digest == digest_of(picture(RED, (60, 40)) if source == "base 64" else picture())
    assert sample.messages[0] == asked(digest, "What?") and "images" not in sample.meta


def test_bytes_of_a_table_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    row = {"question": "What?", "answer": "Red.", "image": {"bytes": picture(), "path": "somewhere.png"}}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    reader = ImageReader(ImageStore(tmp_path / "store"))
    (sample,) = read_rows(tmp_path / "rows.parquet", labelled=True, images=reader).samples
    assert sample.images == (digest_of(picture()),)
    assert opened(ImageStore(tmp_path / "store").path(sample.images[0]).read_bytes()).getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("../secret.png", "image_outside"),
        ("/etc/hostname", "image_outside"),
        ("link.png", "image_outside"),
        ("folder/../../secret.png", "image_outside"),
        ("absent.png", "image_missing"),
        ("folder", "image_missing"),
        ("http://example.org/a.png?key=abc", "image_remote"),
        ("https://example.org/a.png", "image_remote"),
        ("ftp://example.org/a.png", "image_remote"),
        ("data:image/png;base64,!!!", "image_unreadable"),
        ("data:image/svg+xml,%3Csvg/%3E", "image_format"),
        ("a\x00b.png", "image_unreadable"),
        (5, "image_unreadable"),
        ({"id": 3}, "image_unreadable"),
    ],
)
def test_other_sources_are_refused_by_name(source: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    data = tmp_path / "data"
    (data / "folder").mkdir(parents=True)
    (data / "link.png").symlink_to(tmp_path / "secret.png")
    found, said = refused(data, {"instruction": "What?", "images": [source]})
    assert found == reason
    assert "key=abc" not in said and "!!!" not in said


def test_image_folder_is_where_paths_begin(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture())
    (tmp_path / "data").mkdir()
    row = {"instruction": "What?", "images": ["a.png"]}
    assert refused(tmp_path / "data", row)[0] == "image_missing"
    sample = only(tmp_path / "data", row, image_folder=str(tmp_path / "pictures"))
    assert sample.images == (digest_of(picture()),)


def test_a_folder_of_images_may_be_named_from_anywhere_but_not_any_folder(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "old" / "images")
    digest = store.add(encoded(Image.new("L", (3, 3), 8)))
    (tmp_path / "data").mkdir()
    row = {"instruction": "What?", "images": [f"../old/images/{store.path(digest).name}"]}
    sample = only(tmp_path / "data", row)
    # The digest of what was given, not of the copy, which is PNG in RGB.
    assert sample.images == (digest,)
    assert ImageStore(tmp_path / "data" / "run" / "images").path(digest).read_bytes() == store.path(digest).read_bytes()
    (tmp_path / "old" / "images" / MARKER).unlink()
    assert refused(tmp_path / "data", row)[0] == "image_outside"
    assert stored_digest(store.path(digest)) is None


def test_a_folder_of_images_that_came_with_foreign_rows_is_not_trusted(tmp_path: Path) -> None:
    """It may hold a bomb, or what is no normalised copy, under a name of ours."""
    images = tmp_path / "images"
    store = ImageStore(images)
    store.add(picture(RED))
    names = {name: images / f"{letter * 64}.png" for name, letter in (("bomb", "a"), ("grey", "b"), ("cut", "c"))}
    names["bomb"].write_bytes(bomb(8_000))
    names["grey"].write_bytes(encoded(Image.new("L", (3, 3), 8)))
    names["cut"].write_bytes(encoded(Image.effect_noise((90, 90), 60).convert("RGB"))[:-3000])
    rows = {name: {"instruction": "What?", "images": [f"images/{path.name}"]} for name, path in names.items()}
    assert refused(tmp_path, rows["bomb"])[0] == "image_too_large"
    assert refused(tmp_path, rows["cut"])[0] == "image_unreadable"
    assert only(tmp_path, rows["grey"]).images == (digest_of(names["grey"].read_bytes()),)


def test_a_reader_that_no_one_gave_images_refuses_them(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": "What?", "images": ["a.png"]}]))
    with pytest.raises(DataError, match="the row has an image; images are not read here: remove the row"):
        read_rows(tmp_path / "rows.json", labelled=None)


def test_rejected_rows_hold_no_base64(tmp_path: Path) -> None:
    large = data_url(encoded(Image.effect_noise((40, 40), 90)))
    row = {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": large}}]}]}
    found = read(tmp_path, {"instruction": "Say yes."}, row)
    (rejection,) = found.rejected
    assert rejection.reason == "image_place"
    written = json.dumps(rejection.as_row())
    assert large[40:80] not in written and "data:image/png;base64,[" in written


def test_a_data_url_without_its_beginning_is_not_shown_either(tmp_path: Path) -> None:
    """It is taken for a path; small icons are not longer than paths."""
    url = data_url(picture(RED, (2, 2))).removeprefix("data:")
    found = read(tmp_path, {"instruction": "Say yes."}, {"instruction": "What?", "images": [url]})
    (rejection,) = found.rejected
    assert rejection.reason == "image_missing" and len(url) < 200
    written = json.dumps(rejection.as_row())
    assert url[20:50] not in written and "image/png;base64,[" in written


def test_texts_without_images_are_not_shortened() -> None:
    for text in ("a", "x" * 500, "base64, please", "data:text/plain,hello" * 20, "iVBORw0KGgo short"):
        assert without_base64(text) == text
    echoed = f'bad request: {{"url": "{data_url(picture(RED, (50, 50)))}"}} is no image'
    assert without_base64(echoed).startswith('bad request: {"url": "data:image/png;base64,[')
    assert without_base64(echoed).endswith('characters]"} is no image')


# --- from the network -------------------------------------------------------------------------------------------


@pytest.fixture
def web() -> Iterator[Any]:
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.headers['Host']}{self.path}")
            status, head, body = {
                "/a.png": (200, {}, picture()),
                "/moved": (302, {"Location": "/a.png"}, b""),
                "/loop": (302, {"Location": "/loop"}, b""),
                "/large": (200, {}, bytes(3000)),
            }.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in head.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.seen = seen  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()


def test_an_address_is_fetched_once_where_the_config_asks(
    web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda address: True)
    host = f"localhost:{web.server_address[1]}"
    row = {"instruction": "What?", "images": [f"http://{host}/moved"]}
    for _ in range(2):
        assert only(tmp_path, row, fetch_images=True).images == (digest_of(picture()),)
    assert web.seen == [f"{host}/moved", f"{host}/a.png"]
    for path, reason in (("/absent", "image_not_fetched"), ("/loop", "image_not_fetched"), ("/large", "image_format")):
        gone = {"instruction": "What?", "images": [f"http://{host}{path}"]}
        assert refused(tmp_path, gone, fetch_images=True)[0] == reason
    monkeypatch.setattr(fetching, "MOST_BYTES", 1000)
    large = {"instruction": "What?", "images": [f"http://{host}/large"]}
    assert refused(tmp_path, large, fetch_images=True)[0] == "image_too_large"


def test_a_line_that_a_kill_has_torn_costs_one_fetch_at_most(
    web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda address: True)
    first, torn = (f"http://localhost:{web.server_address[1]}/{name}" for name in ("a.png", "moved"))
    store = ImageStore(tmp_path)
    for address in (first, torn):
        fetching.Fetcher(store).digest(address)
    known = tmp_path / "fetched.jsonl"
    known.write_bytes(known.read_bytes()[:-20])
    web.seen.clear()
    for _ in range(3):
        # A resumed run.
        fetcher = fetching.Fetcher(store)
        assert fetcher.digest(torn) == fetcher.digest(first) == digest_of(picture())
    assert len(web.seen) == 2, "the torn one, with the address that it leads to, once more"
    assert len(known.read_text().splitlines()) == 2


def test_nothing_is_fetched_from_this_machine_or_its_network(
    web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"instruction": "What?", "images": [f"http://localhost:{web.server_address[1]}/a.png"]}
    reason, said = refused(tmp_path, row, fetch_images=True)
    assert reason == "image_not_fetched" and "of this machine or its network" in said and not web.seen
    # One private address among public ones is enough.
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 80)) for host in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(ImageProblem, match="from which nothing is fetched"):
        fetching.fetched("http://example.org/a.png")
    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:127.0.0.1", "224.0.0.1"):
        assert not fetching.is_public(address)
    assert fetching.is_public("8.8.8.8") and fetching.is_public("2001:4860:4860::8888")


# --- rows -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "r.png").write_bytes(picture(RED))
    (tmp_path / "g.png").write_bytes(picture(GREEN))
    return tmp_path


R, G = digest_of(picture(RED)), digest_of(picture(GREEN))
URL = {"type": "image_url", "image_url": {"url": "r.png"}}
BARE = {"type": "image_url", "image_url": "r.png"}


def user(content: Any, **row: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A spider."}], **row}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (user([{"type": "text", "text": "What?"}, URL]), asked("What?", R)),
        (user([BARE, {"type": "text", "text": "What?"}]), asked(R, "What?")),
        (user([{"type": "input_image", "image_url": "r.png"}, {"type": "input_text", "text": "?"}]), asked(R, "?")),
        (user([{"image": "r.png"}, {"text": "What?"}]), asked(R, "What?")),
        (user([{"type": "image", "image": "r.png"}, {"type": "text", "text": "What?"}]), asked(R, "What?")),
        (
            user([{"type": "image", "source": {"type": "base64", "data": base64.b64encode(picture()).decode()}}, "?"]),
            asked(R, "?"),
        ),
        (user([{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}], images=["r.png", "g.png"]), asked(R, "and", G)),
        (user([{"type": "image"}, {"type": "text", "text": "?"}], image={"path": "g.png", "bytes": None}), asked(G, "?")),
        (user("<image>What?", images="r.png"), asked(R, "What?")),
        (user("One <image>\nand two <image>", images=["r.png", "g.png"]), asked("One ", R, "and two ", G)),
        (user("What?\n<image>", images=["r.png"]), asked("What?", R)),
        (user("What?", images=["g.png", "r.png"]), asked(G, R, "What?")),
        ({"image": "r.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A spider."}]}, asked(R, "What?")),
        ({"instruction": "<image>", "images": '["r.png"]', "output": "A spider."}, asked(R)),
        ({"query": "What?", "response": "A spider.", "image_path": "r.png"}, asked(R, "What?")),
        ({"problem": "<image>What?", "images": [{"bytes": base64.b64encode(picture()).decode()}], "answer": "A spider."}, asked(R, "What?")),
    ],
)  # fmt: skip
def test_each_shape_of_row_is_read(row: Any, message: Message, folder: Path) -> None:
    sample = only(folder, row)
    assert sample.messages == (message, ANSWER)
    (prompt,) = read(folder, row, labelled=False).samples
    assert prompt.messages == (message,)
    assert not {"image", "images", "image_path"} & sample.meta.keys()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (user([{"type": "image"}, {"type": "text", "text": "What?"}]), "image_count"),
        (user([{"type": "image"}, {"type": "image"}], images=["r.png"]), "image_count"),
        (user("<image> <image>", images=["r.png"]), "image_count"),
        (user("<image>", images=["r.png", "g.png"]), "image_count"),
        (user("<image>What?", images=[]), "image_count"),
        (user([{"type": "text", "text": "The tag <image>"}, URL]), "image_count"),
        (user("What?", images=["r.png", ""]), "image_count"),
        (user("What?", images=["r.png", None]), "image_count"),
        ({"image_1": {"bytes": "AAAA"}, "question": "What?", "answer": "A."}, "image_count"),
        ({"instruction": "<image>", "output": "Behold: <image>", "images": ["r.png"]}, "image_place"),
        ({"messages": [{"role": "system", "content": [URL]}, {"role": "user", "content": "?"}]}, "image_place"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": [URL]}]}, "image_place"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "tool", "content": [URL]}, {"role": "user", "content": "?"}]}, "image_place"),
        ({"messages": [{"role": "user", "content": "?", "images": ["r.png"]}]}, "image_place"),
        (user([{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "?"}]), "video_not_supported"),
        (user([{"video": "a.mp4", "fps": 1.0}, {"text": "?"}]), "video_not_supported"),
        (user([{"type": "video_url", "video_url": {"url": "a.mp4"}}]), "video_not_supported"),
        (user("<video>What?", videos=["a.mp4"]), "video_not_supported"),
        (user([{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]), "audio_not_supported"),
        (user("<audio>What?", audios=["a.wav"]), "audio_not_supported"),
        (user([{"type": "file", "file": {"file_id": "x"}}]), "file_not_supported"),
    ],
)  # fmt: skip
def test_each_shape_of_row_has_its_named_rejection(row: Any, reason: str, folder: Path) -> None:
    found, said = refused(folder, row)
    assert found == reason, said


def test_a_named_column_holds_the_images(folder: Path) -> None:
    row = {"frage": "What?", "bild": "r.png", "antwort": "A spider."}
    sample = only(folder, row, columns={"prompt": "frage", "images": "bild", "answer": "antwort"})
    assert sample.messages == (asked(R, "What?"), ANSWER)


def test_a_chat_of_several_turns_shows_images_where_their_tags_are(folder: Path) -> None:
    turns = [("user", "<image>What?"), ("assistant", "Red."), ("user", "And <image>?"), ("assistant", "Green.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns], "images": ["r.png", "g.png"]}
    sample = only(folder, row)
    assert [images_of(message) for message in sample.messages] == [(R,), (), (G,), ()]
    assert sample.messages[2] == asked("And ", G, "?") and sample.prompt == sample.messages[:3]


PAIRS: list[dict[str, Any]] = [
    {"prompt": "<image>What?", "chosen": "Red.", "rejected": "Blue.", "images": ["r.png"]},
    {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}], "chosen": [{"role": "assistant", "content": "Red."}], "rejected": [{"role": "assistant", "content": "Blue."}], "images": ["r.png"]},
    {"chosen": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Red."}], "rejected": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Blue."}], "images": ["r.png"]},
    {"prompt": "<image>What?", "chosen": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Red."}], "rejected": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Blue."}], "images": ["r.png"]},
    {"chosen": [{"role": "user", "content": [URL, {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "Red."}], "rejected": [{"role": "user", "content": [URL, {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "Blue."}]},
    {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Red."}], "rejected_response": "Blue.", "images": ["r.png"]},
    {"question": "What?", "image": "r.png", "chosen": "Red.", "rejected": "Blue."},
]  # fmt: skip


@pytest.mark.parametrize("row", PAIRS)
def test_pairs_with_images_are_read_and_written(row: Any, folder: Path) -> None:
    (folder / "pairs.json").write_text(json.dumps([row]))
    store = ImageStore(folder / "run" / "images")
    found = read_pairs(folder / "pairs.json", images=ImageReader(store))
    (pair,) = found.pairs
    assert pair.prompt == (asked(R, "What?"),) and pair.images == (R,) and not found.notices
    assert (text_of(pair.chosen[0]), text_of(pair.rejected[0])) == ("Red.", "Blue.")
    for name, write in (("out.json", write_pairs_json), ("out.parquet", write_pairs_parquet)):
        write(folder / "made" / name, [pair], store)
        (again,) = read_pairs(folder / "made" / name, images=ImageReader(store)).pairs
        assert again == pair


def test_a_pair_whose_answer_has_a_tag_is_refused(folder: Path) -> None:
    rows = [PAIRS[0], {**PAIRS[0], "rejected": "<image>"}]
    (folder / "pairs.json").write_text(json.dumps(rows))
    found = read_pairs(folder / "pairs.json", images=ImageReader(ImageStore(folder / "images")))
    assert [each.reason for each in found.rejected] == ["image_place"]


# --- writing ----------------------------------------------------------------------------------------------------


CONTENTS = [
    ("", [R]),
    ("x", [R, "What?"]),
    ("x", ["What?", R]),
    ("x", [R, G]),
    ("x", [R, "\nWhat?\n", G]),
    ("x", ["a\n", R, "\n\nb\n", G, "\n"]),
    ("x", [R, " ", G, "c", R]),
]


@pytest.mark.parametrize("name", ["out.json", "out.parquet"])
@pytest.mark.parametrize("rich", [False, True])
def test_what_is_written_is_read_again(name: str, rich: bool, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "run" / "images")
    for colour in (RED, GREEN):
        store.add(picture(colour))
    tools = ({"type": "function", "function": {"name": "look"}},) if rich else ()
    samples = [
        Sample(f"r{number}", (asked(*parts), ANSWER), {"k": number}, tools=tools)
        for number, (_, parts) in enumerate(CONTENTS)
    ]
    samples.append(Sample("text", ({"role": "user", "content": "The tag <image>?"}, ANSWER), {"k": 99}, tools=tools))
    samples.append(Sample("turns", (asked(R, "a"), ANSWER, asked(G), ANSWER), {"k": 100}, tools=tools))
    path = tmp_path / "run" / "stages" / "1-label" / name
    write = write_paper_json if name.endswith("json") else write_parquet
    write(path, samples, store)
    found = read_rows(path, labelled=True, images=ImageReader(ImageStore(tmp_path / "run" / "images")))
    assert not found.rejected
    assert [(one.id, one.messages, one.tools, one.meta["k"]) for one in found.samples] == [
        (one.id, one.messages, one.tools, one.meta["k"]) for one in samples
    ]
    first = next(iter(rows_of(path)))
    assert first["images"] == [f"../../images/{R.removeprefix('sha256:')}.png"]
    if name.endswith("parquet"):
        assert first["messages"][0]["content"] == "<image>" and first["messages"][0]["parts"] == [{"type": "image"}]


def test_other_tools_find_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` opens the column of paths, and a template of a processor takes the parts."""
    import datasets

    store = ImageStore(tmp_path / "images")
    store.add(picture(RED))
    write_parquet(tmp_path / "out.parquet", [Sample("a", (asked(R, "What?"), ANSWER))], store)
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "out.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    monkeypatch.chdir(tmp_path)
    rows = rows.cast_column("images", datasets.List(datasets.Image()))
    assert rows[0]["images"][0].convert("RGB").getpixel((0, 0)) == RED
    assert rows[0]["messages"][0]["parts"] == [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]


# --- what images change, and what they do not -------------------------------------------------------------------


TEXT: Message = {"role": "user", "content": "Why is the sky blue?"}
TEACHER, SAMPLING = {"base_url": "http://x/v1", "model": "m"}, {"max_new_tokens": 8}


def test_rows_of_text_keep_their_ids_and_keys(tmp_path: Path) -> None:
    """Recorded before rows could have images."""
    sample = only(tmp_path, {"instruction": "Why is the sky blue?", "output": "Scattering."})
    assert sample.messages == (TEXT, {"role": "assistant", "content": "Scattering."})
    assert sample.id == "d8d195430db61249"
    assert sample.prompt_hash == "86a3490dd079540c867e716f22f87dfbb88e76f0377c1a62629edb4fb764967d"
    assert request_key(TEACHER, SAMPLING, (TEXT,)) == "e788c0430d625480b2a58b3d73775c3c"
    assert request_key(TEACHER, SAMPLING, (TEXT,), image={"max_pixels": 9}) == "e788c0430d625480b2a58b3d73775c3c"
    plain = ApiInferenceConfig(base_url="http://x/v1", model="m")
    asking = ApiInferenceConfig(base_url="http://x/v1", model="m", image={"max_pixels": 9, "detail": "low"})
    assert plain.sampling() == asking.sampling() and not plain.image_identity()
    assert asking.image_identity() == {"max_pixels": 9, "detail": "low"}


def test_the_same_bytes_under_two_paths_are_one_request(folder: Path) -> None:
    (folder / "copy").mkdir()
    (folder / "copy" / "other.png").write_bytes(picture(RED))
    pixel = Image.new("RGB", (6, 4), RED)
    pixel.putpixel((3, 2), (254, 0, 0))
    (folder / "pixel.png").write_bytes(encoded(pixel))
    rows = [{"instruction": "What?", "images": [name]} for name in ("r.png", "copy/other.png", "pixel.png")]
    one, other, changed = read(folder, *rows).samples
    keys = [request_key(TEACHER, SAMPLING, sample) for sample in (one, other, changed)]
    assert one.messages == other.messages and one.prompt_hash == other.prompt_hash and keys[0] == keys[1]
    assert changed.id != one.id and changed.prompt_hash != one.prompt_hash and keys[2] != keys[0]


def test_how_images_are_sent_is_part_of_the_key() -> None:
    ways: list[dict[str, Any]] = [{}, {"max_pixels": 10}, {"detail": "low"}]
    assert len({request_key(TEACHER, SAMPLING, (asked(R),), image=way) for way in ways}) == 3


def test_rows_that_share_an_image_stay_on_one_side() -> None:
    """Also through others: A and B share one image, B and C another."""
    colours = [f"sha256:{number:064x}" for number in range(60)]
    rows = [Sample(f"{n}", (asked(colours[n], colours[n + 1], f"q{n}"), ANSWER)) for n in range(59) if n % 3 != 2]
    train, heldout = split_heldout(rows, 10, 7)
    held = {image for row in heldout for image in row.images}
    assert 10 <= len(heldout) <= 11 and train and not held & {image for row in train for image in row.images}
    alone = [Sample(f"{n}", ({"role": "user", "content": f"q{n}"}, ANSWER)) for n in range(40)]
    mixed_train, mixed = split_heldout([*alone, rows[0]], 10, 7)
    # Rows of text are drawn as they were without the others.
    assert {row.id for row in mixed} >= {row.id for row in split_heldout(alone, 9, 7)[1]} and mixed_train


def test_many_rows_that_share_an_image_are_not_held_out_for_a_few() -> None:
    """Whichever is drawn first: there would be nothing left to learn from."""
    chain = [f"sha256:{number:064x}" for number in range(101)]
    joined = [Sample(f"i{n}", (asked(chain[n], chain[n + 1], f"q{n}"), ANSWER)) for n in range(100)]
    alone = [Sample(f"t{n}", ({"role": "user", "content": f"q{n}"}, ANSWER)) for n in range(10)]
    for seed in range(8):
        train, heldout = split_heldout([*joined, *alone], 4, seed)
        assert {row.id for row in train} >= {row.id for row in joined} and len(heldout) == 4


@pytest.mark.parametrize("seed", range(4))
def test_of_rows_that_all_share_images_the_fewest_are_held_out(seed: int) -> None:
    sizes = (30, 5, 20)
    rows = [
        Sample(f"{image}-{n}", (asked(f"sha256:{image:064x}", f"q{n}"), ANSWER))
        for image, size in enumerate(sizes)
        for n in range(size)
    ]
    train, heldout = split_heldout(rows, 2, seed)
    assert {row.images for row in heldout} == {(f"sha256:{1:064x}",)} and len(train) == 50
    assert split_heldout(rows[:30], 2, seed)[1] == [] == split_heldout(rows, 0, seed)[1]


def test_texts_and_sizes_of_messages_with_images() -> None:
    message = asked("a", R, "b")
    assert text_of(message) == "ab" and tagged_text(message) == "a<image>b" and says_something(asked(R))
    assert chat_bytes([message]) == 2 + IMAGE_BYTES and chat_bytes([TEXT]) == len(text_of(TEXT))


def test_a_changed_image_file_is_noticed(folder: Path) -> None:
    record = SourceRecord()
    reader = ImageReader(ImageStore(folder / "images"), record=record)
    for name in ("r.png", "g.png"):
        reader.digest(name, folder)
    record.write(folder)
    assert changed_sources(folder) == []
    # Written again with the same content, it is the same.
    (folder / "r.png").write_bytes(picture(RED))
    assert changed_sources(folder) == []
    (folder / "r.png").write_bytes(picture(BLUE))
    (folder / "g.png").unlink()
    assert [Path(name).name for name in changed_sources(folder)] == ["r.png", "g.png"]
    SourceRecord().write(folder)
    assert changed_sources(folder) == []


def test_files_for_whose_sake_rows_were_rejected_are_looked_at_again(folder: Path) -> None:
    """Once they are there, or others, the rows are read; until then a finished stage is finished."""
    (folder / "broken.png").write_bytes(picture(RED, (60, 40))[:70])
    (folder / "directory.png").mkdir()
    record = SourceRecord()
    reader = ImageReader(ImageStore(folder / "images"), record=record)
    for name in ("missing.png", "broken.png", "directory.png", "image/png;base64,iVBORw0KGgoAAAA", "bad\0name.png"):
        with pytest.raises(MalformedRow):
            reader.digest(name, folder)
    record.write(folder)
    assert changed_sources(folder) == [] and "base64" not in (folder / "image_sources.json").read_text()
    (folder / "broken.png").write_bytes(picture(RED, (60, 40)))
    assert [Path(name).name for name in changed_sources(folder)] == ["broken.png"]
    (folder / "missing.png").write_bytes(picture(GREEN))
    assert [Path(name).name for name in changed_sources(folder)] == ["missing.png", "broken.png"]
