"""Compares answering on a GPU of CUDA with transformers and timm.

python benchmarks/inference_gpu.py [--models tiny small base] [--batches 1 8 32 256 1024] [--precisions bf16 fp32]

Distilled models at 224 pixels with random weights, the same in every library; outputs are compared before timing.
Pixels lie on the GPU in the type that a model wants. All take turns; events of CUDA measure the time. "timm compiled"
is `torch.compile` for the one size of the batch; "graph": its calls are recorded as a CUDA graph and replayed, as ours.

Compiling takes most of the time, so all models are compiled at once first, in a process each, and read from the cache
of the compiler afterwards. --profile prints the kernels of batches of 1 and 256.

--host measures engines from arrays in the memory of the CPU to arrays there, as `Predictor` uses them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import compare, report, take_turns
from inference_models import Size, contract_of, of_timm, of_transformers, useful_work, write_model
from torch import Tensor, nn

import deit
from deit.inference.engines.cuda_engine import CudaEngine, cuda_classifier, fastest_attention, record
from deit.inference.engines.torch_engine import TorchEngine
from deit.inference.graph.cuda_classifier import CudaClassifier
from deit.inference.measuring.matrix_rate import MatrixRate
from inference import table

Call = Callable[[], Tensor]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 2e-3, "bf16": 0.1}  # norm of the difference of logits, as a share of their norm
FP8_TOLERANCE = 0.4
ROUND = 0.02  # seconds of a contender in a round
ROUNDS = 7


def compiled(model: nn.Module, pixels: Tensor) -> Call:
    torch._dynamo.reset()
    fast = torch.compile(model, dynamic=False)
    fast(pixels)
    return lambda: fast(pixels)


def pixels_for(size: Size, batch: int, precision: str) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randn(batch, 3, size.side, size.side, device="cuda", generator=generator).to(TYPES[precision])


def replayed(call: Call) -> Call:
    output, graph, _ = record(call)

    def replay() -> Tensor:
        assert call is not None  # keeps what the graph reads
        graph.replay()
        return output

    return replay


class Models(NamedTuple):
    """A model in each library, on the GPU."""

    transformers: nn.Module
    timm: nn.Module
    deit: dict[str, CudaClassifier]

    @staticmethod
    def opened(size: Size, folder: Path, precision: str) -> Models:
        dtype = TYPES[precision]
        model = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder).cuda().eval()
        kinds = (precision, "fp8") if precision == "bf16" else (precision,)
        ours = {kind: cuda_classifier(model, contract_of(size), kind) for kind in kinds}
        return Models(of_transformers(folder).cuda().to(dtype), of_timm(size, folder).cuda().to(dtype), ours)

    def calls(self, pixels: Tensor) -> dict[str, Call]:
        """Returns functions to time, by name; ours begin with "deit"."""
        fast = compiled(self.timm, pixels)
        found: dict[str, Call] = {
            "transformers": lambda: self.transformers(pixels),
            "timm": lambda: self.timm(pixels),
            "timm compiled": fast,
            "timm compiled, graph": replayed(fast),
        }
        for kind, classifier in self.deit.items():
            classifier.attention = fastest_attention(classifier, len(pixels))
            print(f"{kind}, batch {len(pixels)}: {classifier.attention}", flush=True)
            found[f"deit {kind}"] = replayed(lambda c=classifier: c(pixels)[0])  # type: ignore[misc]
        return found


def check(calls: dict[str, Call], expected: Tensor, precision: str) -> dict[str, float]:
    """Compares the answers (B, K) with those in fp32, and returns their errors.

    Raises:
        AssertionError: An error is too large.
    """
    errors = {}
    for name, call in calls.items():
        found = call().float()
        errors[name] = float((found - expected).norm() / expected.norm())
        limit = FP8_TOLERANCE if "fp8" in name else TOLERANCE[precision]
        assert errors[name] < limit, (name, errors[name])
    return errors


def timed(call: Call) -> Callable[[], float]:
    """Returns a function that makes as many calls as fit into a round, and returns the seconds of one."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def several(times: int) -> float:
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / times

    several(2)
    times = max(int(ROUND / several(3)), 2)
    return lambda: several(times)


def measure(size: Size, folder: Path, told: dict[str, Any]) -> list[dict[str, Any]]:
    """Measures one model, in this process."""
    warnings.simplefilter("ignore")
    rows = []
    for precision in told["precisions"]:
        models, exact_model = Models.opened(size, folder, precision), of_transformers(folder).cuda()
        rate = MatrixRate(precision, "cuda").measure(0.3)
        for batch in told["batches"]:
            started = time.perf_counter()
            with torch.inference_mode():
                pixels = pixels_for(size, batch, precision)
                calls = models.calls(pixels)
                errors = check(calls, exact_model(pixels.float()), precision)
                seconds = take_turns({name: timed(call) for name, call in calls.items()}, rounds=ROUNDS, warm_up=0)
            row = {"model": size.name, "batch": batch, "precision": precision}
            rows.append(row | summary(seconds, batch, useful_work(size), rate, precision))
            rows[-1] |= {f"{name} error": errors[name] for name in errors if name.startswith("deit")}
            print(json.dumps(rows[-1]), f"{time.perf_counter() - started:.0f} s", flush=True)
            if told["profile"] and batch in (1, 256):
                print_profile(calls[f"deit {precision}"])
                print_profile(calls["timm compiled"])
            del calls
            torch.cuda.empty_cache()
    return rows


