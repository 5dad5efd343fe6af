"""Test accuracy on small data in a given time: `deit train DATA --minutes N` against what people would use instead.

    python benchmarks/small_data.py CIFAR10_FOLDER --out runs/small-data --minutes 5 --seeds 0 1

CIFAR10_FOLDER holds CIFAR-10 as Parquet in the Hugging Face layout, a file for training and one for testing. Each
method gets the same training images as files, the same number of minutes and the same threads, and runs in a process
of its own, one after the other. Each chooses its own settings; nobody sees the test images before the end. The seed
chooses the training images and is passed on to the method.

Data:

* cifar-6x150: 150 images of each of 6 classes of CIFAR-10; all 6,000 test images of these classes.
* cifar-1%, cifar-10%: 25,000 training images of CIFAR-10, of which 1 % or 10 % have a label; all 10,000 test images.
  Methods that can use images without a label get them.
* digits-100: scikit-learn's digits, enlarged to 32 x 32, 10 labels of each; the other 1,697 scans.
* faces-100: 100 of the 200 pictures of scikit-image's subset of "Labeled Faces in the Wild", enlarged to 32 x 32, half
  of them faces; the other 100.
* cifar-start: cifar-6x150 again, and every network starts from a DeiT that was pre-trained on the other 4 classes
  (`--start MODEL`, made by `--make-start MODEL`). It stands for the published weights, which need a download.

Methods, see `small_data_peers.py`; one that is not installed is left out and named. A run that was stopped goes on
with the same command: finished cells are kept in OUT/cells. `--finished` reports these, and runs nothing.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import report
from PIL import Image

HERE = Path(__file__).resolve().parent
DATA = ("cifar-6x150", "cifar-1%", "cifar-10%", "digits-100", "faces-100", "cifar-start")
METHODS = ("deit", "svm-pixels", "svm-hog", "timm", "transformers", "ultralytics")
FINE_TUNED = ("deit", "transformers")  # the networks that can start from a DeiT
FEW, CLASSES_OF_START = 6, 4
UNLABELED_IMAGES = 25_000

Images = list[Image.Image]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Images to learn from and to be tested on.

    Attributes:
        train: Labeled images.
        train_labels: (N,).
        unlabeled: Images without a label.
        test: Images of the test.
        test_labels: (M,).
        classes: Names.
    """

    train: Images
    train_labels: Labels
    test: Images
    test_labels: Labels
    classes: list[str]
    unlabeled: Images


def read_cifar(folder: Path, part: str) -> tuple[list[bytes], Labels]:
    """Returns the encoded images and the labels of a part of CIFAR-10."""
    import pyarrow.parquet as pq

    (path,) = folder.glob(f"*{part}*.parquet")
    table = pq.read_table(path)
    label = "label" if "label" in table.column_names else "labels"
    image = "img" if "img" in table.column_names else "image"
    return [cell["bytes"] for cell in table[image].to_pylist()], np.asarray(table[label].to_pylist(), np.int64)


def opened(encoded: list[bytes], numbers: Labels) -> Images:
    """Returns the images of some numbers as RGB."""
    return [Image.open(io.BytesIO(encoded[int(i)])).convert("RGB") for i in numbers]


def take(labels: Labels, each: int, classes: range, random: np.random.Generator) -> Labels:
    """Returns the numbers of so many images of each class."""
    return np.concatenate([random.permutation(np.flatnonzero(labels == c))[:each] for c in classes])


def cifar_task(folder: Path, name: str, seed: int) -> Task:
    random = np.random.default_rng(seed)
    encoded, labels = read_cifar(folder, "train")
    tests, test_labels = read_cifar(folder, "test")
    few = name in ("cifar-6x150", "cifar-start")
    classes = range(FEW if few else 10)
    pool = take(labels, 150 if few else UNLABELED_IMAGES // 10, classes, random)
    share = {"cifar-1%": 0.01, "cifar-10%": 0.1}.get(name)
    train = pool if share is None else pool[take(labels[pool], round(share * len(pool) / 10), classes, random)]
    held = np.flatnonzero(np.isin(test_labels, list(classes)))
    return Task(
        train=opened(encoded, train), train_labels=labels[train], test=opened(tests, held),
        test_labels=test_labels[held], classes=[f"class{c}" for c in classes],
        unlabeled=[] if share is None else opened(encoded, np.setdiff1d(pool, train)),
    )  # fmt: skip


def array_task(images: npt.NDArray[np.uint8], labels: Labels, each: int, seed: int) -> Task:
    """Returns a task of so many images of each class; the others are the test."""
    classes = range(int(labels.max()) + 1)
    train = take(labels, each, classes, np.random.default_rng(seed))
    test = np.setdiff1d(np.arange(len(labels)), train)
    pictures = [Image.fromarray(image).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC) for image in images]
    return Task(
        train=[pictures[i] for i in train], train_labels=labels[train], test=[pictures[i] for i in test],
        test_labels=labels[test], classes=[f"class{c}" for c in classes], unlabeled=[],
    )  # fmt: skip


