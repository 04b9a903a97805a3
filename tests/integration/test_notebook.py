"""A kernel as Jupyter starts it: a run in a cell, its result shown, a changed file, an interrupt and what follows."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import ROOT

pytest.importorskip("ipykernel")
manager = pytest.importorskip("jupyter_client.manager")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
FILE = """%%writefile mine.py
import time
from pathlib import Path

def titled(row):
    title = yield "Title: " + row["messages"][0]["content"]
    return {**row, "title": title}

def parrot(messages, *, seconds: float = 0.0):
    with Path("asked.txt").open("a") as file:
        file.write("x")
    time.sleep(seconds)
    return messages[-1]["content"]
"""
RUN = """
import json, easydistill
from pathlib import Path
Path("rows.json").write_text(json.dumps([{"instruction": f"<b>{n}</b>"} for n in range(5)]))
events = []
job = {
    "job_type": "mine.py:titled", "output_dir": OUTPUT, "dataset": {"instruction_path": "rows.json"},
    "inference": {"backend": "mine.py:parrot", "seconds": SECONDS},
}
result = easydistill.run(job, on_progress=events.append)
result
"""
TIMEOUT = 300


class Notebook:
    """A kernel, and what its cells put out."""

    def __init__(self, folder: Path) -> None:
        self.kernel: Any = manager.KernelManager()
        self.kernel.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.kernel.start_kernel(cwd=str(folder), env={**os.environ, "PYTHONPATH": path})
        self.client = self.kernel.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=TIMEOUT)

    def cell(self, code: str) -> tuple[dict[str, Any], str]:
        """(the reply, the HTML of the cell's value)."""
        shown: list[str] = []

        def show(message: dict[str, Any]) -> None:
            shown.append(message["content"].get("data", {}).get("text/html", ""))

        reply = self.client.execute_interactive(code, timeout=TIMEOUT, output_hook=show)
        return reply["content"], "".join(shown)

    def value(self, code: str) -> str:
        reply = self.client.execute_interactive("", user_expressions={"it": code}, timeout=TIMEOUT)
        return str(reply["content"]["user_expressions"]["it"]["data"]["text/plain"])

    def close(self) -> None:
        self.client.stop_channels()
        self.kernel.shutdown_kernel(now=True)


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    opened = Notebook(tmp_path)
    yield opened
    opened.close()


def code(output: str, seconds: float = 0.0) -> str:
    return RUN.replace("OUTPUT", repr(output)).replace("SECONDS", str(seconds))


def test_cells(notebook: Notebook, tmp_path: Path) -> None:
    assert notebook.cell(FILE)[0]["status"] == "ok"
    reply, html = notebook.cell(code("run"))
    assert reply["status"] == "ok", reply
    assert "easydistill-result" in html and "href='run/report.html'" in html and "5 rows read" in html
    assert "&lt;b&gt;0" in notebook.cell("result.rows()")[1]
    assert notebook.value("type(events[-1]).__name__") == "'StageFinished'"
    changed = FILE.replace('"Title: "', '"Heading: "')
    notebook.cell(changed)
    assert notebook.cell(code("run"))[0]["status"] == "ok"
    assert notebook.value("result.fresh, result.rows().head(1)[0]['title']") == "(True, 'Heading: <b>0</b>')"

    (tmp_path / "asked.txt").unlink()
    running = notebook.client.execute(code("slow", 1.5))
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / "asked.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    notebook.kernel.interrupt_kernel()
    reply = notebook.client.get_shell_msg(timeout=TIMEOUT)
    while reply["parent_header"].get("msg_id") != running:
        reply = notebook.client.get_shell_msg(timeout=TIMEOUT)
    assert reply["content"]["ename"] == "Interrupted"
    assert notebook.value("easydistill.result('slow').status") == "'interrupted'"
    assert 1 <= len((tmp_path / "asked.txt").read_text()) < 5
    assert notebook.cell(code("slow", 1.5))[0]["status"] == "ok"
    assert (tmp_path / "asked.txt").read_text() == "x" * 5, "no question was asked twice"
