"""`deit classify` and `deit evaluate` on large photos, and on a folder that changes while it is read."""

from __future__ import annotations

import json
import shutil

import pytest

from deit.core.processing.reduced_reading import ReducedReader
from deit.inference.predictor import Predictor
from tests.cli.conftest import deit, is_refused, succeeds
from tests.core.test_reduced_reading import jpeg
from tests.data.pictures import fill, picture
from tests.inference.test_large_photos import bomb


@pytest.fixture
def album(tmp_path):
    """One large JPEG of each color."""
    for colour in ("blue", "green", "red"):
        file = tmp_path / "album" / colour / "large.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(jpeg(picture(colour, height=300, width=400)))
    return tmp_path / "album"


def test_classify_says_how_many_photos_were_decoded_at_a_reduced_size_and_how_to_turn_that_off(
    album, student, monkeypatch
):
    shown = deit("classify", student, album, "--json")
    assert "Decoded at a reduced size: 3 large photos. To decode them whole: DEIT_EXACT_DECODING=1." in shown.stderr
    monkeypatch.setenv("DEIT_EXACT_DECODING", "1")
    exact = succeeds("classify", student, album, "--json")
    assert "reduced" not in exact.stderr
    best = [[r["predictions"][0]["label"] for r in json.loads(text.stdout)] for text in (shown, exact)]
    assert best[0] == best[1]


def test_evaluate_decodes_every_photo_whole(album, student, monkeypatch):
    monkeypatch.setattr(ReducedReader, "__call__", None)
    shown = succeeds("evaluate", student, album)
    assert "reduced" not in shown.output
    assert "left out" not in shown.output.lower()


def test_a_photo_of_200_megapixels_is_left_out_with_one_line(album, student):
    bomb(album / "red" / "huge.jpg")
    shown = deit("classify", student, album)
    assert shown.exit_code == 3
    (line,) = [line for line in shown.stderr.splitlines() if "huge.jpg" in line and line.startswith("Left out")]
    assert "claims more pixels than are safe to decode: 201326592 pixels, the limit is 67108864. Reduce" in line
    is_refused(
        deit("classify", student, album / "red" / "huge.jpg", "--strict"),
        "201326592 pixels, the limit is 67108864. Reduce its size.",
    )


def test_files_that_vanish_after_they_were_listed_are_reported_and_the_rest_is_classified(
    tmp_path, student, monkeypatch
):
    folder = fill(tmp_path / "photos", 2)
    original = Predictor.open.__func__

    def open_late(cls, *arguments, **options):
        """The folder was listed before this, and changes now."""
        (folder / "green" / "0.png").unlink()
        (folder / "red" / "1.png").write_bytes(b"\x89PNG")
        shutil.copy(folder / "blue" / "0.png", folder / "blue" / "new.png")  # not listed: not read
        return original(cls, *arguments, **options)

    monkeypatch.setattr(Predictor, "open", classmethod(open_late))
    shown = deit("classify", student, folder, "--json", "--batch-size", 2)
    assert shown.exit_code == 3
    results = json.loads(shown.stdout)
    assert [bool(r.get("error")) for r in results] == [False, False, True, False, False, True]
    assert f"Left out: {folder}/green/0.png is not there." in shown.stderr
    assert "4 used" in shown.stderr
