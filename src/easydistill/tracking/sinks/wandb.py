"""Weights & Biases: by default an offline run in the run directory, which `wandb sync` sends if the user wants that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, cast

from easydistill.config.base import NonEmptyStr, Secret
from easydistill.contracts.sink import Figures, SinkConfig, SinkContext

NEEDS = ("wandb",)


class Config(SinkConfig):
    """A run of Weights & Biases."""

    project: NonEmptyStr = "easydistill"
    """The project that the run is part of."""
    entity: NonEmptyStr | None = None
    """The user or team that owns it."""
    mode: Literal["offline", "online"] = "offline"
    """`online` sends figures to `base_url` while the run goes on; `offline` only writes them to the run directory."""
    base_url: NonEmptyStr | None = None
    """The server; by default W&B's own."""
    api_key: Secret | None = None
    """The key for the server; by default what `wandb login` has left, or `WANDB_API_KEY`."""

    @property
    def rewritten(self) -> bool:
        return self.mode == "offline"


class Wandb:
    """A run. Each group of figures has its own count of steps: `train/step`, `labelling/step`."""

    def __init__(self, config: Config, context: SinkContext) -> None:
        if config.api_key is not None:
            os.environ["WANDB_API_KEY"] = config.api_key.get_secret_value()
        # A setting of the environment does not make an offline run send anything.
        os.environ["WANDB_MODE"] = config.mode
        # Its logs, which it keeps in the home directory otherwise.
        os.environ["WANDB_CACHE_DIR"] = str(context.directory / "cache")
        import wandb

        settings: dict[str, Any] = {
            "console": "off",
            "silent": True,
            "disable_git": True,
            "disable_code": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
            "x_disable_machine_info": True,
        }
        known = wandb.Settings.model_fields
        settings = {name: value for name, value in settings.items() if name in known}
        if config.base_url is not None:
            settings["base_url"] = config.base_url
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            id=context.id,
            name=context.name,
            job_type=context.job_type,
            config=dict(context.settings),
            dir=str(context.directory),
            mode=config.mode,
            # To a server the run is the same one, each time that it is started.
            resume="allow" if config.mode == "online" else None,
            settings=wandb.Settings(**settings),
        )
        self._groups: set[str] = set()

    def log(self, figures: Sequence[Figures]) -> None:
        for item in figures:
            if item.group not in self._groups:
                self._groups.add(item.group)
                self._run.define_metric(f"{item.group}/*", step_metric=f"{item.group}/step")
            values = {f"{item.group}/{name}": value for name, value in item.values.items()}
            self._run.log({**values, f"{item.group}/step": item.step, "time": item.time})

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "done" else 1)


def make(config: SinkConfig, context: SinkContext) -> Wandb:
    return Wandb(cast(Config, config), context)
