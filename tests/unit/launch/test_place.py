"""What the environment of each launcher says about a command, and what contradicts the config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from easydistill import api
from easydistill.config.job import JobConfig
from easydistill.errors import ConfigError
from easydistill.launch.place import ALONE, Place, check_place, place_of

TORCHRUN = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
DEEPSPEED = {
    "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2", "CROSS_RANK": "1", "CROSS_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
DLC = {
    "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "dlc1-master-0", "MASTER_PORT": "23456", "NPROC_PER_NODE": "8",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "4,3", "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "7",
}  # fmt: skip


def job(launch: dict[str, Any] | None = None, job_type: str = "white_box_kd_local") -> JobConfig:
    models = {"teacher": "teacher", "student": "student"}
    config: dict[str, Any] = {"job_type": job_type, "dataset": {"labeled_path": "rows.json"}, "models": models}
    if launch is not None:
        config["launch"] = launch
    return api.load(config).job


def problems(error: pytest.ExceptionInfo[ConfigError]) -> str:
    return str(error.value)


def test_alone() -> None:
    assert place_of(job(), {}) == ALONE
    assert place_of(job({"processes": 2}), {"MASTER_ADDR": "here", "OMP_NUM_THREADS": "1"}) == ALONE


def test_torchrun_counts_processes() -> None:
    place = place_of(job(), TORCHRUN)
    assert (place.index, place.count, place.nodes, place.ranks) == (5, 8, 2, 1)
    assert (place.local_rank, place.local_size) == (1, 4)
    # Torchrun itself listens at its port.
    assert place.address is None and place.store == ("gpu1", 29500)
    assert place.store_key != place_of(job(), {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}).store_key
    assert not place.speaks and place_of(job(), {**TORCHRUN, "LOCAL_RANK": "0"}).speaks


def test_deepspeed_counts_processes() -> None:
    place = place_of(job(), DEEPSPEED)
    assert (place.index, place.count, place.nodes, place.local_rank, place.local_size) == (3, 4, 2, 1, 2)
    assert place.address == ("10.0.0.1", 29500) and place.store is None


def test_dlc_counts_nodes() -> None:
    place = place_of(job(), DLC)
    assert (place.index, place.count, place.nodes, place.ranks, place.local_rank) == (1, 2, 2, 8, None)
    assert place.address == ("dlc1-master-0", 23456)
    assert place_of(job(), {**DLC, "NPROC_PER_NODE": "0"}).ranks is None


def test_srun_with_a_task_for_each_gpu() -> None:
    place = place_of(job(), SRUN)
    assert (place.index, place.count, place.nodes, place.ranks) == (5, 7, 2, 1)
    assert (place.local_rank, place.local_size) == (1, 3)
    assert place.address is not None and place.address[0] == "gpu003"
    assert place.address == place_of(job(), {**SRUN, "SLURM_PROCID": "0", "SLURM_NODEID": "0"}).address
    assert place.address != place_of(job(), {**SRUN, "SLURM_STEP_ID": "1"}).address


def test_srun_with_a_task_for_each_node() -> None:
    each = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
    place = place_of(job({"processes": 4}), each)
    assert (place.index, place.count, place.ranks, place.local_rank) == (1, 2, None, None)


def test_a_batch_script_is_no_step() -> None:
    batch = {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP")}
    assert place_of(job(), batch) == ALONE


@pytest.mark.parametrize(
    ("names", "first"),
    [("gpu[003-010,12],login1", "gpu003"), ("a1,a2", "a1"), ("a[7]", "a7"), ("n[1-2]-ib", "n1-ib"), ("one", "one")],
)
def test_first_host_of_slurm(names: str, first: str) -> None:
    place = place_of(job(), {**SRUN, "SLURM_STEP_NODELIST": names})
    assert place.address is not None and place.address[0] == first


def test_torchrun_inside_srun_counts() -> None:
    assert place_of(job(), {**SRUN, **TORCHRUN}).launcher.startswith("torchrun")


def test_by_hand() -> None:
    by_hand = job({"nodes": 3, "rendezvous": "[fd00::1]:2900"})
    assert place_of(by_hand, {}, 2) == Place(2, 3, "the config", nodes=3, address=("fd00::1", 2900))
    # The same number in the launcher's words.
    assert place_of(job({"nodes": 2}), DLC, 1).index == 1


def test_a_rendezvous_of_the_config_is_used_under_a_launcher() -> None:
    place = place_of(job({"rendezvous": "other:1234"}), TORCHRUN)
    assert place.address == ("other", 1234) and place.store is None


def test_launcher_of_the_config() -> None:
    alone = place_of(job({"launcher": "none"}), TORCHRUN)
    # Not ALONE itself: the variables are to be hidden from libraries.
    assert alone.count == 1 and alone.launcher
    nodes = place_of(job({"launcher": "nodes"}), {**DLC, "LOCAL_RANK": "0"})
    assert nodes.local_rank is None and nodes.ranks == 8
    with pytest.raises(ConfigError) as error:
        place_of(job({"launcher": "slurm"}), {})
    assert "it is slurm, but the environment has not SLURM_STEP_NUM_TASKS" in problems(error)
    # On a laptop the config is valid.
    check_place(job({"launcher": "slurm", "nodes": 4}), {})


@pytest.mark.parametrize(
    ("launch", "environment", "told"),
    [
        ({"processes": 2}, TORCHRUN, "launch.processes: it is 2, but torchrun (WORLD_SIZE=8) says 4"),
        ({"nodes": 4}, TORCHRUN, "launch.nodes: it is 4, but torchrun (WORLD_SIZE=8) says 2"),
        ({"nodes": 4}, DLC, "launch.nodes: it is 4, but the environment (WORLD_SIZE=2 nodes) says 2"),
        ({"processes": 8}, SRUN, "launch.processes: it is 8, but srun (SLURM_STEP_NUM_TASKS=7) says 3"),
        (
            {},
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"},
            "launch.rendezvous: the environment (WORLD_SIZE=2 nodes)",
        ),
        ({"processes": 4}, DLC, "launch.processes: it is 4, but NPROC_PER_NODE says 8"),
        ({"nodes": 2}, {}, "launch.nodes: nodes is 2, but nothing says where they meet"),
        ({"rendezvous": "h:29400"}, {}, "launch.nodes: rendezvous is h:29400, but nothing says how many machines"),
        ({"rendezvous": "h:29400", "launcher": "none"}, TORCHRUN, "launch.nodes: rendezvous is h:29400, but nothing"),
        ({"deepspeed": "ds.json"}, {**TORCHRUN, "ACCELERATE_USE_FSDP": "true"}, "it is DeepSpeed, ds.json, but"),
        ({"strategy": "fsdp2"}, {**TORCHRUN, "ACCELERATE_USE_DEEPSPEED": "true"}, "it is fsdp2, but accelerate says"),
        ({}, {**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, "the variables of processes are not complete: LOCAL_WORLD_SIZE=0"),
        ({}, {**DEEPSPEED, "LOCAL_SIZE": "-2"}, "the variables of processes are not complete: LOCAL_SIZE=-2"),
        ({}, {**TORCHRUN, "WORLD_SIZE": "0"}, "the variables of processes are not complete: WORLD_SIZE=0"),
        ({}, {**TORCHRUN, "RANK": "8"}, "the variables of processes are not complete: number 8 of 8 is none of them"),
        ({}, {**DLC, "MASTER_PORT": "99999"}, "the variables of nodes are not complete: MASTER_PORT=99999"),
        ({}, {**DLC, "MASTER_PORT": "0"}, "the variables of nodes are not complete: MASTER_PORT=0"),
        ({}, {**SRUN, "SLURM_NODEID": "2"}, "the variables of slurm are not complete"),
        ({}, {**SRUN, "SLURM_STEP_NUM_NODES": "0"}, "the variables of slurm are not complete: SLURM_STEP_NUM_NODES=0"),
        ({}, {**TORCHRUN, "ACCELERATE_USE_FSDP": "true"}, "launch.strategy: it is ddp, but accelerate says FSDP"),
        ({}, {**TORCHRUN, "ACCELERATE_MIXED_PRECISION": "fp16"}, "accelerate says fp16, but training.bf16 is auto"),
        ({"launcher": "nodes"}, {"WORLD_SIZE": "2"}, "the variables of nodes are not complete: 'RANK'"),
        ({"launcher": "nodes"}, {"WORLD_SIZE": "two", "RANK": "0"}, "the variables of nodes are not complete"),
    ],
)
def test_contradictions_are_told_with_both_values(
    launch: dict[str, Any], environment: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    loaded = job(launch)
    with pytest.raises(ConfigError) as error:
        # As `validate` does.
        api.check_launch(loaded)
    assert told in problems(error) and "→" in problems(error)


@pytest.mark.parametrize(
    ("launch", "environment", "node_rank", "told"),
    [
        ({"nodes": 2, "rendezvous": "a:1"}, {}, None, "there are 2 nodes, and nothing says which of them this is"),
        ({"nodes": 2, "rendezvous": "a:1"}, {}, 2, "it is 2, but launch.nodes is 2"),
        ({}, {}, 1, "it is 1, but launch.nodes is auto"),
        ({}, {}, 0, "it is 0, but launch.nodes is auto and no launcher is found\n    → set launch.nodes"),
        ({"nodes": 1}, {}, 1, "it is 1, but launch.nodes is 1"),
        ({}, DLC, 0, "it is 0, but the environment (WORLD_SIZE=2 nodes) has started this command on node 1"),
        ({}, TORCHRUN, 0, "it is 0, but torchrun (WORLD_SIZE=8) has started this command"),
    ],
)
def test_node_ranks(launch: dict[str, Any], environment: dict[str, str], node_rank: int | None, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        place_of(job(launch), environment, node_rank)
    assert told in problems(error)


def test_one_machine_that_is_asked_for() -> None:
    assert place_of(job({"nodes": 1, "rendezvous": "h:29400"}), {}, 0) == ALONE
    # On a laptop the config is valid.
    check_place(job({"launcher": "processes", "rendezvous": "h:29400"}), {})


def test_accelerate_says_deepspeed_and_the_config_too() -> None:
    for launch in ({"deepspeed": "ds.json"}, {"strategy": "zero2"}):
        assert place_of(job(launch), {**TORCHRUN, "ACCELERATE_USE_DEEPSPEED": "true"}).count == 8


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_ports_that_do_not_exist(port: str) -> None:
    with pytest.raises(ConfigError) as error:
        job({"nodes": 2, "rendezvous": f"h:{port}"})
    assert f"launch.rendezvous: {port} is no port" in problems(error) and "from 1 to 65535" in problems(error)
    assert place_of(job({"nodes": 2, "rendezvous": "h:65535"}), {}, 0).address == ("h", 65535)


@pytest.mark.parametrize("ask", [api.validate, api.plan, api.preview])
def test_what_only_shows_a_run_refuses_what_the_run_does(ask: Callable[[Any], Any]) -> None:
    config = job({"nodes": 2}).model_dump(mode="json", by_alias=True, exclude_unset=True)
    with pytest.raises(ConfigError) as error:
        ask(config)
    assert "launch.nodes: nodes is 2, but nothing says where they meet" in problems(error)


def test_a_job_for_one_process_is_refused_under_a_launcher() -> None:
    synthesis = api.load({
        "job_type": "instruction_expansion",
        "dataset": {"input_path": "seeds.json", "output_path": "out.json", "num_output_samples": 4},
        "inference": {"backend": "openai", "base_url": "http://localhost/v1"},
        "models": {"teacher": "teacher"},
    }).job  # fmt: skip
    with pytest.raises(ConfigError) as error:
        place_of(synthesis, TORCHRUN)
    assert "runs in one process, but torchrun (WORLD_SIZE=8) has started 8" in problems(error)
    assert place_of(synthesis, {**DLC, "WORLD_SIZE": "1", "RANK": "0"}).count == 1
    with pytest.raises(ConfigError) as error:
        place_of(synthesis, {}, 0)
    assert "leave it out: instruction_expansion runs in one process" in problems(error)


def pipeline(first: dict[str, Any] | None, second: dict[str, Any] | None) -> JobConfig:
    jobs = {}
    for name, launch in (("one", first), ("two", second)):
        models = {"teacher": "teacher", "student": "student"}
        jobs[name] = {"job_type": "white_box_kd_local", "dataset": {"labeled_path": "rows.json"}, "models": models}
        if launch is not None:
            jobs[name]["launch"] = launch
    return api.load({"job_type": "pipeline", "jobs": jobs}).job


def test_the_jobs_of_a_pipeline_share_the_machines() -> None:
    assert place_of(pipeline(None, None), DLC).count == 2
    shared = {"nodes": 2, "rendezvous": "a:1"}
    assert place_of(pipeline(shared, {**shared, "processes": 2}), {}, 1).address == ("a", 1)
    with pytest.raises(ConfigError) as error:
        place_of(pipeline(shared, None), {}, 1)
    assert "launch.nodes: the jobs have 2 and auto" in problems(error)


def test_every_job_of_a_pipeline_is_compared() -> None:
    with pytest.raises(ConfigError) as error:
        check_place(pipeline({"processes": 4}, {"processes": 2}), TORCHRUN)
    assert "launch.processes: it is 2, but torchrun (WORLD_SIZE=8) says 4" in problems(error)
    with pytest.raises(ConfigError) as error:
        check_place(pipeline({"strategy": "fsdp2"}, {}), {**TORCHRUN, "ACCELERATE_USE_FSDP": "true"})
    assert "launch.strategy: it is ddp, but accelerate says FSDP" in problems(error)
