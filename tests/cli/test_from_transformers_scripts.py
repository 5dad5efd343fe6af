"""Every line of docs/from_transformers_scripts.md, in small."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from deit.train.recipes.recipe import Recipe, differences
from tests.cli.conftest import VARIANT, succeeds
from tests.data.pictures import COLOURS, encoded, fill, write_parquet

PAGE = (Path(__file__).parents[2] / "docs" / "from_transformers_scripts.md").read_text(encoding="utf-8")
SMALL = ("--epochs", "1", "--batch-size", "4")


def options_of(section: str) -> list[str]:
    """The right column of a section's table, where it begins with options."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| .+? \| (.+) \|$", text, re.MULTILINE)
    return [found[1] for row in rows if (found := re.match(r"`(--[^`]+)`", row) or re.search(r"`(--set [^`]+)`", row))]


BOTH = options_of("Both")
LINES = [("train", line) for line in BOTH + options_of("run_image_classification.py")]
LINES += [("pretrain", line) for line in BOTH + options_of("run_mim.py")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of class folders, a Parquet file with odd columns and a second column of either kind, and weights."""
    root = tmp_path_factory.mktemp("scripts")
    fill(root / "photos", 10)
    pictures = [encoded(colour, i) for colour in COLOURS for i in range(6)]
    names = [colour for colour in COLOURS for _ in range(6)]
    write_parquet(
        root / "table.parquet",
        {
            "img": pictures,
            "thumbnail": pictures[::-1],
            "fine_label": names,
            "coarse_label": ["thing"] * 9 + ["other"] * 9,
        },
    )
    (root / "my.yaml").write_text(
        "seed: 3\nmasking: {patch: 8}\naugment: {rand_augment: '', erase_rate: 0, mix_rate: 0}\n"
    )
    for verb, settings in (("train", ()), ("pretrain", ("--set", "masking.patch=8"))):
        succeeds(verb, root / "photos", "--student", VARIANT, *SMALL, *settings, "--out", root / f"NAME-{verb}")
    return root


def test_the_tables_are_read():
    assert len(BOTH) >= 18
    assert ("train", "--set data.label_column=fine_label") in LINES
    assert ("pretrain", "--set masking.patch=16") in LINES


@pytest.mark.parametrize(("verb", "line"), LINES, ids=[" ".join(each) for each in LINES])
def test_a_line_of_the_page_runs(verb, line, place, tmp_path, monkeypatch):
    words = [word.replace("NAME", str(place / f"NAME-{verb}")) for word in shlex.split(line)]
    columns = "column" in line
    command = [verb, place / ("table.parquet" if columns else "photos"), *SMALL]
    if verb == "pretrain" and "masking.patch" not in line:
        command += ["--set", "masking.patch=8"]
    if columns:  # the test's table needs both columns named
        command += ["--set", "data.image_column=img"]
        command += ["--set", "data.label_column=fine_label"] if verb == "train" else []
    if "--init" not in words and "--student" not in words:
        command += ["--student", VARIANT]
    if "warmup" in line:
        command += ["--epochs", "2"]
    compiled = []
    if "compile=true" in line:
        compile_module = torch.compile

        def trace(task: object) -> object:
            """Leaves out the C++ compiler, which takes a minute; train/test_step.py has it."""
            compiled.append(compile_module(task, backend="aot_eager"))
            return compiled[-1]

        monkeypatch.setattr(torch, "compile", trace)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text((place / "my.yaml").read_text())
    if line == "--resume":
        succeeds(*command, "--out", tmp_path / "run")
    out = [] if "--out" in words else ["--out", tmp_path / "run"]
    succeeds(*command, *words, *out)
    assert len(compiled) == ("compile=true" in line)
    written = Recipe.load((tmp_path / "OUT" if not out else tmp_path / "run") / "recipe.yaml")
    for name, value in (pair.split("=", 1) for pair in words if "=" in pair and "--config" not in line):
        assert differences(written, written.with_settings({name: value})) == []


def test_evaluating_alone_runs(place):
    assert "`deit evaluate OUT DATA`" in PAGE
    succeeds("evaluate", place / "NAME-train", place / "photos")
