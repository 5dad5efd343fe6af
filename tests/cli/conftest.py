"""What the tests of the commands share: a folder of images, and models that the command itself trained on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deit.cli.app import app
from deit.train.run import history
from deit.train.run.curves import draw_curves
from tests.data.pictures import fill

VARIANT = "deit-digits-distilled-patch8-32"
RATE = ("--set", "optimizer.lr=0.001", "--set", "optimizer.reference_batch_size=0")
SHORT = ("--epochs", "2", "--batch-size", "4", *RATE)


def deit(*arguments: object, **options: Any) -> Result:
    """Runs the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def succeeds(*arguments: object, **options: Any) -> Result:
    """Runs the command, which must end well."""
    result = deit(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result


def is_refused(result: Result, *parts: str) -> None:
    """Checks that a command ended with one line on standard error and exit code 2."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)  # no traceback
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 8 and val/ with 4 images of each of three colours."""
    root = tmp_path_factory.mktemp("photos")
    fill(root / "train", 8)
    fill(root / "val", 4, seed=100)
    return root


@pytest.fixture(scope="session")
def teacher(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convnet of timm, trained by the command."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    succeeds("train", photos, "--student", "timm/test_resnet", "--image-size", "32", *SHORT, "--out", out)
    return out


@pytest.fixture(scope="session")
def student(photos: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeiT, trained by the command with that teacher; its curves are drawn."""
    out = tmp_path_factory.mktemp("runs") / "student"
    words = ("train", photos, "--student", VARIANT, "--image-size", 32, "--teacher", teacher, *SHORT, "--out", out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "draw_curves", draw_curves)
        succeeds(*words)
    return out


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a folder, so that a test can change it."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy-of-{folder.name}"))

    return copy
