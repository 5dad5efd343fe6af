"""Measures what reading shards over the network costs a training, against the same shards on the disk.

python benchmarks/streams.py TRAIN.parquet [--seconds 20] [--rounds 3] [--fail-above 5]

Writes the images of a Parquet file (CIFAR-10 as the Hugging Face hub has it) as tar shards, serves them from a process
of its own on this machine, and draws training batches as `deit train` does with its default recipe, in one process, in
turns: from the disk; from the server with a cache that holds all; with the smallest cache, from which parts are evicted
and fetched again; from the server for the first time. The order of the images is the same for all. "bytes" reads the
stored images alone, without decoding. The ratio is of images per second, the median of rounds, each beside one of the
disk.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from harness import report

from deit.core.processing.image_processor import evaluation_processor
from deit.data.loader import training_batches
from deit.data.open_data import open_data
from deit.data.sources import Source, encoded_of
from deit.data.streams.disk_cache import LEAST_SIZE, SIZE_SWITCH
from deit.runtime.processes import Processes
from deit.train.open_images import step_order
from deit.train.recipes.recipe import Recipe
from deit.train.tasks.pseudo_labels import training_transform

SHARDS, BUFFER = 10, 10_000
FIRST = "first time"
SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        path = os.path.join(sys.argv[1], os.path.basename(self.path))
        size = os.path.getsize(path)
        first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
        last = min(last, size - 1)
        self.send_response(206)
        self.send_header("ETag", '"%d"' % os.stat(path).st_mtime_ns)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        with open(path, "rb") as file:
            while first <= last:
                first += os.sendfile(self.wfile.fileno(), file.fileno(), first, last + 1 - first)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def write_shards(table: Path, folder: Path) -> None:
    """Writes a table of images and labels as tar shards."""
    rows = pq.read_table(table).to_pylist()
    names = list(rows[0])
    for number, part in enumerate(np.array_split(np.arange(len(rows)), SHARDS)):
        with tarfile.open(folder / f"train-{number}.tar", "w") as archive:
            for row in part.tolist():
                image, label = rows[row][names[0]]["bytes"], str(rows[row][names[1]]).encode()
                for ending, content in (("png", image), ("cls", label)):
                    member = tarfile.TarInfo(f"{row:06d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.terminate()


def opened(place: str, cache: int, folder: Path) -> Source:
    os.environ |= {SIZE_SWITCH: str(cache), "DEIT_CACHE": str(folder)}
    return open_data(f"{place}/train-{{0..{SHARDS - 1}}}.tar", val_fraction=0.01).train


def batches_per_second(source: Source, recipe: Recipe, seconds: float, first: int) -> float:
    """Draws training batches from a step on; returns images per second."""
    order = step_order(source, recipe, Processes(), first, first + 10**6 // recipe.batch_size)
    processor = evaluation_processor((224, 224), crop_ratio=0.9, mean=(0.5,) * 3, std=(0.5,) * 3)
    batches = iter(training_batches(source, training_transform(recipe, processor), order, num_workers=0))
    begin, images = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        images += len(next(batches).targets)
    return images / (time.perf_counter() - begin)


def bytes_per_second(source: Source, recipe: Recipe, seconds: float, first: int) -> float:
    """Reads stored images in the order of the training; returns images per second."""
    steps = iter(step_order(source, recipe, Processes(), first, first + 10**6 // recipe.batch_size))
    begin, images = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        for _, _, number, _ in next(steps):
            assert encoded_of(source, number)
            images += 1
    return images / (time.perf_counter() - begin)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fail-above", type=float, help="Percent that batches from a server may be slower.")
    parser.add_argument("--quick", action="store_true", help="A moment of each, nothing written.")
    arguments = parser.parse_args()
    seconds, rounds = (1.0, 1) if arguments.quick else (arguments.seconds, arguments.rounds)
    recipe = Recipe().with_settings({"batch_size": 64, "data.shuffle_buffer": BUFFER, "num_workers": 0})
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as address:
        os.environ["DEIT_CONTENTS_CACHE"] = str(Path(name) / "contents")
        write_shards(arguments.table, Path(name))
        size = sum(file.stat().st_size for file in Path(name).glob("*.tar"))
        here = opened(name, 0, Path(name) / "cache")
        sources = {
            "cache of all": opened(address, 2 * size + LEAST_SIZE, Path(name) / "all"),
            f"cache of {LEAST_SIZE >> 20} of {size >> 20} MiB": opened(address, LEAST_SIZE, Path(name) / "small"),
            FIRST: opened(address, 2 * size + LEAST_SIZE, Path(name) / FIRST),
        }
        rows: list[dict[str, Any]] = []
        for what, measure in (("batches", batches_per_second), ("bytes", bytes_per_second)):
            ratios: dict[str, list[float]] = {kind: [] for kind in sources}
            speeds: list[float] = []
            for turn in range(rounds):
                for kind, source in sources.items():
                    if kind == FIRST:
                        shutil.rmtree(Path(name) / kind / "streams" / "entries")
                    sides = (here, source) if turn % 2 else (source, here)
                    pair = [measure(each, recipe, seconds, 100 * turn) for each in sides]
                    local, far = pair if turn % 2 else pair[::-1]
                    speeds.append(local)
                    ratios[kind].append(far / local)
            for kind, found in ratios.items():
                rows.append({
                    "what": what, "from": kind, "images/s on the disk": round(statistics.median(speeds), 1),
                    "ratio": round(statistics.median(found), 3), "lowest": round(min(found), 3),
                    "highest": round(max(found), 3),
                })  # fmt: skip
    report("streams", rows, write=not arguments.quick)
    slow = [row for row in rows if row["what"] == "batches" and row["ratio"] < 1 - (arguments.fail_above or 100) / 100]
    if slow:
        sys.exit(f"Slower than allowed: {slow}")


if __name__ == "__main__":
    main()
