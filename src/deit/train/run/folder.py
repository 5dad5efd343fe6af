"""The folder of a run: whether it may begin or go on there, and the model directory it becomes."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from deit.core.errors import DamagedFileError, UserError
from deit.core.file_names import (
    CARD_NAME,
    FOLDS_NAME,
    LAST_NAME,
    PICTURES_NAME,
    PLAN_NAME,
    RECIPE_NAME,
    STATE_NAME,
    TEACHER_NAME,
    TRAINING_NAME,
)
from deit.core.files import remove_leftovers, replace_folder_content, write_json_atomically, write_text_atomically
from deit.core.labels import id2label_from_names
from deit.core.model_directory import is_run_folder, read_training_record
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.out_of_fold import ANSWERS_NAME, ANSWERS_TABLE_NAME, SCORES_NAME
from deit.core.writing import WritingError, writing
from deit.models.pretrained import PreTrainedModel
from deit.models.timm.preprocessing import timm_preprocessing
from deit.runtime.folder_lock import LOCK_NAME, FolderInUseError, folder_lock, is_in_use
from deit.runtime.library_order import make_order_safe
from deit.train.recipes.recipe import Recipe
from deit.train.run.model_card import model_card
from deit.train.run.resumed import changed_settings
from deit.train.run.state import has_states

# What may lie in the folder of a new run: the lock, and what its folds left there; see `deit.train.folds.fit_folds`.
_BEFORE_A_RUN = (LOCK_NAME, FOLDS_NAME, ANSWERS_NAME, ANSWERS_TABLE_NAME, SCORES_NAME)


def run_exists(out: Path) -> FileExistsError:
    """Returns the error for a new run in the folder of another."""
    return FileExistsError(f"{out} holds a run already. Pass a new folder, or --resume to go on with the run.")


def check_run_folder(out: Path, recipe: Recipe, *, resume: bool) -> None:
    """Checks that a run may begin, or go on, in a folder; `fit` does so itself, before anything is computed.

    Args:
        out: Folder of the run.
        recipe: Of the run.
        resume: Whether to go on with the run in it.

    Raises:
        FileExistsError: It holds a run or other files, and `resume` is off.
        FileNotFoundError: It holds no run, and `resume` is on.
        FolderInUseError: Another process is at work in it.
        WritingError: Nothing can be written there.
        ValueError: Its run has other settings, or is finished and has no state; or the learning rate of a new one
            would go the wrong way.
    """
    _check(out, recipe, resume=resume)
    if is_in_use(out):
        raise FolderInUseError(f"Another run is at work in {out}. Wait until it has ended, or pass another folder.")
    with (
        writing(out),
        tempfile.TemporaryFile(dir=next(each for each in (out, *out.absolute().parents) if each.is_dir())),
    ):
        pass  # a disk that is read-only or full is found before the images are looked at


def check_room(out: Path, state: int) -> None:
    """Checks before the first step that the disk has room for a state and the model.

    Args:
        out: Folder of the run.
        state: Bytes of a state.

    Raises:
        WritingError: It has not.
    """
    free = shutil.disk_usage(out).free
    if free < state:
        error = WritingError(out, errno.ENOSPC)
        error.add_note(f"A state takes about {state / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free.")
        raise error


def refuse_inside_data(folder: Path, data: str, option: str) -> None:
    """Refuses a new folder for results among the images: the next training would look for images in it.

    Args:
        folder: That is to be made; one of an earlier run is known as such and holds no images for anybody.
        data: What is trained on; anything but a folder contains no other.
        option: By which the folder was chosen, for the message.

    Raises:
        ValueError: It lies in the folder of the images, or is that folder.
    """
    root = Path(data)
    if not root.is_dir() or is_run_folder(folder) or not folder.resolve().is_relative_to(root.resolve()):
        return
    raise UserError(
        f"{option} {folder} lies in the folder of the images, {data}, in which folders are classes. Pass a folder "
        "elsewhere, beside it say."
    )


def finished_record(out: Path) -> dict[str, Any]:
    """Returns what a run that ended wrote down; nothing where there is none or it is damaged: it is written anew."""
    try:
        return read_training_record(out) or {}
    except DamagedFileError:
        return {}


def is_finished(out: Path, recipe: Recipe) -> bool:
    """Whether a folder holds a model of a run that ends where a recipe's does: nothing is left to train."""
    found = finished_record(out).get("recipe", {}).get("schedule", {})
    wanted = recipe.schedule
    if not isinstance(found, dict) or found.get("epochs") != wanted.epochs:
        return False
    return (found.get("patience", 0), found.get("stop_epoch", 0)) == (wanted.patience, wanted.stop_epoch)


