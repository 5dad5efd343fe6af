"""Measures what a user gets without a flag: the default Predictor against transformers' default, DeiT-S distilled.

python benchmarks/engine_choice.py [--quick] [--noisy]

Reports images per second at batch 8 after the engine was chosen, in turns in one process, and the time of the first
answer against that of plain PyTorch, each in processes of their own. `--noisy` does it beside a spinning process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import compare, report, take_turns

BATCH = 8
FIRST = """
import sys, time
import numpy as np
import deit
started = time.perf_counter()
predictor = deit.Predictor.open(sys.argv[1], engine=sys.argv[2])
predictor.classify(np.zeros((256, 256, 3), np.uint8))
print(time.perf_counter() - started)
"""


def spin() -> None:
    """Keeps a core busy."""
    while True:
        pass


def make_model(folder: Path, quick: bool) -> None:
    import torch

    import deit

    torch.manual_seed(0)
    width, heads = (192, 3) if quick else (384, 6)
    config = deit.DeiTConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, num_labels=1000)
    deit.DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    deit.DeiTImageProcessor().save_pretrained(folder)


def first_answer(folder: Path, engine: str) -> float:
    """Returns the seconds from opening to the first answer, in a process of its own."""
    command = [sys.executable, "-c", FIRST, str(folder), engine]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(folder: Path, rounds: int) -> list[dict[str, object]]:
    import torch
    import transformers

    import deit

    pixels = np.random.default_rng(0).normal(size=(BATCH, 3, 224, 224)).astype(np.float32)
    predictor = deit.Predictor.open(folder)
    began = time.perf_counter()
    while not predictor.engine.is_decided and time.perf_counter() - began < 120:
        predictor.engine(pixels)
    theirs = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(folder).eval()

    def ask_transformers() -> None:
        with torch.no_grad():
            theirs(torch.from_numpy(pixels))

    seconds = take_turns({"deit": lambda: predictor.engine(pixels), "transformers": ask_transformers}, rounds=rounds)
    row = {"what": f"batch {BATCH}", **compare(seconds), "engine": predictor.engine.describe()}
    firsts = take_turns(
        {name: (lambda name=name: first_answer(folder, name)) for name in ("auto", "torch")},
        rounds=max(rounds // 4, 1),
        warm_up=1,
    )
    return [row, {"what": "first answer", **compare(firsts, ours="torch")}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds; writes no file")
    parser.add_argument("--noisy", action="store_true", help="beside a process that spins")
    options = parser.parse_args()
    os.environ.pop("DEIT_ENGINE", None)
    with tempfile.TemporaryDirectory() as place:
        os.environ["DEIT_CACHE"] = place
        neighbor = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
        if options.noisy:
            neighbor.start()
        try:
            make_model(Path(place) / "model", options.quick)
            rows = measure(Path(place) / "model", 4 if options.quick else 20)
        finally:
            if options.noisy:
                neighbor.kill()
    name = "engine-choice-noisy" if options.noisy else "engine-choice"
    report(name, rows, write=not options.quick)


if __name__ == "__main__":
    main()