def summary(seconds: dict[str, list[float]], batch: int, work: float, rate: float, precision: str) -> dict[str, Any]:
    """Returns images per second and the ratios of our call in the same precision, by rounds."""
    ours = f"deit {precision}"
    row = compare(seconds, ours)
    found = {f"{name[:-3]} img/s": 1e3 * batch / value for name, value in row.items() if name.endswith(" ms")}
    found |= {"product TFLOP/s": rate / 1e12, "share of product": found[f"{ours} img/s"] * work / rate}
    return found | {name: value for name, value in row.items() if "/" in name}


def print_profile(call: Call) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile, torch.inference_mode():
        for _ in range(5):
            call()
        torch.cuda.synchronize()
    averages = profile.key_averages()
    total = sum(event.self_device_time_total for event in averages)
    for event in sorted(averages, key=lambda e: -e.self_device_time_total)[:14]:
        share = event.self_device_time_total / total
        print(f"  {share:6.1%} {event.count // 5:4d} x {event.self_device_time_total / 5:8.0f} us  {event.key[:110]}")
    print(f"  total {total / 5:.0f} us", flush=True)


def measure_from_host(size: Size, folder: Path, batches: Sequence[int]) -> list[dict[str, Any]]:
    """Measures engines from arrays to arrays."""
    model = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    contract = contract_of(size)
    engines: dict[str, Any] = {
        "deit torch fp32": TorchEngine(model, contract, "cuda"),
        "deit torch bf16": TorchEngine(model, contract, "cuda", precision="bf16"),
        "deit cuda fp32": CudaEngine(model, contract, "cuda", precision="fp32"),
        "deit cuda bf16": CudaEngine(model, contract, "cuda", precision="bf16"),
        "deit cuda fp8": CudaEngine(model, contract, "cuda", precision="fp8"),
    }
    rows = []
    for batch in batches:
        pixels = np.random.default_rng(0).standard_normal((batch, 3, size.side, size.side), dtype=np.float32)
        calls = {name: (lambda e=engine, p=pixels: e(p)) for name, engine in engines.items()}
        begun = time.perf_counter()
        engines["deit cuda bf16"](pixels)
        first = time.perf_counter() - begun
        row = compare(take_turns(calls, rounds=ROUNDS), "deit cuda bf16")
        found = {f"{name[:-3]} img/s": 1e3 * batch / value for name, value in row.items() if name.endswith(" ms")}
        rows.append({"model": size.name, "batch": batch, "precision": "from host", "first answer s": first} | found)
        print(json.dumps(rows[-1]), flush=True)
    return rows


def compile_all(options: argparse.Namespace, cache: str) -> None:
    """Fills the cache of the compiler, all models at once."""
    started = time.perf_counter()
    running = []
    for model in options.models:
        for batch in options.batches:
            told = json.dumps({**vars(options), "models": [model], "batches": [batch], "only_compile": True})
            running.append(subprocess.Popen([sys.executable, __file__, "--told", told], env=environment(cache, 2)))
    for process in running:
        process.wait()
    print(f"compiled in {time.perf_counter() - started:.0f} s", flush=True)


def environment(cache: str, threads: int) -> dict[str, str]:
    return {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}


def in_this_process(told: dict[str, Any]) -> None:
    size = Size.named(told["models"][0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(size, folder)
        if told.get("only_compile"):
            with torch.inference_mode():
                for precision in told["precisions"]:
                    for batch in told["batches"]:
                        model = of_timm(size, folder).cuda().to(TYPES[precision])
                        compiled(model, pixels_for(size, batch, precision))
            return
        rows = measure(size, folder, told)
        if told["host"]:
            rows += measure_from_host(size, folder, told["batches"])
    Path(told["rows"]).write_text(json.dumps(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 256, 1024])
    parser.add_argument("--precisions", nargs="+", default=["bf16"], choices=list(TYPES))
    parser.add_argument("--profile", action="store_true", help="prints the kernels of batches of 1 and 256")
    parser.add_argument("--host", action="store_true", help="measures the engines from arrays to arrays too")
    parser.add_argument("--cache", help="folder that keeps what the compiler made for the next run")
    parser.add_argument("--no-file", action="store_true", help="writes no results")
    parser.add_argument("--told", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.told is not None:
        in_this_process(json.loads(options.told))
        return
    if not torch.cuda.is_available():
        raise SystemExit("inference_gpu.py needs a GPU of CUDA.")
    print(torch.cuda.get_device_name(), flush=True)
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or folder
        compile_all(options, cache)
        for model in options.models:
            file = Path(folder) / "rows.json"
            told = json.dumps({**vars(options), "models": [model], "rows": str(file)})
            ended = subprocess.run([sys.executable, __file__, "--told", told], check=False, env=environment(cache, 8))
            if ended.returncode:
                failed.append(model)
            else:
                rows += json.loads(file.read_text())
    for row in rows:
        row["gpu"] = torch.cuda.get_device_name()
    report("inference-gpu", rows, write=not options.no_file, keys=("gpu", "model", "batch", "precision"))
    print(table(rows))
    if failed:
        raise SystemExit(f"These models failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
