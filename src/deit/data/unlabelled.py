"""Images without labels: files in any folders, other sources whose labels are ignored."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from deit.core.errors import UserError
from deit.core.images.reading import IMAGE_SUFFIXES, ValueRange, load_image
from deit.core.labels import NO_LABEL
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.readers.image_folder import examine_files
from deit.data.sources import (
    Labels,
    Progress,
    SkippedFile,
    Source,
    contents_of,
    former_fingerprint,
    place_of,
    refuse_skipped,
)
from deit.data.storage.contents import Hashes, unexamined
from deit.data.storage.image_search import find_image_files


class ImageFiles:
    """All images below a folder, in whatever sub-folders they lie; no labels.

    Each is decoded once, cheaply, when the folder is opened, so that a broken file is found before hours of work.

    Args:
        root: The folder.
        strict: Raise at the first file that is not an image, in place of leaving it out.
        value_range: Of grey images with more than 8 bits, see `load_image`.
        check: False looks at no image now, see `ImageFolder`.
        progress: Called with (files checked, files in all).

    Attributes:
        classes: Always empty.
        labels: (N,) int64, all `NO_LABEL`.
        problem_type: Always "single_label_classification".
        paths: The files, sorted.
        contents: (N,) uint64 hashes of their bytes; None without `check`.
        skipped: Files left out.
        ignored: Counts of hidden files.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It holds no usable image, or (strict) a file is broken.
    """

    problem_type = SINGLE_LABEL

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        strict: bool = False,
        value_range: ValueRange | None = None,
        check: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self.root = Path(root)
        self._value_range = value_range
        if not self.root.is_dir():
            raise FileNotFoundError(f"No folder at {self.root}. Pass a folder of images.")
        searched = find_image_files(self.root)
        paths = [Path(path) for path in searched.paths if path is not None]
        self.skipped, self.ignored = searched.skipped, searched.ignored
        found = examine_files(self.root, paths, progress, value_range) if check else unexamined(len(paths))
        self.skipped += [SkippedFile(path=str(paths[i]), reason=reason) for i, reason in found.reasons.items()]
        refuse_skipped(self.skipped, str(self.root), strict=strict)
        good = [i for i in range(len(paths)) if i not in found.reasons]
        self.paths = [paths[i] for i in good]
        self.contents = found.hashes[good] if check else None
        if not self.paths:
            raise UserError(f"{self.root} holds no usable image ({', '.join(IMAGE_SUFFIXES)}). Add some.")
        self.classes: list[str] = []
        self.labels: Labels = np.full(len(self.paths), NO_LABEL, dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return load_image(self.paths[index], value_range=self._value_range)

    def place(self, index: int) -> str:
        """Names the file."""
        return str(self.paths[index])

    def fingerprint(self) -> str:
        """Returns a hash of the names and contents of all files; of sizes where the contents are not known."""
        if self.contents is None:
            return self.former_fingerprint()
        names = "\0".join(["without labels", *(str(path.relative_to(self.root)) for path in self.paths)])
        return hashlib.sha256(names.encode("utf-8", "surrogateescape") + self.contents.tobytes()).hexdigest()

    def former_fingerprint(self) -> str:
        """Returns a hash of the names and sizes of all files."""
        digest = hashlib.sha256(b"without labels\n")
        for path in self.paths:
            digest.update(f"{path.relative_to(self.root)}\0{path.stat().st_size}\n".encode())
        return digest.hexdigest()


class WithoutLabels:
    """Another source whose labels are ignored.

    Args:
        source: The other source.

    Attributes:
        classes: Always empty.
        labels: (N,) int64, all `NO_LABEL`.
        problem_type: Always "single_label_classification".
    """

    problem_type = SINGLE_LABEL

    def __init__(self, source: Source) -> None:
        self.source = source
        self.classes: list[str] = []
        self.labels: Labels = np.full(len(source.labels), NO_LABEL, dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return self.source.image(index)

    def place(self, index: int) -> str:
        """Names the image as the other source does."""
        return place_of(self.source, index)

    @property
    def contents(self) -> Hashes | None:
        """(N,) uint64 hashes of the images, if the other source has them."""
        return contents_of(self.source)

    def fingerprint(self) -> str:
        """Returns a hash of the other source."""
        return hashlib.sha256(b"without labels\n" + self.source.fingerprint().encode()).hexdigest()

    def former_fingerprint(self) -> str:
        """Returns the same with the other source's former fingerprint."""
        return hashlib.sha256(b"without labels\n" + former_fingerprint(self.source).encode()).hexdigest()
