"""The demo's report: one HTML file with everything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.file_names import CURVES_NAME
from deit.core.scores.intervals import share_interval
from deit.demo.journey import LABELS_PER_CLASS, Journey
from deit.evaluate.html_page import image_uri, png_uri, write_page
from deit.inference.predictor import Predictor
from deit.models.deit import DeiTForImageClassificationWithTeacher
from deit.train.run.curves import draw_curves

_GRID_IMAGES = 40
_MAP_IMAGES = 5


def write_report(journey: Journey) -> Path:
    """Writes `report.html` into the journey's folder and returns its path.

    It shows the table, the learning curves, test images with what the distilled student says of them (mistakes
    marked), and where its two tokens look.
    """
    predictor = Predictor.open(journey.distilled.out, engine="torch")
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
        grid=_grid(journey, predictor),
        maps=_attention_maps(journey, predictor),
        held_out={
            "image": image_uri(Image.open(journey.held_out)),
            "label": journey.held_out_label,
            "predictions": journey.answer.predictions,
        },
    )


def _grid(journey: Journey, predictor: Predictor) -> list[dict[str, Any]]:
    images = [journey.data.val.image(i) for i in range(_GRID_IMAGES)]
    cells = []
    for i, (best, *_) in enumerate(predictor.classify(images, top_k=1)):
        true = predictor.label_names[int(journey.data.val.labels[i])]
        cells.append(
            {
                "image": image_uri(images[i]),
                "said": best.label,
                "true": true,
                "score": best.score,
                "right": best.label == true,
            }
        )
    return cells


def _attention_maps(journey: Journey, predictor: Predictor) -> list[dict[str, str]]:
    """Where class token and distillation token look in the last block, mean over the heads."""
    import torch

    indices = [int(np.flatnonzero(journey.data.val.labels == digit)[0]) for digit in range(_MAP_IMAGES)]
    pixels = predictor.processor([journey.data.val.image(i) for i in indices], return_tensors="pt").pixel_values
    model: Any = DeiTForImageClassificationWithTeacher.from_pretrained(journey.distilled.out).eval()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attention = model(pixels, output_attentions=True).attentions[-1].mean(1).numpy()  # (B, N, N)
    grid = model.config.grid_size
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
