"""Writes numbers and pictures with TensorBoard, trackio and Weights & Biases."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

PROJECT = "deit"  # where the service sorts runs by project and the user names none

_NO_TENSORFLOW = "tensorboard.compat.notf"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a service is told of a run.

    Attributes:
        out: Folder of the run.
        name: Name of the run at the service, different for every run.
        settings: The recipe: dotted name -> plain value.
        recipe: The recipe as YAML.
        first_step: The first step that will be logged now.
        goes_on: Whether a part of the run was logged before.
    """

    out: Path
    name: str
    settings: Mapping[str, Any]
    recipe: str
    first_step: int
    goes_on: bool


class Service(Protocol):
    """Writes what a run reports. Its methods may raise anything.

    Attributes:
        last_step: The last step that the service has; 0 where it replaces what is logged again.
    """

    last_step: int

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve."""
        ...

    def picture(self, name: str, path: Path, step: int) -> None:
        """Adds a PNG file."""
        ...

    def close(self) -> None:
        """Writes everything that waits."""
        ...


class TensorBoard:
    """Writes event files into `tensorboard/` of the run's folder."""

    last_step = 0  # events of steps that are done again are purged

    def __init__(self, facts: RunFacts) -> None:
        _keep_tensorflow_out()
        from torch.utils.tensorboard import SummaryWriter

        purged = facts.first_step if facts.goes_on else None
        self._writer: Any = SummaryWriter(str(facts.out / "tensorboard"), purge_step=purged)
        if not facts.goes_on:
            self._writer.add_text("recipe", "".join(f"    {line}\n" for line in facts.recipe.splitlines()), 0)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Adds a PNG file."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Writes everything that waits."""
        self._writer.close()


def _keep_tensorflow_out() -> None:
    """Keeps TensorFlow from being loaded by the package tensorboard, which wants it only for files on other machines.

    Loading it takes seconds to half a minute. The package itself asks for a module of this name first.
    """
    if "tensorflow" not in sys.modules:
        sys.modules.setdefault(_NO_TENSORFLOW, ModuleType(_NO_TENSORFLOW))


class LoggedRun:
    """Writes to a run object with `log` and `finish`, which trackio and wandb both have.

    Args:
        run: The run object.
        image: Makes a picture of the path of a file.
        last_step: See `Service`.
    """

    def __init__(self, run: Any, image: Callable[[str], Any], last_step: int) -> None:
        self._run, self._image, self.last_step = run, image, last_step

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve."""
        self._run.log(dict(values), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Adds a PNG file."""
        self._run.log({name: self._image(str(path))}, step=step)

    def close(self) -> None:
        """Writes everything that waits."""
        self._run.finish()


def open_trackio(facts: RunFacts) -> Service:
    """Opens a run in trackio's folder (TRACKIO_DIR), in the project "deit" or TRACKIO_PROJECT."""
    import trackio

    project = os.environ.get("TRACKIO_PROJECT") or PROJECT
    run: Any = trackio.init(project, name=facts.name, config=dict(facts.settings), resume="allow", embed=False)
    # No public way to ask for it; without it, the steps that a killed run does again have two equal points.
    following = int(getattr(run, "_next_step", 0))
    return LoggedRun(run, trackio.Image, following - 1 if facts.goes_on else 0)


def open_wandb(facts: RunFacts) -> Service:
    """Opens a run at Weights & Biases, as WANDB_MODE, WANDB_PROJECT and the other variables of wandb say."""
    import wandb

    project = os.environ.get("WANDB_PROJECT") or PROJECT
    names = {"project": project, "id": facts.name, "name": facts.name}
    run: Any = wandb.init(**names, config=dict(facts.settings), resume="allow", dir=str(facts.out))
    return LoggedRun(run, wandb.Image, int(run.step) - 1 if facts.goes_on else 0)
