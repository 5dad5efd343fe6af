"""Bulk jobs that are killed again and again: every image once, the same bytes, what resuming costs, and the speed.

    python benchmarks/bulk.py CIFAR.parquet... [--count 100000] [--kills 20] [--kinds folder parquet shards]
    python benchmarks/bulk.py CIFAR.parquet... --only speed --count 20000 [--variant deit-tiny-patch16-224]

Writes `--count` images of the Parquet files (from the first one again when there are fewer) as a folder, as Parquet
and as shards into a temporary folder. For each form:

* a job without interruption; a second one that is killed by SIGKILL `--kills` times, at random moments, and resumed.
  All parts must have the same bytes, and the audit with contents must find every input exactly once;
* the seconds of a job of which 99 % is done, of one of which nothing is left to do, and of a job of one image, which
  is what starting Python, PyTorch and the model takes;
* images per second of `Predictor.classify_each` and of a bulk job in units of at least the default size, in turns in
  one process, each with opening the model. The predictor gets the paths of the folder; for the other forms it gets the
  bytes, which it need not read.

`--only kills` and `--only speed` run one half, because speed needs a quiet machine and the rest does not. The model is
one of `--variant` with random weights. Ends with an error if something is not as it must be.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from harness import report, take_turns

import deit
from deit.bulk.auditing import audit
from deit.bulk.identity import UNIT_IMAGES, BulkOptions
from deit.runtime.threads import prepare_threads

LEAST_SPEED, MOST_RESUMING = 0.95, 0.01
SMALL = "deit-digits-distilled-patch8-32"  # the less a model computes, the more counts what a job adds
KILLS, SPEED = "kills", "speed"


def images_of(tables: list[str], count: int) -> list[bytes]:
    """Returns the bytes of `count` images."""
    found: list[bytes] = []
    for table in tables:
        found += [cell["bytes"] for cell in pq.read_table(table, columns=["image"]).column("image").to_pylist()]
    return [found[i % len(found)] for i in range(count)]


def write_inputs(root: Path, kind: str, images: list[bytes], group: int) -> Path:
    """Writes the images in one form. Returns the input of a job."""
    if kind == "folder":
        for i, content in enumerate(images):
            path = root / "folder" / f"{i // 1000:05d}" / f"{i:08d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return root / "folder"
    if kind == "parquet":
        cells = pa.array([{"bytes": content, "path": None} for content in images])
        pq.write_table(pa.table({"image": cells}), root / "all.parquet", row_group_size=group)
        return root / "all.parquet"
    (root / "shards").mkdir()
    for first in range(0, len(images), 10_000):
        with tarfile.open(root / "shards" / f"{first // 10_000:05d}.tar", "w") as archive:
            for i in range(first, min(first + 10_000, len(images))):
                for ending, content in (("jpg", images[i]), ("cls", b"0")):
                    member = tarfile.TarInfo(f"{i:08d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return root / "shards"


def make_model(folder: Path, variant: str = SMALL) -> Path:
    """Writes a model with random weights and 10 classes."""
    config: Any = deit.variant_config(variant, num_labels=10)
    kind = deit.DeiTForImageClassificationWithTeacher if "distilled" in variant else deit.DeiTForImageClassification
    kind(config).save_pretrained(folder)
    deit.DeiTImageProcessor(size=config.image_size, crop_size=config.image_size).save_pretrained(folder)
    return folder


class Jobs:
    """Runs the command on one input."""

    def __init__(self, model: Path, source: Path, arguments: argparse.Namespace) -> None:
        self.model, self.source, self.arguments = model, source, arguments

    def start(self, out: Path, source: Path | None = None) -> subprocess.Popen[bytes]:
        """Starts or resumes a job."""
        words = [sys.executable, "-m", "deit", "classify", self.model, source or self.source, "--out", f"{out}/"]
        words += ["--resume", "--engine", "torch", "--unit-images", self.arguments.unit_images]
        return subprocess.Popen([*map(str, words)], stdout=subprocess.DEVNULL)

    def run(self, out: Path, source: Path | None = None) -> float:
        """Runs a job to its end. Returns the seconds."""
        begin = time.perf_counter()
        assert self.start(out, source).wait() == 0
        return time.perf_counter() - begin

    def kill_and_resume(self, out: Path, units: int, draw: random.Random) -> int:
        """Runs a job that is killed at random moments. Returns the number of kills."""
        most = max(units * 9 // 10, 1)  # the job must not end before the last kill
        goals = sorted(draw.randrange(most) for _ in range(self.arguments.kills))
        for kill, goal in enumerate(goals):
            process = self.start(out)
            while process.poll() is None and len(list(out.glob("part-*"))) < goal:
                time.sleep(0.005)
            # Anywhere in a unit; some kills hit a process that still starts.
            time.sleep(draw.uniform(0, 0.5 if kill % 4 else 5.0))
            if process.poll() is not None:
                print(f"the job ended before kill {kill + 1} of {len(goals)}")
                return kill
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.run(out)
        return len(goals)


def parts(out: Path) -> list[Path]:
    """Returns the parts of a job."""
    return sorted(out.glob("part-*.parquet"))


def check_kills(jobs: Jobs, root: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Compares a job that was killed with one that was not."""
    whole, killed = root / "whole", root / "killed"
    seconds = jobs.run(whole)
    kills = jobs.kill_and_resume(killed, len(parts(whole)), draw)
    same = [path.read_bytes() == (killed / path.name).read_bytes() for path in parts(whole)]
    found = audit(killed, contents=True)
    assert all(same), "the bytes of parts differ"
    assert [path.name for path in parts(whole)] == [path.name for path in parts(killed)]
    assert not found.problems, found.problems[:3]
    assert found.found == found.images == found.compared == count
    shutil.rmtree(killed)
    return {"units": len(same), "seconds": seconds, "kills": kills, "equal parts": sum(same), "once": found.found}


