"""Looks at the steps of a run, and goes back to its last good state if skipping steps does not help."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from deit.core.printable import counted
from deit.train.numerics.guard import Guard
from deit.train.run.ending import Ending
from deit.train.run.state import read_state, state_folder
from deit.train.states.state_writer import StateWriter

if TYPE_CHECKING:
    from deit.train.step import TrainStep

logger = logging.getLogger(__name__)


def look_at_steps(
    guard: Guard,
    take_step: TrainStep,
    ending: Ending,
    states: StateWriter,
    *,
    step: int,
    ends: bool,
    saves: bool,
    span: int,
) -> None:
    """Looks at the steps since the last look.

    Goes back if too many were skipped in a row, or if a state is to be saved and a number of it is not finite. Weights,
    optimizer and average then are those of the last good state, and the run goes on with the next images and their
    learning rate: the same images would do the same again.

    Args:
        guard: Of the run, as what follows. Every process calls this after the same step.
        take_step: Of the run.
        ending: Of the run.
        states: Of the run.
        step: Steps done.
        ends: Whether this was the last step. Then there is no way back: an older state is not the model asked for.
        saves: Whether a state is saved after this step.
        span: See `Guard.gives_up`.

    Raises:
        NonFiniteLossError: There is no way back, see `Guard.way_back`; or modules are watched, and the
            first number was found that is not finite.
    """
    guard.look()
    watch, processes, gives_up = take_step.anomaly, take_step.processes, guard.gives_up(span)
    group = take_step.optimizer.param_groups[0]
    lr = group["lr"] / group["lr_scale"]
    if watch is not None and (guard.is_fault or gives_up):
        found = processes.first_text(watch.found) or "the norm of the gradients"
        what = f"The first value that is infinite or NaN arose in {found},"
        raise ending.non_finite(what, step, lr, good=guard.good, named=True)
    if gives_up:
        steps = f", in {counted(guard.in_row, 'step')} in a row until then," if guard.in_row > 1 else ""
        what = f"The loss or a gradient was infinite or NaN{steps}"
    elif saves and not take_step.is_finite():
        what = "A weight became infinite or NaN"
    else:
        return
    states.wait()  # for the state to go back to, or to name
    state, way = None, None if ends else guard.way_back
    if way is not None:
        state = processes.on_each(lambda: read_state(state_folder(states.folder, way), take_step.layout()))
    if state is None:
        raise ending.non_finite(what, step, lr, good=guard.good)
    take_step.restore(state.tensors)
    guard.go_back(step, state.step)
    if processes.is_first:
        back = f"The run goes back to the weights after step {state.step}, and on with the next images."
        logger.warning("%s at step %d (learning rate %.1e). %s", what, step, lr, back)
