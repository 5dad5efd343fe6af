"""Image in, named predictions out: the numbers, every kind of image, and files that cannot be read."""

from __future__ import annotations

import base64
import io
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image

import deit
from deit.core.images.reading import ImageError
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.data.storage.image_search import find_images
from deit.inference.predictor import Classified, Prediction, Predictor
from tests.data.pictures import picture, write_text, write_truncated_jpeg
from tests.inference.conftest import NAMES, PROCESSOR

GREY, DEEP = np.uint8([[0, 90], [180, 255]]), np.uint16([[0, 90 * 257], [180 * 257, 65535]])


def brightness(pixels: np.ndarray) -> np.ndarray:
    """Logits that are the mean of each channel."""
    return pixels.mean((2, 3)).astype(np.float32)


def colour_predictor() -> Predictor:
    processor = DeiTImageProcessor(size=4, do_center_crop=False, do_normalize=False)
    return Predictor(brightness, processor, ["red", "green", "blue"])


def solid(colour: str) -> Image.Image:
    return Image.new("RGB", (6, 6), colour)


def labels(results: list[list[Prediction]]) -> list[list[str]]:
    return [[prediction.label for prediction in row] for row in results]


# --- scores -------------------------------------------------------------------------------------------


def test_scores_are_the_softmax_of_the_models_logits(deit_directory, tmp_path):
    folder = deit_directory()
    file = tmp_path / "image.png"
    picture("green").save(file)
    (row,) = Predictor.open(folder).classify([file])

    model = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    pixels = PROCESSOR(picture("green"), return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = model(pixels).logits[0].tolist()
    total = sum(math.exp(value) for value in logits)
    expected = sorted(
        ((math.exp(value) / total, name) for value, name in zip(logits, NAMES, strict=True)), reverse=True
    )
    assert [prediction.label for prediction in row] == [name for _, name in expected]
    assert [prediction.score for prediction in row] == pytest.approx([score for score, _ in expected], abs=1e-6)
    assert sum(prediction.score for prediction in row) == pytest.approx(1.0, abs=1e-6)


def test_a_timm_directory_is_classified_with_too(timm_directory):
    (row,) = Predictor.open(timm_directory(label_names=NAMES)).classify([picture()])
    assert sorted(prediction.label for prediction in row) == NAMES
    assert sum(prediction.score for prediction in row) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("top_k", "expected"), [(1, ["green"]), (2, ["green", "red"]), (99, ["green", "red", "blue"])])
def test_top_k_is_at_most_the_number_of_classes(top_k, expected):
    image = Image.new("RGB", (6, 6), (100, 200, 50))
    assert labels(colour_predictor().classify([image], top_k=top_k)) == [expected]


def test_equal_scores_keep_the_order_of_the_classes():
    assert labels(colour_predictor().classify([solid("black")])) == [["red", "green", "blue"]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_results_come_in_order_whatever_the_size_of_a_batch(batch_size):
    sizes: list[int] = []

    def watched(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        return brightness(pixels)

    predictor = Predictor(watched, colour_predictor().processor, ["red", "green", "blue"])
    colours = ["red", "blue", "green", "blue", "red"]
    results = predictor.classify([solid(colour) for colour in colours], top_k=1, batch_size=batch_size)
    assert labels(results) == [[colour] for colour in colours]
    assert sum(sizes) == 5
    assert max(sizes) == min(batch_size, 5)


def test_no_images_give_no_results():
    assert colour_predictor().classify([]) == []


@pytest.mark.parametrize("options", [{"top_k": 0}, {"batch_size": 0}, {"top_k": -1}])
def test_numbers_below_1_are_refused(options):
    with pytest.raises(ValueError, match="top_k and batch_size must be at least 1"):
        colour_predictor().classify([solid("red")], **options)


# --- every kind of image ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.merge("RGB", [Image.fromarray(GREY)] * 3),
        Image.merge("RGBA", [*[Image.fromarray(GREY)] * 3, Image.new("L", (2, 2), 255)]),
        Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (2, 2), 255)]),
        Image.fromarray(GREY).convert("P"),
        Image.fromarray(DEEP),
    ],
    ids=["grey", "RGB", "RGBA", "grey with alpha", "palette", "16-bit grey"],
)
def test_every_mode_of_one_picture_gives_the_same_scores(deit_directory, tmp_path, image):
    predictor = Predictor.open(deit_directory())
    file = tmp_path / "image.png"
    image.save(file)
    (expected,) = predictor.classify([Image.fromarray(np.stack([GREY] * 3, axis=-1))])
    (from_file,) = predictor.classify([file])
    (from_bytes,) = predictor.classify([file.read_bytes()])
    assert from_file == expected
    assert from_bytes == expected


def test_transparency_is_laid_on_white():
    see_through = Image.new("RGBA", (6, 6), (0, 0, 255, 0))
    (row,) = colour_predictor().classify([see_through])
    assert [prediction.score for prediction in row] == pytest.approx([1 / 3] * 3)


