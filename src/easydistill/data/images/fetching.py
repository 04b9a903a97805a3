"""Images from the network, where `dataset.fetch_images` asks for them.

Rows are foreign: an address may be that of a service of this machine or its network. So a name is resolved once, every
address that it has must be public, and the connection goes to the address that was checked. No proxy is used.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

from easydistill.data.images.normalise import MOST_BYTES, TOO_LARGE, ImageProblem
from easydistill.data.images.store import ImageStore

UNFETCHED = "image_not_fetched"
"""Reason for which rows with an image are rejected that the network did not give."""
SECONDS = 30.0
"""For an image as a whole."""
_SILENCE = 10.0
"""Seconds without a byte."""
_REDIRECTS = 3
_KNOWN = "fetched.jsonl"


class Fetcher:
    """Fetches images into a store, each address once in a run: a resumed run has the images that it had.

    Args:
        store: one with a folder.
    """

    def __init__(self, store: ImageStore) -> None:
        assert store.folder is not None
        self._store, self._path = store, store.folder / _KNOWN
        _cut_torn_line(self._path)
        self._known = dict(_noted(self._path))

    def digest(self, address: str) -> str:
        """The digest of the image at an address.

        Raises:
            ImageProblem: it cannot be had, or not be used.
        """
        name = hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()
        if name not in self._known:
            digest = self._store.add(fetched(address))
            self._known[name] = digest
            with self._path.open("a", encoding="utf-8") as handle:
                # The address may hold a key.
                handle.write(json.dumps({"address_sha256": name, "image": digest}) + "\n")
        return self._known[name]


def _cut_torn_line(path: Path) -> None:
    """Cut off what a kill has left after the last complete line: the next one would be appended to it."""
    if not path.is_file():
        return
    found = path.read_bytes()
    if not found.endswith(b"\n"):
        os.truncate(path, found.rfind(b"\n") + 1)


def _noted(path: Path) -> Iterator[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            found = json.loads(line)
            yield found["address_sha256"], found["image"]
        except (ValueError, KeyError, TypeError):
            # Lost blocks after a power cut.
            continue


def fetched(address: str) -> bytes:
    """The bytes at an address.

    Raises:
        ImageProblem: it cannot be had.
    """
    until = time.monotonic() + SECONDS
    try:
        with httpx2.Client(trust_env=False, follow_redirects=False, timeout=_SILENCE) as client:
            url = httpx2.URL(address)
            for _ in range(_REDIRECTS + 1):
                found = _answer(client, url, until)
                if isinstance(found, bytes):
                    return found
                url = found
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
        raise ImageProblem(UNFETCHED, f"the image could not be fetched: {type(error).__name__}") from None
    raise ImageProblem(UNFETCHED, f"the address leads to others more than {_REDIRECTS} times")


def _answer(client: httpx2.Client, url: httpx2.URL, until: float) -> bytes | httpx2.URL:
    """The bytes at an address, or the address that it leads to."""
    if url.scheme not in ("http", "https") or not url.host:
        raise ImageProblem(UNFETCHED, "only http and https addresses are fetched")
    headers = {"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}
    at = url.copy_with(host=_checked(url))
    with client.stream("GET", at, headers=headers, extensions={"sni_hostname": url.host}) as answer:
        if answer.is_redirect:
            return url.join(answer.headers["location"])
        if answer.status_code != httpx2.codes.OK:
            raise ImageProblem(UNFETCHED, f"the server says {answer.status_code}")
        data = bytearray()
        for block in answer.iter_raw():
            data += block
            if len(data) > MOST_BYTES:
                raise ImageProblem(TOO_LARGE, f"there are more than {MOST_BYTES:,} bytes at the address")
            if time.monotonic() > until:
                raise ImageProblem(UNFETCHED, f"it is not there after {SECONDS:g} seconds")
        return bytes(data)


def _checked(url: httpx2.URL) -> str:
    """A public address of a URL's host.

    Raises:
        ImageProblem: it has one that is not public.
        OSError: it has none.
    """
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)]
    if not found or not all(map(is_public, found)):
        raise ImageProblem(UNFETCHED, "the address is of this machine or its network, from which nothing is fetched")
    return found[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (mapped is None or mapped.is_global)
