"""Which of the commands that share a run this one is, as the environment and the `launch` section say.

A command is started once on each machine (by hand, PAI-DLC, one task per node of srun) and starts the processes of
that machine, or it is started by a launcher once for each process (torchrun, `accelerate launch`, DeepSpeed's launcher,
srun), and then starts one. The first command leads the run, the others help.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from easydistill.config.job import JobConfig
from easydistill.config.launch import LAST_PORT, LaunchConfig
from easydistill.config.pipeline import PipelineConfig
from easydistill.errors import ConfigError, ConfigIssue

Address = tuple[str, int]


@dataclass(frozen=True)
class Place:
    """This command among those that share a run."""

    index: int = 0
    """0 leads."""
    count: int = 1
    """Commands in all."""
    launcher: str = ""
    """How that is known, in words; empty: a launcher has left no variables."""
    nodes: int = 1
    ranks: int | None = None
    """Processes that this command starts, if the launcher says it."""
    local_rank: int | None = None
    """Of its one process on its machine, if it has been started for one process."""
    local_size: int | None = None
    """Processes on its machine, if it has been started for one of them."""
    address: Address | None = None
    """Where the first command awaits the others."""
    store: Address | None = None
    """Of torchrun's store, through which the first command tells where it is, if there is no `address`."""
    store_key: str = ""
    """What it writes its address under: another one after each restart."""

    @property
    def speaks(self) -> bool:
        """Whether it talks to the user: one command on each machine does."""
        return not self.local_rank

    def title(self, index: int) -> str:
        """A command of this run, in words."""
        return f"{'node' if self.local_rank is None else 'process'} {index}"


ALONE = Place()
_NEEDED = {"processes": "LOCAL_RANK", "slurm": "SLURM_STEP_NUM_TASKS", "nodes": "WORLD_SIZE"}
"""The variable by which a launcher is known."""


def speaks(environment: Mapping[str, str]) -> bool:
    """Whether a command is the one of its machine that talks to the user, as far as the environment alone says it."""
    kind = _kind(environment)
    number = {"processes": "LOCAL_RANK", "slurm": "SLURM_LOCALID"}.get(kind, "")
    return environment.get(number, "0") == "0"


def place_of(job: JobConfig, environment: Mapping[str, str], node_rank: int | None = None) -> Place:
    """This command's place.

    Args:
        node_rank: which of the machines this is, if the user says it.

    Raises:
        ConfigError: the section and the environment contradict each other, or do not say enough.
    """
    launch = check_place(job, environment)
    found = _launched(launch, environment)
    if found is not None:
        index = found.index if found.local_rank is None else None
        if node_rank is not None and node_rank != index:
            says = f"{found.launcher} has started this command" + (f" on node {index}" if index is not None else "")
            raise ConfigError(_node_rank(f"it is {node_rank}, but {says}", "leave it out"))
        return found
    if launch.launcher not in ("auto", "none"):
        problem = f"it is {launch.launcher}, but the environment has not {_NEEDED[launch.launcher]}"
        raise ConfigError(_issue("launcher", problem, "start this command with the launcher, or set it to auto"))
    if node_rank is not None and launch.nodes == "auto":
        hint = "set launch.nodes" if sections_of(job) else f"leave it out: {job.job_type} runs in one process"
        raise ConfigError(_node_rank(f"it is {node_rank}, but launch.nodes is auto and no launcher is found", hint))
    nodes = 1 if launch.nodes == "auto" else launch.nodes
    if node_rank is None and nodes > 1:
        problem = f"there are {nodes} nodes, and nothing says which of them this is"
        hint = f"add --node-rank 0 to the command on the first, --node-rank {nodes - 1} on the last"
        raise ConfigError(_node_rank(problem, hint))
    if node_rank is not None and not 0 <= node_rank < nodes:
        hint = f"the last of {nodes} is {nodes - 1}" if nodes > 1 else "set launch.nodes"
        raise ConfigError(_node_rank(f"it is {node_rank}, but launch.nodes is {launch.nodes}", hint))
    if nodes == 1:
        # Libraries would still believe the variables that mean nothing.
        return replace(ALONE, launcher="none") if launch.launcher == "none" else ALONE
    return Place(node_rank or 0, nodes, "the config", nodes=nodes, address=_host_port(launch.rendezvous))


def check_shared(job: JobConfig, place: Place) -> None:
    """Refuse several machines that would each have a working directory of its own.

    Raises:
        ConfigError: the run is kept in a store, and no shared directory is named.
    """
    if job.remote is not None and place.nodes > 1 and job.storage.working_directory is None:
        problem = f"{place.nodes} machines train together, and each would work in a directory of its own"
        hint = "set it to a directory that all of them see under one path"
        raise ConfigError(ConfigIssue("config", "storage.working_directory", problem, hint))


