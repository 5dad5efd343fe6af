"""`deit classify`: every way to name images, what it prints, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deit.cli.terminal import answers
from deit.inference.predictor import Classified, Prediction, Predictor
from tests.cli.conftest import SHORT, VARIANT, deit, is_refused, succeeds
from tests.data.pictures import picture, write_text, write_truncated_jpeg


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Three images in the working directory, one of them with brackets in its name."""
    for name, colour in (("a.png", "red"), ("b.png", "green"), ("c[blue].png", "blue")):
        picture(colour).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_json_holds_the_predictors_answers(album, student):
    results = json.loads(succeeds("classify", student, "a.png", "b.png", "--json").stdout)
    expected = Predictor.open(student).classify_each(["a.png", "b.png"], top_k=3)
    assert results == [one.to_dict() for one in expected]
    assert [result["image"] for result in results] == ["a.png", "b.png"]
    assert all(len(result["predictions"]) == 3 for result in results)


def rows_of(results: list[dict]) -> list[list[str]]:
    return [[r["image"], *(f"{p['label']} {100 * p['score']:.1f} %" for p in r["predictions"])] for r in results]


def test_a_row_in_a_pipe_is_a_line_with_tabs(album, student):
    results = json.loads(succeeds("classify", student, ".", "--json", "--top-k", 2).stdout)
    shown = succeeds("classify", student, ".", "--top-k", 2)
    assert shown.stderr == ""
    assert [line.split("\t") for line in shown.stdout.splitlines()] == rows_of(results)


def test_names_are_whole_in_a_pipe_and_have_nothing_in_them_that_moves_the_cursor(album, student):
    folder = album.joinpath(*["x" * 200] * 5)  # longer than any cell of a table
    folder.mkdir(parents=True)
    picture("red").save(folder / "\x1b[2K\tred.png")
    (row,) = succeeds("classify", student, folder, "--top-k", 1).stdout.splitlines()
    assert row.split("\t")[0] == f"{folder}/\\x1b[2K\\tred.png"


def test_rows_are_there_before_the_next_batch_is_read(album, student, monkeypatch):
    seen = []

    def each(self, sources, **options):
        for source in sources:
            seen.append(sys.stdout.buffer.getvalue().decode())
            yield Classified(name=source, predictions=(Prediction(label="red", score=0.5),))

    monkeypatch.setattr(Predictor, "classify_each", each)
    succeeds("classify", student, "a.png", "b.png")
    assert seen == ["", "a.png\tred 50.0 %\n"]
    seen.clear()
    whole = succeeds("classify", student, "a.png", "b.png", "--json").stdout
    assert json.loads(seen[1] + "]") == json.loads(whole)[:1]


LABELS = ("red", "a class whose name is longer than all others", "blue")


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (90, [
            "album/image.png  red 50.0 %  a class whose name is longer than all others 33.3 %",
            "                 blue 16.7 %",
        ]),
        (44, [
            "album/image.png  red 50.0 %",
            "                 a class whose name is",
            "                   longer than all others",
            "                   33.3 %",
            "                 blue 16.7 %",
        ]),
        (20, [
            "album/image.png",
            "    red 50.0 %",
            "    a class whose",
            "      name is longer",
            "      than all",
            "      others 33.3 %",
            "    blue 16.7 %",
        ]),
    ],
)  # fmt: skip
def test_names_stay_whole_on_a_narrow_terminal(monkeypatch, capsys, width, lines):
    monkeypatch.setattr(answers, "OUT", Console(width=width, force_terminal=True))
    scores = (0.5, 1 / 3, 1 / 6)
    found = tuple(Prediction(label=label, score=score) for label, score in zip(LABELS, scores, strict=True))
    answers.Rows(["album/image.png"])(Classified(name="album/image.png", predictions=found))
    assert capsys.readouterr().out.splitlines() == lines


# --- --out --------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [{k: v or None for k, v in row.items()} for row in csv.DictReader(file)]
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl", ".CSV"])
def test_predictions_are_written_to_a_file(album, student, ending):
    write_text(album / "bb.png")
    path = album / f"predictions{ending}"
    result = deit("classify", student, "a.png", "bb.png", "c[[]blue].png", "--out", path, "--top-k", 2)
    assert result.exit_code == 3
    assert result.stdout == f"Predictions of 2 images: {path}\n"
    expected = json.loads(deit("classify", student, "a.png", "bb.png", "c[[]blue].png", "--json", "--top-k", 2).stdout)
    if ending == ".jsonl":
        assert [json.loads(line) for line in path.read_text().splitlines()] == expected
        return
    rows = read_rows(path.rename(path.with_suffix(ending.lower())))
    assert list(rows[0]) == ["image", "label_1", "score_1", "label_2", "score_2", "error"]
    for row, wanted in zip(rows, expected, strict=True):
        assert (row["image"], row["error"]) == (wanted["image"], wanted.get("error"))
        assert [row["label_1"], row["label_2"]] == [p["label"] for p in wanted["predictions"]] or [None, None]
        scores = [float(row[name]) for name in ("score_1", "score_2") if row[name] is not None]
        assert scores == [p["score"] for p in wanted["predictions"]]