# --- classify_each: what cannot be read ---------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_files_that_cannot_be_read_come_back_in_their_place(tmp_path, batch_size):
    solid("red").save(tmp_path / "a.png")
    write_truncated_jpeg(tmp_path / "b.jpg")
    write_text(tmp_path / "c.png")
    solid("blue").save(tmp_path / "d.png")
    paths = sorted(str(path) for path in tmp_path.iterdir())
    results = list(colour_predictor().classify_each(paths, top_k=1, batch_size=batch_size))
    assert [result.name for result in results] == paths
    assert [[p.label for p in result.predictions] for result in results] == [["red"], [], [], ["blue"]]
    assert [bool(result.error) for result in results] == [False, True, True, False]
    assert results[1].error.startswith(f"{paths[1]} cannot be read as an image (image file is truncated")
    assert results[2].error == f"{paths[2]} is not an image (known: JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, AVIF, HEIC)."


def test_a_batch_of_broken_files_alone_never_reaches_the_model():
    predictor = Predictor(lambda pixels: pytest.fail("called"), colour_predictor().processor, ["a"])
    results = list(predictor.classify_each([b"x", b"y"]))
    assert [result.name for result in results] == ["standard input"] * 2
    assert all("is not an image" in result.error for result in results)


def test_strict_raises_at_the_first_broken_file(tmp_path):
    solid("red").save(tmp_path / "a.png")
    broken = write_text(tmp_path / "b.png")
    results = colour_predictor().classify_each([tmp_path / "a.png", broken], batch_size=1, strict=True)
    assert next(results).predictions[0].label == "red"
    with pytest.raises(ImageError, match=r"b\.png is not an image"):
        next(results)


def test_classify_raises_for_one_image_that_is_broken_or_missing(tmp_path):
    with pytest.raises(ImageError, match=r"b\.png is not an image"):
        colour_predictor().classify(write_text(tmp_path / "b.png"))
    with pytest.raises(FileNotFoundError):
        colour_predictor().classify(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError):
        colour_predictor().classify([solid("red"), tmp_path / "nowhere.png"], strict=True)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_missing_file_is_answered_in_its_place_and_does_not_stop_the_rest(tmp_path, batch_size):
    missing, folder = tmp_path / "nowhere.png", tmp_path / "folder.png"
    folder.mkdir()
    solid("red").save(tmp_path / "a.png")
    given = [str(tmp_path / "a.png"), missing, folder, write_text(tmp_path / "b.png"), solid("blue")]
    given += [np.full((3, 4, 4), np.nan), np.zeros((5, 6, 7), np.uint8), solid("green")]
    told = colour_predictor().classify(given, top_k=1, batch_size=batch_size)
    assert labels(told) == [["red"], [], [], [], ["blue"], [], [], ["green"]]
    reasons = ["", "nowhere.png is not there", "it is a folder", "is not an image"]
    assert all(reason in result.error for result, reason in zip(told, reasons, strict=False))
    assert "nowhere.png is not there" in repr(told)
    assert "NaN or infinite" in told[5].error
    assert "Cannot tell the channels" in told[6].error
    with pytest.raises(IndexError, match=r"There is no prediction: .*nowhere.png is not there"):
        told[1][0]
    each = list(colour_predictor().classify_each(given, top_k=1, batch_size=batch_size))
    assert [(r.name, r.error, tuple(r)) for r in told] == [(r.name, r.error, r.predictions) for r in each]


# --- one image, arrays, open files: as in pipeline ----------------------------------------------------


@pytest.fixture
def both(deit_directory):
    """The predictor and the pipeline of one model."""
    folder = deit_directory()
    return Predictor.open(folder), deit.pipeline(model=folder, device="cpu", use_fast=False)


def last(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.mark.parametrize(
    "make",
    [
        lambda file: str(file),
        lambda file: file,
        lambda file: file.read_bytes(),
        lambda file: base64.b64encode(file.read_bytes()).decode(),
        lambda file: io.BytesIO(file.read_bytes()),
        lambda file: Image.open(file),
        lambda file: last(Image.open(file)),
        lambda file: np.moveaxis(last(Image.open(file)), -1, 0),
        lambda file: last(Image.open(file).convert("L")),
        lambda file: last(Image.open(file).convert("L"))[None],
        lambda file: torch.from_numpy(last(Image.open(file)).copy()),
        lambda file: last(Image.open(file)).astype(np.int64),
        lambda file: {"image": Image.open(file), "label": 1},
    ],
    ids=["text", "path", "bytes", "base64", "BytesIO", "PIL", "HWC", "CHW", "HW", "1HW", "tensor", "int64", "dict"],
)
def test_one_image_of_every_kind_is_answered_as_by_the_pipeline(both, tmp_path, make):
    noise = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "one.png")
    predictor, pipe = both
    expected = pipe(make(tmp_path / "one.png"), top_k=5)
    (told,) = predictor.classify([make(tmp_path / "one.png")])
    alone = predictor.classify(make(tmp_path / "one.png"))
    assert list(alone) == list(told)
    assert [p.label for p in alone] == [entry["label"] for entry in expected]
    assert [p.score for p in alone] == pytest.approx([entry["score"] for entry in expected], abs=1e-6)
    assert isinstance(alone[0], Prediction)


