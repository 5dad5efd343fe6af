"""Compares the way from a folder of photos to labels with transformers' pipeline and timm's loop, on the CPU.

python benchmarks/folder_to_labels.py FOLDER [--quick] [--engine NAME]

All run in one process in turns with the same number of threads, on random weights that transformers wrote; only the
whole command `deit classify` runs in a process of its own, start included. Photos of 12 megapixels are made from those
of the folder. Decoding alone (read, resize, normalize) and the network alone on pixels that are ready are measured
beside them: on a CPU both share the cores, so that their sum is the time to reach, and the slower of the two the bound.
"""

from __future__ import annotations

import argparse
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from harness import compare, report, take_turns
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset

import deit
from deit.cli.prediction.classify import classify
from deit.core.processing.batches import pixel_batches
from deit.core.processing.reduced_reading import ReducedReader
from deit.inference.predictor import Predictor

PATIENCE = 120.0  # seconds for the choice of an engine
WIDTHS = {"tiny": 192, "small": 384}
SETTINGS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # those of the published models
MEGAPIXELS = 12e6


class Photos(Dataset[Any]):
    """Photos for the usual loop of timm."""

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.transform = create_transform(224, interpolation="bicubic", crop_pct=0.875)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.open(self.files[i]).convert("RGB"))


def write_model(folder: Path, width: int) -> Path:
    torch.manual_seed(0)
    config = transformers.DeiTConfig(
        num_labels=1000,
        layer_norm_eps=1e-6,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    transformers.DeiTImageProcessor(**SETTINGS).save_pretrained(folder)
    return folder


def write_large(files: list[str], folder: Path) -> list[str]:
    """Writes 12-megapixel versions of photos, as JPEG of quality 92 with half the color resolution."""
    folder.mkdir()
    for number, file in enumerate(files):
        with Image.open(file) as image:
            scale = (MEGAPIXELS / (image.width * image.height)) ** 0.5
            size = round(image.width * scale), round(image.height * scale)
            large = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        large.save(folder / f"{number:03}.jpg", quality=92, subsampling=2)
    return sorted(map(str, folder.iterdir()))


def settle(engine: Any, call: Callable[[], Any]) -> None:
    """Makes calls until the engine "auto" has chosen what answers."""
    ends = time.monotonic() + PATIENCE
    while not getattr(engine, "is_decided", True) and time.monotonic() < ends:
        call()


def describe(engine: Any) -> str:
    return f"{engine.name} {engine.precision};"


def ways(model: Path, width: int, files: list[str], batches: list[int], engine: str | None) -> dict[str, Callable]:
    """Returns what is compared, by name, each for all files once."""
    given = {"engine": engine} if engine and "engine" in inspect.signature(Predictor.open).parameters else {}
    predictor, exact = Predictor.open(model, **given), Predictor.open(model, **given, precision="fp32")
    pipeline = deit.pipeline("image-classification", model, device="cpu", batch_size=32)
    theirs = transformers.pipeline("image-classification", str(model), device="cpu")
    peer = timm.create_model(f"deit_{'tiny' if width == WIDTHS['tiny'] else 'small'}_distilled_patch16_224").eval()
    pixels = np.random.default_rng(0).normal(size=(len(files), 3, 224, 224)).astype(np.float32)

    def network() -> None:
        for start in range(0, len(files), 32):
            predictor.engine(pixels[start : start + 32])

    def decoding() -> None:
        for _ in pixel_batches(files, predictor.processor, 32, read=ReducedReader(predictor.processor)):
            pass

    def timm_loop() -> None:
        with torch.inference_mode():
            for batch in DataLoader(Photos(files), batch_size=32, num_workers=2):
                peer(batch).softmax(-1).topk(5)

    settle(predictor.engine, lambda: list(predictor.classify_each(files)))
    settle(exact.engine, lambda: list(exact.classify_each(files)))
    settle(pipeline._engine, lambda: pipeline(files))
    print("engines:", *(describe(engine) for engine in (predictor.engine, exact.engine, pipeline._engine)))
    first = [p.predictions[0].label for p in predictor.classify_each(files)]
    shown = [row[0]["label"] for row in theirs(files, batch_size=8)]
    print(f"same first class as transformers: {sum(map(str.__eq__, first, shown))} of {len(files)} (random weights)")
    found: dict[str, Callable] = {
        "deit": lambda: list(predictor.classify_each(files)),
        "deit, fp32": lambda: list(exact.classify_each(files)),
        "deit.pipeline": lambda: pipeline(files),
        "decoding alone": decoding,
        "network alone": network,
        "timm, 2 workers": timm_loop,
    }
    found |= {f"transformers, batch {n}": lambda n=n: theirs(files, batch_size=n) for n in batches}
    return found


def command(model: Path, folder: Path, engine: str | None) -> Callable[[], Any]:
    known = inspect.signature(classify).parameters
    options = ["--engine", engine] if engine and "engine" in known else []
    line = [sys.executable, "-m", "deit", "classify", str(model), str(folder), "--json", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return lambda: subprocess.run(line, check=True, capture_output=True, env=environment)


def measure(title: str, functions: dict[str, Callable], count: int, rounds: int) -> dict[str, Any]:
    seconds = take_turns(functions, rounds=rounds, warm_up=1)
    row = {"what": title, "photos": count, "threads": torch.get_num_threads()} | compare(seconds)
    best = min(row[f"{name} ms"] for name in functions if name.startswith("transformers"))
    slower = max(row["decoding alone ms"], row["network alone ms"])
    together = row["decoding alone ms"] + row["network alone ms"]
    return row | {
        "deit images/s": 1e3 * count / row["deit ms"],
        "transformers at its best / deit": best / row["deit ms"],
        "deit.pipeline / deit in fp32": row["deit.pipeline ms"] / row["deit, fp32 ms"],
        "deit / slower of decoding and network": row["deit ms"] / slower,
        "deit / sum of decoding and network": row["deit ms"] / together,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="few photos and rounds, only tiny; writes no file")
    parser.add_argument("--engine", help="engine of deit, where Predictor.open takes one")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    photos = sorted(str(path) for path in args.folder.iterdir())[: 16 if args.quick else 100]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        large = write_large(photos[:: len(photos) // (4 if args.quick else 16)], place / "large")
        small = place / "photos"
        small.mkdir()
        for path in photos:
            shutil.copy(path, small)
        sizes = [os.path.getsize(path) / 2**20 for path in large]
        print(f"{len(large)} photos of 12 megapixels, {sum(sizes) / len(sizes):.1f} MiB each", flush=True)
        for name, width in list(WIDTHS.items())[: 1 if args.quick else None]:
            model = write_model(place / name, width)
            functions = ways(model, width, photos, [1, 8, 32], args.engine)
            functions["deit classify, whole command"] = command(model, small, args.engine)
            rows.append(measure(f"{name}, photos", functions, len(photos), rounds))
            functions = ways(model, width, large, [1, 8], args.engine)
            rows.append(measure(f"{name}, 12 megapixels", functions, len(large), rounds))
    report("folder-to-labels", rows, write=not args.quick)


if __name__ == "__main__":
    main()
