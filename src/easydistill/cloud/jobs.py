"""Submitting a job, and asking after it: what the commands `submit`, `status`, `logs` and `cancel` do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from easydistill.cloud import records
from easydistill.cloud.prepare import Prepared, local_path, prepare, same_config
from easydistill.cloud.reading import read_settings
from easydistill.cloud.records import Submission, chosen, read_records, target_module
from easydistill.cloud.settings import TargetConfig
from easydistill.cloud.target import Client, Document, NotKnown, State
from easydistill.data.files import write_text
from easydistill.errors import CloudError, ConfigError, ConfigIssue


@dataclass(frozen=True)
class Request:
    """Everything about a job that may be sent."""

    prepared: Prepared
    settings: TargetConfig
    document: Document
    target: str

    @property
    def notes(self) -> list[str]:
        return [*self.prepared.notes, *self.document.notes]


def request(
    config: Path,
    to: str,
    *,
    overrides: Sequence[str] = (),
    settings: Path | None = None,
    changes: Sequence[str] = (),
    name: str | None = None,
) -> Request:
    """What would be sent. Reads files of this machine, and nothing else.

    Args:
        to: the target, as `--to` names it.
        overrides: `dotted.path=value` over the config.
        settings: the target's file.
        changes: `key=value` over that file.
        name: of the job, without its number.

    Raises:
        ConfigError: the job cannot be run there, with every reason that is found.
    """
    module = _module(to)
    typed: TargetConfig = read_settings(settings, changes, module.Config, module.Config.name)
    prepared = prepare(config, overrides, typed, name=name)
    records_there = read_records(prepared.run_directory)
    if records_there:
        prepared = prepare(config, overrides, typed, name=name, number=records_there[-1].number + 1)
    return Request(prepared, typed, module.render(prepared.spec, typed), typed.name)


def _module(to: str) -> Any:
    try:
        return target_module(to)
    except KeyError:
        known = ", ".join(records.target_names())
        problem = f'there is no target "{to}"'
        raise ConfigError(ConfigIssue("command line", "--to", problem, f"use one of {known}")) from None


def submit(asked: Request) -> Submission:
    """Send a job, and record it in the run directory.

    Raises:
        CloudError: it was refused, the target cannot be reached, an earlier job of this run has not ended, or another
            `submit` of it is at work.
    """
    client = _connect(asked.settings)
    directory, spec = asked.prepared.run_directory, asked.prepared.spec
    _refuse_second(directory)
    record = Submission(
        number=asked.prepared.number,
        target=asked.target,
        name=spec.name,
        command=list(spec.command),
        run_directory=spec.run_directory,
        nodes=spec.nodes,
        document=f"{asked.prepared.number}.sent{asked.document.suffix}",
        settings=asked.settings.recorded(),
        submitted=records.now(),
        store=asked.prepared.store,
    )
    records.claim(directory, record)
    _place_config(asked)
    records.write_document(directory, record, asked.document.text)
    try:
        found = client.submit(spec, asked.document)
    except NotKnown:
        raise
    except CloudError:
        records.remove_record(directory, record)
        raise
    record = replace(record, id=found)
    records.write_record(directory, record)
    return record


def _refuse_second(directory: Path) -> None:
    """Two jobs must not write into one run directory."""
    for earlier in read_records(directory)[-1:]:
        state = status(directory, earlier.number)[1]
        if not state.ended:
            raise CloudError(
                f"{earlier.name} of this run is {state.phase} ({state.said})\n"
                f"    → wait for its end, or `easydistill cancel {directory}`"
            )


def _place_config(asked: Request) -> None:
    """Where the job finds its config on a mount that is seen here too, put it there."""
    where = asked.settings.config_path
    mount = None if where is None else asked.settings.mount_of(where)
    local = None if where is None or mount is None else local_path(mount, where)
    if local is not None and not same_config(local, asked.prepared.config):
        write_text(local, asked.prepared.config)


def _connect(settings: TargetConfig) -> Client:
    client: Client = target_module(settings.name).connect(settings)
    return client


def _known(directory: Path, number: int | None) -> tuple[Submission, Client]:
    """A submission, whose id is looked for where it is not known, and who to ask."""
    submission = chosen(directory, number)
    client = _connect(submission.typed_settings())
    if submission.id is None and (found := client.find(submission.name)) is not None:
        submission = replace(submission, id=found)
        records.write_record(directory, submission)
    return submission, client


def _sent(directory: Path, number: int | None) -> tuple[Submission, str, Client]:
    """A submission, its id, and who to ask.

    Raises:
        CloudError: the target does not have it.
    """
    submission, client = _known(directory, number)
    if submission.id is None:
        raise CloudError(
            f"{submission.name} was not sent, or is no longer known\n    → submit it again: the same command"
        )
    return submission, submission.id, client


def status(directory: Path, number: int | None = None) -> tuple[Submission, State]:
    """What has become of a run's last job, or of an earlier one.

    Raises:
        CloudError: the target cannot be reached.
        DataError: nothing was submitted.
    """
    submission, client = _known(directory, number)
    if submission.id is None:
        return submission, State("gone", reason="it was not sent, or is no longer known")
    state = client.status(submission.id)
    if state.phase == "gone" and submission.cancelled is not None:
        state = replace(state, phase="cancelled", reason=f"on {submission.cancelled}")
    return submission, state


def logs(directory: Path, number: int | None, node: int | None, lines: int | None, follow: bool) -> Iterator[str]:
    """Lines of a job's output, as the target has them. The run's own log is `log.txt` of its run directory."""
    submission, id, client = _sent(directory, number)
    if node is not None and not 0 <= node < submission.nodes:
        raise CloudError(f"there is no node {node}\n    → the job has {submission.nodes}, from 0")
    return client.logs(id, node, lines, follow)


def cancel(directory: Path, number: int | None = None) -> Submission:
    """End a job. What it has written stays, and the same command resumes it."""
    submission, id, client = _sent(directory, number)
    client.cancel(id)
    records.cancelled(directory, submission)
    return submission
