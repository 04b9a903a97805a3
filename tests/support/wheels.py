"""The package as others get it: built, and installed into an environment that has none of this repository."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build(kind: str, source: Path, target: Path) -> Path:
    """Build the `wheel` or the `sdist` of a source tree, offline, into a folder."""
    target.mkdir(exist_ok=True)
    code = f"import sys; from hatchling.build import build_{kind}; print(build_{kind}(sys.argv[1]))"
    made = _succeed([sys.executable, "-c", code, str(target)], source)
    return target / made.split()[-1]


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with a wheel; returns its folder of commands.

    What the wheel needs is borrowed from this environment, so that it takes seconds. A line of a `.pth` file is a
    folder to import from, whose own `.pth` files are not read: an editable installation there stays out of sight.
    """
    _succeed([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder.parent)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    _succeed([*pip, "--no-deps", "--no-index", str(wheel)], folder.parent)
    own = Path(_succeed([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def _succeed(command: list[str], folder: Path) -> str:
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout
