"""Logs a run to a service: settings, losses, learning rates, scores, speed and the picture of the curves."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from deit.core.errors import MissingPackageError, UserError, read_json
from deit.core.file_names import CURVES_NAME, LOGGER_NAME
from deit.core.files import write_json_atomically
from deit.runtime.processes import current_processes
from deit.train.loggers.services import RunFacts, Service, TensorBoard, open_trackio, open_wandb
from deit.train.progress import StepEvent
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.values import flat

logger = logging.getLogger(__name__)

# Name -> what opens it. The package and the extra have the same name.
SERVICES: dict[str, Callable[[RunFacts], Service]] = {
    "tensorboard": TensorBoard,
    "trackio": open_trackio,
    "wandb": open_wandb,
}


def check_logger(name: str) -> None:
    """Checks that a service is known and its package installed.

    Raises:
        UserError: There is no such service.
        MissingPackageError: Its package is not installed.
    """
    if name not in SERVICES:
        known = " or ".join(SERVICES)
        raise UserError(f"The logger must be {known}. Received: {name!r}.")
    if find_spec(name) is None:
        raise MissingPackageError(
            f'Logging to {name} needs the {name!r} package. Install it with: pip install "deit[{name}]"', name=name
        )


class TrainingLog:
    """Logs a run to a service, as two callbacks of `fit` and a context manager.

    Writes losses, learning rate and speed of each step (on a GPU of every tenth) under "step/", the row of each
    evaluation under "epoch/", the recipe, and at the end `curves.png`. A resumed run continues its curves. An error of
    the service is one warning; the training goes on and nothing more is logged. Of several processes only the first
    logs.

    Args:
        name: "tensorboard", "trackio" or "wandb".
        out: Folder of the run, as for `fit`.
        recipe: Recipe of the run.

    Raises:
        UserError: See `check_logger`.
        MissingPackageError: See `check_logger`.

    Examples:
        >>> with TrainingLog("tensorboard", out="run", recipe=recipe) as log:  # doctest: +SKIP
        ...     fit(task, data, recipe, out="run", on_step=log.on_step, on_epoch=log.on_epoch)  # doctest: +SKIP
    """

    def __init__(self, name: str, *, out: str | Path, recipe: Recipe) -> None:
        check_logger(name)
        self._name, self._out, self._recipe = name, Path(out), recipe
        self._service: Service | None = None
        self._step = 0
        self._works = current_processes().is_first

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        service = self._service
        if service is None:
            return
        curves = self._out / CURVES_NAME
        if curves.is_file():
            self._try(lambda: service.picture("curves", curves, self._step))
        self._try(service.close)

    def on_step(self, event: StepEvent) -> None:
        """Logs a step; for `fit(..., on_step=...)`."""
        values = {
            "loss": event.loss,
            "lr": event.lr,
            "images_per_second": event.images_per_second,
            "epoch": event.epoch,
        }
        self._log("step", values, event.step)

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Logs an evaluation; for `fit(..., on_epoch=...)`."""
        self._log("epoch", {name: value for name, value in row.items() if name not in ("step", "epoch")}, row["step"])

    def _log(self, part: str, values: Mapping[str, Any], step: int) -> None:
        numbers = {
            f"{part}/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }

        def write() -> None:
            if self._service is None:
                self._service = SERVICES[self._name](self._facts(step))
            # A killed run does steps again; the evaluation of the last one may still be missing.
            if step > self._service.last_step or (part == "epoch" and step == self._service.last_step):
                self._service.numbers(numbers, step)

        self._step = step
        self._try(write)

    def _try(self, act: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            act()
        except Exception as error:  # noqa: BLE001  # whatever a service raises, it must not end a training
            self._works = False
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            logger.warning("Logging to %s failed and has stopped; the training goes on. %s", self._name, reason)

    def _facts(self, first_step: int) -> RunFacts:
        name, goes_on = self._name_of_run()
        return RunFacts(
            out=self._out,
            name=name,
            settings=flat(self._recipe.to_dict()),
            recipe=self._recipe.to_yaml(),
            first_step=first_step,
            goes_on=goes_on,
        )

    def _name_of_run(self) -> tuple[str, bool]:
        """Returns the name of the run at the service, and whether it was logged there before."""
        file = self._out / LOGGER_NAME
        names: dict[str, Any] = {}
        with suppress(OSError, UserError):
            names = read_json(file, "the names of a run at loggers", 2**16)
        name = names.get(self._name)
        if isinstance(name, str) and name:
            return name, True
        name = f"{self._out.resolve().name}-{secrets.token_hex(4)}"
        write_json_atomically(file, {**names, self._name: name})
        return name, False
