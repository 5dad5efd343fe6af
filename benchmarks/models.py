"""Compares loading and forward of DeiT-base with transformers and timm on the CPU.

python benchmarks/models.py

All run in one process in turns, on random weights that transformers wrote. Outputs are compared before
timing. Peak memory of loading is measured in a process of its own for each library.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from harness import compare, report, take_turns

import deit

LOAD = """
import sys
import torch, {library}
from {library} import DeiTForImageClassificationWithTeacher as Model
Model.from_pretrained(sys.argv[2])  # once on a tiny folder: imports and lazy set-up are not what is measured
def memory(what):
    line = next(line for line in open("/proc/self/status") if line.startswith(what + ":"))
    return 1024 * int(line.split()[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = memory("VmRSS")
model = Model.from_pretrained(sys.argv[1])
total = sum(float(p.sum()) for p in model.parameters())  # mapped files count only once they are read
print(memory("VmHWM") - before)
"""


def write_folders(folder: Path) -> tuple[Path, Path]:
    base, tiny = folder / "base", folder / "tiny"
    config = transformers.DeiTConfig(num_labels=1000, layer_norm_eps=1e-6)
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(base)
    config = transformers.DeiTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32, image_size=32
    )
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(tiny)
    return base, tiny


def loading(base: Path, tiny: Path, rounds: int) -> dict[str, Any]:
    def loader(library: Any) -> Any:
        return lambda: library.DeiTForImageClassificationWithTeacher.from_pretrained(base)

    row: dict[str, Any] = {"what": "load"}
    row |= compare(take_turns({"deit": loader(deit), "transformers": loader(transformers)}, rounds=3 * rounds))
    size = (base / "model.safetensors").stat().st_size
    for library in ("deit", "transformers"):
        command = [sys.executable, "-c", LOAD.format(library=library), str(base), str(tiny)]
        extra = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row[f"{library} peak / file"] = extra / size
    return row


def forward(base: Path, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        ours = deit.DeiTForImageClassificationWithTeacher.from_pretrained(base, dtype=dtype)
        packed = deit.DeiTForImageClassificationWithTeacher.from_pretrained(base, dtype=dtype).pack_weights()
        theirs = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(base, dtype=dtype).eval()
        peer = timm.create_model("deit_base_distilled_patch16_224").to(dtype).eval()
        for batch in (1, 8):
            pixels = torch.randn(batch, 3, 224, 224, dtype=dtype)
            with torch.inference_mode():
                difference = (packed(pixels).logits - theirs(pixels).logits).abs().max().item()
                assert difference < (1e-4 if dtype == torch.float32 else 0.1), difference
                models = {"deit": packed, "deit, not packed": ours, "transformers": theirs, "timm": peer}
                functions = {name: functools.partial(model, pixels) for name, model in models.items()}
                row = {"what": f"forward, batch {batch}", "dtype": str(dtype).removeprefix("torch.")}
                rows.append(row | compare(take_turns(functions, rounds=rounds)) | {"largest difference": difference})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        base, tiny = write_folders(Path(folder))
        report("models", [loading(base, tiny, rounds), *forward(base, rounds)])


if __name__ == "__main__":
    main()
