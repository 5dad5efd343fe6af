"""How long waiting threads of OpenMP should spin: steps of a small training, alone and beside a busy process.

    python benchmarks/waiting_threads.py

Trains `deit-mini-distilled-patch4-32` on 400 of scikit-learn's digits by the `deit train` command, in batches of 16,
with all cores. What differs is how a thread waits: as PyTorch has it without any setting, as the command sets it, and
with other spin counts of GCC's OpenMP, which PyTorch's Linux wheels use. The trainings take turns, each in a process of
its own; a row has the median of the seconds of three epochs, without the start. Half of the rows are measured beside
another process that spins.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from harness import report, take_turns
from PIL import Image

from deit.inference.measuring.processes import spinning_neighbor
from deit.runtime.threads import prepare_threads

EPOCHS, IMAGES = 4, 400


def ways(counts: list[int]) -> dict[str, dict[str, str]]:
    """Returns the environment of each way to wait. The first keeps the command from setting any."""
    ours: dict[str, str] = {}
    prepare_threads(ours)
    found = {"PyTorch's": {"KMP_BLOCKTIME": "200"}, "the command's": ours}
    return found | {f"{n} spins": {**ours, "GOMP_SPINCOUNT": str(n)} for n in counts}


def write_images(folder: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:IMAGES], digits.target[:IMAGES], strict=True)):
        path = folder / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).convert("RGB").resize((32, 32)).save(path)


def seconds_of(images: Path, environment: dict[str, str], precision: str) -> float:
    """Returns the seconds of the epochs after the first."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "deit", "train", str(images), "--out", str(out), "--epochs", str(EPOCHS)]
        command += ["--student", "deit-mini-distilled-patch4-32", "--batch-size", "16"]
        for setting in (f"precision={precision}", "eval_epochs=1", "num_workers=0", "keep_state=false"):
            command += ["--set", setting]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
        subprocess.run(command, env=clean | environment, capture_output=True, check=True)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows if "val_top1" in row]
    return float(seconds[-1] - seconds[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spins", type=int, nargs="*", default=[0, 10_000], help="spin counts to compare")
    parser.add_argument("--precision", default="bf16", help="of the training; see `deit train`")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch)
        write_images(images)
        for name, beside in (("alone", nullcontext()), ("beside a spinning process", spinning_neighbor())):
            with beside:
                calls = {
                    way: lambda e=environment: seconds_of(images, e, options.precision)
                    for way, environment in ways(options.spins).items()
                }
                found = take_turns(calls, rounds=options.rounds, warm_up=0)
            for way, seconds in found.items():
                ratio = statistics.median(s / o for s, o in zip(seconds, found["the command's"], strict=True))
                rows.append({
                    "machine": name, "waiting": way, "seconds": round(statistics.median(seconds), 2),
                    "times the command's": round(ratio, 2),
                })  # fmt: skip
                print("  ".join(f"{k}: {v}" for k, v in rows[-1].items()), flush=True)
    report("waiting-threads", rows)


if __name__ == "__main__":
    main()
