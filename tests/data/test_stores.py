"""Sources made of stored bytes: checks in threads, and where the cache is."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit.core.images.reading import ImageError
from deit.data.labels.label_columns import LabelColumn
from deit.data.readers.image_stores import Rows, StoredImages
from deit.data.sources import SkippedFile
from deit.runtime.cache_folder import cache_folder
from tests.data.pictures import encoded, picture


class Shelf:
    """Images in a list; None stands for one that cannot be read."""

    def __init__(self, contents: list[bytes | None]) -> None:
        self.contents = contents

    def __len__(self) -> int:
        return len(self.contents)

    def read(self, row: int) -> bytes:
        content = self.contents[row]
        if content is None:
            raise OSError(5, "Input/output error")
        return content

    def place(self, row: int) -> str:
        return f"shelf {row}"


def part(contents: list[bytes | None], labels: list[object], **more: object) -> Rows:
    return Rows(
        name="train", origin="the shelf", store=Shelf(contents), labels=LabelColumn(name="label", values=labels), **more
    )


def test_images_and_labels_stay_together_when_some_are_left_out():
    contents = [encoded("red", i) if i % 7 else b"no" for i in range(100)]
    labels = [None if i % 11 == 5 else i for i in range(100)]
    lost = SkippedFile(path="drawer", reason="it is stuck.")
    source = StoredImages(part(contents, labels, skipped=(lost,)))
    kept = [i for i in range(100) if i % 7 and i % 11 != 5]
    assert [int(source.classes[label]) for label in source.labels] == kept
    for index in (0, 17, len(kept) - 1):
        assert np.array_equal(np.asarray(source.image(index)), np.asarray(picture("red", kept[index])))
    assert source.skipped[0] is lost
    assert len(source.skipped) == 1 + 100 - len(kept)


def test_the_fingerprint_does_not_depend_on_what_was_left_out():
    good = [encoded("red", i) for i in range(3)]
    with_more = StoredImages(part([good[0], b"no", *good[1:]], ["a", "a", "b", "a"]))
    assert with_more.fingerprint() == StoredImages(part(good, ["a", "b", "a"])).fingerprint()


def test_checking_leaves_the_filters_of_warnings_as_they_were_and_refuses_huge_images(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 40)
    before = list(warnings.filters)
    source = StoredImages(part([encoded("red", i) for i in range(80)] + [encoded(height=60, width=60)], [1] * 81))
    assert warnings.filters == before
    assert [file.path for file in source.skipped] == ["shelf 80"]
    assert "claims more pixels than are safe to decode" in source.skipped[0].reason


def test_a_disk_that_fails_later_is_named():
    shelf = part([encoded(), encoded()], [0, 1])
    source = StoredImages(shelf)
    assert isinstance(shelf.store, Shelf)
    shelf.store.contents[1] = None
    with pytest.raises(ImageError, match=r"shelf 1: .*Input/output error"):
        source.image(1)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("DEIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/deit")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "deit"
    monkeypatch.setenv("DEIT_CACHE", "~/here")
    assert cache_folder() == Path("/home/someone/here")
