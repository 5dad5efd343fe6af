"""Measures `deit serve` under load on this machine, beside `Predictor` alone and LitServe with the same engine.

    python benchmarks/serving.py [--model small|tiny] [--seconds 60] [--quick] [--litserve PYTHON] [--wrk]

Each answer is checked against the one of the image that was sent: 64 images with known answers, of a DeiT with random
weights whose heads are scaled so that answers differ. The load comes from a process of its own (`serving_load.py`):

1. 64 clients, each with one request at a time; before and after, `Predictor.classify_each` on the same files at the
   same batch size, for the speed that would be possible.
2. Overload: twice the throughput of 1 as an open loop, for as long.
3. LitServe (`serving_litserve.py`) in turns with the server; whichever is not measured is stopped (SIGSTOP). Its
   Python is one that has `litserve` beside what `deit` needs: pip install litserve.
4. The load of 1 once more from wrk, a generator in C (`serving_wrk.lua`): apt install wrk.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from harness import report
from PIL import Image

import deit
from deit.inference.predictor import Predictor
from deit.serve.settings import ServeSettings

BENCHMARKS = Path(__file__).parent
VARIANTS = {"tiny": "deit-tiny-distilled-patch16-224", "small": "deit-small-distilled-patch16-224"}
CLASSES = 100
IMAGES = 64
CLIENTS = 64
ROUNDS = 3
BOUNDARY = "----------------serving"


# --- the model and its images -------------------------------------------------------------------------


def photos(count: int, size: tuple[int, int] = (500, 375)) -> list[bytes]:
    """Returns JPEG files of a width and height: smooth random colors with some noise, each unlike the others."""
    found = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(pixels + random.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


@torch.no_grad()
def write_model(folder: Path, variant: str, images: list[bytes]) -> Path:
    """Writes a model with random weights. Its heads are scaled so that answers to the images differ."""
    torch.manual_seed(0)
    config = deit.variant_config(variant, num_labels=CLASSES)
    model = deit.DeiTForImageClassificationWithTeacher(config).eval()
    processor = deit.DeiTImageProcessor.paper_evaluation(config.image_size)
    pixels = processor([deit.load_image(image) for image in images], return_tensors="pt").pixel_values
    told = model(pixels)
    for head, logits in (
        (model.cls_classifier, told.cls_logits),
        (model.distillation_classifier, told.distillation_logits),
    ):
        scale = 2 / (logits - logits.mean(0)).std()
        head.weight *= scale
        head.bias.copy_(scale * (head.bias - logits.mean(0)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def expected_answers(predictor: Predictor, images: list[bytes]) -> list[dict[str, float]]:
    """Returns the answer to each image, and checks that no two are alike."""
    told = [{p.label: p.score for p in one} for one in predictor.classify(images, batch_size=16)]
    pairs = [(a, b) for i, a in enumerate(told) for b in told[:i] if a.keys() == b.keys()]
    alike = sum(max(abs(a[name] - b[name]) for name in a) < 0.01 for a, b in pairs)
    if alike:
        raise SystemExit(f"{alike} pairs of images have the same answer, so mixed-up answers would not be seen.")
    return told


def write_bodies(folder: Path, images: list[bytes]) -> dict[str, Any]:
    """Writes the images as bodies of both servers' requests. Returns their plans."""
    raw, forms = [], []
    for number, image in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(image)
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{number}.jpg"\r\n'
        body = f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
        (folder / f"{number}.form").write_bytes(body)
        raw.append(str(folder / f"{number}.jpg"))
        forms.append(str(folder / f"{number}.form"))
    return {
        "deit": {"path": "/v1/classify", "kind": "image/jpeg", "files": raw},
        "litserve": {"path": "/predict", "kind": f"multipart/form-data; boundary={BOUNDARY}", "files": forms},
    }


# --- servers ------------------------------------------------------------------------------------------