def check_place(job: JobConfig, environment: Mapping[str, str]) -> LaunchConfig:
    """The `launch` section, once it does not contradict itself and the environment.

    Raises:
        ConfigError: it does, or the job does not train in several processes although several were started.
    """
    sections = sections_of(job)
    launch = sections[0] if sections else LaunchConfig()
    for name in ("nodes", "rendezvous", "launcher"):
        different = {getattr(section, name): None for section in sections}
        if len(different) > 1:
            shown = " and ".join(str(value) for value in different)
            raise ConfigError(_issue(name, f"the jobs have {shown}", "the jobs share the machines: set it in `shared`"))
    found = _launched(launch, environment)
    issues = list(_contradictions(sections or [launch], found) if found is not None else _gaps(launch))
    if found is not None and found.count > 1 and not sections:
        problem = f"{job.job_type} runs in one process, but {found.launcher} has started {found.count}"
        issues.append(ConfigIssue("environment", "", problem, "start it once, without the launcher"))
    if found is not None and found.local_rank is not None:
        issues += _of_accelerate(job, sections or [launch], environment)
    if issues:
        raise ConfigError(issues)
    return launch


def sections_of(job: JobConfig) -> list[LaunchConfig]:
    """The `launch` sections of a job, or of a pipeline's jobs, that take one; the default where it is left out."""
    jobs = job.jobs.values() if isinstance(job, PipelineConfig) else [job]
    return [getattr(one, "launch", None) or LaunchConfig() for one in jobs if "launch" in type(one).model_fields]


def _node_rank(problem: str, hint: str) -> ConfigIssue:
    return ConfigIssue("command line", "--node-rank", problem, hint)


def _issue(field: str, problem: str, hint: str) -> ConfigIssue:
    return ConfigIssue("config", f"launch.{field}", problem, hint)


def _contradictions(sections: Sequence[LaunchConfig], found: Place) -> Iterator[ConfigIssue]:
    processes = (found.local_size, found.launcher)
    if found.local_rank is None:
        # A command for a whole machine: how many it starts is the config's to say, but for one launcher.
        processes = (found.ranks, "NPROC_PER_NODE")
    for name, (value, by) in {"processes": processes, "nodes": (found.nodes, found.launcher)}.items():
        # The jobs of a pipeline may have different ones.
        for asked in dict.fromkeys(getattr(section, name) for section in sections):
            if asked != "auto" and value is not None and asked != value:
                yield _issue(name, f"it is {asked}, but {by} says {value}", 'let both be the same, or set it to "auto"')
    if found.count > 1 and found.address is None and found.store is None:
        problem = f"{found.launcher} has no MASTER_ADDR and MASTER_PORT, so nothing says where the commands meet"
        yield _issue("rendezvous", problem, "set it to host:port of the first machine")


def _of_accelerate(
    job: JobConfig, sections: Sequence[LaunchConfig], environment: Mapping[str, str]
) -> Iterator[ConfigIssue]:
    """What `accelerate launch` has been told to do, and the config does otherwise."""
    fits: Mapping[str, tuple[str, Callable[[LaunchConfig], bool]]] = {
        "FSDP": ("fsdp2", lambda launch: launch.strategy == "fsdp2"),
        "DEEPSPEED": ("zero1 or zero2 or zero3", lambda launch: launch.uses_deepspeed),
    }
    for name, (strategies, does) in fits.items():
        if environment.get(f"ACCELERATE_USE_{name}") != "true":
            continue
        for sharing in dict.fromkeys(launch.sharing for launch in sections if not does(launch)):
            hint = f"set it to {strategies}, or start accelerate without {name}"
            yield _issue("strategy", f"it is {sharing}, but accelerate says {name}", hint)
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    bf16 = getattr(getattr(job, "training", None), "bf16", None)
    if precision not in ("no", "bf16") or (precision == "bf16" and bf16 is False):
        problem = f"accelerate says {precision}, but training.bf16 is {bf16}"
        hint = "the config decides: start accelerate with --mixed_precision no"
        yield ConfigIssue("environment", "ACCELERATE_MIXED_PRECISION", problem, hint)


def _gaps(launch: LaunchConfig) -> Iterator[ConfigIssue]:
    """What is missing if nothing but the section says how many machines there are."""
    if launch.launcher not in ("auto", "none"):
        return
    if launch.nodes not in ("auto", 1) and launch.rendezvous is None:
        problem = f"nodes is {launch.nodes}, but nothing says where they meet"
        hint = "set launch.rendezvous to host:port of the first; if a launcher is to say it, name it in launch.launcher"
        yield _issue("nodes", problem, hint)
    if launch.nodes == "auto" and launch.rendezvous is not None:
        problem = f"rendezvous is {launch.rendezvous}, but nothing says how many machines meet there"
        hint = "set launch.nodes; if a launcher is to say it, name it in launch.launcher"
        yield _issue("nodes", problem, hint)


