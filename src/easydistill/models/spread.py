"""A model too large for one device: its layers lie one after the other on several (`inference.device_map`).

accelerate moves what flows between layers to the next one's device, and brings weights that wait in the CPU's memory or
on the disk for as long as their layer computes. Numbers are those of the whole model on one such device.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from easydistill.config.device_map import DeviceMap
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.models.loading import device, import_torch, load_model

if TYPE_CHECKING:
    import torch

    from easydistill.models.head import Head

GB = 10**9
FILLED = 0.9
"""Share of the free memory that weights may take; the rest is for what is computed."""


@dataclass(frozen=True)
class Spread:
    """Where the copies of a model lie, which share the GPUs of their machine equally."""

    device_map: DeviceMap
    copies: int = 1
    """On each machine, if several processes load them; one process alone has one copy, and all GPUs."""
    number: int = 0
    """Of this process's copy, from 0."""

    def of_rank(self) -> Spread | None:
        """The copy of this process, which is one of several of its machine; None if it has none."""
        processes, number = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
        copies = min(self.copies, processes, import_torch().cuda.device_count() or processes)
        return replace(self, copies=copies, number=number) if number < copies else None

    def gpus(self) -> range:
        """The numbers of this copy's GPUs, in torch's order. There is none on a machine without CUDA."""
        torch = import_torch()
        each = torch.cuda.device_count() // self.copies
        return range(self.number * each, (self.number + 1) * each)

    def options(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` takes.

        Raises:
            ConfigError: the map names a GPU that the copy does not have.
        """
        gpus = self.gpus()
        if self.device_map == "auto":
            return {"device_map": "auto", **({"max_memory": self._room(gpus)} if gpus else {})}
        if issue := map_issue(self.device_map, len(gpus)):
            raise ConfigError(issue)
        return {
            "device_map": {
                name: gpus[where] if isinstance(where, int) else where for name, where in self.device_map.items()
            }
        }

    def _room(self, gpus: range) -> dict[int | str, int]:
        """Bytes for weights on each device."""
        import psutil

        torch = import_torch()
        room: dict[int | str, int] = {gpu: int(FILLED * torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus}
        return {**room, "cpu": int(FILLED * psutil.virtual_memory().available / self.copies)}


def map_issue(device_map: DeviceMap, gpus: int) -> ConfigIssue | None:
    """An issue if a map names a GPU that a copy of the model, which has so many, does not have."""
    if device_map == "auto":
        return None
    last = max((where for where in device_map.values() if isinstance(where, int)), default=-1)
    if last < gpus:
        return None
    have = f"{gpus} GPUs, numbered from 0" if gpus else "no GPU"
    problem = f"it names GPU {last}, and a copy of the teacher has {have}"
    return ConfigIssue("this machine", "inference.device_map", problem, 'set it to "auto", or name devices that exist')


def spread_of(device_map: DeviceMap | None, copies: int = 1) -> Spread | None:
    """The spread that an `inference` section asks for."""
    return None if device_map is None else Spread(device_map, copies)


def spread_note(spread: Spread, weights: int | None, gpus: int, gpu_bytes: int | None) -> str:
    """What a device holds of a model, in words.

    Args:
        weights: bytes of them all.
        gpus: of the machine; 0 if that is not known here.
        gpu_bytes: memory of one of them, if that is known.
    """
    size = "" if weights is None else f" ({weights / GB:.1f} GB of weights)"
    teacher = f"the layers of the teacher{size}"
    if spread.copies > 1:
        teacher = f"the layers of each of {spread.copies} copies of the teacher{size} on a machine"
    if spread.device_map != "auto":
        return f"{teacher} lie as inference.device_map says"
    rest = "what does not fit waits in the CPU's memory, then on the disk, which is slow"
    each = gpus // spread.copies
    if each and weights is not None:
        return f"{teacher} lie on {each} GPU{'s' if each > 1 else ''}, about {weights / each / GB:.1f} GB each; {rest}"
    if weights is not None and gpu_bytes is not None:
        least = math.ceil(weights / (FILLED * gpu_bytes))
        some = f"{least} GPUs" if least > 1 else "one GPU"
        return f"{teacher} need at least {some} of {gpu_bytes / GB:.0f} GB; {rest}"
    return f"{teacher} lie on the GPUs that it has; {rest}"


def load_placed(reference: str, dtype: torch.dtype, spread: Spread | None, *, trust_remote_code: bool = False) -> Any:
    """A causal language model, in eval mode: on this machine's device, or spread over several.

    Raises:
        ModelError: it cannot be loaded; see `load_model`.
        ConfigError: the devices are not there, or weights that layers share are in different places.
    """
    if spread is None:
        return load_model(reference, dtype, trust_remote_code=trust_remote_code).to(device())
    model = load_model(reference, dtype, trust_remote_code=trust_remote_code, placement=spread.options())
    _check_names(model, spread.device_map)
    _check_tied(model)
    return model


def _check_names(model: Any, device_map: DeviceMap) -> None:
    """Check that a map names parts of the model: transformers passes over names that it does not find.

    Raises:
        ConfigError: one is of none.
    """
    if device_map == "auto":
        return
    modules = dict(model.named_modules())
    known = modules.keys() | {name for name, _ in model.named_parameters(remove_duplicate=False)}
    unknown = next((name for name in device_map if name not in known), None)
    if unknown is not None:
        problem = f"{type(model).__name__} has no module {unknown!r}"
        near = difflib.get_close_matches(unknown, known, n=1)
        children = ", ".join(name for name, _ in model.named_children())
        hint = f"did you mean {near[0]!r}?" if near else f"name {children}, or parts of them"
        raise ConfigError(ConfigIssue("config", "inference.device_map", problem, hint))


def _check_tied(model: Any) -> None:
    """Check that an output layer that shares the embedding's weights waits where they do: accelerate finds them there.

    Raises:
        ConfigError: it does not.
    """
    places: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    if not model.config.get_text_config().tie_word_embeddings or not places:
        return
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [next(name for name, module in model.named_modules() if module is end) for end in ends]
    found = [_place(places, name) for name in names]
    if found[0] != found[1]:
        problem = f"{names[1]} ({found[1]}) shares the weights of {names[0]} ({found[0]})"
        hint = 'put both in the same place, or set it to "auto"'
        raise ConfigError(ConfigIssue("config", "inference.device_map", problem, hint))


def _place(places: dict[str, Any], module: str) -> Any:
    """Where a module lies: what the map says of it, or of the nearest one around it."""
    while module not in places and module:
        module = module.rpartition(".")[0]
    return places.get(module)


def is_spread(model: Any) -> bool:
    """Whether the layers of a model are on several devices, or wait elsewhere."""
    return _hook(model) is not None


def input_device(model: Any) -> torch.device:
    """Where a model is given token ids: its device, or that of its embedding, whose weights may wait elsewhere."""
    hook = _hook(model.get_input_embeddings())
    found: torch.device = model.device
    return found if hook is None else import_torch().device(hook.execution_device)


@contextlib.contextmanager
def head_of(model: Any) -> Iterator[Head]:
    """A model's output layer, for as long as its weights are on the device that computes it."""
    from easydistill.models.head import Head

    if not is_spread(model):
        yield Head.of(model)
        return
    from accelerate.utils import align_module_device

    with align_module_device(model.get_output_embeddings()):
        yield Head.of(model)


@contextlib.contextmanager
def given_where_it_begins() -> Iterator[None]:
    """Call `generate` with ids on `input_device`: it would warn where the weights of an embedding wait elsewhere."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"You are calling .generate\(\) with the `input_ids` being on a device")
        yield


def _hook(module: Any) -> Any:
    """What accelerate does around a module's forward."""
    return getattr(module, "_hf_hook", None)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Does not start CUDA."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else list(map(str, range(count)))
