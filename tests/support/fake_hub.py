"""A data set repository of the Hugging Face hub on a real socket, as far as uploading a folder needs one."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """One account's repositories. Files of Parquet go through the LFS protocol, as at the real hub.

    Args:
        token: the one that may write.
    """

    def __init__(self, token: str) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        """Path → bytes, as of the last commit."""
        self.commits = 0
        self.asked: list[str] = []
        self._objects: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self, status: int, value: Any = None, kind: str = "application/json") -> None:
                payload = json.dumps(value).encode() if value is not None else b""
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def _body(self) -> bytes:
                outer.asked.append(f"{self.command} {self.path}")
                if self.headers.get("Transfer-Encoding") == "chunked":
                    parts = []
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def _allowed(self) -> bool:
                if self.path.startswith("/objects/") or self.headers.get("Authorization") == f"Bearer {token}":
                    return True
                self._answer(401, {"error": "Invalid credentials in Authorization header"})
                return False

            def do_GET(self) -> None:
                self._body()
                if self._allowed():
                    entries = [{"type": "file", "path": path, "size": 1, "oid": "0"} for path in outer.files]
                    self._answer(200, entries if "/tree/" in self.path else {"id": "o/n", "sha": "0" * 40})

            def do_PUT(self) -> None:
                outer._objects[self.path.rpartition("/")[2]] = self._body()
                self._answer(200)

            def do_POST(self) -> None:
                body = self._body()
                if not self._allowed():
                    return
                if self.path == "/api/repos/create":
                    outer.created.append(json.loads(body))
                    self._answer(200, {"url": f"{outer.url}/datasets/o/n", "name": "o/n"})
                elif self.path == "/api/validate-yaml":
                    self._answer(200, {"errors": [], "warnings": []})
                elif "/preupload/" in self.path:
                    paths = [item["path"] for item in json.loads(body)["files"]]
                    modes = {True: "lfs", False: "regular"}
                    files = [
                        {"path": path, "uploadMode": modes[path.endswith(".parquet")], "shouldIgnore": False}
                        for path in paths
                    ]
                    self._answer(200, {"files": files})
                elif self.path.endswith("/info/lfs/objects/batch"):
                    wanted = json.loads(body)["objects"]
                    where = f"{outer.url}/objects"
                    objects = [{**item, "actions": {"upload": {"href": f"{where}/{item['oid']}"}}} for item in wanted]
                    answer = {"transfer": "basic", "objects": objects}
                    self._answer(200, answer, "application/vnd.git-lfs+json")
                elif "/commit/" in self.path:
                    outer._commit([json.loads(line) for line in body.splitlines()])
                    made = {"commitUrl": f"{outer.url}/datasets/o/n/commit/{outer.commits}", "commitOid": "1" * 40}
                    self._answer(200, {**made, "success": True})
                else:
                    self._answer(404, {"error": self.path})

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self._objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
        self.commits += 1

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
