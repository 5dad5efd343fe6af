"""What a command says of the files that it found: used and left out, in one line, the same from every command."""

from __future__ import annotations

import json

from tests.cli.conftest import RATE, VARIANT, deit
from tests.data.pictures import fill, picture, write_text


def found(*arguments: object) -> str:
    """Runs a command and returns its line on what it found."""
    result = deit(*arguments)
    assert result.exit_code in (0, 3), result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Found "))
    return line


def test_every_command_accounts_for_the_same_files(tmp_path):
    album = fill(tmp_path / "album", 6, ("blue", "red"))
    (album / "red" / "more").mkdir()
    picture("red", 8).save(album / "red" / "more" / "BIG.PNG", "PNG")
    (album / "blue" / "linked").symlink_to(fill(tmp_path / "outside", 1, ("blue",), seed=70))
    picture().save(album / "red" / ".hidden.png")
    write_text(album / "red" / "notes.txt")
    write_text(album / "blue" / "broken.png")
    line = "Found 17 files: 14 used, 1 hidden, 1 not images, 1 unreadable."
    model = tmp_path / "model"
    short = ("--student", VARIANT, "--image-size", 32, "--epochs", 1, "--batch-size", 4, *RATE)
    assert found("train", album, *short, "--out", model) == line
    assert found("pretrain", album, *short, "--set", "masking.patch=8", "--out", tmp_path / "p") == line
    assert found("evaluate", model, album) == line
    assert found("classify", model, album) == line
    assert found("embed", model, album, "--out", tmp_path / "f.parquet") == line


def test_part_folders_and_the_separator_of_labels_are_said_in_a_run(tmp_path, caplog):
    short = ("--student", VARIANT, "--image-size", 32, "--epochs", 1, "--batch-size", 4, *RATE)
    fill(tmp_path / "data" / "Train", 4)
    images = fill(tmp_path / "data" / "Test", 2, seed=50)
    result = deit("train", tmp_path / "data", *short, "--out", tmp_path / "parts")
    assert "12 training and 6 validation images, 3 classes." in result.stdout
    assert "Found" not in result.stderr
    cells = ("rust", "scab", "rust scab")
    lines = [f"{path},{cells[i % 3]}" for i, path in enumerate(sorted(images.rglob("*.png")))]
    (tmp_path / "list.csv").write_text("path,labels\n" + "\n".join(lines), encoding="utf-8")
    command = ("train", tmp_path / "list.csv", *short, "--set", "data.problem_type=multi_label_classification")
    assert "2 classes" in deit(*command, "--out", tmp_path / "several").stdout
    assert "Labels of column 'labels' are separated at ' '" in caplog.text
    assert "3 classes" in deit(*command, "--set", "data.label_separator=none", "--out", tmp_path / "whole").stdout


def test_a_file_that_is_not_there_is_missing_not_unreadable_and_stands_in_the_json(tmp_path):
    album = fill(tmp_path / "album", 4, ("blue", "red"))
    short = ("--student", VARIANT, "--image-size", 32, "--epochs", 1, "--batch-size", 4, *RATE)
    model = tmp_path / "model"
    assert deit("train", album, *short, "--out", model).exit_code == 0
    table = tmp_path / "table.csv"
    table.write_text("image,label\nalbum/red/0.png,red\nalbum/blue/0.png,blue\nalbum/gone.png,red\n", "utf-8")
    line = "Found 3 files: 2 used, 1 missing."
    assert found("evaluate", model, table) == line
    assert found("classify", model, album / "red" / "0.png", album / "blue" / "0.png", album / "gone.png") == line
    values = json.loads(deit("evaluate", model, table, "--json").stdout)
    assert values["left_out"] == [f"{table} line 4 (album/gone.png): there is no file 'album/gone.png'."]
