"""Two revisions of this package in turns: forward passes and training steps, through public names alone.

python benchmarks/revisions.py OTHER_CHECKOUT [--size small] [--rounds 20] [--precisions fp32 bf16]

Each revision runs in a process of its own, which waits while the other computes; so the machine's drift meets both.
A ratio above 1 says that this checkout is faster than the other one. Times scatter by several percent on a shared
machine, so the benchmark also compares the operators that PyTorch dispatches in one call, with the shapes of their
tensors. "same operators: True" means that both revisions compute the same, in the same order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import report

HERE = Path(__file__).resolve().parents[1]
CLASSES = 1000


def operator_log() -> Any:
    """Returns a context that lists the operators that PyTorch dispatches in this thread, in its `calls`."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Log(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            leaves = tree_leaves((args, kwargs or {}))
            self.calls.append(f"{function} {[tuple(x.shape) for x in leaves if isinstance(x, torch.Tensor)]}")
            return function(*args, **(kwargs or {}))

    return Log()


class Stepper:
    """A training that waits before each step until somebody asks for it."""

    def __init__(self, size: str, precision: str, batch: int) -> None:
        self.log: Any = None  # lists the operators of the next step: it must be entered in the thread of the training
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        threading.excepthook = lambda failure: (sys.excepthook(*failure[:3]), os._exit(1))  # nobody would step again
        threading.Thread(target=self._train, args=(size, precision, batch), daemon=True).start()
        self._done.acquire()  # the first step is over: everything is set up

    def _train(self, size: str, precision: str, batch: int) -> None:
        import numpy as np

        import deit

        images = np.random.default_rng(0).integers(0, 256, (8 * batch, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(len(images)) % CLASSES
        source = deit.ArraySource(images, labels, [str(i) for i in range(CLASSES)])
        settings = {"batch_size": batch, "precision": precision, "schedule.epochs": 1000, "num_workers": 0}
        recipe = deit.Recipe().with_settings(settings)
        student = deit.build_student(f"deit-{size}-distilled-patch16-224", source.classes, recipe)
        task = deit.ClassificationTask(student.model, student.processor)
        with tempfile.TemporaryDirectory() as out:
            deit.fit(task, deit.Data(train=source, val=source), recipe, out=Path(out) / "run", on_step=self._wait)

    def _wait(self, _: Any) -> None:
        if self.log is not None:
            self.log.__exit__(None, None, None)
        self._done.release()
        self._go.acquire()
        if self.log is not None:
            self.log.__enter__()

    def __call__(self) -> None:
        """Lets one step be taken."""
        self._go.release()
        self._done.acquire()


def cases(size: str, precision: str) -> dict[str, Callable[[], Any]]:
    """Returns what is timed, by name; of trainings one alone, since two in a process wait for each other."""
    import torch

    import deit

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    config = deit.variant_config(f"deit-{size}-distilled-patch16-224", num_labels=CLASSES)
    timed: dict[str, Callable[[], Any]] = {}
    for packed in (False, True):
        torch.manual_seed(0)
        model = deit.DeiTForImageClassificationWithTeacher(config).to(dtype).eval()
        if packed:
            model.pack_weights()
        for batch in (1, 8):
            pixels = torch.randn(batch, 3, 224, 224, dtype=dtype)

            def forward(model: Any = model, pixels: Any = pixels) -> None:
                with torch.inference_mode():
                    model(pixels)

            timed[f"forward {precision}{', packed' if packed else ''}, batch {batch}"] = forward
    timed[f"training step {precision}, batch 8"] = Stepper(size, precision, 8)
    return timed


def operators(case: Callable[[], Any]) -> str:
    """Returns the number of operators of one call, and a hash of their names, shapes and order."""
    log = operator_log()
    if isinstance(case, Stepper):
        case.log = log
        case()
        case.log = None
    else:
        with log:
            case()
    return f"{len(log.calls)} {hashlib.sha256(repr(log.calls).encode()).hexdigest()}"


def serve(size: str, precision: str) -> None:
    """Times the cases that are named on standard input, one a line; lists the operators of "operators CASE"."""
    timed = cases(size, precision)
    print(json.dumps(list(timed)), flush=True)
    for line in sys.stdin:
        if line.startswith("operators "):
            print(operators(timed[line.strip().removeprefix("operators ")]), flush=True)
            continue
        begin = time.perf_counter()
        timed[line.strip()]()
        print(time.perf_counter() - begin, flush=True)


class Revision:
    """A checkout of this package at work in a process of its own."""

    def __init__(self, checkout: Path, size: str, precision: str) -> None:
        command = [sys.executable, __file__, "--serve", precision, "--size", size]
        environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.names: list[str] = json.loads(self._process.stdout.readline())

    def seconds(self, name: str) -> float:
        """Returns how long one call of a case takes."""
        return float(self._ask(name))

    def operators(self, name: str) -> str:
        """Returns the number and a hash of the operators of a case."""
        return self._ask(f"operators {name}")

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """Ends the process, whose trainings have no end of their own."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path, help="checkout of the other revision")
    parser.add_argument("--size", default="small", choices=("tiny", "small", "base"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.size, options.serve)
        return
    if options.other is None or not (options.other / "src" / "deit").is_dir():
        parser.error("OTHER_CHECKOUT must be a checkout of this repository")
    rows = [row for precision in options.precisions for row in compare_revisions(options, precision)]
    report(f"revisions-{options.size}", rows)


def compare_revisions(options: argparse.Namespace, precision: str) -> list[dict[str, Any]]:
    """Returns a row for each case of one precision."""
    both = [Revision(checkout, options.size, precision) for checkout in (HERE, options.other.resolve())]
    rows = []
    for name in both[0].names:
        pairs = []
        for i in range(options.rounds + 2):
            order = both if i % 2 else both[::-1]  # nobody is always first
            taken = {revision: revision.seconds(name) for revision in order}
            pairs.append((taken[both[0]], taken[both[1]]))
        here, there = zip(*pairs[2:], strict=True)
        listed = [revision.operators(name) for revision in both]  # once each: every step of a training differs
        rows.append({
            "what": name, "this ms": 1e3 * statistics.median(here), "other ms": 1e3 * statistics.median(there),
            "other / this": statistics.median(b / a for a, b in zip(here, there, strict=True)),
            "operators": int(listed[0].split()[0]), "same operators": listed[0] == listed[1],
        })  # fmt: skip
    for revision in both:
        revision.close()
    return rows


if __name__ == "__main__":
    main()