def test_no_cell_of_a_csv_is_a_formula_and_names_and_numbers_stay(tmp_path):
    labels = ("=cmd()", "+1", "-1e3", "@x", "-cat", "cat")
    found = tuple(Prediction(label=label, score=0.1) for label in labels)
    with answers.written_predictions(tmp_path / "p.csv", len(labels)) as takes:
        for name in ("=1.png", "a.png"):
            takes[0](Classified(name=name, predictions=found))
    first, second = read_rows(tmp_path / "p.csv")
    assert (first["image"], second["image"]) == ("./=1.png", "a.png")
    shown = [first[f"label_{number}"] for number in range(1, 7)]
    assert shown == ["'=cmd()", "+1", "-1e3", "'@x", "'-cat", "cat"]


def test_a_file_of_predictions_is_whole_or_not_there(album, student):
    write_text(album / "bb.png")
    for images, option in ((["a.png", "bb.png"], "--strict"), (["bb.png"], "--json")):
        assert deit("classify", student, *images, option, "--batch-size", 1, "--out", "p.csv").exit_code == 2
        assert not list(album.glob("*p.csv*"))


def test_more_classes_are_asked_for_than_there_are(album, student):
    succeeds("classify", student, "a.png", "--top-k", 99, "--out", "p.csv")
    (row,) = read_rows(album / "p.csv")
    assert sorted(value for name, value in row.items() if name.startswith("label_")) == ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["b.png"], ["b.png"]),
        (["."], ["a.png", "b.png", "c[blue].png"]),
        (["?.png"], ["a.png", "b.png"]),
        (["c[[]blue].png", "a.png"], ["c[blue].png", "a.png"]),
    ],
)
def test_files_folders_and_patterns_are_classified(album, student, patterns, names):
    results = json.loads(succeeds("classify", student, *patterns, "--json").stdout)
    assert [result["image"] for result in results] == names
    assert all(result["predictions"] for result in results)


def test_standard_input_is_classified_like_the_file(album, student):
    file, piped = json.loads(
        succeeds("classify", student, "a.png", "-", "--json", input=(album / "a.png").read_bytes()).stdout
    )
    assert piped["image"] == "standard input"
    assert piped["predictions"] == file["predictions"]


@pytest.mark.parametrize("kind", ["grey", "RGBA", "palette", "16-bit"])
def test_images_of_every_mode_are_classified(tmp_path, student, kind):
    grey = picture().convert("L")
    image = {
        "grey": grey,
        "RGBA": picture().convert("RGBA"),
        "palette": picture().quantize(16),
        "16-bit": grey.convert("I").point(lambda value: value * 257).convert("I;16"),
    }[kind]
    image.save(tmp_path / "image.png")
    (result,) = json.loads(succeeds("classify", student, tmp_path, "--json").stdout)
    assert sum(prediction["score"] for prediction in result["predictions"]) == pytest.approx(1, abs=1e-6)


def test_a_teacher_classifies_by_the_names_of_its_classes(album, teacher):
    (result,) = json.loads(succeeds("classify", teacher, "a.png", "--json").stdout)
    assert sorted(prediction["label"] for prediction in result["predictions"]) == ["blue", "green", "red"]


# --- HEIC and AVIF ------------------------------------------------------------------------------------


def test_what_phones_write_is_classified(album, student):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(picture("red")).save(album / "phone.HEIC", quality=-1)
    picture("red").save(album / "phone.avif", quality=100)
    results = json.loads(succeeds("classify", student, ".", "--json").stdout)
    assert [r["image"] for r in results] == ["a.png", "b.png", "c[blue].png", "phone.HEIC", "phone.avif"]
    for result in results[-2:]:
        assert result["predictions"][0]["score"] == pytest.approx(results[0]["predictions"][0]["score"], abs=0.02)


def test_without_its_package_heic_is_left_out_with_the_extra_that_brings_it(album, student, photos, monkeypatch):
    heic = bytes([0, 0, 0, 20]) + b"ftypheic\0\0\0\0mif1" + bytes([0, 0, 0, 12]) + b"meta\0\0\0\0"
    (album / "phone.heic").write_bytes(heic)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    extra = "is a HEIC image, which needs the 'pillow-heif' package. Install it with: pip install \"deit[heic]\"."
    result = deit("classify", student, ".")
    assert (result.exit_code, f"Left out: phone.heic {extra}" in result.stderr) == (3, True)
    shutil.copytree(photos, album / "photos")
    shutil.copy("phone.heic", "photos/train/red")
    run = succeeds("train", "photos", "--student", VARIANT, "--image-size", 32, *SHORT, "--epochs", 1, "--out", "run")
    assert f"photos/train/red/phone.heic: {extra}" in run.stderr


