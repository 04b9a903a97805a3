"""The commands `submit`, `status`, `logs`, `cancel`, `fetch` and `deploy`: their arguments, and what they print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from easydistill.errors import EXIT_FAILED, EXIT_OK

NAMES = ("submit", "status", "logs", "cancel", "fetch", "deploy")
Add = Callable[[str, str], argparse.ArgumentParser]


def add_commands(add: Add, add_config: Add) -> None:
    """Add the commands to a parser, by its functions that add one, without and with a config."""
    submit = add_config("submit", "run a job on a cluster or in a cloud (docs/cloud.md)")
    _add_target(submit, "pai-dlc, kubernetes, kubeflow or skypilot")
    submit.add_argument("--name", help="of the job; by default that of its run directory")
    for name, help in (
        ("status", "tell what has become of a submitted job"),
        ("logs", "show a submitted job's output"),
        ("cancel", "end a submitted job; its files stay"),
        ("fetch", "copy a submitted job's files into the run directory"),
    ):
        command = add(name, help)
        command.add_argument("run_directory", help="from which it was submitted, e.g. runs/kd")
        command.add_argument("--number", type=int, metavar="N", help="an earlier submission than the last")
        if name == "logs":
            command.add_argument("--node", type=int, metavar="N", help="of one machine, from 0")
            command.add_argument("--lines", type=int, metavar="N", help="the last so many of each machine")
            command.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
        if name == "fetch":
            command.add_argument("--checkpoints", action="store_true", help="copy checkpoints too")
    deploy = add("deploy", "serve a student behind an OpenAI-compatible API in a cloud (docs/cloud.md)")
    deploy.add_argument("student", help="its directory, e.g. runs/kd/student")
    _add_target(deploy, "eas")


def _add_target(command: argparse.ArgumentParser, known: str) -> None:
    command.add_argument("--to", required=True, metavar="TARGET", help=known)
    command.add_argument("--target-config", metavar="FILE", help="the target's settings: image, machines, storage …")
    words = "override one of them, e.g. nodes=4 (repeatable)"
    command.add_argument("--with", action="append", default=[], metavar="KEY=VALUE", dest="changes", help=words)
    command.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    command.add_argument("-o", "--output", metavar="FILE", help="with --dry-run: write it to a file instead")


def run_command(arguments: argparse.Namespace, config: Callable[[argparse.Namespace], str]) -> int:
    """Do what one of the commands asks; returns the exit code.

    Args:
        config: gives the path of the config.
    """
    if arguments.command == "submit":
        return _submit(arguments, Path(config(arguments)))
    if arguments.command == "deploy":
        return _deploy(arguments)
    return {"status": _status, "logs": _logs, "cancel": _cancel, "fetch": _fetch}[arguments.command](arguments)


def _settings(arguments: argparse.Namespace) -> Path | None:
    return None if arguments.target_config is None else Path(arguments.target_config)


def _submit(arguments: argparse.Namespace, config: Path) -> int:
    from easydistill.cloud import jobs

    asked = jobs.request(
        config,
        arguments.to,
        overrides=arguments.overrides,
        settings=_settings(arguments),
        changes=arguments.changes,
        name=arguments.name,
    )
    for note in asked.notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.dry_run:
        return _show(asked.document.text, arguments.output)
    _refuse_output(arguments)
    sent = jobs.submit(asked)
    directory = asked.prepared.run_directory
    print(f"submitted {sent.name} to {sent.target}" + ("" if sent.id == sent.name else f" as {sent.id}"))
    print(f"easydistill status {directory}    (logs, cancel and fetch too)")
    return EXIT_OK


def _refuse_output(arguments: argparse.Namespace) -> None:
    from easydistill.errors import ConfigError, ConfigIssue

    if arguments.output is not None:
        raise ConfigError(ConfigIssue("command line", "--output", "it is for --dry-run", "add --dry-run, or remove it"))


def _show(text: str, output: str | None) -> int:
    if output is None:
        print(text, end="")
    else:
        Path(output).write_text(text, encoding="utf-8")
        print(f"wrote {output}; nothing was sent")
    return EXIT_OK


def _status(arguments: argparse.Namespace) -> int:
    from easydistill.cloud import jobs

    sent, state = jobs.status(Path(arguments.run_directory), arguments.number)
    said = f" ({state.said})" if state.said else ""
    print(f"{sent.name} on {sent.target}: {state.phase}{said}, submitted {sent.submitted}")
    if state.reason:
        print(state.reason)
    if state.facts:
        print(", ".join(f"{name} {value}" for name, value in state.facts.items()))
    return EXIT_FAILED if state.phase == "failed" else EXIT_OK


def _logs(arguments: argparse.Namespace) -> int:
    from easydistill.cloud import jobs

    directory = Path(arguments.run_directory)
    for line in jobs.logs(directory, arguments.number, arguments.node, arguments.lines, arguments.follow):
        print(line, flush=True)
    return EXIT_OK


def _cancel(arguments: argparse.Namespace) -> int:
    from easydistill.cloud import jobs

    sent = jobs.cancel(Path(arguments.run_directory), arguments.number)
    print(f"cancelled {sent.name}; its files stay, and the same `submit` resumes the run")
    return EXIT_OK


def _fetch(arguments: argparse.Namespace) -> int:
    from easydistill.cloud.fetch import fetch

    directory = Path(arguments.run_directory)
    fetch(directory, arguments.number, checkpoints=arguments.checkpoints)
    report = directory / "report.html"
    print(f"fetched into {directory}" + (f"; report: {report}" if report.is_file() else ""))
    return EXIT_OK


def _deploy(arguments: argparse.Namespace) -> int:
    from easydistill.cloud import deploy

    asked = deploy.request(Path(arguments.student), arguments.to, _settings(arguments), arguments.changes)
    for note in asked.notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.dry_run:
        return _show(asked.text, arguments.output)
    _refuse_output(arguments)
    print("\n".join(deploy.send(asked)))
    return EXIT_OK
