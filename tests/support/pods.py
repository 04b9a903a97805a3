"""What a target does with a document that it has got, done here: the command of each machine as a plain process.

A machine's own paths lie under a folder, and its variables are those that the document and the target give it, and no
others. Mounts are folders of this machine that have the same path.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from easydistill.cloud.spec import CONFIG_FOLDER
from tests.support.several import SILENT

SCRATCH = "/tmp/easydistill"
"""Where scripts put the config."""


class Machines:
    """The machines of a job."""

    def __init__(self, target: str, document: str, folder: Path, secrets: Mapping[str, str], port: int) -> None:
        """
        Args:
            document: what was sent.
            folder: for what is on a machine and on no mount.
            secrets: by the references that the document has; of `skypilot` by the variable.
            port: where the first machine awaits the others.
        """
        self._folder, self._secrets, self._port = folder, secrets, port
        programs = folder / "bin"
        programs.mkdir(parents=True)
        program = programs / "easydistill"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m easydistill "$@"\n')
        program.chmod(0o755)
        self._base = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), **SILENT}
        if "PYTHONPATH" in os.environ:
            self._base["PYTHONPATH"] = os.environ["PYTHONPATH"]
        read = {"kubernetes": self._kubernetes, "kubeflow": self._kubeflow, "pai-dlc": self._dlc, "skypilot": self._sky}
        read[target](document)

    def start(self, rank: int) -> subprocess.Popen[str]:
        """The command of a machine."""
        return subprocess.Popen(
            [self._here(part) for part in self._command],
            cwd=self._cwd,
            env=self._base | {name: value.format(rank=rank) for name, value in self._told.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _here(self, text: str) -> str:
        return text.replace(CONFIG_FOLDER, f"{self._folder}{CONFIG_FOLDER}").replace(SCRATCH, f"{self._folder}/scratch")

    def _kubernetes(self, document: str) -> None:
        objects = {one["kind"]: one for one in yaml.safe_load_all(document)}
        self._mount_config(objects["ConfigMap"])
        pod = objects["Job"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        self._command, self._cwd = container["command"], container["workingDir"]
        self._told = self._variables(container["env"])
        if "MASTER_ADDR" in self._told:
            # The cluster's DNS: <pod's name>.<subdomain>.
            name = objects["Job"]["metadata"]["name"]
            service = objects["Service"]
            assert self._told["MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}"
            assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
            assert service["spec"]["selector"] == {"job-name": name}
            self._told |= {"MASTER_ADDR": "127.0.0.1"}

    def _kubeflow(self, document: str) -> None:
        config, job = yaml.safe_load_all(document)
        self._mount_config(config)
        trainer = job["spec"]["trainer"]
        self._command, self._cwd = trainer["command"], str(self._folder)
        self._told = self._variables(trainer.get("env", []))
        # Those of the runtime torch-distributed.
        self._told |= {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": "auto",
            "PET_NODE_RANK": "{rank}",
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(self._port),
        }

    def _dlc(self, document: str) -> None:
        body = json.loads(document)
        self._command, self._cwd = ["sh", "-c", body["UserCommand"]], str(self._folder)
        # DLC says so on a single node too.
        self._told = {
            **body.get("Envs", {}),
            "RANK": "{rank}",
            "WORLD_SIZE": str(body["JobSpecs"][0]["PodCount"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._port),
            "NPROC_PER_NODE": "0",
        }

    def _sky(self, document: str) -> None:
        task = yaml.safe_load(document)
        self._command, self._cwd = ["bash", "-c", task["run"]], str(self._folder)
        self._told = {
            **task.get("envs", {}),
            **{name: self._secrets[name] for name in task.get("secrets", {})},
            "SKYPILOT_NODE_RANK": "{rank}",
            "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
            "SKYPILOT_NODE_IPS": "127.0.0.1\n" * task["num_nodes"],
        }

    def _mount_config(self, config: dict[str, Any]) -> None:
        folder = Path(f"{self._folder}{CONFIG_FOLDER}")
        folder.mkdir(parents=True)
        for name, text in config["data"].items():
            (folder / name).write_text(text, encoding="utf-8")

    def _variables(self, given: list[dict[str, Any]]) -> dict[str, str]:
        found = {}
        for variable in given:
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                reference = source["secretKeyRef"]
                found[variable["name"]] = self._secrets[f"{reference['name']}/{reference['key']}"]
            elif "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"].endswith("['batch.kubernetes.io/job-completion-index']")
                found[variable["name"]] = "{rank}"
            else:
                found[variable["name"]] = variable["value"]
        return found
