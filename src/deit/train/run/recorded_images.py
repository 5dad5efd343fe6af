"""The images of a run in their order, kept with its states: a run goes on with them though some are gone since."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.errors import DamagedFileError, UserError, parsing
from deit.core.file_names import STATE_NAME
from deit.core.files import replaced_file
from deit.core.images.reading import ImageError
from deit.core.writing import writing
from deit.data.sources import Data, Joined, Labels, Source, contents_of, place_of
from deit.data.storage.contents import Hashes
from deit.train.recipes.recipe import Recipe

logger = logging.getLogger(__name__)

RECORD_NAME = "images.npz"
_KIND = "a list of a run's images"
_PARTS = ("train", "val")
_MOST_SHARE = 0.1  # of a part, that may be gone: more is another data set


def record_images(out: Path, data: Data) -> None:
    """Writes down the images of a new run in their order: hashes, labels and places; nothing where there is no hash."""
    path = out / STATE_NAME / RECORD_NAME
    if path.is_file():  # of a run that goes on
        return
    arrays: dict[str, Any] = {}
    for part in _PARTS:
        source: Source = getattr(data, part)
        contents = contents_of(source)
        if contents is None:
            return
        places = "\0".join(place_of(source, i) for i in range(len(contents)))
        text = json.dumps({"fingerprint": source.fingerprint(), "classes": source.classes, "places": places})
        arrays |= {f"{part}_hashes": contents, f"{part}_labels": source.labels}
        arrays[f"{part}_text"] = np.frombuffer(text.encode(), np.uint8)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def images_of_run(out: Path, data: Data, recipe: Recipe, *, resume: bool) -> Data:
    """Returns the images that a run goes on with: what was opened, or, where some of its images are gone, its own.

    Those have the order, the division and the labels of the beginning. An image that is gone, or has other bytes, is
    one that cannot be read, see `data.max_bad_images`; new images are not used.

    Args:
        out: Folder of the run.
        data: What was opened now.
        recipe: Of the run.
        resume: Whether it goes on; a new one has what was opened.

    Raises:
        UserError: More images are gone than may be.
    """
    path = out / STATE_NAME / RECORD_NAME
    if not resume or not path.is_file():
        return data
    try:
        train, val = (_Recorded(path, part, data) for part in _PARTS)
    except DamagedFileError as error:
        logger.warning("Passed over: %s", error)
        return data
    now = [getattr(data, part).fingerprint() for part in _PARTS]
    if now == [train.fingerprint(), val.fingerprint()]:
        return data
    chosen = recipe.data
    if chosen.labels_per_class or chosen.label_fraction < 1 or chosen.max_train_images or chosen.max_val_images:
        return data  # what was chosen of other images may be others
    if not train.is_known or not val.is_known:
        return data
    gone = [*train.gone, *val.gone]
    if not gone:
        return data
    images = len(train.labels) + len(val.labels)
    are, first = ("is", "") if len(gone) == 1 else ("are", "; the first")
    what = f"{len(gone)} of the {images} images of the run {are} gone or changed{first}: {gone[0]}."
    most = chosen.tolerated
    if len(gone) > most or any(len(part.gone) > _MOST_SHARE * len(part.labels) for part in (train, val)):
        raise UserError(
            f"{what} At most data.max_bad_images={most}, and a tenth of the training or validation images, may be "
            f"missing. Restore them and pass --resume again, or begin a new run with --init {out}."
        )
    logger.warning("%s The run goes on without, in the division that it began with.", what)
    return Data(
        train=train,
        val=val,
        held_out=data.held_out,
        skipped=data.skipped,
        ignored=data.ignored,
        used=images - len(gone),
    )


class _Recorded:
    """Images of a run, found again among others by their bytes and labels.

    Attributes:
        gone: Places of those that are not found.
        is_known: Whether classes and labels are still what they were.
    """

    def __init__(self, path: Path, part: str, data: Data) -> None:
        with parsing(path, _KIND), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            self.contents: Hashes = arrays[f"{part}_hashes"].astype(np.uint64)
            self.labels: Labels = arrays[f"{part}_labels"]
            text = json.loads(arrays[f"{part}_text"].tobytes())
            self.classes = [str(name) for name in text["classes"]]
            self._fingerprint = str(text["fingerprint"])
            self._places = str(text["places"]).split("\0")
            if not len(self._places) == len(self.contents) == len(self.labels):
                raise DamagedFileError(f"{path} is not {_KIND}: its parts have different lengths.")
        self.problem_type = data.problem_type
        self._there = Joined([data.train, data.val])
        self._found, self.gone, self.is_known = self._search(data)

    def _search(self, data: Data) -> tuple[npt.NDArray[np.int64], list[str], bool]:
        present = self._there.contents
        labels = self._there.labels
        same_kind = labels.dtype == self.labels.dtype and labels.shape[1:] == self.labels.shape[1:]
        if present is None or not same_kind or self.classes != list(data.train.classes):
            return np.zeros(0, np.int64), [], False
        places: dict[tuple[int, bytes], int] = {}
        for number, content in enumerate(present.tolist()):
            places.setdefault((content, labels[number].tobytes()), number)
        keys = [(content, label.tobytes()) for content, label in zip(self.contents.tolist(), self.labels, strict=True)]
        found = np.array([places.get(key, -1) for key in keys], np.int64)
        lost = np.flatnonzero(found < 0)
        relabelled = np.isin(self.contents[lost], present).any()
        return found, [self._places[i] for i in lost.tolist()], not relabelled

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        number = int(self._found[index])
        if number < 0:
            raise ImageError(f"{self._places[index]} is gone or changed since the run began.")
        return self._there.image(number)

    def place(self, index: int) -> str:
        """Names the image as it was called when the run began."""
        return self._places[index]

    def fingerprint(self) -> str:
        """Returns the fingerprint of the images that the run began with."""
        return self._fingerprint
