"""Writes the training states of a run beside its steps, which wait only for a copy to main memory."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from types import TracebackType

from deit.runtime.processes import FirstProcessError, Processes
from deit.train.run.state import StagedState, State, stage_state, state_folder, write_state


class StateWriter:
    """Writes states in a thread, at most one at a time; see docs/reliability.md.

    As a context manager it waits for the write in progress when the run ends, in whatever way.

    Args:
        folder: Folder of the states.
        processes: Processes of the run.
        last: How many of the newest states to keep.

    Attributes:
        folder: As passed.
    """

    def __init__(self, folder: Path, processes: Processes, *, last: int) -> None:
        self.folder = folder
        self._processes, self._last = processes, last
        self._apart: Processes | None = None  # for threads, whose collective operations have an order of their own
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether this process could not write, which `wait` raises; may become true at any moment."""
        return self._error is not None

    def save(self, state: State, *, good: int | None = None) -> Path:
        """Copies a state to main memory and begins to write it, once the one before is written.

        Args:
            state: Of this process; see `stage_state`. Its tensors may change afterwards.
            good: See `write_state`.

        Returns:
            The folder that will appear.

        Raises:
            WritingError: The state before could not be written; and see `wait`.
        """
        self.wait()
        staged = stage_state(state, self._processes)
        if staged.is_part and self._apart is None:
            self._apart = self._processes.apart()
        if staged.is_part or self._processes.is_first:
            self._thread = Thread(target=self._write, args=(staged, good), name="state writer")
            self._thread.start()
        return state_folder(self.folder, state.step)

    def _write(self, staged: StagedState, good: int | None) -> None:
        beside = self._apart if staged.is_part and self._apart is not None else Processes()
        try:
            write_state(self.folder, staged, beside, last=self._last, good=good)
        except BaseException as error:  # noqa: BLE001  # of whatever kind, it is raised by the run's own thread
            self._error = error

    def wait(self) -> None:
        """Waits until what was saved is on the disk. Every process must call it.

        Raises:
            WritingError: It could not be written.
            FirstProcessError: Another process could not.
        """
        self._processes.on_each(self._raise_own)

    def _raise_own(self) -> None:
        self._join()
        error, self._error = self._error, None
        if error is not None and not isinstance(error, FirstProcessError):  # the process that had it raises it
            raise error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._join()
        if error is not None and self._error is not None:
            error.add_note(f"Its newest state could not be written: {self._error}")
        if self._apart is not None:
            self._apart.leave()
            self._apart = None
