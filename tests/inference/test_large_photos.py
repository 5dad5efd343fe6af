"""Large photos and folders that change: through `Predictor`, `pipeline` and `deit classify`."""

from __future__ import annotations

import struct
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

import deit
from deit.core.processing.batches import usable_cores
from deit.inference.predictor import Predictor
from tests.core.test_reduced_reading import jpeg, photo
from tests.data.pictures import fill, picture


@pytest.fixture
def large(tmp_path):
    file = tmp_path / "large.jpg"
    file.write_bytes(jpeg(photo()))
    return file


def scores(found):
    return [p.score for p in sorted(found, key=lambda p: p.label)]


def test_predictor_and_pipeline_reduce_large_photos_alike_and_say_how_many(deit_directory, large):
    predictor = Predictor.open(deit_directory())
    pipe = deit.pipeline(model=deit_directory(), device="cpu", use_fast=False)
    told = predictor.classify([large, large])
    assert predictor.reduced_images == 2
    both = pipe([str(large)] * 2, batch_size=2)
    assert [[(e["label"], e["score"]) for e in row] for row in both] == [[(p.label, p.score) for p in r] for r in told]
    step_by_step = pipe.postprocess(pipe.forward(pipe.preprocess(large)))
    assert step_by_step == pipe(large)


def test_exact_decoding_has_the_numbers_of_the_whole_photo(deit_directory, large):
    predictor = Predictor.open(deit_directory())
    reduced = predictor.classify(large)
    predictor.exact_decoding = True
    exact = predictor.classify(large)
    assert predictor.reduced_images == 1
    assert scores(exact) == scores(predictor.classify(photo_of(large)))
    assert scores(exact) != scores(reduced)
    assert scores(exact) == pytest.approx(scores(reduced), abs=0.02)
    pipe = deit.pipeline(model=deit_directory(), device="cpu", use_fast=False)
    pipe.exact_decoding = True
    assert [entry["score"] for entry in pipe(large)] == [p.score for p in exact]


def photo_of(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def bomb(path, width=16384, height=12288):
    """A JPEG of 8 x 8 pixels that claims 201 megapixels."""
    data = bytearray(jpeg(photo(8, 8)))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    path.write_bytes(data)
    return path


def test_a_photo_of_200_megapixels_is_refused_in_one_clear_line(deit_directory, tmp_path):
    huge = bomb(tmp_path / "huge.jpg")
    picture().save(tmp_path / "good.png")
    message = r"huge\.jpg claims more pixels than are safe to decode: 201326592 pixels, the limit is 67108864\. Reduce"
    bad, good = Predictor.open(deit_directory()).classify([huge, tmp_path / "good.png"])
    assert "201326592 pixels, the limit is 67108864. Reduce its size." in bad.error
    assert not good.error
    pipe = deit.pipeline(model=deit_directory(), device="cpu")
    for ask in (pipe, Predictor.open(deit_directory()).classify):
        with pytest.raises(ValueError, match=message):
            ask(huge)


def test_a_folder_that_changes_while_it_is_read_costs_only_the_files_that_changed(deit_directory, tmp_path):
    folder = fill(tmp_path / "photos", 3)
    files = sorted(folder.rglob("*.png"))
    predictor = Predictor.open(deit_directory())
    results = predictor.classify_each(files, batch_size=2)
    first = next(results)
    files[5].unlink()
    files[6].write_bytes(files[6].read_bytes()[:300])  # replaced by a copy that is not finished
    files[7].unlink()
    files[7].mkdir()
    files[8].write_bytes(files[8].read_bytes() + b"more")  # bytes after the end of an image mean nothing
    told = [first, *results]
    assert [bool(r.error) for r in told] == [False] * 5 + [True] * 3 + [False]
    assert told[5].error == f"{files[5]} is not there."
    assert "truncated" in told[6].error
    assert "it is a folder" in told[7].error


class Frames(Sequence):
    """A sequence that makes its arrays when it is asked, and knows how many of them are still in use."""

    def __init__(self, count):
        self.count, self.alive, self.most = count, weakref.WeakSet(), 0

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number >= self.count:
            raise IndexError(number)
        frame = Frame((8, 8, 3), np.uint8)
        frame[:] = number % 256
        self.alive.add(frame)
        self.most = max(self.most, len(self.alive))
        return frame


class Frame(np.ndarray):
    """An array that can be in a set."""

    def __hash__(self):
        return id(self)


def test_memory_does_not_grow_with_the_number_of_images():
    frames = Frames(400)
    processor = deit.DeiTImageProcessor(size=8, do_center_crop=False)
    predictor = Predictor(lambda pixels: pixels.mean((2, 3)), processor, ["a", "b", "c"])
    assert sum(1 for _ in predictor.classify_each(frames, batch_size=4)) == 400
    ahead = -(-usable_cores() // 4)
    assert frames.most <= 4 * (ahead + 3), "images of the batch in work, those ahead, and one about to go"
