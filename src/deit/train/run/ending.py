"""Ends a run before its last step: each error says where the run can go on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deit.core.errors import UserError
from deit.core.file_names import STATE_NAME
from deit.core.images.reading import ImageError
from deit.runtime.processes import FirstProcessError, Processes
from deit.runtime.signals import TrainingInterrupted
from deit.train.run.state import newest_state, state_folder


class NonFiniteLossError(UserError, ArithmeticError):
    """Losses, gradients or weights became infinite or NaN. The last state of the run is from before that."""


class Ending:
    """Makes the errors that end a run. The first process gets the whole message, the others a `FirstProcessError`.

    Args:
        out: Folder of the run.
        processes: Processes of the run.
    """

    def __init__(self, out: Path, processes: Processes) -> None:
        self._out, self._states, self._is_first = out, out / STATE_NAME, processes.is_first
        self._has_told = False  # whether an error of this class ends the run

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Adds the newest state to an error that leaves the block and was not made here."""
        try:
            yield
        except Exception as error:
            if not self._has_told and self._is_first:
                go_on = " Pass --resume to go on from there." if newest_state(self._states) else ""
                error.add_note(f"{self._newest_state()}{go_on}")
            raise

    def nothing_left(self, epochs: int, stopped: str) -> str:
        """Returns what a run says that goes on after its last step.

        Args:
            epochs: Of the run.
            stopped: Why it stopped before them; empty for a run that did all.
        """
        done = f"has done {f'all of its {epochs} epochs' if epochs != 1 else 'its one epoch'}"
        if stopped:
            done = f"has ended. {stopped.rstrip('.')}; schedule.patience=0 goes on"
        return f"The run in {self._out} {done}: nothing is trained. Scores and model are written anew."

    def interrupted(self, step: int, total_steps: int, state: Path, signal: int) -> TrainingInterrupted:
        """Returns the error of a run that a signal stopped."""
        self._has_told = True
        return TrainingInterrupted(f"Stopped after step {step} of {total_steps}; its state is {state}.", signal)

    def unreadable(self, reason: str, step: int, state: Path) -> Exception:
        """Returns the error of a run that lacks too many images."""
        self._has_told = True
        if not self._is_first:
            return FirstProcessError(reason)
        return ImageError(
            f"{reason}. The state after step {step} is saved ({state}): pass --resume once the images can be read, "
            "or begin anew without them."
        )

    def non_finite(self, what: str, step: int, lr: float, *, good: int | None, named: bool = False) -> Exception:
        """Returns the error of a run whose numbers became infinite or NaN.

        Args:
            what: What happened, without a point at the end.
            step: Steps done.
            lr: Learning rate of the last one.
            good: Step of the last state that was saved before it began; None for none. Newer ones are finite too.
            named: Whether the module is named where it began.
        """
        self._has_told = True
        if not self._is_first:
            return FirstProcessError(what)
        search = "" if named else " --resume with --detect-anomaly names the module where it began."
        before = "No good state was saved before."
        if good is not None:
            before = f"The last good state is {state_folder(self._states, good)}."
        return NonFiniteLossError(
            f"{what} at step {step} (learning rate {lr:.1e}). {before} Try a lower optimizer.lr, a "
            f"longer warm-up, optimizer.clip_grad=1, or precision=fp32 if it was another, in a new folder.{search}"
        )

    def _newest_state(self) -> str:
        state = newest_state(self._states)
        return f"The last good state is {state}." if state else "No state was saved before."
