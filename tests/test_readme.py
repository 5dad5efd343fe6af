"""Every code block of the README runs, in its order, on a folder of generated photos."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_docs_pages import ask_server, start_server, stop_servers

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def make_photos(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name, color in (("cat", (200, 120, 40)), ("dog", (60, 120, 200))):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            noise = random.normal(color, 30, (240, 260, 3))
            Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")


def run_line(line: str, cwd: Path) -> None:
    """Runs one line of a shell block. Trainings are cut to one epoch or 36 seconds, benchmarks to one engine."""
    words = shlex.split(line)
    if words[0] == "make":  # this very test is part of it: see that the target exists
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"deit\[(\w+)\]", line)) <= set(extras)
    elif words[0] == "curl":
        ask_server(words, cwd)
    elif words[:2] == ["deit", "serve"] and words[-1] == "&":
        start_server(words[1:-1], cwd)
    else:
        if words[:2] == ["deit", "train"]:
            option = "--epochs" if "--epochs" in words else "--minutes"
            words[words.index(option) + 1] = "1" if option == "--epochs" else "0.6"
            words += ["--batch-size", "4"]
        if words[:2] == ["deit", "benchmark"]:
            words[words.index("--seconds") + 1] = "1"
            words += ["--engines", "torch", "--precisions", "fp32"]
        words[0] = str(Path(sys.executable).with_name(words[0]))
        result = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{line}\n{result.stderr}"


def run_block(language: str, block: str, cwd: Path) -> None:
    if language == "bash":
        for line in block.strip().splitlines():
            run_line(line, cwd)
        return
    assert language == "python"
    program = [sys.executable, "-W", "error", "-c", block]
    result = subprocess.run(program, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{block}\n{result.stderr}"


@pytest.mark.slow
def test_every_code_block_runs(tmp_path) -> None:
    make_photos(tmp_path / "photos")
    languages = set()
    try:
        for language, block in BLOCKS:
            languages.add(language)
            run_block(language, block, tmp_path)
    finally:
        stop_servers()
    assert languages == {"bash", "python"}


def test_the_number_of_recipes_is_true() -> None:
    from deit.train.recipes.catalog import list_recipes

    stated = re.search(r"`deit recipes` lists (\d+)", (ROOT / "README.md").read_text())
    assert stated is not None
    assert int(stated[1]) == len(list_recipes())
