"""Shared by the benchmarks: calls in turns, the name of the machine, and a dated file of results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
PACKAGES = (
    "deit",
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "numpy",
    "Pillow",
    "safetensors",
    "keras",
    "tensorflow",
    "jax",
    "keras-hub",
    "openvino",
    "starlette",
    "uvicorn",
)


def take_turns(functions: dict[str, Callable[[], Any]], *, rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Calls functions in turns, round after round, so that a drift of the machine affects all equally.

    A function can return its own time in seconds as a float, to exclude other work.

    Returns:
        Seconds of each call, by name.
    """
    for _ in range(warm_up):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds):
        names = list(functions)
        for name in names[i % len(names) :] + names[: i % len(names)]:  # changes the order every round
            begin = time.perf_counter()
            result = functions[name]()
            seconds[name].append(result if isinstance(result, float) else time.perf_counter() - begin)
    return seconds


def compare(seconds: dict[str, list[float]], ours: str = "deit") -> dict[str, Any]:
    """Returns medians in milliseconds, and for each other name the ratio of its time to ours, by rounds."""
    row: dict[str, Any] = {f"{name} ms": 1e3 * statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        if name != ours:
            ratios = [b / a for a, b in zip(seconds[ours], values, strict=True)]
            row[f"{name} / {ours}"] = statistics.median(ratios)
    return row


def tells(label: str, *, every: int) -> Callable[[Any], None]:
    """Returns a callback for `fit(on_step=...)` that prints a line at intervals of steps and after the last."""

    def on_step(event: Any) -> None:
        if event.step % every == 0 or event.step == event.total_steps:
            speed = f"{event.images_per_second:.0f} images/s"
            print(f"{label}: step {event.step}/{event.total_steps}, loss {event.loss:.3f}, {speed}", flush=True)

    return on_step


def machine() -> dict[str, Any]:
    """Returns processor, cores, Python and versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "")
        kinds = [k for k in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if k in flags]
        model = f"{names[0] if names else model} ({', '.join(kinds)})"
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def report(name: str, rows: list[dict[str, Any]], *, write: bool = True, keys: Sequence[str] = ()) -> None:
    """Prints the rows and writes them with the machine to `results/DATE-NAME.json`.

    Args:
        name: Of the benchmark.
        rows: What was measured.
        write: Whether to write the file.
        keys: What tells rows apart that several runs of a day measure: those of earlier runs stay. Empty: none stay.
    """
    for row in rows:
        print("  ".join(f"{k}: {v:.3g}" if isinstance(v, float) else f"{k}: {v}" for k, v in row.items()))
    if not write:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{date.today().isoformat()}-{name}.json"
    before = json.loads(path.read_text())["rows"] if keys and path.exists() else []
    known = [[row[key] for key in keys] for row in rows]
    rows = [row for row in before if [row[key] for key in keys] not in known] + rows
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    print(f"Written: {path}")
