"""A worker process of the suite that dies, or sits on one test for too long, ends the run and says where it was.

pytest-xdist would start another worker in its place, and then wait forever for tests that nobody has. The Makefile
forbids that; here each worker that dies writes the stacks of its threads to a file, which the run prints at its end.
"""

from __future__ import annotations

import faulthandler
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

TOO_LONG = 1200.0  # seconds for one test, several times what the longest takes on a busy machine


class InTheWorker:
    """Writes the stacks of a worker that crashes, and ends one that is stuck."""

    def __init__(self, place: str) -> None:
        self._file = open(place, "w", encoding="utf-8")  # noqa: SIM115  # open as long as the process lives

    def pytest_sessionstart(self) -> None:
        faulthandler.enable(self._file)  # in place of pytest's own, on the terminal that nobody reads

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        faulthandler.dump_traceback_later(TOO_LONG, exit=True, file=self._file)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()


class InTheController:
    """Tells each worker where to write, and prints what those that died have written."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._dead: list[Path] = []

    def _file(self, node: Any) -> Path:
        return Path(self._folder.name, node.gateway.id)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["crash_file"] = str(self._file(node))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        if error:
            self._dead.append(self._file(node))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for file in self._dead:
            terminalreporter.section(f"where {file.name} died")
            terminalreporter.write_line(file.read_text(errors="replace") or "It wrote nothing, as when it is killed.")

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()


def pytest_configure(config: pytest.Config) -> None:
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker is None:
        config.pluginmanager.register(InTheController())
    elif "crash_file" in worker:
        config.pluginmanager.register(InTheWorker(worker["crash_file"]))