def test_grey_arrays_of_two_dimensions_are_grey_images(both):
    grey = np.random.default_rng(0).integers(0, 256, (30, 41), dtype=np.uint8)
    for answer in both:
        ask = answer.classify if isinstance(answer, Predictor) else answer
        assert list(ask(grey)) == list(ask(Image.fromarray(grey)))


def test_a_batch_of_four_dimensions_and_an_iterator_are_several_images(both):
    predictor, _ = both
    batch = np.random.default_rng(0).integers(0, 256, (3, 30, 41, 3), dtype=np.uint8)
    assert labels(predictor.classify(batch)) == [[p.label for p in predictor.classify(image)] for image in batch]
    assert labels(predictor.classify(iter(list(batch)))) == labels(predictor.classify(list(batch)))


def test_an_open_file_is_read_from_its_beginning_and_not_as_text(tmp_path):
    solid("green").save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file:
        file.read()
        told = colour_predictor().classify(file, top_k=1)
        assert (told.name, told[0].label) == (str(tmp_path / "a.png"), "green")
    with open(tmp_path / "a.png", encoding="latin-1") as file, pytest.raises(ImageError, match="is open as text"):
        colour_predictor().classify(file)


@pytest.mark.parametrize("given", [None, 3, [3], [None], {"picture": 1}, object()])
def test_what_is_no_image_is_refused(given):
    with pytest.raises(ValueError, match=r"Pass an image|An image must be|needs the key 'image'"):
        colour_predictor().classify(given)


def test_images_are_read_one_batch_at_a_time():
    taken: list[int] = []

    def images():
        for i in range(6):
            taken.append(i)
            yield solid("red")

    results = colour_predictor().classify_each(images(), batch_size=2)
    next(results)
    assert taken == [0, 1]


def test_a_result_names_its_error_only_when_there_is_one():
    good = Classified(name="a.png", predictions=(Prediction(label="red", score=0.75),))
    assert good.to_dict() == {"image": "a.png", "predictions": [{"label": "red", "score": 0.75}]}
    bad = Classified(name="b.png", error="b.png is not an image.")
    assert bad.to_dict() == {"image": "b.png", "predictions": [], "error": "b.png is not an image."}


# --- opening ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["deit", "timm"])
def test_a_directory_without_preprocessing_is_refused(deit_directory, timm_directory, kind):
    folder = deit_directory() if kind == "deit" else timm_directory()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"No preprocessor_config\.json at .* Pass a model directory with one"):
        Predictor.open(folder)


def test_damaged_preprocessing_is_refused(deit_directory):
    folder = deit_directory()
    (folder / "preprocessor_config.json").write_text('{"size":')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is damaged or is not"):
        Predictor.open(folder)


# --- find_images --------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path, monkeypatch):
    """A folder of images as the working directory."""
    for name in ("b.png", "a.jpg", "C.PNG", "deep/d.gif", "notes.txt", "deep/album.png/e.png"):
        file = tmp_path / "album" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["album/b.png", "album/a.jpg"], ["album/b.png", "album/a.jpg"]),
        (["album/notes.txt"], ["album/notes.txt"]),  # named by the user: taken, and reported when it cannot be read
        (["album"], ["album/C.PNG", "album/a.jpg", "album/b.png", "album/deep/album.png/e.png", "album/deep/d.gif"]),
        (["album/*.png"], ["album/b.png"]),
        (["album/?.jpg", "album/b.png"], ["album/a.jpg", "album/b.png"]),
        (["album/**/*.gif"], ["album/deep/d.gif"]),
        (["-"], [None]),
        (["-", "album/b.png"], [None, "album/b.png"]),
    ],
)
def test_files_folders_patterns_and_standard_input_are_found(album, patterns, expected):
    found = [None if path is None else path.replace(os.sep, "/") for path in find_images(patterns).paths]
    assert found == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("album/*.webp", r"No image, folder or match for 'album/\*\.webp'"),
        ("empty", r"The folder empty holds no images \(\.jpg, "),
    ],
)
def test_what_is_not_there_is_refused_by_name(album, pattern, message):
    with pytest.raises(FileNotFoundError, match=message):
        find_images(["album/b.png", pattern])


def test_a_missing_file_is_refused_alone_and_kept_for_its_own_answer_among_others(album):
    with pytest.raises(FileNotFoundError, match=r"No image, folder or match for 'album/missing\.png'"):
        find_images(["album/missing.png"])
    assert find_images(["album/b.png", "album/missing.png"]).paths == ["album/b.png", "album/missing.png"]


def test_bytes_of_an_image_are_called_standard_input():
    buffer = io.BytesIO()
    solid("blue").save(buffer, "PNG")
    (result,) = colour_predictor().classify_each([buffer.getvalue()], top_k=1)
    assert result.name == "standard input"
    assert result.predictions[0].label == "blue"
