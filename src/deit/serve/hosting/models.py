"""Holds the models of a server by name and version: opens them, swaps them for new ones, and watches their files."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from deit.core.errors import UserError, shown
from deit.core.printable import some_of
from deit.serve.hosting.classes import refuse_other_classes, refuse_other_than_workers
from deit.serve.hosting.sources import ModelSource
from deit.serve.metrics import Metrics
from deit.serve.refusals import Refusal
from deit.serve.served_model import ServedModel

logger = logging.getLogger(__name__)

WATCH_SECONDS = 5.0  # between two looks at the files of the models
_RETRY_SECONDS = 1  # what a client is told while a model opens

_WATCHED = (".json", ".safetensors", ".xml", ".bin", ".onnx", ".pt2")


Open = Callable[[ModelSource], ServedModel]


@dataclass(eq=False)
class _Opened:
    """A model that answers, and the requests that use it."""

    served: ServedModel
    files: tuple[object, ...] | None
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Slot:
    """A name and version, and what answers under it at present."""

    source: ModelSource
    opened: _Opened | None = None
    state: str = "LOADING"
    reason: str = ""
    changing: bool = False


class Models:
    """The models of a server. All methods belong to one event loop.

    Requests hold a model with `borrow` while they use it. A reload opens the new one beside the old, swaps them between
    two requests, and closes the old one when its last request is answered.

    Args:
        sources: The models; the first one answers requests that name none.
        open_model: Opens one, in a thread.
        metrics: Where to count the models that answer.
    """

    def __init__(self, sources: Sequence[ModelSource], open_model: Open, metrics: Metrics) -> None:
        self._open_model = open_model
        self._metrics = metrics
        self._slots = {(source.name, source.version): _Slot(source) for source in sources}
        self._default = sources[0].name
        self._closing: set[asyncio.Task[None]] = set()
        for source in sources:
            metrics.know(source.label)
        metrics.ready(0)

    # --- asking ------------------------------------------------------------------------------------

    @contextmanager
    def borrow(self, name: str | None = None, version: str | None = None) -> Iterator[ServedModel]:
        """Lends a model to a request; a reload meanwhile does not close it.

        Args:
            name: None for the first model of the command line.
            version: None for the highest one that answers.

        Raises:
            Refusal: There is no such model, or it does not answer now.
        """
        opened = self._answering(name, version)
        opened.users += 1
        try:
            yield opened.served
        finally:
            opened.users -= 1
            if opened.users == 0:
                opened.idle.set()

    def sources(self, name: str | None = None, version: str | None = None) -> list[ModelSource]:
        """Returns the names and versions that are not unloaded, the highest version of a name first.

        Raises:
            Refusal: There is none of this name and version.
        """
        return [slot.source for slot in self._known(name, version) if slot.state != "UNAVAILABLE"]

    def is_ready(self, name: str | None = None, version: str | None = None) -> bool:
        """Whether a model answers; without a name, whether all do that were not unloaded on purpose.

        Raises:
            Refusal: There is no such model.
        """
        slots = self._known(name, version)
        if name is None:
            return all(slot.opened is not None or slot.state == "UNAVAILABLE" for slot in slots)
        return any(slot.opened is not None for slot in slots)

    def index(self) -> list[dict[str, str]]:
        """Returns name, version, state and reason of each model, as the v2 repository API lists them."""
        return [
            {"name": s.source.name, "version": s.source.version, "state": s.state, "reason": s.reason}
            for s in self._known(None, None)
        ]

    def troubles(self) -> dict[str, str]:
        """Returns what operators should know, by model: files that are gone or changed, a reload that failed."""
        return {slot.source.label: slot.reason for slot in self._slots.values() if slot.reason}

    def _answering(self, name: str | None, version: str | None) -> _Opened:
        slots = self._known(name or self._default, version)
        for slot in slots:
            if slot.opened is not None:
                return slot.opened
        if any(slot.state == "LOADING" for slot in slots):
            raise Refusal(503, "starting", "The model is being opened. Try again.", retry_after=_RETRY_SECONDS)
        raise Refusal(404, "model_unloaded", f"The model {slots[0].source.label!r} was unloaded.")

    def _known(self, name: str | None, version: str | None) -> list[_Slot]:
        """Returns the slots of a name, or all; the highest version first."""
        found = [s for s in self._slots.values() if name is None or s.source.name == name]
        if not found:
            names = some_of(list(dict.fromkeys(name for name, _ in self._slots)), 10)
            raise Refusal(404, "unknown_model", f"Unknown model {shown(name)}. Known: {names}.")
        of_version = [slot for slot in found if version is None or slot.source.version == version]
        if not of_version:
            versions = some_of([slot.source.version for slot in found], 10)
            raise Refusal(404, "unknown_version", f"{name!r} has no version {shown(version)}. Known: {versions}.")
        order = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in self._slots))}
        return sorted(of_version, key=lambda slot: (order[slot.source.name], -int(slot.source.version)))

    # --- opening, swapping, closing ----------------------------------------------------------------

    async def start(self) -> None:
        """Opens all models, one after the other. Requests for one that is open already are answered meanwhile.

        Raises:
            UserError: One cannot be opened, or has other classes than the other workers serve.
            OSError: A file of one is missing or cannot be read.
        """
        for slot in self._slots.values():
            if slot.opened is None:
                fresh = await self._opened(slot.source)
                refuse_other_than_workers(self._metrics.shared_folder, fresh.served, slot.source)
                self._put(slot, fresh)

    async def reload(
        self, name: str | None = None, version: str | None = None, *, allow_other_classes: bool = False
    ) -> list[str]:
        """Opens models anew from their paths, and swaps them in; one that was unloaded comes back.

        Clients rely on the classes. A directory that now has other class names, or the same in another order, is
        therefore refused unless that is asked for, and the old model keeps answering. It also does when the new one
        cannot be opened.

        Args:
            name: None for all models.
            version: None for all versions.
            allow_other_classes: Take a model with other classes.

        Returns:
            The labels of the models.

        Raises:
            Refusal: There is no such model, it is being reloaded already, it cannot be opened, or it has other classes.
        """
        slots = self._known(name, version)
        for slot in slots:
            await self._reload(slot, allow_other_classes)
        return [slot.source.label for slot in slots]

    async def _reload(self, slot: _Slot, allow_other_classes: bool) -> None:
        label = slot.source.label
        if slot.changing or slot.state == "LOADING":
            text = f"The model {label!r} is being opened already."
            logger.warning(text)
            raise Refusal(409, "reloading", text, retry_after=_RETRY_SECONDS)
        slot.changing = True
        try:
            fresh = await self._opened(slot.source)
            if slot.opened is not None and not allow_other_classes:
                await refuse_other_classes(slot.opened.served, fresh.served, slot.source)
        except (UserError, OSError, Refusal) as error:
            keeps = " The model that was opened before keeps answering." if slot.opened is not None else ""
            slot.reason = f"The reload failed: {error}{keeps}"
            logger.error("%s: %s", label, slot.reason)
            reason = error.reason if isinstance(error, Refusal) else "reload_failed"
            raise Refusal(409, reason, f"{label}: {slot.reason}") from error
        finally:
            slot.changing = False
        had = slot.opened is not None and slot.opened.served.predictor.calibration is not None
        self._put(slot, fresh)
        logger.info("Reloaded %s from %s.", label, slot.source.path)
        if had and fresh.served.predictor.calibration is None:
            text = "%s was calibrated before and is not now: coverage and abstaining are refused. Run deit calibrate."
            logger.warning(text, label)

    async def reload_all(self) -> None:
        """Reloads each model; what fails is logged and keeps its old model."""
        for slot in self._known(None, None):
            if slot.state != "UNAVAILABLE":
                with suppress(Refusal):  # it is in the log
                    await self._reload(slot, allow_other_classes=False)

    async def unload(self, name: str, version: str | None = None) -> None:
        """Lets a model answer no more; requests that use it are finished first.

        Raises:
            Refusal: There is no such model, or it is being opened.
        """
        for slot in self._known(name, version):
            if slot.changing or slot.state == "LOADING":
                raise Refusal(409, "reloading", f"The model {slot.source.label!r} is being opened. Try again.")
            old, slot.opened, slot.state, slot.reason = slot.opened, None, "UNAVAILABLE", "unloaded"
            self._count()
            if old is not None:
                await _close_when_idle(old)

    async def close(self) -> None:
        """Closes all models when their last requests are answered."""
        for slot in self._slots.values():
            old, slot.opened, slot.state = slot.opened, None, "UNAVAILABLE"
            if old is not None:
                await _close_when_idle(old)
        await asyncio.gather(*self._closing)
        self._count()

    async def _opened(self, source: ModelSource) -> _Opened:
        served = await asyncio.to_thread(self._open_model, source)
        await served.warm_up()
        return _Opened(served, await asyncio.to_thread(_files, served.folder))

    def _put(self, slot: _Slot, fresh: _Opened) -> None:
        """Swaps; there is no await here, so no request comes between."""
        old, slot.opened, slot.state, slot.reason = slot.opened, fresh, "READY", ""
        self._count()
        if old is not None:
            task = asyncio.create_task(_close_when_idle(old))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _count(self) -> None:
        self._metrics.ready(sum(slot.opened is not None for slot in self._slots.values()))

    # --- watching ----------------------------------------------------------------------------------

    async def watch(self, every: float = WATCH_SECONDS) -> None:
        """Looks after the files of the models until it is canceled. What it finds is logged once, and in `troubles`."""
        while True:
            await self.look()
            await asyncio.sleep(every)

    async def look(self) -> None:
        """Compares the files of all models with those that were opened."""
        for slot in list(self._slots.values()):
            opened = slot.opened
            if opened is None or opened.files is None or slot.changing:
                continue
            found = await asyncio.to_thread(_files, opened.served.folder)
            if slot.opened is not opened:
                continue
            reason = ""
            if found is None:
                reason = f"{opened.served.folder} is gone. The model that was opened from it keeps answering."
            elif found != opened.files:
                reason = (
                    f"{opened.served.folder} has changed since it was opened. Reload the model to use the new files."
                )
            failed = slot.reason.startswith("The reload failed")
            if reason != slot.reason and not (failed and reason):
                slot.reason = reason
                (logger.warning if reason else logger.info)(
                    "%s: %s", slot.source.label, reason or "is as it was opened"
                )


async def _close_when_idle(opened: _Opened) -> None:
    while opened.users:
        opened.idle.clear()
        await opened.idle.wait()
    await opened.served.close()


def _files(folder: Path | None) -> tuple[object, ...] | None:
    """Returns what tells a changed folder; None if there is no such folder."""
    if folder is None:
        return None
    try:
        with os.scandir(folder) as entries:
            found = [(e.name, e.stat()) for e in entries if e.name.endswith(_WATCHED)]
    except OSError:
        return None
    return tuple(sorted((name, status.st_mtime_ns, status.st_size, status.st_ino) for name, status in found))


def reload_on_hangup(models: Models) -> Callable[[], None]:
    """Reloads all models when this process gets SIGHUP; call it in the event loop of the main thread.

    Returns:
        A function that ends this. Where the system has no SIGHUP, or in another thread, nothing is changed.
    """
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def begin() -> None:
        logger.info("Received SIGHUP: reloading all models.")
        task = asyncio.ensure_future(models.reload_all())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        loop.add_signal_handler(signal.SIGHUP, begin)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):  # Windows; another thread
        return lambda: None

    def end() -> None:
        loop.remove_signal_handler(signal.SIGHUP)

    return end
