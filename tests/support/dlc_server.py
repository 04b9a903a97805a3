"""A server that speaks the protocol of PAI-DLC (and CreateService of PAI-EAS), and fails to order.

Every request is recorded whole. `faults` are what the next requests of an action end in; then they are answered.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS: dict[str, tuple[int, str, str]] = {
    "throttled": (429, "Throttling.User", "Request was denied due to user flow control."),
    "quota": (400, "QuotaExceeded", "The quota of the resource group has no room for this job."),
    "bad_key": (404, "InvalidAccessKeyId.NotFound", "Specified access key is not found."),
    "forbidden": (403, "NoPermission", "You are not authorized to do this action."),
    "oops": (500, "InternalError", "The request processing has failed."),
    "lost": (500, "InternalError", "The job was made, and the answer is this."),
}
PODS = ("-worker-0", "-worker-1")


@dataclass
class Recorded:
    """A request."""

    action: str
    path: str
    body: Any
    headers: dict[str, str]


@dataclass
class DlcServer:
    """What a test sees of the server."""

    url: str = ""
    requests: list[Recorded] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: str = "Running"

    def of(self, action: str) -> list[Recorded]:
        return [request for request in self.requests if request.action == action]

    def answer(self, action: str, path: str, query: dict[str, str], body: Any) -> Any:
        if action == "CreateJob":
            job = f"dlc{len(self.jobs) + 1:04}"
            self.jobs[job] = {"DisplayName": body["DisplayName"], "Status": self.status}
            return {"JobId": job, "RequestId": "r"}
        if action == "ListJobs":
            part = query.get("DisplayName", "")
            found = [{"JobId": id, **job} for id, job in self.jobs.items() if part in job["DisplayName"]]
            return {"Jobs": found, "TotalCount": len(found), "RequestId": "r"}
        if action == "CreateService":
            name = body["metadata"]["name"]
            return {"ServiceName": name, "InternetEndpoint": f"http://1.region.example/api/predict/{name}"}
        job = path.split("/")[4]
        if job not in self.jobs:
            return None
        if action == "GetJob":
            pods = [{"PodId": f"{job}{end}", "PodUid": f"u{end}", "Status": "Running"} for end in PODS]
            return {"JobId": job, "Pods": pods, "ReasonCode": "", **self.jobs[job]}
        if action == "GetPodLogs":
            lines = [f"line {number} of {path.split('/')[6]}" for number in range(3)]
            return {"Logs": lines[-int(query.get("MaxLines", 2000)) :], "JobId": job}
        assert action == "StopJob"
        self.jobs[job]["Status"] = "Stopped"
        return {"JobId": job}


_ACTIONS = (
    ("POST", r"/api/v1/jobs", "CreateJob"),
    ("GET", r"/api/v1/jobs", "ListJobs"),
    ("GET", r"/api/v1/jobs/[^/]+", "GetJob"),
    ("POST", r"/api/v1/jobs/[^/]+/stop", "StopJob"),
    ("GET", r"/api/v1/jobs/[^/]+/pods/[^/]+/logs", "GetPodLogs"),
    ("POST", r"/api/v2/services", "CreateService"),
)


@contextlib.contextmanager
def dlc_server() -> Iterator[DlcServer]:
    """A server on loopback."""
    server = DlcServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.take("GET")

        def do_POST(self) -> None:
            self.take("POST")

        def take(self, method: str) -> None:
            place = urllib.parse.urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(raw) if raw else None
            action = next(
                name for verb, pattern, name in _ACTIONS if verb == method and re.fullmatch(pattern, place.path)
            )
            server.requests.append(Recorded(action, self.path, body, dict(self.headers.items())))
            query = dict(urllib.parse.parse_qsl(place.query))
            fault = server.faults[action].pop(0) if server.faults[action] else None
            if fault == "lost":
                server.answer(action, place.path, query, body)
            if fault is not None:
                status, code, message = FAULTS[fault]
                self.say(status, {"Code": code, "Message": message, "RequestId": "r"})
                return
            answer = server.answer(action, place.path, query, body)
            if answer is None:
                self.say(404, {"Code": "JobNotFound", "Message": "no such job", "RequestId": "r"})
            else:
                self.say(200, answer)

        def say(self, status: int, answer: Any) -> None:
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

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
