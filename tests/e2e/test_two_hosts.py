"""Training over two hosts (network namespaces) that see each other over one cable, and the same files."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.test_launch import curve, sft_job, weights
from tests.support.jobs import command, run_here, write_config
from tests.support.several import Commands, free_port, on_nodes, script
from tests.support.two_hosts import Host, two_hosts

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts_or_skip() as made:
        yield made


class two_hosts_or_skip:  # noqa: N801 (a context manager, used as a function)
    def __enter__(self) -> tuple[Host, Host]:
        self._made = two_hosts()
        try:
            return self._made.__enter__()
        except OSError as error:
            pytest.skip(str(error))

    def __exit__(self, *exception: object) -> None:
        self._made.__exit__(*exception)  # type: ignore[arg-type]


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    started = Commands(tmp_path)
    yield started
    started.end()


@pytest.fixture(scope="module")
def in_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two processes of one machine."""
    folder = tmp_path_factory.mktemp("in-two")
    code, out = run_here(write_config(folder, sft_job(folder, tiny_model, 2, 2)))
    assert code == 0, out
    return folder


def gradient_bytes(folder: Path) -> int:
    """What two processes must tell each other at least: each step's gradients, once."""
    return len(curve(folder)) * (folder / "run/student/model.safetensors").stat().st_size


def test_a_run_over_two_hosts(
    hosts: tuple[Host, Host], in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    job = on_nodes(sft_job(tmp_path, tiny_model, 2, 2), 2, rendezvous=f"{hosts[0].address}:{free_port()}")
    config = write_config(tmp_path, job)
    for node, host in enumerate(hosts):
        commands.start(*host.command(*command("run", str(config), "--node-rank", str(node))))
    assert commands.codes(300) == [0, 0], commands.all_said()
    assert weights(tmp_path) == weights(in_two)
    assert min(host.received() for host in hosts) > gradient_bytes(tmp_path)


def test_torchrun_over_two_hosts(
    hosts: tuple[Host, Host], in_two: Path, tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    job = sft_job(tmp_path, tiny_model, 2, 2)
    del job["launch"]
    config = write_config(tmp_path, job)
    meeting = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "a-run"]
    meeting += ["--rdzv_endpoint", f"{hosts[0].address}:{free_port()}"]
    for node, host in enumerate(hosts):
        # Both hosts have one name, by which torchrun would tell who is to open the store.
        told = ["--local_addr", host.address, "--rdzv_conf", f"is_host={1 - node}"]
        torchrun = [script("torchrun"), *meeting, *told]
        commands.start(*host.command(*torchrun, "-m", "easydistill", f"-config={config}"))
    assert commands.codes(300) == [0, 0], commands.all_said()
    assert weights(tmp_path) == weights(in_two)
    assert min(host.received() for host in hosts) > gradient_bytes(tmp_path)


def test_a_host_without_power_ends_the_run_within_30_seconds(
    hosts: tuple[Host, Host], tiny_model: Path, tmp_path: Path, commands: Commands
) -> None:
    job = on_nodes(
        sft_job(tmp_path, tiny_model, 2, 2, num_train_epochs=200), 2, rendezvous=f"{hosts[0].address}:{free_port()}"
    )
    config = write_config(tmp_path, job)
    for node, host in enumerate(hosts):
        commands.start(*host.command(*command("run", str(config), "--node-rank", str(node))))
    ends = time.monotonic() + 200
    while not (tmp_path / "run/metrics.jsonl").is_file() or len(curve(tmp_path)) < 3:
        assert time.monotonic() < ends, commands.all_said()
        time.sleep(0.2)
    hosts[1].unplug()
    cut = time.monotonic()
    assert commands.codes(60) == [1, 1], commands.all_said()
    assert time.monotonic() - cut < 40
    assert "node 1" in commands.said(0) and "is gone" in commands.said(0)
    assert "node 0 is gone" in commands.said(1)
    left = subprocess.run(["pgrep", "-f", str(config)], capture_output=True, text=True, check=False).stdout
    assert not left
