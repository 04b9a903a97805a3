"""Functions of a Python file as something that is asked: requests are calls, answers are results.

Each runs in the sandbox, in a process of its own with the standard library alone, and its answer goes into the journal
as a model's would, so that a resumed run goes on with the same results. A request is a JSON object: the row's
`environment`, the calls `before` with what they returned, and the `call`. The answer is `{"content": …, "failed": …}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.asking.model import AskedModel
from easydistill.config.inference import SamplingConfig
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome, RecordOutcomes, TeacherPlan
from easydistill.data.files import hash_file
from easydistill.data.messages import text_of
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import EasyDistillError

if TYPE_CHECKING:
    from easydistill.sandbox import RunResult

NOT_JSON, NOT_REPEATABLE, NO_RESULT = "tool_result_not_json", "tool_not_repeatable", "tool_gave_no_result"
"""Reasons for which a call has no result: its function returned something that JSON cannot hold, an earlier call of the
chat gave another result when it was run again, or its process was ended by a limit."""
PROBLEMS = (NOT_JSON, NOT_REPEATABLE, NO_RESULT)
_MARK = "easydistill-result:"

# What the functions print goes to standard error, so that the last line of standard output is ours. The seed makes
# random choices the same whenever calls are run again.
_PROGRAM = """\
import json, random, sys, types
def main(source, name):
    out, sys.stdout = sys.stdout, sys.stderr
    command = json.loads(sys.stdin.read())
    random.seed(0)
    module = types.ModuleType("tools")
    sys.modules["tools"] = module
    def answer(**found):
        print({mark} + json.dumps(found), file=out, flush=True)
    def run(call):
        try:
            result = getattr(module, call["name"])(**call["arguments"])
        except (Exception, SystemExit) as error:
            text = json.dumps(dict(error=type(error).__name__ + ": " + str(error)), ensure_ascii=False)
            return dict(content=text, failed=True)
        if isinstance(result, str) and result.strip():
            return dict(content=result, failed=False)
        return dict(content=json.dumps(result, ensure_ascii=False, allow_nan=False), failed=False)
    exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
    if command["environment"] is not None and hasattr(module, "setup"):
        module.setup(command["environment"])
    try:
        for call in command["before"]:
            again = run(call)["content"]
            if again != call["content"]:
                return answer(other=[call["name"], call["content"][:200], again[:200]])
        return answer(**run(command["call"]))
    except (TypeError, ValueError) as error:
        return answer(wrong=str(error))
main({source}, {name})
"""


class FunctionTeacher:
    """Answers requests by running the functions of a file.

    Args:
        seconds: time of one process.
        workers: processes at the same time.
    """

    def __init__(self, file: Path, seconds: float, workers: int) -> None:
        # Imported here, because it loads modules that checking a config does not need.
        from easydistill.sandbox import Limits, Sandbox

        self._file = file
        self._sandbox = Sandbox(workers, Limits(seconds=seconds, cpu_seconds=seconds))
        source = file.read_text(encoding="utf-8")
        self._program = _PROGRAM.format(mark=ascii(_MARK), source=ascii(source), name=ascii(file.name))

    def identity(self) -> dict[str, Any]:
        return _identity(self._file)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        waiting = [request for request in requests if not done(request.key)]
        wave = 4 * self._sandbox.workers
        for start in range(0, len(waiting), wave):
            if stop.requested:
                return
            part = waiting[start : start + wave]
            results = self._run([text_of(request.messages[-1]) for request in part])
            record([self._outcome(request.key, result) for request, result in zip(part, results, strict=True)])

    def _run(self, commands: Sequence[str]) -> list[RunResult]:
        from easydistill.sandbox import SandboxError

        try:
            return self._sandbox.run_many((self._program, command) for command in commands)
        except SandboxError as error:
            hint = f"{error.hint}, or use tools of another kind" if error.hint else "use tools of another kind"
            raise EasyDistillError(f"synthesis.tools: {error.problem}\n    → {hint}") from error

    def _outcome(self, key: str, result: RunResult) -> Outcome:
        """The answer of a process.

        Raises:
            EasyDistillError: the file itself does not run, which every call would meet.
        """
        if result.outcome == "failed":
            what = result.stderr.strip()[-2000:] or f"exit code {result.exit_code}"
            raise EasyDistillError(
                f"{self._file} does not run in the sandbox:\n{what}\n    → only the standard library is there; "
                "`setup` must take every row's environment"
            )
        line = result.stdout.rstrip("\n").rpartition("\n")[2]
        if result.outcome != "ok" or not line.startswith(_MARK):
            return Failure(key, NO_RESULT, result.reason or result.outcome, 1, passing=False)
        found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
        if "other" in found:
            name, before, now = found["other"]
            detail = f"{name} returned {before!r} before, and {now!r} when it was run again: see synthesis.tools.replay"
            return Failure(key, NOT_REPEATABLE, detail, 1, passing=False)
        if "wrong" in found:
            return Failure(key, NOT_JSON, found["wrong"], 1, passing=False)
        return Completion(key, json.dumps(found, ensure_ascii=False), finish_reason="stop", seconds=result.wall_seconds)

    def close(self) -> None:
        """Nothing to release."""


def _identity(file: Path) -> dict[str, Any]:
    try:
        return {"backend": "functions", "file": hash_file(file)}
    except OSError:  # `validate` tells it
        return {"backend": "functions", "file": None}


def asked_functions(file: str, seconds: float, workers: int) -> AskedModel:
    """The functions of a file, as a stage asks them."""
    path = Path(file)
    plan = TeacherPlan(
        make=lambda context: FunctionTeacher(path, seconds, workers),
        identity=lambda: _identity(path),
        preflight=list,
    )
    return AskedModel(plan, SamplingConfig(thoughts="inline"))