def load_of_wrk(plan: dict[str, Any], folder: Path, seconds: float) -> dict[str, Any]:
    """Runs wrk with as many connections as there are clients. Returns a row of the report."""
    best = [max(one.items(), key=lambda pair: pair[1]) for one in plan["expected"]]
    lines = [f"{path}\t{label}\t{score}\n" for path, (label, score) in zip(plan["files"], best, strict=True)]
    (folder / "wrk.txt").write_text("".join(lines))
    address = f"http://{plan['host']}:{plan['port']}"
    script = str(BENCHMARKS / "serving_wrk.lua")
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds:.0f}s", "--timeout", "60s", "-s", script, address, "--"]
    told = subprocess.run([*command, str(folder / "wrk.txt")], check=True, capture_output=True, text=True).stdout
    return {"what": f"wrk, {CLIENTS} connections", **json.loads(told.splitlines()[-1])}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(command: list[str], ready: str, log: Path) -> Iterator[psutil.Process]:
    """Runs a server until the block ends, from when it is ready."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(ready, timeout=10) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{command} ended: {log.read_text()[-2000:]}") from None
            time.sleep(0.2)
        else:
            raise SystemExit(f"{command} is not ready: {log.read_text()[-2000:]}")
        yield psutil.Process(process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGCONT)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # processes that it has left behind, as LitServe does


def tree_bytes(process: psutil.Process) -> int:
    """Returns the memory of a server with all its processes (resident set)."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.Error:
            continue
    return total


@contextmanager
def watched(process: psutil.Process) -> Iterator[list[int]]:
    """Fills a list with the memory of a server, twice a second."""
    samples = [tree_bytes(process)]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            samples.append(tree_bytes(process))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


# --- measurements -------------------------------------------------------------------------------------


