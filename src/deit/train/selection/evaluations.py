"""The evaluations of a run: scores of the student and of the average of its weights, and what they say of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deit.core.errors import UserError
from deit.core.scores.intervals import describe_width
from deit.core.scores.metrics import score_text, score_title
from deit.data.sources import Data
from deit.runtime.processes import Processes
from deit.train.recipes.recipe import Recipe
from deit.train.run.record import flat_scores
from deit.train.selection.kept_weights import AVERAGE, PREFIXES, STUDENT, KeptWeights
from deit.train.step import TrainStep
from deit.train.tasks.task import Task


class Evaluations:
    """Scores on the validation images; without any there are no scores, and the last weights become the model.

    Args:
        task: Student and scores, on the device.
        take_step: Of the run; its average is used where there is one.
        recipe: Of the run.
        data: Of the run.
        device: Where to compute.
        processes: Processes of the run.

    Attributes:
        kept: The best evaluation so far.
        scores: Of the last evaluation by head: of the average where it is saved, else of the student.

    Raises:
        ValueError: The recipe chooses by a score that the task does not give, or by validation images, of which there
            are none.
    """

    def __init__(
        self,
        task: Task,
        take_step: TrainStep,
        recipe: Recipe,
        data: Data,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self._task, self._recipe, self._data = task, recipe, data
        self._average, self._whole = take_step.average, take_step.whole
        self._device, self._processes = device, processes
        check_selection(recipe, data)
        self.kept = KeptWeights(recipe, task.score_names(data.problem_type), processes)
        self.scores: dict[str, Any] = {}

    @property
    def saves_average(self) -> bool:
        """Whether the average of the weights is what is evaluated and saved as the last weights."""
        return self._average is not None and self._recipe.ema_use == "save"

    def last(self) -> nn.Module:
        """Returns the module with the last weights: the average where it is saved, else the student.

        If they are divided among processes it is a copy with all of them, which every process must ask for.
        """
        return self._whole(self._last())

    def _last(self) -> nn.Module:
        if self.saves_average:
            assert self._average is not None
            return self._average.module
        return self._task.student

    def score(self, student: nn.Module) -> dict[str, Any]:
        """Returns the scores of a module by head; none without validation images."""
        if not len(self._data.val.labels):
            return {}
        processes, student = self._processes, self._whole(student)
        size = max(self._recipe.batch_size // processes.world_size, 32)
        with processes.sharing():
            return self._task.score(student, self._data, self._device, batch_size=size, processes=processes)

    def take(self) -> dict[str, float]:
        """Scores the student, and the average where it is saved; returns the scores for a row of the history."""
        self.scores = self.score(self._task.student)
        row = flat_scores(self.scores, PREFIXES[STUDENT])
        if self.saves_average:
            self.scores = self.score(self._last())
            row.update(flat_scores(self.scores, PREFIXES[AVERAGE]))
        return row

    def compare(self, row: dict[str, Any]) -> None:
        """Compares an evaluation with the best one before, by its row of the history.

        The candidates are the weights that become the model if they are kept: with `keep="best"` those of the student
        and of the average, else those that are saved in the end.
        """
        if not len(self._data.val.labels):
            return
        last = AVERAGE if self.saves_average else STUDENT
        names = {STUDENT, last} if self._recipe.keep == "best" else {last}
        modules = {STUDENT: self._task.student, AVERAGE: self._last()}
        self.kept.compare(row, {name: module for name, module in modules.items() if name in names})

    def model(self) -> nn.Module:
        """Returns the module with the weights that become the model; the kept ones are put into the student.

        Of weights that are divided among processes see `last`.
        """
        if self._recipe.keep != "best" or self.kept.best is None:
            return self.last()
        student = self._whole(self._task.student)
        self.kept.put_into(student)
        return student

    def record(self) -> dict[str, Any]:
        """Returns what `training.json` says of the choice of the weights."""
        kept, recipe = self.kept, self._recipe
        record = self.record_of_last()
        if recipe.keep == "best" and kept.best is not None:
            images = len(self._data.val.labels)
            record = {"weights": "best", "kept": {**kept.best, "images": images, "evaluations": kept.evaluations}}
        if kept.stops:
            record["stopped_early"] = {"patience": recipe.schedule.patience, "after_evaluations": kept.evaluations}
        return record

    def record_of_last(self) -> dict[str, Any]:
        """Returns what the `training.json` of the last weights says of them."""
        return {"weights": "average" if self.saves_average else "last"}


def check_selection(recipe: Recipe, data: Data) -> None:
    """Refuses to choose weights, or the end of a run, by validation images that there are none of.

    Raises:
        ValueError: There are none.
    """
    by = "keep=best" if recipe.keep == "best" else f"schedule.patience={recipe.schedule.patience}"
    if (recipe.keep == "best" or recipe.schedule.patience) and not len(data.val.labels):
        raise UserError(
            f"{by} chooses by the scores of validation images, and there are none. Pass images to measure on, or "
            "keep=last and schedule.patience=0."
        )


def describe_selection(record: dict[str, Any]) -> list[str]:
    """Returns sentences that a reader of the scores of a run should know: how uncertain and how chosen they are.

    Args:
        record: Of `training.json`; its scores and what `Evaluations.record` gave are used.
    """
    lines = []
    for head, scores in list(record["scores"].items())[:1]:
        for name, (low, high) in list(record["intervals"][head].items())[:1]:
            lines += describe_width(score_title(name).removesuffix(" %"), (low, high), scores["images"])
    kept = record.get("kept")
    if kept:
        whose = "the average of the weights" if kept["weights"] == AVERAGE else "the weights"
        title = score_title(kept["score"])
        unit = " %" if title.endswith(" %") else ""
        value = f"{title.removesuffix(' %')} {score_text(kept['score'], kept['value'])}{unit}"
        lines.append(
            f"Kept {whose} after epoch {kept['epoch']}, the best of {kept['evaluations']} evaluations: {value}."
        )
        if kept["evaluations"] > 1:
            lines.append(
                f"The best of {kept['evaluations']} evaluations is chosen and reported by the same {kept['images']} "
                "images, so its score is optimistic: expect less on new images."
            )
    return lines