def _check(out: Path, recipe: Recipe, *, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file. Pass a folder for the run.")
    recipe_file = out / RECIPE_NAME
    for folder in (out, out / STATE_NAME, out / PICTURES_NAME, out / LAST_NAME):
        remove_leftovers(folder)
    remove_leftovers(out.parent, out.name)
    if resume:
        if not recipe_file.is_file():
            raise FileNotFoundError(f"{out} holds no run to resume. Leave out --resume to begin one.")
        changed_settings(out, recipe)
        if (out / TRAINING_NAME).is_file() and not has_states(out / STATE_NAME):
            raise UserError(
                f"The run in {out} is finished and its training states were removed: there is nothing to go on from. "
                f"Begin a new run in another folder with --init {out}."
            )
        return
    recipe.check_learning_rates()
    # What a planned training writes before its student begins; its teacher's run lies in it.
    planned = {PLAN_NAME, TEACHER_NAME} if (out / PLAN_NAME).is_file() else set()
    if out.is_dir() and any(path.name not in {*_BEFORE_A_RUN, *planned} for path in out.iterdir()):
        if recipe_file.is_file():
            raise run_exists(out)
        raise FileExistsError(f"{out} holds other files already. Pass a new or empty folder.")


@contextmanager
def open_run_folder(out: Path, recipe: Recipe, *, resume: bool, note: str = "") -> Iterator[None]:
    """Opens the folder of a run for a block, in which no other process can; that of a new run is made.

    What a killed process left half written in it is removed. The recipe of a new run is written, with the note.

    Raises:
        FolderInUseError: Another process is at work in it.
        OSError: See `check_run_folder`, or it cannot be written.
        ValueError: See `check_run_folder`.
    """
    _check(out, recipe, resume=resume)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        _check(out, recipe, resume=resume)  # another process may have begun a run before the lock was had
        if not resume:
            recipe.save(out / RECIPE_NAME, note=note)
        yield


def write_model(
    out: Path, student: nn.Module, classes: list[str], processor: DeiTImageProcessor, record: dict[str, Any]
) -> None:
    """Writes a model directory: weights, labels, preprocessing and how they came about, whole or not at all.

    Args:
        out: The folder; files of other names in it stay, and so does a `README.md`, which somebody may have edited.
        student: A model of this package or of timm.
        classes: Class names; none for a model of masked images.
        processor: The student's preprocessing.
        record: For `training.json`.
    """
    with replace_folder_content(out) as temporary:
        _save_student(student, classes, processor, temporary)
        processor.save_pretrained(temporary)
        write_json_atomically(temporary / TRAINING_NAME, record)
        if not (out / CARD_NAME).exists():
            card = model_card(out.resolve().name, student, classes, processor, record)
            write_text_atomically(temporary / CARD_NAME, card)


def _save_student(student: nn.Module, classes: list[str], processor: DeiTImageProcessor, folder: Path) -> None:
    if isinstance(student, PreTrainedModel):
        if classes:  # a model that was trained without labels has none
            id2label = id2label_from_names(classes)
            student.config.update({"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}})
        student.save_pretrained(folder)
        return
    make_order_safe()
    from timm.models import save_for_hf

    published: Any = student.pretrained_cfg
    student.pretrained_cfg = {  # type: ignore[assignment]
        # What timm tests its own weights with, at another size, is not how these were scored.
        **{key: value for key, value in published.items() if not key.startswith("test_")},
        **timm_preprocessing(processor),
        "num_classes": len(classes),
        "input_size": (3, *processor.output_size),
    }
    fixed = student.pretrained_cfg.get("fixed_input_size")  # type: ignore[operator, union-attr]
    save_for_hf(
        student,
        str(folder),
        model_config={"label_names": classes},
        model_args={"img_size": list(processor.output_size)} if fixed else None,
        safe_serialization=True,
    )
