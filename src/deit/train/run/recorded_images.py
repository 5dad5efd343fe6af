"""Records the images of a run in their order, so that the run can be resumed after some of them are gone."""

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
from deit.data.shard_order import shards_of
from deit.data.sources import Data, Joined, Labels, Source, contents_of, place_of
from deit.data.storage.contents import Hashes
from deit.data.streams.shard_files import ShardFile
from deit.data.streams.shard_list import LIST_NAME, check_list, keep_list
from deit.train.recipes.recipe import Recipe

logger = logging.getLogger(__name__)

RECORD_NAME = "images.npz"
_KIND = "a list of a run's images"
_PARTS = ("train", "val")
_MOST_SHARE = 0.1  # largest share of a part that may be gone; more means another data set


def record_images(out: Path, data: Data) -> None:
    """Records hashes, labels and places of a new run's images in their order. Records nothing without hashes."""
    path = out / STATE_NAME / RECORD_NAME
    if path.is_file():  # the run is resumed
        return
    if shards := _shards(data):
        path.parent.mkdir(parents=True, exist_ok=True)
        keep_list(path.with_name(LIST_NAME), shards)
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
    """Returns the images of a run: the opened data or, if a resumed run has lost some images, its recorded images.

    The recorded images have the order, the division and the labels of the start of the run. An image that is gone or
    has other bytes counts as unreadable, see `data.max_bad_images`. New images are not used.

    Args:
        out: Folder of the run.
        data: Data as opened now.
        recipe: Recipe of the run.
        resume: True if the run is resumed. A new run uses `data`.

    Raises:
        UserError: More images are gone than allowed, or shards elsewhere are others; see `check_list`.
    """
    path = out / STATE_NAME / RECORD_NAME
    if resume:
        check_list(path.with_name(LIST_NAME), _shards(data))
    if not resume or not path.is_file():
        return data
    try:
        train, val = (_Recorded(path, part, data) for part in _PARTS)
    except DamagedFileError as error:
        logger.warning("Ignored: %s", error)
        return data
    now = [getattr(data, part).fingerprint() for part in _PARTS]
    if now == [train.fingerprint(), val.fingerprint()]:
        return data
    chosen = recipe.data
    limits = (chosen.max_train_images, chosen.max_val_images, chosen.max_unlabelled_images)
    if chosen.labels_per_class or chosen.label_fraction < 1 or any(limits):
        return data  # the choice among other images may differ
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
            f"{what} At most data.max_bad_images={most} and a tenth of the training or validation images may be "
            f"missing. Restore them and pass --resume again, or begin a new run with --init {out}."
        )
    logger.warning("%s The run continues without them, with its original division.", what)
    return Data(
        train=train,
        val=val,
        held_out=data.held_out,
        exclusion=data.exclusion,
        skipped=data.skipped,
        ignored=data.ignored,
        used=images - len(gone),
    )


def _shards(data: Data) -> list[ShardFile]:
    return [*shards_of(data.train), *shards_of(data.val)]


class _Recorded:
    """Recorded images of a run, found in the opened data by their bytes and labels.

    Attributes:
        gone: Places of the images that were not found.
        is_known: True if classes and labels are unchanged.
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
        relabeled = np.isin(self.contents[lost], present).any()
        return found, [self._places[i] for i in lost.tolist()], not relabeled

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        number = int(self._found[index])
        if number < 0:
            raise ImageError(f"{self._places[index]} is gone or was changed after the run began.")
        return self._there.image(number)

    def place(self, index: int) -> str:
        """Returns the place of the image at the start of the run."""
        return self._places[index]

    def fingerprint(self) -> str:
        """Returns the fingerprint of the images at the start of the run."""
        return self._fingerprint