def open_task(name: str, cifar: Path, seed: int) -> Task:
    if name.startswith("cifar"):
        return cifar_task(cifar, name, seed)
    if name == "digits-100":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return array_task((digits.images * 15.9).astype(np.uint8), digits.target.astype(np.int64), 10, seed)
    from skimage.data import lfw_subset

    faces = (lfw_subset() * 255).astype(np.uint8)
    return array_task(faces, np.repeat(np.array([0, 1]), len(faces) // 2), 50, seed)


def write_task(task: Task, folder: Path) -> None:
    """Writes the images as PNG files: `train/CLASS/`, `test/CLASS/`, `unlabeled/`, and a table of the training."""
    for part, images, labels in (("train", task.train, task.train_labels), ("test", task.test, task.test_labels)):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / part / task.classes[int(label)] / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    (folder / "unlabeled").mkdir(exist_ok=True)
    for i, image in enumerate(task.unlabeled):
        image.save(folder / "unlabeled" / f"{i:05d}.png")
    with (folder / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label"])
        rows.writerows([str(p.relative_to(folder)), p.parent.name] for p in sorted((folder / "train").glob("*/*.png")))
        rows.writerows([str(p.relative_to(folder)), ""] for p in sorted((folder / "unlabeled").glob("*.png")))


def run_cell(options: argparse.Namespace, data: str, seed: int, method: str) -> dict[str, Any] | None:
    """Returns the result of one method on one data set, from its file if it is finished; None if it is not to run."""
    cell = options.out / "cells" / f"{data}-{seed}-{method}-{options.minutes:g}.json"
    if cell.is_file():
        known: dict[str, Any] = json.loads(cell.read_text())
        return known
    if options.finished:
        return None
    folder, run = options.out / "data" / f"{data}-{seed}", options.out / "runs" / cell.stem
    if not (folder / "train.csv").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        write_task(open_task(data, options.cifar, seed), folder)
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    command = [sys.executable, str(HERE / "small_data_peers.py"), method, str(folder), str(run)]
    command += ["--minutes", str(options.minutes), "--seed", str(seed)]
    if data == "cifar-start":
        command += ["--start", str(options.start.resolve())]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    begin = time.monotonic()
    with (run / "log.txt").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = (run / "log.txt").read_text().strip().splitlines()[-1:]
        return {"data": data, "seed": seed, "method": method, "failed": " ".join(tail)}
    result = json.loads((run / "result.json").read_text())
    row = {"data": data, "seed": seed, "method": method, "minutes": (time.monotonic() - begin) / 60, **result}
    cell.parent.mkdir(parents=True, exist_ok=True)
    cell.write_text(json.dumps(row))
    return row


def make_start(options: argparse.Namespace) -> None:
    """Pre-trains a DeiT on the last 4 classes of CIFAR-10, 5,000 images each, with a convnet teacher of its own."""
    folder = options.out / "data" / "start"
    if not folder.is_dir():
        encoded, labels = read_cifar(options.cifar, "train")
        for i in np.flatnonzero(labels >= 10 - CLASSES_OF_START):
            path = folder / f"class{labels[i]}" / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(io.BytesIO(encoded[i])).save(path)
    command = [sys.executable, "-m", "deit", "train", str(folder), "--out", str(options.make_start)]
    subprocess.run([*command, "--minutes", str(options.minutes)], check=True)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each data set and method: mean and standard deviation over the seeds."""
    found = []
    for data in DATA:
        for method in METHODS:
            cells = [r for r in rows if r["data"] == data and r["method"] == method]
            scores = [r["top1"] for r in cells if "top1" in r]
            if not scores:
                found += [{"data": data, "method": method, "failed": cells[0]["failed"]}] if cells else []
                continue
            found.append({
                "data": data, "method": method, "top-1": round(statistics.mean(scores), 2),
                "deviation": round(statistics.stdev(scores), 2) if len(scores) > 1 else None,
                "seeds": len(scores), "minutes": round(max(r["minutes"] for r in cells if "top1" in r), 2),
            })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path, help="folder of CIFAR-10 as Parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA[:5])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--finished", action="store_true", help="report the finished cells, and run nothing")
    parser.add_argument("--start", type=Path, help="model directory that cifar-start begins with")
    parser.add_argument("--make-start", type=Path, help="pre-train that model for so many minutes, and stop")
    options = parser.parse_args()
    if options.make_start:
        make_start(options)
        return
    if "cifar-start" in options.data and not options.start:
        parser.error("cifar-start needs --start MODEL; --make-start MODEL makes one")
    rows = []
    for data in options.data:
        for seed in options.seeds:
            for method in options.methods:
                if data == "cifar-start" and method not in FINE_TUNED:
                    continue
                if row := run_cell(options, data, seed, method):
                    rows.append(row)
                    print("  ".join(f"{k}: {v}" for k, v in row.items()), flush=True)
    report(f"small-data-{options.minutes:g}min", [{"threads": options.threads}, *summary(rows)])


if __name__ == "__main__":
    main()
