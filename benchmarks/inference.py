"""Compares answering on the CPU with transformers, timm, and stock OpenVINO and ONNX Runtime.

python benchmarks/inference.py [--quick] [--models tiny small base] [--batches 1 8 32] [--precisions fp32 bf16 int8]

Distilled models at 224 pixels with random weights, the same in every library; outputs are compared before timing. Each
model has a process of its own, in which all take turns, on the same number of threads, and waiting threads sleep.

--steps measures each step of our rewriting alone instead; --profile shows where OpenVINO spends the time of our graph.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import compare, report, take_turns

# Set before any library loads OpenMP.
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
MOST_ROUNDS, FEWEST_ROUNDS = 15, 3
LONG = 30.0  # seconds of a round, after which two are enough


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measures one model, in this process."""
    from inference_contenders import contenders, products
    from inference_models import Size, useful_work, write_model

    size = Size.named(options.models[0])
    write_model(size, folder)
    rows = []
    for precision in options.precisions:
        for batch in options.batches:
            functions = contenders(size, folder, batch, precision, options)
            if not functions:
                print(f"{precision}: this CPU or this script has no contender", flush=True)
                continue
            functions |= products(precision, options.threads)
            # Each has answered once already, to be compared.
            seconds = take_turns(functions, rounds=1, warm_up=0)
            spent = sum(values[0] for values in seconds.values())
            rounds = min(max(int(options.seconds / spent), FEWEST_ROUNDS if spent < LONG else 2), MOST_ROUNDS)
            for name, values in take_turns(functions, rounds=rounds - 1, warm_up=0).items():
                seconds[name] += values
            row = {"model": size.name, "batch": batch, "precision": precision, "rounds": rounds}
            rows.append(row | summary(seconds, batch, useful_work(size)))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def summary(seconds: dict[str, list[float]], batch: int, work: float) -> dict[str, Any]:
    """Returns images per second, and how our best one stands to the peers, by rounds.

    Args:
        seconds: Of each call; names of products begin with "product".
        batch: Images in a call.
        work: Multiplications and additions of our graph for an image.
    """
    products = {name: values for name, values in seconds.items() if name.startswith("product")}
    seconds = {name: values for name, values in seconds.items() if name not in products}
    medians = {name: row for name, row in compare(seconds, next(iter(seconds))).items() if name.endswith(" ms")}
    found: dict[str, Any] = {name[:-3] + " img/s": 1e3 * batch / value for name, value in medians.items()}
    fastest = {name: medians[f"{name} ms"] for name in seconds}
    ours = [name for name in seconds if name.startswith("deit") and name != "deit default"]  # which may take bf16
    best = min(ours, key=fastest.__getitem__)
    kinds = {
        "stock OpenVINO": [name for name in seconds if name.startswith("OpenVINO")],
        "stock ONNX Runtime": [name for name in seconds if name.startswith("ONNX")],
        "PyTorch peer": [name for name in seconds if name.startswith(("transformers", "timm"))],
    }
    found["our best"] = best
    for kind, names in kinds.items():
        if names:
            rival = min(names, key=fastest.__getitem__)
            ratios = compare({best: seconds[best], rival: seconds[rival]}, best)
            found[f"ours / best {kind}"] = ratios[f"{rival} / {best}"]
    if "transformers" in seconds and "deit default" in seconds:
        pair = {name: seconds[name] for name in ("deit default", "transformers")}
        found["default / transformers' default"] = compare(pair, "deit default")["transformers / deit default"]
    rates = {name: 1e-9 * row[0] for name, row in _rates(products).items()}
    if rates:
        found |= {f"{name} GFLOP/s": value for name, value in rates.items()}
        found["share of best product"] = 1e-6 * work * batch / fastest[best] / max(rates.values())
    return found


def _rates(products: dict[str, list[float]]) -> dict[str, list[float]]:
    from inference_contenders import PRODUCT_WORK

    return {name: [PRODUCT_WORK / sorted(values)[len(values) // 2]] for name, values in products.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a table in Markdown: images per second and ratios, a row for each cell."""
    columns = [name for row in rows for name in row if name != "rounds" and "GFLOP" not in name]
    columns = list(dict.fromkeys(columns))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


def in_a_process(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures a model in a new process, whose threads wait as they should; returns its rows."""
    threads = str(options.threads)
    environment = {**os.environ, **SLEEPING, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory() as folder:
        told = {**vars(options), "models": [model]}
        command = [sys.executable, __file__, "--told", json.dumps(told), "--folder", folder]
        subprocess.run(command, check=True, env=environment)
        return list(json.loads((Path(folder) / "rows.json").read_text()))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "int8"])
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring for each cell")
    parser.add_argument(
        "--compile-batches", nargs="*", type=int, default=[8], help="of compiled timm, half a minute each"
    )
    parser.add_argument("--quick", action="store_true", help="tiny and small, batch 1 and 8, without compiled timm")
    parser.add_argument("--steps", action="store_true", help="measures each step of the rewriting alone")
    parser.add_argument("--profile", action="store_true", help="shows where OpenVINO spends the time of our graph")
    parser.add_argument("--no-file", action="store_true", help="writes no results")
    parser.add_argument("--told", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.batches, options.compile_batches = ["tiny", "small"], [1, 8], []
        options.seconds = min(options.seconds, 6.0)
    return options


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    options = parse(arguments)
    if options.told is not None:
        for name, value in json.loads(options.told).items():
            if name not in ("told", "folder"):
                setattr(options, name, value)
        from inference_steps import measure_steps, profile

        work = profile if options.profile else measure_steps if options.steps else measure
        (options.folder / "rows.json").write_text(json.dumps(work(options, options.folder)))
        return []
    rows = [row for model in options.models for row in in_a_process(model, options)]
    kind = "inference-steps" if options.steps else "inference-profile" if options.profile else "inference"
    report(kind, rows, write=not options.no_file)
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
