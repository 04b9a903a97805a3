"""What a model makes of images, taken out of it and put back in.

Where a vision tower is not trained, what it makes of an image is the same in every step. It is taken where it enters
the connector, or, if that is not trained either, behind the connector (`Seam.whole`). Put back in, it stands in the
model's inputs in the place of pixels, and the model's own `get_image_features` is replaced by what is left to do.

Shapes: R rows of all images of a batch, in their order: tiles, each with its patches, or patches.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from easydistill.errors import EasyDistillError
from easydistill.models.multimodal.parts import Parts

PIXELS = "pixel_values"
"""The name under which all models with a seam take their pixels."""
_GRID = "image_grid_thw"


class NoSeam(EasyDistillError):
    """What a model makes of images cannot be taken out of it, and why."""


@dataclass(frozen=True)
class Seam:
    """Where features are taken out of a model. It can be sent to a process that has the model without weights."""

    connectors: tuple[str, ...]
    """The connector's modules within the body, in the order in which they are called: Qwen3-VL has one for each depth
    of the tower that its language model reads."""
    kind: type
    """The class of what `get_image_features` returns."""
    form: type
    """Whether it returns the features of tiles as a tensor, as a list of those of each tile, or those of each image as
    a tuple."""
    whole: bool
    """Whether features are taken behind the connector."""


def tower_of(model: Any) -> nn.Module:
    """A model's vision tower; with some, the connector is inside."""
    tower: nn.Module = model.get_encoder(modality="image")
    return tower


def connectors_of(model: Any) -> dict[str, nn.Module]:
    """The modules of a model's connector, by their names within its body."""
    body, parts = model.base_model, Parts(model)
    prefix = next(name for name, module in model.named_modules() if module is body) + "."
    found: dict[str, nn.Module] = {}
    for name, module in body.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not name or inside or isinstance(module, nn.ModuleList) or not any(True for _ in module.parameters()):
            continue
        below = [f"{prefix}{name}.{own}" if own else prefix + name for own, _ in module.named_modules()]
        if all(parts.of(each) == "connector" for each in below):
            found[name] = module
    return found


def find_seam(model: Any, seen: Mapping[str, Tensor], *, whole: bool) -> Seam:
    """Where features can be taken out of a model, tried with a few images.

    Args:
        model: in the mode in which it will be used, on its device.
        seen: what it takes with some images.
        whole: whether they are to be taken behind the connector.

    Raises:
        NoSeam: they cannot: the model has no such place, draws random numbers on the way, or computes something else
            from what is put back in.
    """
    body = model.base_model
    if not hasattr(body, "get_image_features") or PIXELS not in seen:
        raise NoSeam(f"{type(model).__name__} gives no place where features of images can be put in")
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training for each in tower_of(model).modules()):
        raise NoSeam("the vision tower's normalisation depends on the other images of a batch")
    before = _random_state(seen[PIXELS].device)
    expected, entered = _run(model, seen)
    if not torch.equal(before, _random_state(seen[PIXELS].device)):
        raise NoSeam("the vision tower is random in training (dropout)")
    if len(entered) != len(connectors_of(model)):
        raise NoSeam(f"the connector of {type(model).__name__} is not called once for an image")
    seam = Seam(tuple(entered), type(expected), type(expected.pooler_output), whole)
    try:
        found = replay(model, seam, taken(model, seam, seen), kept(seen))
        same = _same(expected.pooler_output, found.pooler_output) and _same(_deep(expected), _deep(found))
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        # Its output or its connector has another structure than is known here.
        same = False
    if not same:
        raise NoSeam(f"{type(model).__name__} does more with features of images than is known here")
    return seam


