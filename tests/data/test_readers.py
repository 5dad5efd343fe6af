"""Every source is read by a reader of one table, and a new source is one class and one line of it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit.core.errors import UserError
from deit.data import find_splits
from deit.data.open_data import open_data, open_labelled, open_unlabelled

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def shown_reader() -> Any:
    """The smallest reader, as docs/data.md shows it."""
    (code,) = re.findall(r"```python\n(.*?class Lists:.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["Lists"]()


@pytest.fixture
def listed(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(find_splits, "READERS", (shown_reader(), *find_splits.READERS))
    random, lines = np.random.default_rng(0), []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
        lines.append(f"{'cat' if i % 2 else 'dog'} {path}")
    (tmp_path / "9.png").write_bytes(b"no image")
    (tmp_path / "photos.list").write_text("\n".join(lines))
    return tmp_path / "photos.list"


def test_a_source_of_ones_own_has_all_that_the_others_have(listed) -> None:
    data = open_data(listed)
    assert data.train.classes == ["cat", "dog"]
    assert (len(data.train.labels), len(data.val.labels)) == (7, 2)
    assert [os.path.basename(file.path) for file in data.skipped] == ["9.png"]
    assert data.train.image(0).size == (8, 8)
    whole = open_labelled(listed, classes=["dog", "cat"])
    assert whole.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    without = open_unlabelled(listed)
    assert without.train.contents.tolist() == data.train.contents.tolist()  # no image is learned from that is measured
    assert without.train.classes == []


def test_several_kinds_and_unknown_ones_are_refused(listed, tmp_path) -> None:
    (tmp_path / "a.csv").write_text("path,label\n")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"several kinds: \.csv, \.list"):
        open_data([listed, tmp_path / "a.csv"])
    with pytest.raises(UserError, match=r"a\.txt is not a data set of a known kind"):
        open_data([listed, tmp_path / "a.txt"])
    with pytest.raises(UserError, match=r"https://host/a\.csv cannot be opened: only \.tar and \.parquet"):
        open_data("https://host/a.csv?key=1")
    with pytest.raises(TypeError, match="path must be a path, a list of paths, a datasets"):
        open_data(3)