def percentile(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")


def load(plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs the generator. Returns its tally."""
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    command = [sys.executable, str(BENCHMARKS / "serving_load.py"), str(path)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def described(what: str, tally: dict[str, Any], samples: list[int]) -> dict[str, Any]:
    """Returns a row of the report. Throughput counts what was finished within the time."""
    inside = sum(second <= tally["seconds"] for second in tally["finished"])
    answered = sum(tally["statuses"].values())
    half = len(samples) // 2
    if tally["wrong"]:
        print("\n".join(tally["wrong"][:3]))
    return {
        "what": what,
        "images/s": inside / tally["seconds"],
        "p50 ms": percentile(tally["milliseconds"], 50),
        "p95 ms": percentile(tally["milliseconds"], 95),
        "p99 ms": percentile(tally["milliseconds"], 99),
        "right": len(tally["milliseconds"]),
        "mixed up": len(tally["wrong"]),
        "lost": sum(tally["lost"].values()),
        "lost reasons": tally["lost"],
        "statuses": tally["statuses"],
        "refused share": 1 - (len(tally["milliseconds"]) + len(tally["wrong"])) / max(answered, 1),
        "refused p50 ms": percentile(tally["refused_milliseconds"], 50),
        "refused p99 ms": percentile(tally["refused_milliseconds"], 99),
        "MiB at begin": samples[0] / 2**20,
        "MiB at half": samples[half] / 2**20,
        "MiB at end": samples[-1] / 2**20,
        "MiB at most": max(samples) / 2**20,
    }


def own_speed(predictor: Predictor, images: list[bytes], batch: int, seconds: float) -> float:
    """Returns images/s of `Predictor.classify_each` on files in memory."""
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        done += sum(not told.error for told in predictor.classify_each(images, batch_size=batch))
    return done / (time.perf_counter() - begin)


def measure(what: str, plan: dict[str, Any], process: psutil.Process, folder: Path) -> dict[str, Any]:
    with watched(process) as samples:
        tally = load(plan, folder)
    row = described(what, tally, samples)
    print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
    return row


def against_litserve(
    ours: Callable[[float], dict[str, Any]],
    theirs: Callable[[float], dict[str, Any]],
    pair: list[psutil.Process],
    seconds: float,
) -> dict[str, Any]:
    """Measures both in turns. Returns the ratios of the medians."""
    rows: list[list[dict[str, Any]]] = [[], []]
    for number in range(ROUNDS):
        for who in (0, 1) if number % 2 == 0 else (1, 0):
            signal_tree(pair[1 - who], signal.SIGSTOP)
            rows[who].append((ours, theirs)[who](seconds / ROUNDS))
            signal_tree(pair[1 - who], signal.SIGCONT)

    def median(who: int, name: str) -> float:
        return float(np.median([row[name] for row in rows[who]]))

    return {
        "what": "beside LitServe",
        "deit images/s": median(0, "images/s"),
        "litserve images/s": median(1, "images/s"),
        "throughput / litserve": median(0, "images/s") / median(1, "images/s"),
        "deit p99 ms": median(0, "p99 ms"),
        "litserve p99 ms": median(1, "p99 ms"),
        "p99 / litserve": median(0, "p99 ms") / median(1, "p99 ms"),
        "mixed up": sum(row["mixed up"] for row in rows[0]),
        "litserve mixed up": sum(row["mixed up"] for row in rows[1]),
        "rounds": rows,
    }


def signal_tree(process: psutil.Process, number: int) -> None:
    for one in [process, *process.children(recursive=True)]:
        one.send_signal(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=VARIANTS, default="small")
    parser.add_argument("--engine", default="torch", help="of deit, the same for all")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--quick", action="store_true", help="8 seconds each, only tiny; writes no file")
    parser.add_argument("--litserve", metavar="PYTHON", help="measure LitServe beside it, with this Python")
    parser.add_argument("--wrk", action="store_true", help="measure with wrk too, which must be installed")
    args = parser.parse_args()
    seconds = 8.0 if args.quick else args.seconds
    size = "tiny" if args.quick else args.model
    settings = ServeSettings()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = photos(IMAGES)
        model = write_model(folder / size, VARIANTS[size], images)
        predictor = Predictor.open(model, engine=args.engine)
        plans = write_bodies(folder, images)
        shared = {"host": "127.0.0.1", "expected": expected_answers(predictor, images), "clients": CLIENTS}
        port = free_port()
        command = [sys.executable, "-m", "deit", "serve", str(model), "--port", str(port), "--engine", args.engine]
        rows: list[dict[str, Any]] = []
        with running(command, f"http://127.0.0.1:{port}/readyz", folder / "deit.log") as process:
            plan = {**shared, **plans["deit"], "port": port, "mode": "closed"}
            load({**plan, "seconds": 3}, folder)  # warm
            own = [own_speed(predictor, images, settings.max_batch, seconds / 6)]
            row = measure(f"{size}, {CLIENTS} clients", {**plan, "seconds": seconds}, process, folder)
            own.append(own_speed(predictor, images, settings.max_batch, seconds / 6))
            row |= {"Predictor images/s": float(np.mean(own)), "throughput / Predictor": row["images/s"] / np.mean(own)}
            rows.append(row)
            if args.wrk:
                rows.append(load_of_wrk(plan, folder, seconds))
            rate = 2 * row["images/s"]
            over = {**plan, "mode": "open", "rate": rate, "seconds": seconds}
            rows.append(measure(f"{size}, overload: {rate:.0f}/s", over, process, folder))
            rows[-1]["p99 / normal p99"] = rows[-1]["p99 ms"] / row["p99 ms"]
            if args.litserve:
                rows.append(beside(args, settings, model, folder, plan, plans, process, seconds))
        for row in rows:
            row |= {
                "model": size,
                "engine": args.engine,
                "threads": torch.get_num_threads(),
                "batch": settings.max_batch,
            }
    report(f"serving-{size}", rows, write=not args.quick)


def beside(
    args: argparse.Namespace,
    settings: ServeSettings,
    model: Path,
    folder: Path,
    plan: dict[str, Any],
    plans: dict[str, Any],
    process: psutil.Process,
    seconds: float,
) -> dict[str, Any]:
    """Starts LitServe, and measures both in turns."""
    port = free_port()
    script = str(BENCHMARKS / "serving_litserve.py")
    command = [
        args.litserve,
        script,
        str(model),
        args.engine,
        str(port),
        str(settings.max_batch),
        str(settings.max_wait_ms),
    ]
    with running(command, f"http://127.0.0.1:{port}/health", folder / "litserve.log") as other:
        theirs = {**plan, **plans["litserve"], "port": port}
        load({**theirs, "seconds": 3}, folder)  # warm
        row = against_litserve(
            lambda share: measure("deit", {**plan, "seconds": share}, process, folder),
            lambda share: measure("litserve", {**theirs, "seconds": share}, other, folder),
            [process, other],
            seconds,
        )
    code = "import importlib.metadata as m; print(m.version('litserve'))"
    told = subprocess.run([args.litserve, "-c", code], capture_output=True, text=True, check=False)
    return {**row, "litserve version": told.stdout.strip()}


if __name__ == "__main__":
    main()
