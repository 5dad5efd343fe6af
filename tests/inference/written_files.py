"""Opens a model, writes into its files, and asks whether the answers are still the same.

A program, since a process that reads a mapped file after it got shorter ends by a signal:
`python -m tests.inference.written_files MODEL SCRATCH KIND...` prints each kind that keeps its answers. MODEL is a
model directory or a folder with an export, SCRATCH a folder for copies.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import deit
from deit.bulk.identity import BulkOptions
from deit.bulk.running import BulkRequest, run_bulk
from deit.inference.embedder import Embedder
from deit.train.teachers.teacher import open_teacher
from tests.data.pictures import fill

WEIGHTS = (".safetensors", ".bin", ".onnx")
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (18, 18, 3), dtype=np.uint8))

Ask = Callable[[], Any]


def predictor(folder: Path) -> Ask:
    opened = deit.Predictor.open(folder)
    return lambda: opened.classify(IMAGE)


def pipeline(folder: Path) -> Ask:
    opened = deit.pipeline(model=folder, device="cpu")
    return lambda: opened(IMAGE)


def embedder(folder: Path) -> Ask:
    opened = Embedder.open(folder)
    return lambda: opened.embed(IMAGE).tolist()


def explainer(folder: Path) -> Ask:
    opened = deit.Explainer.open(folder)
    return lambda: opened.explain(IMAGE).array().tolist()


def teacher(folder: Path) -> Ask:
    opened = open_teacher(folder)
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    return lambda: opened(pixels, mean=opened.mean, std=opened.std).tolist()


OPEN: dict[str, Callable[[Path], Ask]] = {
    "predictor": predictor,
    "pipeline": pipeline,
    "embedder": embedder,
    "explainer": explainer,
    "teacher": teacher,
}


def changes(folder: Path) -> Iterator[None]:
    """Fills the files of weights with zeros, then makes them empty."""
    files = [path for path in folder.iterdir() if path.suffix in WEIGHTS]
    assert files
    for path in files:
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    yield
    for path in files:
        os.truncate(path, 0)
    yield


def bulk_job(model: Path, exposed: Path, scratch: Path) -> None:
    """Runs a job whose model changes after its first unit and after its second."""
    photos = fill(scratch / "photos", 4)
    left = changes(exposed)
    parts = []
    for folder, told in ((model, None), (exposed, lambda done, images: next(left, None))):
        out = scratch / f"of {folder.name}"
        request = BulkRequest(
            model=str(folder),
            inputs=[str(photos)],
            out=out,
            options=BulkOptions(unit_images=3),
            device="cpu",
            engine="torch",
        )
        run_bulk(request, told)
        parts.append([path.read_bytes() for path in sorted(out.glob("*.parquet"))])
    assert len(parts[0]) == 4
    assert parts[0] == parts[1]


def main() -> None:
    model, scratch, *kinds = sys.argv[1:]
    for kind in kinds:
        exposed = Path(shutil.copytree(model, Path(scratch) / kind))
        if kind == "bulk":
            bulk_job(Path(model), exposed, Path(scratch))
        else:
            expected, ask = OPEN[kind](Path(model))(), OPEN[kind](exposed)
            for _ in changes(exposed):
                assert ask() == expected
        print(kind, flush=True)


if __name__ == "__main__":
    main()