def kept(seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a model takes of images beside pixels and masks of pixels."""
    return {name: value for name, value in seen.items() if not name.startswith("pixel_")}


def taken(model: Any, seam: Seam, seen: Mapping[str, Tensor]) -> Tensor:
    """The features [R, …] of a batch of images, without gradients.

    What several connectors read stands side by side in the last dimension.
    """
    made, entered = _run(model, seen)
    if not seam.whole:
        return torch.cat([entered[name] for name in seam.connectors], dim=-1)
    pooled = made.pooler_output
    if seam.form is list:
        return torch.stack(pooled)
    if seam.form is tuple:
        return torch.cat([torch.cat(each) for each in (*_deep(made), pooled)], dim=-1)
    assert isinstance(pooled, Tensor)
    return pooled


def replay(model: Any, seam: Seam, features: Tensor, told: Mapping[str, Any]) -> Any:
    """What `get_image_features` would return.

    Args:
        features: [R, …] of a batch of images.
        told: what the model takes of these images beside pixels.
    """
    pieces = [each.contiguous() for each in features.chunk(len(seam.connectors), -1)]
    if not seam.whole:
        body = model.base_model
        pieces = [body.get_submodule(name)(piece) for name, piece in zip(seam.connectors, pieces, strict=True)]
        pieces = pieces if seam.form is not tuple else _in_order(model, pieces, told[_GRID])
    if seam.form is tuple:
        tower: Any = tower_of(model)
        merged = tower.spatial_merge_size**2
        sizes = (told[_GRID].prod(-1) // merged).tolist()
        split = [torch.split(piece, sizes) for piece in pieces]
        deep = {"deepstack_features": split[:-1]} if len(split) > 1 else {}
        return seam.kind(pooler_output=split[-1], **deep)
    (pooled,) = pieces
    return seam.kind(pooler_output=list(pooled) if seam.form is list else pooled)


@contextlib.contextmanager
def put_in(model: Any, seam: Seam) -> Iterator[None]:
    """In this context a model takes features of images in the place of their pixels."""
    body = model.base_model
    takes = inspect.signature(body.get_image_features)

    @functools.wraps(body.get_image_features)
    def get_image_features(*given: Any, **named: Any) -> Any:
        told = takes.bind(*given, **named).arguments
        return replay(model, seam, told[PIXELS], told)

    body.get_image_features = get_image_features
    try:
        yield
    finally:
        del body.get_image_features


def _run(model: Any, seen: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """What `get_image_features` returns, and what enters each of the connector's modules, by name, as they are called.

    Raises:
        NoSeam: one is called more than once.
    """
    body, entered = model.base_model, dict[str, Tensor]()

    def note(name: str, module: nn.Module, given: tuple[Any, ...]) -> None:
        if name in entered or len(given) != 1:
            raise NoSeam(f"the connector of {type(model).__name__} is not called once for an image")
        entered[name] = given[0].detach()

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in connectors_of(model).items():
            hooks.callback(module.register_forward_pre_hook(functools.partial(note, name)).remove)
        wanted = inspect.signature(body.get_image_features).parameters
        given = {name: value for name, value in seen.items() if name in wanted}
        return body.get_image_features(**given, return_dict=True), entered


def _in_order(model: Any, pieces: list[Tensor], grid_I3: Tensor) -> list[Tensor]:
    """Qwen2.5-VL's tower goes through windows of an image, whose patches are put back in order behind the connector."""
    tower: Any = tower_of(model)
    if not hasattr(tower, "window_size"):
        return pieces
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(
        grid_I3,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
        kwargs={},
    )
    back = torch.argsort(order)
    return [piece[back, :] for piece in pieces]


def _deep(made: Any) -> list[Any]:
    """The features of an image that enter deeper layers of the language model."""
    return list(getattr(made, "deepstack_features", None) or ())


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, (list, tuple)):
        pairs = zip(expected, found, strict=True)
        return isinstance(found, (list, tuple)) and all(_same(*pair) for pair in pairs)
    if expected.is_cuda:
        return torch.allclose(expected.float(), found.float(), rtol=1e-2, atol=1e-3)
    return torch.equal(expected, found)


def _random_state(on: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(on) if on.type == "cuda" else torch.get_rng_state()