def _host_port(text: str | None) -> Address | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _launched(launch: LaunchConfig, environment: Mapping[str, str]) -> Place | None:
    """The place that a launcher has given this command; None if none has."""
    kind: str = launch.launcher
    rendezvous = _host_port(launch.rendezvous)
    if kind == "auto":
        kind = _kind(environment)
    try:
        if kind != "none" and _NEEDED[kind] in environment:
            found = _READERS[kind](environment, rendezvous)
            if not 0 <= found.index < found.count:
                raise ValueError(f"number {found.index} of {found.count} is none of them")
            return found
    except (KeyError, ValueError, IndexError) as error:
        problem = f"the variables of {kind} are not complete: {error}"
        hint = "set launch.launcher to what has started this command, or to none"
        raise ConfigError(_issue("launcher", problem, hint)) from None
    return None


def _kind(environment: Mapping[str, str]) -> str:
    numbered = {"RANK", "WORLD_SIZE"} <= environment.keys()
    if numbered and "LOCAL_RANK" in environment:
        return "processes"
    if "SLURM_STEP_NUM_TASKS" in environment:
        # A batch script itself has most of the other variables, but only a step of srun has this one.
        return "slurm"
    return "nodes" if numbered and "MASTER_ADDR" in environment else "none"


def _master(environment: Mapping[str, str]) -> Address | None:
    if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        return None
    port = _number(environment, "MASTER_PORT")
    if port > LAST_PORT:
        raise ValueError(f"MASTER_PORT={port}")
    return environment["MASTER_ADDR"], port


def _number(environment: Mapping[str, str], *names: str, default: int | None = None) -> int:
    """The first of some variables that has a value: a number of something that there is."""
    name = next((name for name in names if environment.get(name)), None)
    if name is None:
        if default is None:
            raise KeyError(names[0])
        return default
    if (number := int(environment[name])) < 1:
        raise ValueError(f"{name}={number}")
    return number


def _of_processes(environment: Mapping[str, str], rendezvous: Address | None) -> Place:
    rank, world = int(environment["RANK"]), _number(environment, "WORLD_SIZE")
    # Torchrun's name, DeepSpeed's.
    local = _number(environment, "LOCAL_WORLD_SIZE", "LOCAL_SIZE", default=world)
    nodes = _number(environment, "GROUP_WORLD_SIZE", "CROSS_SIZE", default=-(-world // local))
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "the launcher"
    if "CROSS_SIZE" in environment:
        launcher = "DeepSpeed's launcher"
    master = _master(environment)
    # Torchrun itself listens at the port that it names.
    taken = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Place(
        rank,
        world,
        f"{launcher} (WORLD_SIZE={world})",
        nodes=nodes,
        ranks=1,
        local_rank=int(environment["LOCAL_RANK"]),
        local_size=local,
        address=rendezvous or (None if taken else master),
        store=master if taken and rendezvous is None else None,
        store_key=f"easydistill/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}",
    )


def _of_nodes(environment: Mapping[str, str], rendezvous: Address | None) -> Place:
    node, nodes = int(environment["RANK"]), _number(environment, "WORLD_SIZE")
    each = environment.get("NPROC_PER_NODE", "")
    return Place(
        node,
        nodes,
        f"the environment (WORLD_SIZE={nodes} nodes)",
        nodes=nodes,
        ranks=int(each) if each.isdecimal() and int(each) else None,
        address=rendezvous or _master(environment),
    )


def _of_slurm(environment: Mapping[str, str], rendezvous: Address | None) -> Place:
    tasks, nodes = _number(environment, "SLURM_STEP_NUM_TASKS"), _number(environment, "SLURM_STEP_NUM_NODES")
    index = int(environment["SLURM_PROCID"])
    first = (
        _first_host(environment["SLURM_STEP_NODELIST"]),
        # The steps of a job, and jobs that share a machine, get different ports.
        20000 + (int(environment["SLURM_JOB_ID"]) * 7 + int(environment.get("SLURM_STEP_ID", "0"))) % 10000,
    )
    address = rendezvous or _master(environment) or first
    launcher = f"srun (SLURM_STEP_NUM_TASKS={tasks})"
    if tasks == nodes:
        return Place(index, tasks, launcher, nodes=nodes, address=address)
    on_nodes = _tasks_of_nodes(environment["SLURM_STEP_TASKS_PER_NODE"])
    return Place(
        index,
        tasks,
        launcher,
        nodes=nodes,
        ranks=1,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=on_nodes[int(environment["SLURM_NODEID"])],
        address=address,
    )


def _first_host(names: str) -> str:
    """The first of Slurm's list of hosts: `gpu[003-010,12],login1` → `gpu003`."""
    match = re.match(r"([^\[,]+)(?:\[([^\]]+)\]([^,]*))?", names)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST={names}")
    head, numbers, tail = match[1], match[2] or "", match[3] or ""
    return head + re.split(r"[-,]", numbers)[0] + tail


def _tasks_of_nodes(text: str) -> list[int]:
    """Slurm's numbers of tasks on each node: `4(x2),1` → 4, 4, 1."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text}")
        found += [int(match[1])] * int(match[2] or 1)
    return found


_READERS = {"processes": _of_processes, "slurm": _of_slurm, "nodes": _of_nodes}