def measure_resuming(jobs: Jobs, root: Path, seconds: float) -> dict[str, Any]:
    """Measures a job that is nearly done. What starting takes is what a job of one image takes."""
    out, one = root / "whole", root / "one"
    (root / "single").mkdir(exist_ok=True)
    if jobs.source.is_dir() and jobs.source.name == "folder":
        shutil.copy(next(jobs.source.rglob("*.jpg")), root / "single" / "0.jpg")
    else:
        (root / "single" / "0.jpg").write_bytes(images_of(jobs.arguments.tables[:1], 1)[0])
    starting = []
    nothing_left = []
    for _ in range(3):
        shutil.rmtree(one, ignore_errors=True)
        starting.append(jobs.run(one, root / "single"))
        nothing_left.append(jobs.run(out))
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    all_parts = parts(out)
    for path in all_parts[: -(-len(all_parts) // 100)]:
        path.unlink()
    nearly = jobs.run(out)
    cost = max(sorted(nothing_left)[1] - sorted(starting)[1], 0.0)
    return {
        "start s": sorted(starting)[1],
        "nothing left s": sorted(nothing_left)[1],
        "1 % left s": nearly,
        "resuming s": cost,
        "resuming share": cost / (seconds - sorted(starting)[1]),
        "peak MiB": memory,
    }


def measure_speed(jobs: Jobs, root: Path, images: list[bytes], rounds: int) -> dict[str, Any]:
    """Compares a job with the predictor alone, which gets paths for a folder, else bytes that are in memory."""
    from deit.bulk.running import BulkRequest, run_bulk  # loads PyTorch, which comes after `prepare_threads`

    is_folder = jobs.source.name == "folder"
    given: list[Any] = sorted(map(str, jobs.source.rglob("*.jpg"))) if is_folder else images
    number = iter(range(1000))

    def alone() -> float:
        begin = time.perf_counter()
        predictor = deit.Predictor.open(jobs.model, engine="torch")  # a job opens its model too
        assert sum(not each.error for each in predictor.classify_each(given, top_k=3, batch_size=32)) == len(images)
        return time.perf_counter() - begin

    def job() -> float:
        out = root / f"speed-{next(number)}"
        options = BulkOptions(unit_images=max(jobs.arguments.unit_images, UNIT_IMAGES))
        request = BulkRequest(
            model=str(jobs.model), inputs=[str(jobs.source)], out=out, options=options, device="cpu", engine="torch"
        )
        begin = time.perf_counter()
        assert run_bulk(request).images == len(images)
        seconds = time.perf_counter() - begin
        shutil.rmtree(out)
        return seconds

    deit.Predictor.open(jobs.model, engine="torch").classify(given[:64])  # imports are not measured
    processor: dict[str, list[float]] = {"alone": [], "job": []}

    def with_processor_time(name: str, function: Callable[[], float]) -> float:
        begin = time.process_time()
        seconds = function()
        processor[name].append(time.process_time() - begin)
        return seconds

    functions: dict[str, Callable[[], Any]] = {
        f.__name__: partial(with_processor_time, f.__name__, f) for f in (alone, job)
    }
    seconds = take_turns(functions, rounds=rounds, warm_up=0)
    ratios = [a / b for a, b in zip(seconds["alone"], seconds["job"], strict=True)]
    return {
        "alone images/s": len(images) / min(seconds["alone"]),
        "job images/s": len(images) / min(seconds["job"]),
        "job / alone": statistics.median(ratios),
        "of rounds": [round(ratio, 3) for ratio in ratios],
        "alone / job, processor time": statistics.median(
            a / b for a, b in zip(processor["alone"], processor["job"], strict=True)
        ),
    }


def main() -> None:
    """Parses the command line, runs the parts, prints and checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", help="Parquet files with a column `image` of bytes")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=["folder", "parquet", "shards"])
    parser.add_argument("--only", choices=[KILLS, SPEED], help="half of it")
    parser.add_argument("--variant", default=SMALL, help="of the model")
    parser.add_argument("--unit-images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison of speed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path, help="folder for the temporary files")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results")
    arguments = parser.parse_args()
    os.environ.setdefault("DEIT_ENGINE", "torch")
    prepare_threads()  # as the command does
    draw, rows = random.Random(arguments.seed), []
    images = images_of(arguments.tables, arguments.count)
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory(dir=arguments.place) as place:
            root = Path(place)
            model = make_model(root / "model", arguments.variant)
            source = write_inputs(root, kind, images, arguments.unit_images)
            jobs = Jobs(model, source, arguments)
            facts = {"kind": kind, "model": arguments.variant, "images": len(images)}
            if arguments.only != SPEED:
                row = {"part": KILLS, **facts, **check_kills(jobs, root, len(images), draw)}
                rows.append(row | measure_resuming(jobs, root, row["seconds"]))
            if arguments.only != KILLS:
                rows.append({"part": SPEED, **facts, **measure_speed(jobs, root, images, arguments.rounds)})
            report("bulk", rows, write=arguments.write, keys=("part", "kind", "model"))
    for row in rows:
        assert row.get("job / alone", LEAST_SPEED) >= LEAST_SPEED, row
        assert row.get("resuming share", 0) < MOST_RESUMING, row


if __name__ == "__main__":
    main()
