"""Trains a model for each fold, then one on all images: `fit_folds(build, data, recipe, out=..., folds=5)`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deit.core.errors import UserError, read_json
from deit.core.file_names import FOLDS_NAME, RECIPE_NAME
from deit.core.files import write_json_atomically
from deit.core.scores.comparing import score_names
from deit.core.scores.functions import FUNCTIONS, function_name
from deit.core.scores.out_of_fold import SCORES_NAME, OutOfFold
from deit.core.writing import writing
from deit.data.sources import Data, Joined, Source, Subset, contents_of, place_of
from deit.runtime.folder_lock import folder_lock
from deit.runtime.processes import current_processes
from deit.train.folds.answers import HeldOutAnswers, answers_file, read_answers
from deit.train.folds.division import NO_FOLD, fold_numbers
from deit.train.folds.epoch_choice import EpochChoice, choose_epoch
from deit.train.folds.scores import OutOfFoldScores, score_answers
from deit.train.loop import fit
from deit.train.progress import FitResult
from deit.train.recipes.recipe import Recipe
from deit.train.run.folder import check_run_folder, finished_record, is_finished, run_exists
from deit.train.run.history import History
from deit.train.run.resumed import changed_settings
from deit.train.tasks.task import Task

logger = logging.getLogger(__name__)

_SETTINGS_NAME = "folds.json"


@dataclass(frozen=True, kw_only=True)
class FoldsResult:
    """Result of a k-fold training.

    Attributes:
        final: Of the model that learned from all images.
        answers: Out-of-fold answers to the images.
        scores: Of these answers.
        choice: The epoch that the folds chose; None where the recipe keeps the last weights.
    """

    final: FitResult
    answers: OutOfFold
    scores: OutOfFoldScores
    choice: EpochChoice | None


def fit_folds(
    build: Callable[[Data, Path], Task],
    data: Data,
    recipe: Recipe,
    *,
    out: str | Path,
    folds: int = 5,
    device: str | torch.device | None = None,
    resume: bool = False,
    fit_one: Callable[..., FitResult] = fit,
    on_fold: Callable[[int, Data], None] | None = None,
) -> FoldsResult:
    """Trains on all images but those of a fold, for each fold; scores each on its fold; then trains on all images.

    The images are those to learn from, with those that `open_data` held out; a validation part that the data came with
    stays apart, for the last model. `out` gets that model, `out_of_fold.npz` and `.csv` (see `OutOfFold`),
    `out_of_fold.json` (scores), and `folds/1`, ...: a run folder of each fold, without training states once it is done.

    With `keep="best"` or `schedule.patience` the folds choose the epoch: all do the whole schedule, and the last model
    ends after the epoch that is best for all folds together (`schedule.stop_epoch`). The answers to a fold are those
    after the epoch that is best for the other folds, so no score was chosen by the images that it is about.

    A run of k folds takes about k times as long as one training.

    Args:
        build: Called with the images and the folder of a run; returns a new task with a new student, see `build_task`.
            A teacher may be the same object each time; one that learned from the images makes the scores too good.
        data: See above.
        recipe: Of each run; `data.split_seed` chooses the folds.
        out: Folder; new or empty, unless `resume`.
        folds: How many, at least 2; each class needs as many different images.
        device: See `fit`.
        resume: True goes on where a stopped run was; finished folds are not trained again.
        fit_one: Trains one run; takes the arguments of `fit`.
        on_fold: Called before each training with its number from 1, 0 for the last, and its images.

    Raises:
        ValueError: See `fold_numbers` and `fit`; or `resume` is on and the run has other settings.
        FileExistsError: `out` holds a run or other files, and `resume` is off.
    """
    with contextlib.ExitStack() as until_the_end:
        run = _Folds(build, data, recipe, Path(out), folds, device, fit_one, on_fold)
        current_processes().on_first(lambda: run.open(until_the_end, resume=resume))
        for number in range(1, folds + 1):
            run.train_fold(number)
        return run.finish()


def undivided(data: Data) -> Data:
    """Returns data with all images that a k-fold training divides in `train`, and in `val` those that it leaves apart.

    Images that `open_data` held out come back; a validation part that the data came with stays apart.
    """
    if data.held_out is None:
        return data
    whole = Joined([data.train, data.val])
    none = Subset(whole, np.zeros(0, np.int64))
    return Data(train=whole, val=none, skipped=data.skipped, ignored=data.ignored, used=data.used)


def check_folds_folder(out: Path, recipe: Recipe, folds: int, *, resume: bool) -> None:
    """Checks that a k-fold training may begin, or go on, in a folder.

    Raises:
        FileExistsError: It holds a run or other files, and `resume` is off.
        FileNotFoundError: It holds no k-fold training, and `resume` is on.
        FolderInUseError: Another process is at work in it.
        ValueError: Its training has other settings.
    """
    settings = out / FOLDS_NAME / _SETTINGS_NAME
    if not resume:
        if (out / FOLDS_NAME).exists():
            raise run_exists(out)
        check_run_folder(out, recipe, resume=False)
        return
    if not settings.is_file():
        raise FileNotFoundError(f"{out} holds no training of folds to resume. Leave out --resume to begin one.")
    found = read_json(settings, "the settings of a training of folds").get("folds")
    if found != folds:
        raise UserError(f"The run in {out} has {found} folds. Received: {folds}. Resume it with the same number.")
    changes = changed_settings(out / FOLDS_NAME, recipe)
    if changes:
        raise UserError(
            f"The run in {out} has other settings: {', '.join(changes)}. Resume its folds with the same ones."
        )


class _Folds:
    """One k-fold training in progress."""

    def __init__(
        self,
        build: Callable[[Data, Path], Task],
        data: Data,
        recipe: Recipe,
        out: Path,
        folds: int,
        device: str | torch.device | None,
        fit_one: Callable[..., FitResult],
        on_fold: Callable[[int, Data], None] | None,
    ) -> None:
        self._build, self._recipe, self._out, self._folds = build, recipe, out, folds
        self._device, self._fit_one, self._on_fold = device, fit_one, on_fold
        self._processes = current_processes()
        self._data = undivided(data)
        self._whole: Source = self._data.train
        self._problem_type = data.problem_type
        self._contents = contents_of(self._whole)
        self._numbers = fold_numbers(
            self._whole.labels, self._whole.classes, folds, recipe.data.split_seed, self._contents
        )
        self._chooses = recipe.keep == "best" or recipe.schedule.patience > 0
        plain = {"keep": "last", "schedule.patience": 0} if self._chooses else {}
        self._last = recipe.with_settings(plain)
        self._of_folds = self._last.with_settings({"keep_state": False})  # k times six models would stay on the disk
        names = score_names(self._problem_type)
        self._score = recipe.keep_score or names[0]
        if self._score not in names:
            raise UserError(f"keep_score={self._score} is no score of this training, which has {', '.join(names)}.")

    def open(self, until_the_end: contextlib.ExitStack, *, resume: bool) -> None:
        """Opens the folder, which no other process can use meanwhile."""
        check_folds_folder(self._out, self._recipe, self._folds, resume=resume)
        folder = self._out / FOLDS_NAME
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        until_the_end.enter_context(folder_lock(folder))
        if not resume:
            self._recipe.save(folder / RECIPE_NAME)
            write_json_atomically(folder / _SETTINGS_NAME, {"folds": self._folds})

    # --- folds -----------------------------------------------------------------------------------------

    def _folder(self, number: int) -> Path:
        return self._out / FOLDS_NAME / str(number)

    def _held_out(self, number: int) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self._numbers == number - 1)

    def _data_of(self, number: int) -> Data:
        """Returns the images of a fold: others, without copies of its own that have no label, and its own."""
        own = self._held_out(number)
        others = np.flatnonzero(self._numbers != number - 1)
        if self._contents is not None:
            others = others[~np.isin(self._contents[others], self._contents[own])]
        return Data(train=Subset(self._whole, others), val=Subset(self._whole, own), skipped=self._data.skipped)

    def train_fold(self, number: int) -> None:
        """Trains and scores a fold, unless that was done."""
        data, folder = self._data_of(number), self._folder(number)
        if self._processes.on_first(lambda: self._is_done(folder, data)):
            return
        if self._on_fold is not None:
            self._on_fold(number, data)
        task = self._build(data, folder)
        size = max(self._recipe.batch_size, 32)
        task.added_files.append(HeldOutAnswers(task.processor, size, each=self._chooses))
        goes_on = self._processes.on_first(lambda: (folder / RECIPE_NAME).is_file())
        self._fit_one(task, data, self._of_folds, out=folder, device=self._device, resume=goes_on)

    def _is_done(self, folder: Path, data: Data) -> bool:
        record = finished_record(folder).get("data", {})
        prints = {"train_fingerprint": data.train, "val_fingerprint": data.val}
        return (
            is_finished(folder, self._of_folds)
            and all(record.get(name) == source.fingerprint() for name, source in prints.items())
            and answers_file(folder, None).is_file()
        )

    # --- the result ------------------------------------------------------------------------------------

    def finish(self) -> FoldsResult:
        """Gathers the answers, and trains on all images."""
        choice = self._processes.on_first(self._choice) if self._chooses else None
        answers, scores = self._processes.on_first(lambda: self._gathered(choice))
        recipe = self._last
        if choice is not None:
            recipe = recipe.with_settings({"schedule.stop_epoch": choice.epoch})
        if self._on_fold is not None:
            self._on_fold(0, self._data)
        record = {"folds": self._folds, **({} if choice is None else {"epoch_chosen": choice.record()})}
        final = self._fit_one(
            self._build(self._data, self._out),
            self._data,
            recipe,
            out=self._out,
            device=self._device,
            resume=self._processes.on_first(lambda: (self._out / RECIPE_NAME).is_file()),
            more_record={"out_of_fold": {**record, **scores.summary()}},
        )
        return FoldsResult(final=final, answers=answers, scores=scores, choice=choice)

    def _rows(self, number: int) -> list[dict[str, Any]]:
        last = int(finished_record(self._folder(number)).get("steps", 0))
        rows = History(self._folder(number), until_step=last).epochs
        if not rows:
            raise UserError(f"{self._folder(number)} has no history. Remove that folder and pass --resume.")
        return rows

    def _choice(self) -> EpochChoice:
        recipe = self._recipe
        prefix = "ema" if recipe.ema_decay and recipe.ema_use == "save" else "val"
        numbers = range(1, self._folds + 1)
        histories = [self._rows(number) for number in numbers]
        return choose_epoch(histories, [len(self._held_out(number)) for number in numbers], self._score, prefix)

    def _gathered(self, choice: EpochChoice | None) -> tuple[OutOfFold, OutOfFoldScores]:
        """Collects the answers of all folds, in the order of the images, and writes them with their scores."""
        classes = self._whole.classes
        logits = np.full((len(self._numbers), len(classes)), np.nan, np.float32)
        for number in range(1, self._folds + 1):
            own = self._held_out(number)
            step = None if choice is None else self._rows(number)[choice.of_fold[number - 1]]["step"]
            logits[own] = read_answers(self._folder(number), step, len(own), len(classes))
        asked = np.flatnonzero(self._numbers != NO_FOLD)
        labels = self._whole.labels[asked]
        to_probabilities = FUNCTIONS[function_name(self._problem_type, len(classes))]
        answers = OutOfFold(
            names=np.array([place_of(self._whole, int(i)) for i in asked], np.str_),
            labels=labels,
            probabilities=to_probabilities(logits[asked].astype(np.float64)).astype(np.float32),
            classes=list(classes),
            folds=self._numbers[asked] + 1,
            problem_type=self._problem_type,
            contents=None if self._contents is None else self._contents[asked],
        )
        scores = score_answers(logits[asked], labels, list(classes), self._problem_type)
        answers.write(self._out)
        chosen = {} if choice is None else {"epoch_chosen": choice.record()}
        write_json_atomically(self._out / SCORES_NAME, {"folds": self._folds, **chosen, **scores.to_dict()})
        return answers, scores
