"""Commands that check and explain start quickly, without loading any heavy library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "pyarrow", "openai", "rich", "numpy", "vllm", "huggingface_hub", "yaml", "jinja2")


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "kd.json"
    path.write_text(
        json.dumps(
            {
                "job_type": "black_box_kd_local",
                "dataset": {"instruction_path": "x.json"},
                "models": {"teacher": "org/teacher", "student": "org/student"},
            }
        )
    )
    old = {"job_type": "kd_black_box_train_only", "dataset": {"labeled_path": "x.json"}, "models": {"student": "s"}}
    (tmp_path / "old.json").write_text(json.dumps(old))
    return str(path)


def arguments(name: str, config: str) -> list[str]:
    return {
        "help": ["--help"],
        "validate": ["validate", config],
        "schema": ["schema"],
        "init": ["init", "black_box_kd_api"],
        "recipes": ["recipes"],
        "a recipe": ["init", "--recipe", "code", "-o", config.replace("kd.json", "copy")],
        "migrate": ["migrate", config.replace("kd.json", "old.json")],
    }[name]


@pytest.mark.parametrize("name", ["help", "validate", "schema", "init", "migrate", "recipes", "a recipe"])
def test_no_heavy_library(name: str, config: str) -> None:
    code = (
        "import sys\nfrom easydistill.cli import main\n"
        f"try:\n    main({arguments(name, config)!r})\nexcept SystemExit:\n    pass\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\nassert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "most"),
    [("help", 150), ("recipes", 150), ("a recipe", 150), ("validate", 500), ("init", 500), ("schema", 700)],
)
def test_few_modules_are_loaded(name: str, most: int, config: str) -> None:
    """Time depends on the machine, so modules are counted instead. `schema` loads every job, the others one."""
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom easydistill.cli import main\n"
        f"try:\n    main({arguments(name, config)!r})\nexcept SystemExit:\n    pass\n"
        "print(len(set(sys.modules) - before), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stderr.split()[-1]) < most


@pytest.mark.parametrize("name", ["kd.yaml", "kd.toml", "kd.jsonc"])
def test_a_bad_config_in_any_notation_loads_no_heavy_library(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("x = 1\n" if name.endswith("toml") else "x: 1\n" if name.endswith("yaml") else '{"x": 1}')
    heavy = [module for module in HEAVY if module != "yaml"]
    code = (
        f"import sys\nfrom easydistill.cli import main\nassert main(['validate', {str(path)!r}]) == 2\n"
        f"found = [name for name in {heavy!r} if name in sys.modules]\nassert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_these_commands_need_no_network() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*arguments, **options):\n    raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from easydistill.cli import main\n"
        "assert main(['validate', 'nowhere.json']) == 2\n"
        "assert main(['init', 'black_box_kd_local']) == 0\n"
        "assert main(['schema']) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_importing_the_package_is_free() -> None:
    code = f"import sys, easydistill\nassert not [n for n in (*{HEAVY!r}, 'pydantic') if n in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
