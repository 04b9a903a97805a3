"""What the command line takes: commands and their arguments."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from easydistill import __version__
from easydistill.cloud.commands import NAMES, add_commands

COMMANDS = (
    "run",
    "retry",
    "validate",
    "plan",
    "preview",
    "init",
    "recipes",
    "migrate",
    "schema",
    "report",
    "compare",
    "sweep",
    "doctor",
    "signals",
    "answers",
    "serve",
    *NAMES,
)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    made = argparse.ArgumentParser(
        prog="easydistill",
        description="Distil large language models: one config from teacher to trained student, data and report.",
        epilog="`easydistill -config=kd.json` is the same as `easydistill run kd.json`.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"easydistill {__version__}")
    commands = made.add_subparsers(dest="command", metavar="command", required=True)

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help, allow_abbrev=False)

    def add_config(name: str, help: str) -> argparse.ArgumentParser:
        command = add(name, help)
        command.add_argument("config", nargs="?", help="config file (.json, .jsonc, .yaml, .toml), or recipe:NAME")
        command.add_argument("-config", "--config", dest="config_option", metavar="FILE", help="the same, as an option")
        words = "override a value, e.g. training.learning_rate=1e-5 (repeatable)"
        command.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides", help=words)
        return command

    run = add_config("run", "run a job, resuming an earlier run of it")
    retry = add_config("retry", "ask again for rejected rows, then run the job from there")
    for command in (run, retry):
        words = "which of several machines (launch.nodes) this is, from 0, unless a launcher says it"
        command.add_argument("--node-rank", type=int, metavar="N", help=words)
        command.add_argument("--quiet", action="store_true", help="show nothing but errors")
        words = "drop a student trained here with other settings, instead of keeping it in previous/"
        command.add_argument("--replace", action="store_true", help=words)
    retry.add_argument(
        "--only",
        type=_names,
        default=[],
        metavar="REASONS",
        help="comma-separated reasons as in rejected.jsonl, e.g. rate_limit,parse; default: where it may help",
    )
    validate = add_config("validate", "check a config and list every error; needs no network and no models")
    words = "the run takes place on another machine: what is not on this one is told, and is no error"
    validate.add_argument("--elsewhere", action="store_true", help=words)
    plan = add_config("plan", "show what a run would do, and what is already done")
    plan.add_argument("--json", action="store_true", help="as JSON")
    words = "measure this machine first (a minute) and keep the rates, for times where no run has been yet"
    plan.add_argument("--probe", action="store_true", help=words)
    preview = add_config("preview", "show the first rows and prompts as they would be sent, without asking a model")
    preview.add_argument("-n", "--rows", type=_count, default=5, metavar="N", help="how many rows (default 5)")
    preview.add_argument("--json", action="store_true", help="as JSON Lines")
    init = add("init", "print a commented starting config, or copy a recipe")
    words = "which job, e.g. black_box_kd_local; quickstart: a first job with its prompts, written into this folder"
    init.add_argument("job_type", nargs="?", metavar="JOB", help=words)
    init.add_argument("--recipe", metavar="NAME", help="copy a recipe's config, data and README into a folder instead")
    init.add_argument("--small", action="store_true", help="with --recipe: the one that runs on two cores")
    words = "write it to a file instead; with quickstart and --recipe: the folder"
    init.add_argument("-o", "--output", metavar="FILE", help=words)
    recipes = add("recipes", "list the recipes: whole pipelines with published settings")
    recipes.add_argument("--json", action="store_true", help="as JSON")
    migrate = add("migrate", "translate a config of EasyDistill 1 or 2, and list what is named or works differently")
    migrate.add_argument("old", help="the old config")
    migrate.add_argument("-o", "--output", metavar="FILE", help="write it to a file instead (- for the screen)")
    add("schema", "print the JSON Schema of all configs, for editor completion")
    report = add("report", "rebuild report.html and report.md from the files of a run")
    report.add_argument("run_directory", help="a directory, or a place in an object store")
    compare = add("compare", "set runs side by side on one page: settings, losses, metrics, cost, answers")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run directories, two or more")
    compare.add_argument("-o", "--output", default="compare.html", metavar="FILE", help="default compare.html")
    _add_sweep(add_config("sweep", "run a config with several values of its keys, on labels that are paid for once"))
    doctor = add("doctor", "check this machine in a minute: what is installed, how fast it is, what to expect of it")
    doctor.add_argument("--quick", action="store_true", help="measure nothing, only look")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    _add_actions(add("signals", "inspect a store of teacher signals, or verify it with the teacher"))
    _add_answers(add("answers", "the folder of answers_cache: what it holds, and its way to another machine"))
    _add_serving(add("serve", "put a trained student, or any model, behind OpenAI's protocol"))
    add_commands(add, add_config)
    return made


def _add_serving(serve: argparse.ArgumentParser) -> None:
    serve.usage = "easydistill serve MODEL [options] [-- ARGUMENTS OF VLLM'S SERVER]"
    serve.add_argument("model", help="a student's folder, a run directory, a hub id, a .gguf file, pkg://package/file")
    words = "what runs it; auto: vLLM if it is installed, else transformers (default auto)"
    serve.add_argument("--backend", choices=("auto", "transformers", "vllm"), default="auto", help=words)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
    serve.add_argument("--port", type=_port, default=8000, help="default 8000")
    serve.add_argument("--served-name", metavar="NAME", help="the model's name in requests (default: MODEL as given)")
    words = "the environment variable with the key that clients must send (default: none is asked for)"
    serve.add_argument("--api-key-env", metavar="NAME", help=words)
    serve.add_argument("--template", metavar="FILE", help="a chat template (Jinja) in place of the model's own")
    words = "numbers of the weights (default auto)"
    serve.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto", help=words)
    serve.add_argument("--max-model-len", type=_count, metavar="N", help="longest prompt plus answer, in tokens")
    words = "answers written at once (default: 32, or as vLLM has it)"
    serve.add_argument("--max-concurrency", type=_count, metavar="N", help=words)
    serve.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the weights")


def _add_actions(signals: argparse.ArgumentParser) -> None:
    actions = signals.add_subparsers(dest="action", metavar="action", required=True)
    for name, help in (
        ("inspect", "show its contents and the settings that produced them, as JSON"),
        ("verify", "score random tokens again with the live teacher and compare"),
    ):
        action = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        action.add_argument("directory", help="a store, e.g. runs/kd/stages/2-score/signals")
    action.add_argument("--tokens", type=int, default=2000, help="score at least this many tokens (default 2000)")
    action.add_argument("--tolerance", type=float, metavar="NATS", help="largest difference of a log-probability")
    action.add_argument("--seed", type=int, default=0, help="seed for choosing the rows")
    action.add_argument("--teacher", metavar="MODEL", help="the teacher's new location, if it has moved")


def _add_sweep(sweep: argparse.ArgumentParser) -> None:
    words = "values of a key, e.g. training.learning_rate=1e-5,3e-5 (repeatable: every combination is run)"
    sweep.add_argument("--grid", action="append", default=[], metavar="PATH=V1,V2", help=words)
    words = "a JSON list of objects, path → value: each is run, with every combination of the grid"
    sweep.add_argument("--list", type=Path, metavar="FILE", dest="listed", help=words)
    sweep.add_argument("--random", type=_count, metavar="N", help="take N of all variants at random")
    sweep.add_argument("--seed", type=int, default=0, help="of --random (default 0)")
    words = "the metric that orders the table, e.g. kl (default: the first that was measured)"
    sweep.add_argument("--by", metavar="METRIC", help=words)
    words = "the folder in which each variant has its run directory (default: the config's output_dir)"
    sweep.add_argument("-o", "--output", metavar="DIR", help=words)
    sweep.add_argument("--dry-run", action="store_true", help="show the variants and what they would take; run nothing")
    words = "drop students trained here with other settings, instead of keeping them in previous/"
    sweep.add_argument("--replace", action="store_true", help=words)
    sweep.add_argument("--quiet", action="store_true", help="show nothing but errors and the table")


def _add_answers(answers: argparse.ArgumentParser) -> None:
    actions = answers.add_subparsers(dest="action", metavar="action", required=True)
    made = {}
    for name, help in (
        ("info", "show how many answers it holds, of which models, and their tokens"),
        ("verify", "read all of it and compare it with its checksums"),
        ("export", "write its answers to one file"),
        ("import", "put the answers of such a file, of another cache or of a run into it"),
    ):
        made[name] = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        made[name].add_argument("cache", metavar="CACHE", help="the folder")
        made[name].add_argument("--json", action="store_true", help="as JSON")
    made["export"].add_argument("file", metavar="FILE", help="e.g. answers.tar.gz")
    made["export"].add_argument("--signals", action="store_true", help="with the teachers' signals, which are large")
    made["import"].add_argument("file", metavar="FROM", help="an exported file, a cache's folder, or a run directory")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise ValueError(text)
    return value


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(text)
    return names


def with_command(arguments: list[str]) -> list[str]:
    """Put `run` before bare arguments: `-config=kd.json`, `--config kd.json`, `kd.json`."""
    if "LOCAL_RANK" in os.environ:
        # DeepSpeed's launcher says it twice.
        arguments = [given for given in arguments if not re.fullmatch(r"--local[-_]rank=\d+", given)]
    if not arguments:
        return ["--help"]
    first = arguments[0]
    if first in COMMANDS or first in {"-h", "--help", "--version"}:
        return arguments
    is_option = first.split("=")[0] in {"-config", "--config", "--set", "--quiet", "--node-rank", "--replace"}
    is_file = not first.startswith("-") and Path(first).suffix in {".json", ".jsonc", ".yaml", ".yml", ".toml"}
    is_file |= first.startswith("recipe:")
    return ["run", *arguments] if is_option or is_file else arguments
