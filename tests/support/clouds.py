"""Jobs and targets of the tests of `submit`: one GPU, four machines of eight, and no GPU at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("submitted")
TARGETS = ("kubernetes", "kubeflow", "pai-dlc", "skypilot")
CASES = ("one_gpu", "four_nodes", "api_only")

_STUDENT = {"models": {"teacher": "org/teacher", "student": "org/student"}}
JOBS: dict[str, dict[str, Any]] = {
    "one_gpu": {
        "job_type": "black_box_kd_local",
        "dataset": {"instruction_path": "data/train.jsonl"},
        **_STUDENT,
        "training": {"output_dir": "runs/One GPU"},
    },
    "four_nodes": {
        "job_type": "white_box_kd_local",
        "dataset": {"instruction_path": "data/train.jsonl", "logits_path": "signals"},
        **_STUDENT,
        "launch": {"processes": 8, "nodes": 4, "strategy": "fsdp2"},
        "training": {"output_dir": "runs/white_box"},
    },
    "api_only": {
        "job_type": "label",
        "dataset": {"instruction_path": "data/prüfung.jsonl", "labeled_path": "${env:LABELS}/labeled.jsonl"},
        "inference": {"base_url": "https://teacher.example/v1", "api_key": "${env:TEACHER_KEY}", "model": "m"},
        "output_dir": "/mnt/shared/runs/label",
    },
}

_COMMON: dict[str, Any] = {"image": "registry.example/easydistill:4", "workdir": "/mnt/shared/kd"}
_OF_CASE: dict[str, dict[str, Any]] = {
    "one_gpu": {"gpus": 1},
    "four_nodes": {"gpus": 8, "max_hours": 48, "env": {"NCCL_DEBUG": "WARN"}},
    "api_only": {"env": {"LABELS": "/mnt/shared/labels"}},
}
_OF_TARGET: dict[str, dict[str, Any]] = {
    "kubernetes": {
        "namespace": "distil",
        "cpus": 16,
        "memory": "128Gi",
        "mounts": [
            {"path": "/mnt/shared", "source": "pvc:shared"},
            {"path": "/models", "source": "nfs://files.example/models", "read_only": True},
        ],
    },
    "pai-dlc": {
        "region": "cn-hangzhou",
        "workspace_id": "12345",
        "mounts": [{"path": "/mnt/shared", "source": "nas://0123.cn-hangzhou.nas.example/kd"}],
    },
    "skypilot": {"mounts": [{"path": "/mnt/shared", "source": "volume:shared"}]},
}
_OF_TARGET["kubeflow"] = _OF_TARGET["kubernetes"]
_SECRETS = {
    "kubernetes": "teacher/api-key",
    "kubeflow": "teacher/api-key",
    "pai-dlc": "/mnt/shared/secrets/teacher key",
    "skypilot": "environment",
}
_OF_BOTH: dict[tuple[str, str], dict[str, Any]] = {
    ("kubernetes", "four_nodes"): {
        "node_selector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "service_account": "trainer",
        "image_pull_secrets": ["registry"],
        "keep_seconds": 86400,
        "retries": 5,
    },
    ("kubeflow", "four_nodes"): {"node_selector": {"gpu": "h100"}},
    ("pai-dlc", "one_gpu"): {"instance_type": "ecs.gn7i-c8g1.2xlarge"},
    ("pai-dlc", "four_nodes"): {
        "quota_id": "quotaabc",
        "cpus": 96,
        "memory": "900Gi",
        "shared_memory": "200Gi",
        "priority": 5,
        "vpc": {"vpc_id": "vpc-1", "switch_id": "vsw-1", "security_group_id": "sg-1"},
    },
    ("pai-dlc", "api_only"): {
        "instance_type": "ecs.g7.xlarge",
        "retries": 0,
        "secrets": {"TEACHER_KEY": "/mnt/secrets/teacher key"},
        "mounts": [
            {"path": "/mnt/shared", "source": "oss://kd-bucket.oss-cn-hangzhou-internal.example/kd/"},
            {"path": "/mnt/secrets", "source": "d-secrets", "read_only": True},
        ],
    },
    ("skypilot", "one_gpu"): {"accelerator": "L4", "infra": "gcp", "spot": True},
    ("skypilot", "four_nodes"): {
        "accelerator": "H100",
        "infra": "k8s/big",
        "cpus": 64,
        "memory": "512Gi",
        "disk_gb": 500,
    },
    ("skypilot", "api_only"): {
        "memory": "1500Mi",
        "mounts": [
            {"path": "/mnt/shared", "source": "s3://kd-bucket/kd"},
            {"path": "/mnt/hub", "source": "gs://models/hub", "read_only": True},
        ],
    },
}


def settings(target: str, case: str) -> dict[str, Any]:
    """A target's file for a case."""
    found = {"target": target, **_COMMON, **_OF_TARGET[target], **_OF_CASE[case]}
    if case == "api_only":
        found["secrets"] = {"TEACHER_KEY": _SECRETS[target]}
    if target == "skypilot":
        found.pop("max_hours", None)
    return found | _OF_BOTH.get((target, case), {})


def write(folder: Path, target: str, case: str, **changes: Any) -> tuple[Path, Path]:
    """(config, settings) as files."""
    config, of_target = folder / f"{case}.json", folder / f"{target}.json"
    config.write_text(json.dumps(JOBS[case]), encoding="utf-8")
    of_target.write_text(json.dumps(settings(target, case) | changes), encoding="utf-8")
    return config, of_target


def golden(target: str, case: str) -> Path:
    suffix = ".json" if target in ("pai-dlc", "eas") else ".yaml"
    return GOLDEN / f"{target}.{case}{suffix}"