# --- what cannot be read ------------------------------------------------------------------------------


def test_broken_files_are_left_out_with_a_report(album, student):
    write_truncated_jpeg(album / "aa.jpg")
    write_text(album / "bb.png")
    result = deit("classify", student, ".", "--json")
    assert result.exit_code == 3  # some answered; 1 would be a bug, 2 that none is
    results = json.loads(result.stdout)
    assert [r["image"] for r in results] == ["a.png", "aa.jpg", "b.png", "bb.png", "c[blue].png"]
    assert ["error" in r for r in results] == [False, True, False, True, False]
    lines = result.stderr.splitlines()
    assert lines[0].startswith("Left out: aa.jpg cannot be read as an image (image file is truncated")
    assert lines[1] == "Left out: bb.png is not an image (known: JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, AVIF, HEIC)."
    assert lines[2:] == ["Found 5 files: 3 used, 2 unreadable."]
    table = deit("classify", student, ".").stdout
    assert "aa.jpg" not in table
    assert "c[blue].png" in table


def test_strict_stops_at_a_broken_file(album, student):
    write_text(album / "bb.png")
    result = deit("classify", student, ".", "--strict")
    is_refused(result, "bb.png is not an image")
    assert result.stdout == ""


@pytest.mark.parametrize("source", ["-", "letter.png"])
def test_when_nothing_can_be_read_the_command_fails(album, student, source):
    write_text(album / "letter.png")
    result = deit("classify", student, source, input=b"no picture")
    assert result.exit_code == 2
    left_out, error = result.stderr.splitlines()
    assert left_out.startswith("Left out: ")
    assert error == "Error: None of 1 file(s) could be classified."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.png",), "No image, folder or match for 'nowhere.png'."),
        (("*.webp",), "No image, folder or match for '*.webp'."),
        (("empty",), "The folder empty holds no images"),
        (("a.png", "--top-k", 0), "--top-k and --batch-size must be at least 1. Received: 0 and 32."),
        (("a.png", "--batch-size", 0), "--top-k and --batch-size must be at least 1. Received: 3 and 0."),
        (("a.png", "--device", "gpu"), "Unknown device 'gpu'. Pass --device cpu or --device cuda:0"),
        (("a.png", "--out", "p.xlsx"), "a file that ends in .csv, .parquet, .jsonl. Received: p.xlsx."),
        (("a.png", "--out", "nowhere/p.csv"), "There is no folder nowhere. Make it first."),
        (("a.png", "--out", "folder.csv"), "folder.csv is a folder. Pass the name of a file."),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(album, student, arguments, message):
    (album / "empty").mkdir()
    (album / "folder.csv").mkdir()
    is_refused(deit("classify", student, *arguments), message)


@pytest.mark.parametrize("kind", ["student", "teacher"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "no configuration", "no preprocessing"])
def test_a_model_that_cannot_be_used_is_refused(request, album, copied, kind, damage):
    model = copied(request.getfixturevalue(kind))
    weights = model / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    else:
        names = {"missing": "model.safetensors", "no configuration": "config.json"}
        (model / names.get(damage, "preprocessor_config.json")).unlink()
    is_refused(deit("classify", model, "a.png"), str(model))


def test_the_demo_does_not_write_into_a_folder_in_use(album):
    is_refused(deit("demo", "--out", album), f"{album} holds files already. Pass a new folder.")


def test_a_missing_file_keeps_the_others_from_no_answer(album, student):
    result = deit("classify", student, "a.png", "nowhere.png", "b.png", "--json")
    assert result.exit_code == 3
    results = json.loads(result.stdout)
    assert [r["image"] for r in results] == ["a.png", "nowhere.png", "b.png"]
    assert results[1]["error"] == "nowhere.png is not there."
    assert results[2]["predictions"]
    is_refused(deit("classify", student, "a.png", "nowhere.png", "--strict"), "'nowhere.png'")


def test_values_that_nothing_explains_are_told_and_classified_with_their_range(album, student):
    from PIL import Image

    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save("a.tif")
    result = deit("classify", student, "a.tif", "a.png", "--json")
    assert result.exit_code == 3
    assert "--value-range" in json.loads(result.stdout)[0]["error"]
    (found,) = json.loads(succeeds("classify", student, "a.tif", "--json", "--value-range", 0, 1).stdout)
    levels = np.floor(np.linspace(0, 1, 64, dtype=np.float32).astype(float) * 255 + 0.5).astype(np.uint8)
    Image.fromarray(levels.reshape(8, 8)).save("grey.png")
    (expected,) = json.loads(succeeds("classify", student, "grey.png", "--json").stdout)
    assert found["predictions"] == expected["predictions"]
