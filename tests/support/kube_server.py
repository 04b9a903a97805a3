"""A Kubernetes API server, as much of it as kubectl needs to create, show and delete the objects of a job.

Objects are validated strictly where `kubernetes_validate` is installed. `faults` are what the next requests to create
an object of a kind end in.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import threading
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]
GROUPS = {
    "v1": {"configmaps": "ConfigMap", "services": "Service", "pods": "Pod"},
    "batch/v1": {"jobs": "Job"},
    "trainer.kubeflow.org/v1alpha1": {"trainjobs": "TrainJob"},
}
FAULTS = {
    "quota": (403, "Forbidden", 'jobs "x" is forbidden: exceeded quota: gpus, requested: 8, used: 8, limited: 8'),
    "forbidden": (403, "Forbidden", 'User "me" cannot create resource "jobs" in the namespace "distil"'),
    "unauthorized": (401, "Unauthorized", "Unauthorized"),
}


@dataclass
class KubeServer:
    """What a test sees of the server."""

    url: str = ""
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """By kind (`jobs`) and name."""
    created: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    groups: dict[str, dict[str, str]] = field(default_factory=lambda: dict(GROUPS))
    logs: dict[str, str] = field(default_factory=dict)
    """By pod."""
    selectors: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer | str:
        discovered = self._discovery(path)
        if discovered is not None:
            return 200, discovered
        if path == "/openapi/v2":
            # A protobuf message without fields.
            return ""
        if match := re.fullmatch(r"/openapi/v3/(.+)", path):
            return 200, self._openapi(match[1].removeprefix("apis/").removeprefix("api/"))
        match = re.fullmatch(r"/apis?/(?P<group>.+)/namespaces/(?P<space>[^/]+)/(?P<kind>[a-z]+)(?P<rest>/.*)?", path)
        if match is None:
            return status(404, "NotFound", path)
        kind, rest = match["kind"], (match["rest"] or "").strip("/")
        if method == "POST":
            return self._create(kind, body)
        if not rest:
            self.selectors.append(query.get("labelSelector", ""))
            items = [self._pod(name) for name in sorted(self.logs)]
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        name, _, below = rest.partition("/")
        if below == "log":
            lines = self.logs[name].splitlines(keepends=True)
            return "".join(lines[-int(query.get("tailLines", 10**6)) :])
        if kind == "pods" and name in self.logs:
            return 200, self._pod(name)
        if (kind, name) not in self.objects:
            return status(404, "NotFound", f'{kind} "{name}" not found')
        if method == "DELETE":
            del self.objects[kind, name]
            return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success", "details": {"name": name}}
        return 200, self.objects[kind, name]

    def _create(self, kind: str, body: dict[str, Any]) -> Answer:
        if self.faults[kind]:
            return status(*FAULTS[self.faults[kind].pop(0)])
        name = body["metadata"]["name"]
        if (kind, name) in self.objects:
            return status(409, "AlreadyExists", f'{kind} "{name}" already exists')
        if importlib.util.find_spec("kubernetes_validate") and kind != "trainjobs":
            import kubernetes_validate

            kubernetes_validate.validate(body, desired_version="1.32", strict=True)
        self.objects[kind, name] = body
        self.created.append(body)
        return 201, body

    def _pod(self, name: str) -> dict[str, Any]:
        meta = {"name": name, "namespace": "distil"}
        return {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": meta,
            "spec": {"containers": [{"name": "easydistill"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }

    def _discovery(self, path: str) -> Any:
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = []
            for name in self.groups:
                group, slash, version = name.partition("/")
                if slash:
                    known = {"groupVersion": name, "version": version}
                    groups.append({"name": group, "versions": [known], "preferredVersion": known})
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if path == "/openapi/v3":
            places = {name: "api/v1" if name == "v1" else f"apis/{name}" for name in self.groups}
            return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places.values()}}
        for name, kinds in self.groups.items():
            if path in (f"/api/{name}", f"/apis/{name}"):
                verbs = ["create", "delete", "get", "list", "watch"]
                found = [
                    {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": True, "verbs": verbs}
                    for plural, kind in kinds.items()
                ]
                return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": found}
        return None

    def _openapi(self, name: str) -> Any:
        """That the server validates fields by itself."""
        group, slash, version = name.partition("/")
        group, version = (group, version) if slash else ("", name)
        parameters = [{"name": asked, "in": "query"} for asked in ("fieldValidation", "dryRun")]
        paths = {
            f"/{plural}/{{name}}": {
                "patch": {
                    "parameters": parameters,
                    "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
                }
            }
            for plural, kind in self.groups[name].items()
        }
        return {"openapi": "3.0.0", "info": {"title": "t", "version": "1"}, "paths": paths}


def status(code: int, reason: str, message: str) -> Answer:
    """A refusal."""
    found = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return code, {**found, "reason": reason}


@contextlib.contextmanager
def kube_server() -> Iterator[KubeServer]:
    """A server on loopback."""
    server = KubeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def take(self) -> None:
            place = urllib.parse.urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = dict(urllib.parse.parse_qsl(place.query))
            answer = server.answer(self.command, place.path, query, json.loads(raw) if raw else None)
            code, text = (200, answer) if isinstance(answer, str) else (answer[0], json.dumps(answer[1]))
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_DELETE = take

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def kubeconfig(folder: Path, url: str) -> Path:
    """A config of kubectl's, with the one context `test`."""
    path = folder / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "test",
            }
        ),
        encoding="utf-8",
    )
    return path
