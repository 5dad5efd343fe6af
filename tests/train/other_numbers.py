"""Trains on images that carry their numbers in their pixels, and notes which each process learned from in each step.

See test_other_numbers.py. Usage: python -m tests.ranks N tests.train.other_numbers FOLDER PLACE NAME begin|resume
"""

from __future__ import annotations

import dataclasses
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from torch import Tensor

import deit.train.loop
from deit.data.loader import Batch
from deit.data.open_data import open_data
from deit.data.sources import Data
from deit.runtime.processes import process_group
from deit.runtime.signals import TrainingInterrupted
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Optimizer, Schedule
from deit.train.step import StepResult, TrainStep
from tests.train import tiny, together

IMAGES, STOP, EPOCHS = 61, 3, 3
MIXES = dataclasses.replace(tiny.PLAIN, mix_rate=1.0, mixup_alpha=0.8, cutmix_alpha=1.0)
KINDS: dict[str, dict[str, Any]] = {
    "folder": {"augment": tiny.PLAIN, "num_workers": 2},
    "parquet": {"augment": MIXES, "ema_decay": 0.9, "drop_path_rate": 0.2},
    "shards": {"augment": dataclasses.replace(tiny.PLAIN, num_repeats=2), "accumulate": 2},
    "streams": {"augment": MIXES, "num_workers": 2},
}


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (tiny.SIDE, tiny.SIDE), (4 * number, 255 - 4 * number, 90 * (number % 3))).save(file, "PNG")
    return file.getvalue()


def numbers_of(pixels: Tensor) -> list[int]:
    reds = (pixels[:, 0].mean((1, 2)) * tiny.STD[0] + tiny.MEAN[0]) * 255
    return [round(float(red) / 4) for red in reds]


def write(place: Path) -> None:
    """Writes the same images as a folder, a Parquet file, and three shards of very different lengths."""
    files = [encoded(number) for number in range(IMAGES)]
    for number, content in enumerate(files):
        folder = place / "folder" / f"class {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.png").write_bytes(content)
    table = {"image": [{"bytes": content} for content in files], "label": [f"class {n % 3}" for n in range(IMAGES)]}
    (place / "parquet").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), place / "parquet" / "images.parquet")
    (place / "shards").mkdir()
    for shard, numbers in enumerate(np.split(np.arange(IMAGES), [41, 47])):
        with tarfile.open(place / "shards" / f"{shard:03}.tar", "w") as tar:
            for number in numbers.tolist():
                for suffix, content in (("png", files[number]), ("cls", str(number % 3).encode())):
                    entry = tarfile.TarInfo(f"{number:04}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def data(place: Path, kind: str) -> Data:
    address = (place / "address").read_text() if kind == "streams" else str(place / kind)
    return open_data(address, val_fraction=0.2, seed=0)


def recipe(kind: str) -> Recipe:
    sgd = Optimizer(name="sgd", lr=0.1, reference_batch_size=0, clip_grad=1.0)
    return tiny.recipe(batch_size=24, optimizer=sgd, schedule=Schedule(epochs=EPOCHS, warmup_epochs=1), **KINDS[kind])


def train(place: Path, kind: str, out: Path, *, resume: bool = False, stop: int = 0) -> int:
    """Trains, stops after a step if asked, and returns how many validation images were scored."""

    class Noting(TrainStep):
        def __call__(self, batch: Batch, step: int) -> StepResult:
            with open(out.parent / f"{out.name} saw", "a", encoding="utf-8") as file:
                line = " ".join(map(str, [step, self.processes.rank, *numbers_of(batch.pixels)]))
                file.write(f"{line}\n")  # in one write: the processes share the file
            return super().__call__(batch, step)

    def on_step(event: Any) -> None:
        if event.step == stop:
            raise TrainingInterrupted("as after a power cut")

    usual, deit.train.loop.TrainStep = deit.train.loop.TrainStep, Noting
    try:
        result = deit.train.loop.fit(
            together.task("usual"), data(place, kind), dataclasses.replace(recipe(kind), state_steps=1), out=out,
            device="cpu", resume=resume, teacher_cache=out.parent / f"{out.name} cache", on_step=on_step,
        )  # fmt: skip
    except TrainingInterrupted:
        return 0
    finally:
        deit.train.loop.TrainStep = usual
    return next(iter(result.scores.values())).images


if __name__ == "__main__":
    torch.set_num_threads(1)
    images, runs, name, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    with process_group("cpu") as processes:
        for each in KINDS:
            scored = train(
                images, each, runs / f"{name} {each}", resume=what == "resume", stop=STOP * (what == "begin")
            )
            if processes.is_first:
                print(each, scored)
