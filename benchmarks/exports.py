"""Exports a model in every format and precision, and compares each with the original on a folder of photos.

    python benchmarks/exports.py PHOTOS [--model MODEL] [--quick]

Without a model, one with random weights and 20 classes is taken whose logits are spread as those of a trained one: its
answers vary from photo to photo. Prints, for each export, the share of equal answers, the largest difference of a logit
and of a probability, the share of equal pixels, the size of the files and the time of the export. Pixels count every
value of every photo.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import report

import deit
from deit.core.errors import UserError
from deit.data.storage.image_search import find_images

CELLS = [
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    ("openvino", "bf16"),
    ("torch", "fp32"),
    ("torch", "fp16"),
    ("torch", "bf16"),
]


def random_model(folder: Path, name: str, photos: list[Path]) -> Path:
    """Writes a model whose class head is scaled so that the logits of the photos have a standard deviation of 3."""
    import torch

    torch.manual_seed(0)
    config = deit.variant_config(name, num_labels=20)
    model = deit.DeiTForImageClassificationWithTeacher(config).eval()
    processor = deit.DeiTImageProcessor(size=256, crop_size=224)
    processor.save_pretrained(folder)
    pixels = processor([deit.load_image(path) for path in photos[:16]], return_tensors="pt").pixel_values
    for head in ("cls_classifier", "distillation_classifier"):
        layer = getattr(model, head)
        torch.nn.init.normal_(layer.weight)
        with torch.inference_mode():
            output = model(pixels)
        logits = output.cls_logits if head == "cls_classifier" else output.distillation_logits
        with torch.no_grad():  # what all photos share is taken out, the rest is spread
            layer.bias.sub_(logits.mean(0))
            factor = 3 / (logits - logits.mean(0)).std()
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
    model.save_pretrained(folder)
    return folder


def measured(model: Path, photos: list[Path], to: str, precision: str, folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"format": to, "precision": precision}
    begin = time.perf_counter()
    try:
        done = deit.export_model(model, folder / f"{to}-{precision}", to=to, precision=precision, check=photos)
    except UserError as error:
        return {**row, "refused": str(error)}
    check = done.check
    size = sum(path.stat().st_size for path in done.folder.iterdir())
    return {
        **row,
        "photos": check.images,
        "equal answers": check.agreement,
        "largest difference of a logit": check.largest_difference,
        "of a probability": check.largest_score_difference,
        "equal pixels": check.equal_pixels,
        "MB": size / 1e6,
        "seconds": time.perf_counter() - begin,
        "run with": done.written.checked_with,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder of photos")
    parser.add_argument("--model", help="model directory", default=None)
    parser.add_argument("--variant", help="of the random model", default="deit-tiny-distilled-patch16-224")
    parser.add_argument("--quick", action="store_true", help="8 photos, fp32 only; writes no file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    photos = [Path(path) for path in find_images([arguments.photos]).paths if path is not None]
    photos = photos[:8] if arguments.quick else photos
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Path(arguments.model) if arguments.model else random_model(folder / "model", arguments.variant, photos)
        answers = deit.Predictor.open(model).classify(photos, top_k=1)
        print(json.dumps({"photos": len(photos), "different answers": len({told[0].label for told in answers})}))
        rows = []
        for to, precision in CELLS:
            if not arguments.quick or precision == "fp32":
                rows.append(measured(model, photos, to, precision, folder))
                print(json.dumps(rows[-1]), flush=True)
        report("exports", rows, write=not arguments.quick)


if __name__ == "__main__":
    main()
