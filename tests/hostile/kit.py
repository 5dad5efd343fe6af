"""What the cases are made of: a good model, run and pictures to spoil, and the form of a case."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.data.pictures import fill

VARIANT = "deit-digits-distilled-patch8-32"


class Kit:
    """A fresh folder for one case, with copies of good things.

    Args:
        good: Folder that `prepare` filled.
        folder: Empty folder of the case.
    """

    def __init__(self, good: Path, folder: Path) -> None:
        self.good = good
        self.folder = folder

    def model(self) -> Path:
        """A copy of a small trained model."""
        return Path(shutil.copytree(self.good / "run", self.folder / "model", ignore=shutil.ignore_patterns("state")))

    def run(self) -> Path:
        """A copy of the run with its states."""
        return Path(shutil.copytree(self.good / "run", self.folder / "run"))

    def cache(self) -> Path:
        """A copy of what a teacher said in the run."""
        return Path(shutil.copytree(self.good / "cache", self.folder / "cache"))

    def photos(self) -> Path:
        """A copy of 12 pictures of three classes."""
        return Path(shutil.copytree(self.good / "photos", self.folder / "photos"))

    @property
    def photo(self) -> Path:
        """One of them; not to be changed."""
        return self.good / "photos" / "red" / "0.png"

    def changed(self, name: str, **values: Any) -> Path:
        """A copy of the model with other values in one of its JSON files."""
        model = self.model()
        file = model / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return model

    def classify(self, model: Path) -> list[object]:
        """The command that opens a model for one good picture."""
        return ["classify", model, self.photo]

    def train(self, data: object, *more: object) -> list[object]:
        """The command that trains a little."""
        return ["train", data, "--student", VARIANT, "--out", self.folder / "out", *SHORT, *more]


SHORT = ("--epochs", "1", "--batch-size", "4", "--device", "cpu", "--set", "optimizer.reference_batch_size=0")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile input.

    Attributes:
        make: Writes it and returns the arguments of `deit`.
        refused: Whether the command must end with one line and exit code 2; else it may also leave the input out (exit
            code 3) or work, within the limits of memory and time.
    """

    make: Callable[[Kit], list[Any]]
    refused: bool = True


def deit_command(*arguments: object) -> list[str]:
    """Returns the words that run the command in this environment."""
    return [sys.executable, "-m", "deit", *map(str, arguments)]


def prepare(good: Path) -> None:
    """Trains the small model that the cases spoil, once for all."""
    fill(good / "photos", 4)
    first = [*SHORT, "--student", VARIANT, "--image-size", "32", "--out"]
    run = [deit_command("train", good / "photos", *first, good / "teacher"),
           deit_command("train", good / "photos", *first, good / "run", "--teacher", good / "teacher",
                        "--teacher-cache", good / "cache")]  # fmt: skip
    for words in run:
        subprocess.run(words, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def sparse(path: Path, size: int, start: bytes = b"") -> Path:
    """Writes a file of a size that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    """Saves a picture and returns where."""
    image.save(path, **options)
    return path
