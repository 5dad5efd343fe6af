"""Holds what all requests share: the models, the settings, the measurements, and whether the server takes requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from deit.serve.batcher import Measures
from deit.serve.decoding import DecodingPool
from deit.serve.served_model import ServedModel
from deit.serve.settings import ServeSettings

STARTING, SERVING, DRAINING = "starting", "serving", "draining"


class ServerMeasures(Measures, Protocol):
    """What takes the measurements of the server."""

    def refused(self, model: str, reason: str) -> None:
        """Counts a refusal."""
        ...

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        ...


class NoMeasures:
    """Takes no measurements."""

    def queued(self, model: str, seconds: float) -> None:
        """Does nothing."""

    def batched(self, model: str, images: int, seconds: float) -> None:
        """Does nothing."""

    def waiting(self, model: str, images: int) -> None:
        """Does nothing."""

    def computed(self, model: str, seconds: float) -> None:
        """Does nothing."""

    def decoded(self, model: str, seconds: float) -> None:
        """Does nothing."""

    def refused(self, model: str, reason: str) -> None:
        """Does nothing."""

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Does nothing."""


class Named(Protocol):
    """A model by name and version."""

    @property
    def name(self) -> str:
        """The name of the model."""
        ...

    @property
    def version(self) -> str:
        """The version of the model."""
        ...


class ServedModels(Protocol):
    """The models by name and version."""

    def borrow(self, name: str | None = None, version: str | None = None) -> AbstractContextManager[ServedModel]:
        """Lends a model for the time of a request: until then it is not closed, even if another takes its place.

        Args:
            name: None for the first one.
            version: None for the newest.

        Raises:
            Refusal: There is no such model, with status 404.
        """
        ...

    def sources(self) -> Sequence[Named]:
        """Returns the names and versions of all models."""
        ...

    def troubles(self) -> Mapping[str, str]:
        """Returns what operators should know, by model."""
        ...

    async def start(self) -> None:
        """Opens all models and warms them up, in the running event loop."""
        ...

    async def close(self) -> None:
        """Ends all models."""
        ...


@dataclass(kw_only=True)
class State:
    """What all requests share.

    Attributes:
        models: The models.
        settings: The settings.
        pool: Threads that decode.
        measures: Takes the measurements.
        phase: `STARTING`, `SERVING` or `DRAINING`.
        in_flight: Requests that were accepted and have no answer yet.
        others: Returns what is wrong with other worker processes; empty if nothing is.
    """

    models: ServedModels
    settings: ServeSettings
    pool: DecodingPool
    measures: ServerMeasures = field(default_factory=NoMeasures)
    phase: str = STARTING
    in_flight: int = 0
    others: Callable[[], str] = lambda: ""
