"""Class and file names that a terminal, a page or a table would obey, through every command."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import SHORT, VARIANT, deit, succeeds
from tests.data.pictures import COLOURS, fill, write_text

NAMES = {
    "red": "\x1b]0;title\x07$\\frac$ red",
    "green": os.fsdecode(b"g\nError: r\xe2\x80\xae \xff en"),
    "blue": "[red]:cat: <b>`|`\u009b1m",
}
BYTES = os.fsdecode(b"\xff\xfe.png")  # a name of a file that is no UTF-8


def is_shown_plainly(result: Result, own: str = "\n") -> None:
    """Checks that nothing acts on a terminal but the characters that the command prints by itself."""
    text = (result.stdout + result.stderr).translate(dict.fromkeys(map(ord, own)))
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs")], ascii(text)


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with classes and files of such names, one of which is no picture."""
    root = tmp_path_factory.mktemp("strange")
    for part, count in (("train", 4), ("val", 2)):
        fill(root / part, count, seed=100 * (part == "val"))
        for colour in COLOURS:
            (root / part / colour).rename(root / part / NAMES[colour])
        folder = root / part / NAMES["red"]
        (folder / "0.png").rename(folder / "\x1b[2Jphoto\r.png")
        (folder / "1.png").rename(folder / BYTES)
        write_text(folder / "no\x1b[31m picture\nError: x.png")
    return root


@pytest.fixture(scope="module")
def model(strange: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "odd\x1b[31m model"
    result = succeeds("train", strange, "--student", VARIANT, *SHORT, "--epochs", 1, "--out", out)
    is_shown_plainly(result)
    assert "no\\x1b[31m picture\\nError: x.png" in result.stderr
    return out


def test_training_keeps_the_names_and_writes_files_that_can_be_read(model):
    assert set(json.loads((model / "config.json").read_text())["id2label"].values()) == set(NAMES.values())
    card = (model / "README.md").read_text()
    assert card.startswith("---\n")
    assert "\x1b" not in card
    assert "\u202e" not in card


@pytest.mark.parametrize("more", [(), ("--json",), ("--report",), ("--knn",)])
def test_evaluate(model, strange, more, tmp_path):
    report = tmp_path / "re\x1b[31mport.html"
    values = {"--report": [report], "--knn": [strange / "train"]}.get(more[0] if more else "", [])
    is_shown_plainly(succeeds("evaluate", model, strange / "val", *more, *values))
    if report.exists():
        page = report.read_text()
        assert "<b>`" not in page
        assert "\x1b" not in page
        assert "\u202e" not in page
        assert "[red]:cat: &lt;b&gt;`|`\\x9b1m" in page


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_classify(model, strange, more):
    result = deit("classify", model, strange / "val" / NAMES["red"], *more)
    is_shown_plainly(result, "\n" if more else "\n\t")
    if more:
        assert {p["label"] for row in json.loads(result.stdout) for p in row.get("predictions", ())} <= {
            *NAMES.values()
        }
    else:
        assert {row.count("\t") for row in result.stdout.splitlines()} == {3}  # a cell for each class


def test_embed(model, strange, tmp_path):
    import pyarrow.parquet as pq

    out = tmp_path / "fea\x1b[31mtures.parquet"
    is_shown_plainly(deit("embed", model, strange / "val" / NAMES["red"], "--out", out))
    assert len(pq.read_table(out)) == 2


def test_pretrain(strange, tmp_path):
    setting = ("--set", "masking.patch=8")
    result = deit("pretrain", strange, "--student", VARIANT, *SHORT, "--out", tmp_path / "\x1b[31mout", *setting)
    is_shown_plainly(result)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "words",
    [
        ("classify", "\x1b[31mmodel\n", "x.png"),
        ("evaluate", "\x1b[31mmodel\n", "data"),
        ("embed", "\x1b[31mmodel\n", ".", "--out", "x.parquet"),
        ("convert", "\x1b[31mmodel\n", "there"),
        ("push", "\x1b[31mmodel\n", "me/x"),
        ("recipes", "\x1b[31mrecipe\n"),
        ("train", "\x1b[31mdata\n", "--out", "out"),
        ("train", "data", "--out", "out", "--set", "\x1b[31mlr\n=1"),
        ("pretrain", "\x1b[31mdata\n", "--out", "out"),
        ("demo", "--out", "\x1b[31m\0"),
    ],
    ids=lambda words: words[0],
)
def test_what_was_asked_for_is_quoted_plainly_in_errors(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parent, tmp_path / "data", ignore=shutil.ignore_patterns("*"))
    result = deit(*words)
    is_shown_plainly(result)
    assert result.exit_code == 2, result.output
