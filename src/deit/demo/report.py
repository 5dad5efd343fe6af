"""The demo's report: one HTML file with everything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.file_names import CURVES_NAME
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.intervals import share_interval
from deit.core.scores.metrics import softmax
from deit.demo.journey import LABELS_PER_CLASS, Journey, preprocess
from deit.evaluate.html_page import image_uri, png_uri, write_page
from deit.inference.runners import TorchRunner, open_runner
from deit.train.run.curves import draw_curves

_GRID_IMAGES = 40
_MAP_IMAGES = 5


def write_report(journey: Journey) -> Path:
    """Writes `report.html` into the journey's folder and returns its path.

    It shows the table, the learning curves, test images with what the distilled student says of them (mistakes
    marked), and where its two tokens look.
    """
    runner = open_runner(journey.distilled.out)
    processor = DeiTImageProcessor.from_pretrained(journey.distilled.out)
    curves = journey.out / CURVES_NAME
    draw_curves(
        {
            "teacher": journey.teacher.history,
            "labels alone": journey.alone.history,
            "distilled": journey.distilled.history,
        },
        curves,
    )
    return write_page(
        journey.out / "report.html",
        "demo",
        "report.html.j2",
        table=journey.table(),
        interval=share_interval,
        gain=journey.distilled.scores["both"].top1 - journey.alone.scores["both"].top1,
        labels=10 * LABELS_PER_CLASS,
        tests=len(journey.data.val.labels),
        steps=journey.distilled.steps,
        seconds=round(journey.teacher.seconds + journey.alone.seconds + journey.distilled.seconds),
        curves=png_uri(curves.read_bytes()),
        grid=_grid(journey, runner, processor),
        maps=_attention_maps(journey, runner, processor),
        held_out={
            "image": image_uri(Image.open(journey.held_out)),
            "label": journey.held_out_label,
            "predictions": journey.answer.predictions,
        },
    )


def _grid(journey: Journey, runner: TorchRunner, processor: DeiTImageProcessor) -> list[dict[str, Any]]:
    indices = list(range(_GRID_IMAGES))
    probabilities = softmax(runner(preprocess(journey.data, indices, processor)))
    cells = []
    for i, row in zip(indices, probabilities, strict=True):
        best, true = int(row.argmax()), int(journey.data.val.labels[i])
        names = runner.label_names
        cells.append(
            {
                "image": image_uri(journey.data.val.image(i)),
                "said": names[best],
                "true": names[true],
                "score": float(row[best]),
                "right": best == true,
            }
        )
    return cells


def _attention_maps(journey: Journey, runner: TorchRunner, processor: DeiTImageProcessor) -> list[dict[str, str]]:
    """Where class token and distillation token look in the last block, mean over the heads."""
    import torch

    indices = [int(np.flatnonzero(journey.data.val.labels == digit)[0]) for digit in range(_MAP_IMAGES)]
    pixels = torch.from_numpy(preprocess(journey.data, indices, processor))
    runner.model.set_attn_implementation("eager")
    with torch.inference_mode():
        attention = runner.model(pixels, output_attentions=True).attentions[-1].mean(1).numpy()  # (B, N, N)
    grid = runner.model.config.grid_size
    rows = []
    for image, weights in zip(indices, attention, strict=True):
        picture = journey.data.val.image(image)
        row = {"image": image_uri(picture)}
        for token, name in enumerate(("class", "distillation")):
            row[name] = image_uri(_overlay(picture, weights[token, 2:].reshape(grid)))
        rows.append(row)
    return rows


def _overlay(picture: Image.Image, weights: npt.NDArray[np.float32]) -> Image.Image:
    """Lays weights over a picture: the more, the redder."""
    scaled = (weights - weights.min()) / max(float(weights.max() - weights.min()), 1e-9)
    heat = Image.fromarray((scaled * 255).astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    grey = picture.convert("L").resize((96, 96), Image.Resampling.NEAREST).convert("RGB")
    return Image.composite(Image.new("RGB", (96, 96), (220, 40, 30)), grey, heat.point(lambda v: v * 0.75))
