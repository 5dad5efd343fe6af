"""Compares the fast image processor with transformers' on photos.

python benchmarks/image_processor.py FOLDER
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import transformers
from harness import compare, report, take_turns
from PIL import Image

import deit

SETTINGS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    photos = [Image.open(path).convert("RGB") for path in sorted(args.folder.iterdir())]
    rows = []
    for title, ours, theirs in (
        ("fast", deit.DeiTImageProcessorFast(**SETTINGS), transformers.DeiTImageProcessor(**SETTINGS)),
        ("Pillow", deit.DeiTImageProcessor(**SETTINGS), transformers.DeiTImageProcessorPil(**SETTINGS)),
    ):
        for batch in (1, 8, len(photos)):
            functions = {
                name: functools.partial(processor, photos[:batch], return_tensors="pt")
                for name, processor in (("deit", ours), ("transformers", theirs))
            }
            pixels = [function().pixel_values for function in functions.values()]
            difference = (pixels[0] - pixels[1]).abs().max().item()
            row = {"what": f"{title}, {batch} photos"} | compare(take_turns(functions, rounds=args.rounds))
            rows.append(row | {"largest difference": difference})
    report("image-processor", rows)


if __name__ == "__main__":
    main()
