"""Draws the picture of docs/explain.md: maps of a model whose evidence is known.

    python benchmarks/explanation_picture.py docs/images/explain.png

Each image is noise with a disk of stripes or checks at a random place; the class is the texture. A small DeiT learns
them within some minutes on a CPU. Then only the disk is evidence, and the script prints, for every method, the share of
the map that lies on the disk beside the disk's share of the image, over new images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

import deit
from deit.explain.explainer import Explainer
from deit.explain.maps import METHODS
from deit.explain.overlay import color_bar

CLASSES = ["upright stripes", "level stripes", "checks"]
SIDE, RADIUS, TILE = 32, 7, 128


def image_of(label: int, random: np.random.Generator) -> tuple[Image.Image, np.ndarray[Any, Any]]:
    """Returns an image, and where its disk is (32, 32)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx = random.integers(RADIUS, SIDE - RADIUS, 2)
    disk = (y - cy) ** 2 + (x - cx) ** 2 <= RADIUS**2
    texture = [x // 2 % 2, y // 2 % 2, (x // 2 + y // 2) % 2][label] * 160.0
    values = random.normal(110, 30, (SIDE, SIDE, 3))
    values[disk] = (texture[..., None] + random.uniform(20, 90, 3))[disk] + random.normal(0, 12, (disk.sum(), 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)), disk


def train(steps: int) -> tuple[Any, Any]:
    config = deit.DeiTConfig(
        image_size=SIDE, patch_size=4, hidden_size=96, num_hidden_layers=4, num_attention_heads=3,
        intermediate_size=192, id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    torch.manual_seed(0)
    model = deit.DeiTForImageClassificationWithTeacher(config).train()
    processor = deit.DeiTImageProcessor(do_resize=False, do_center_crop=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    random = np.random.default_rng(0)
    for step in range(steps):
        labels = random.integers(0, 3, 48)
        images = [image_of(int(label), random)[0] for label in labels]
        pixels = processor(images, return_tensors="pt").pixel_values
        output, expected = model(pixels), torch.from_numpy(labels)
        loss = F.cross_entropy(output.cls_logits, expected) + F.cross_entropy(output.distillation_logits, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            right = float((output.logits.argmax(1) == expected).float().mean())
            print(f"step {step}: loss {float(loss.detach()):.3f}, right {100 * right:.0f} %", flush=True)
    return model.eval(), processor


def measure(explainer: Explainer, count: int) -> None:
    random = np.random.default_rng(1)
    shares: dict[str, list[float]] = {method: [] for method in METHODS}
    areas, verdicts = [], dict.fromkeys(METHODS, 0)
    for number in range(count):
        image, disk = image_of(number % 3, random)
        patches = disk.reshape(8, 4, 8, 4).mean((1, 3))
        areas.append(patches.mean())
        for method in METHODS:
            found = explainer.explain(image, method=method, heads=["both"])
            overall = found.explanation.heads["both"].overall
            shares[method].append(float((overall * patches).sum() / overall.sum()))
            verdicts[method] += found.scores["both"].verdict == "better"
    for method in METHODS:
        print(
            f"{method}: {100 * np.mean(shares[method]):.0f} % of the map on the disk, which covers "
            f"{100 * np.mean(areas):.0f} % of the image; better than random in {verdicts[method]} of {count} images"
        )


def draw(explainer: Explainer, path: Path) -> None:
    random = np.random.default_rng(5)
    font = ImageFont.load_default(13)
    columns = ["image", *METHODS]
    sheet = Image.new("RGB", ((TILE + 8) * len(columns) + 8, 3 * (TILE + 40) + 54), "white")
    pen = ImageDraw.Draw(sheet)
    for row, label in enumerate(CLASSES):
        image, _ = image_of(row, random)
        top = 26 + row * (TILE + 40)
        for column, method in enumerate(columns):
            left = 8 + column * (TILE + 8)
            if row == 0:
                pen.text((left, 6), method, fill=(28, 36, 48), font=font)
            picture, words = image, label
            if column:
                found = explainer.explain(image, method=method, heads=["both"], target=label)
                picture, score = found.draw(), found.scores["both"]
                words = f"{score.score:+.2f}, {score.verdict}"
            sheet.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (left, top))
            pen.text((left, top + TILE + 4), words, fill=(28, 36, 48), font=font)
    sheet.paste(color_bar(TILE, 10), (8, sheet.height - 22))
    pen.text((TILE + 16, sheet.height - 26), "least to most, of each map", fill=(28, 36, 48), font=font)
    sheet.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("picture", type=Path, metavar="FILE", help="PNG file to write")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=60)
    options = parser.parse_args()
    model, processor = train(options.steps)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        explainer = Explainer.open(folder)
    draw(explainer, options.picture)
    measure(explainer, options.images)


if __name__ == "__main__":
    main()
