"""The weights of the best evaluation of a run, and how long ago that was: `keep=best` and `schedule.patience`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from deit.core.config.file_fields import FileFields
from deit.core.errors import UserError
from deit.core.scores.comparing import is_better
from deit.core.scores.metrics import score_title
from deit.runtime.processes import Processes
from deit.train.recipes.recipe import Recipe
from deit.train.run.state import State

STUDENT, AVERAGE = "student", "average"
PREFIXES = {STUDENT: "val", AVERAGE: "ema"}  # of their scores in a row of the history

_PREFIX = "kept."  # of the names in a training state
_META = "kept"


class KeptWeights:
    """Compares the evaluations of a run by one score of the model's answer.

    Better is a better score, or an equal one with a lower loss. A state holds what is kept, so that a run that goes on
    keeps the same weights as one that was never stopped; an evaluation after the state is taken from the history.

    Args:
        recipe: Its `keep`, `keep_score` and `schedule.patience` are used.
        names: The scores that the task gives, the most important first.
        processes: Processes of the run; all make the same decisions, since they have the same scores.

    Attributes:
        score: Name of the score that is compared.
        best: "epoch", "step", "weights" ("student" or "average"), "score", "value" and "loss" of the best evaluation;
            None before the first.
        evaluations: How many were compared.
        since: How many there were since the best one.

    Raises:
        ValueError: The recipe asks for a score that the task does not give.
    """

    def __init__(self, recipe: Recipe, names: Sequence[str], processes: Processes) -> None:
        self._keeps, self._patience = recipe.keep == "best", recipe.schedule.patience
        self._processes = processes
        self.score = recipe.keep_score or names[0]
        if self.score not in names:
            raise UserError(
                f"keep_score={self.score} is no score of this training, which has {', '.join(names)}. Pass one of "
                "these, or leave it out."
            )
        self.best: dict[str, Any] | None = None
        self.evaluations = self.since = 0
        self._last_step = 0
        self._tensors: dict[str, Tensor] = {}

    @property
    def stops(self) -> bool:
        """Whether the run ends here: `schedule.patience` evaluations brought nothing better."""
        return bool(self._patience) and self.since >= self._patience

    def compare(self, row: Mapping[str, Any], candidates: Mapping[str, nn.Module]) -> None:
        """Takes part in an evaluation; one that was compared already is passed over.

        Args:
            row: The evaluation's row of the history.
            candidates: `STUDENT` and `AVERAGE`, or one of them -> the module whose weights were scored.
        """
        if row["step"] <= self._last_step:
            return
        self._last_step = row["step"]
        self.evaluations += 1
        self.since += 1
        for name, module in candidates.items():
            found = {
                "epoch": row["epoch"],
                "step": row["step"],
                "weights": name,
                "score": self.score,
                "value": float(row[f"{PREFIXES[name]}_{self.score}"]),
                "loss": float(row[f"{PREFIXES[name]}_loss"]),
            }
            if self._is_better(found):
                self.best, self.since = found, 0
                if self._keeps:
                    self._tensors = self._copied(module)

    def _is_better(self, found: Mapping[str, Any]) -> bool:
        if math.isnan(found["value"]):
            return False
        if self.best is None or is_better(self.score, found["value"], self.best["value"]):
            return True
        return bool(found["value"] == self.best["value"] and found["loss"] < self.best["loss"])

    def _copied(self, module: nn.Module) -> dict[str, Tensor]:
        whole = {name: self._processes.whole(tensor) for name, tensor in module.state_dict().items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in whole.items()}

    def put_into(self, student: nn.Module) -> None:
        """Gives a student the weights that are kept; with none kept it stays as it is."""
        if self._tensors:
            student.load_state_dict(self._tensors)

    def explain_stop(self, last_epoch: int, epochs: int) -> str:
        """Returns a sentence that says when and why the run stopped early."""
        best = self.best
        when = f"Stopped early after epoch {last_epoch} of {epochs}"
        why = f"{self.since} evaluations without a better {score_title(self.score)} (schedule.patience)"
        return f"{when}: {why}." + (f" The best was that of epoch {best['epoch']}." if best else "")

    # --- going on --------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Returns the kept weights for a training state."""
        return {f"{_PREFIX}{name}": tensor for name, tensor in self._tensors.items()}

    def values(self) -> dict[str, Any]:
        """Returns plain values for a training state; none where nothing was compared."""
        if not self.evaluations:
            return {}
        counts = {"evaluations": self.evaluations, "since": self.since, "last_step": self._last_step}
        return {_META: {"best": self.best, **counts}}

    def restore(self, state: State, fields: FileFields) -> None:
        """Takes over what a training state holds; states of runs that compared nothing hold nothing.

        Raises:
            DamagedFileError: It holds something else.
        """
        if _META not in state.meta:
            return
        values = fields.table(state.meta, _META)
        best = None if values.get("best") is None else fields.table(values, "best")
        if best is not None:
            for name in ("epoch", "step"):
                fields.whole(best, name, 0, sys.maxsize)
            for name in ("value", "loss"):
                fields.any_number(best, name)
            fields.text(best, "weights", tuple(PREFIXES))
            fields.text(best, "score")
        counts = ("evaluations", "since", "last_step")
        self.evaluations, self.since, self._last_step = (fields.whole(values, n, 0, sys.maxsize) for n in counts)
        self.best = best
        found = {name: tensor for name, tensor in state.tensors.items() if name.startswith(_PREFIX)}
        self._tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in found.items()}
