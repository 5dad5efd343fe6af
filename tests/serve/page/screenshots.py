"""Makes the pictures of docs/serving-page.md: draws images, trains a small model, serves it and photographs the page.

    python -m tests.serve.page.screenshots FOLDER   # work and models go there; takes about five minutes on two cores

The drawings are made here, so the pictures need no data and show nobody's photos.
"""

from __future__ import annotations

import io
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 512, 384
Draw = Callable[[ImageDraw.ImageDraw, np.random.Generator, float, float, float], None]


def _color(random: np.random.Generator, *around: int, spread: int = 28) -> tuple[int, int, int]:
    red, green, blue = np.clip(random.normal(around, spread), 0, 255).astype(int).tolist()
    return red, green, blue


def _trapezoid(x: float, top: float, upper: float, bottom: float, lower: float) -> list[tuple[float, float]]:
    """Returns the corners; `upper` and `lower` are half the widths."""
    return [(x - upper, top), (x + upper, top), (x + lower, bottom), (x - lower, bottom)]


def balloon(draw: ImageDraw.ImageDraw, random: np.random.Generator, x: float, y: float, r: float) -> None:
    color = _color(random, 205, 60, 60, spread=55)
    for i in range(5):
        shade = tuple(int(c * (0.75 + 0.1 * (i % 2) * 2)) for c in color)
        width = r * (1 - 0.4 * i / 2) if i < 3 else r * 0.2
        draw.ellipse((x - width, y - r * 1.15, x + width, y + r * 0.95), fill=shade)
    draw.line((x - r * 0.45, y + r * 0.75, x - r * 0.15, y + r * 1.35), fill=(70, 60, 50), width=3)
    draw.line((x + r * 0.45, y + r * 0.75, x + r * 0.15, y + r * 1.35), fill=(70, 60, 50), width=3)
    draw.rectangle((x - r * 0.18, y + r * 1.3, x + r * 0.18, y + r * 1.55), fill=(120, 84, 50))


def sailing_boat(draw: ImageDraw.ImageDraw, random: np.random.Generator, x: float, y: float, r: float) -> None:
    draw.polygon([(x - r * 1.2, y + r * 0.6), (x + r * 1.2, y + r * 0.6), (x + r * 0.8, y + r), (x - r * 0.8, y + r)],
                 fill=_color(random, 130, 75, 50))  # fmt: skip
    draw.polygon(
        [(x, y - r * 1.2), (x, y + r * 0.5), (x + r, y + r * 0.5)], fill=_color(random, 240, 236, 224, spread=12)
    )
    draw.polygon([(x - r * 0.1, y - r), (x - r * 0.1, y + r * 0.5), (x - r * 0.8, y + r * 0.5)],
                 fill=_color(random, 220, 120, 90))  # fmt: skip


def house(draw: ImageDraw.ImageDraw, random: np.random.Generator, x: float, y: float, r: float) -> None:
    draw.rectangle((x - r, y - r * 0.2, x + r, y + r), fill=_color(random, 225, 205, 170, spread=18))
    draw.polygon(
        [(x - r * 1.2, y - r * 0.2), (x, y - r * 1.1), (x + r * 1.2, y - r * 0.2)], fill=_color(random, 150, 60, 50)
    )
    draw.rectangle((x - r * 0.2, y + r * 0.3, x + r * 0.2, y + r), fill=_color(random, 90, 60, 40, spread=10))
    for side in (-0.65, 0.4):
        draw.rectangle((x + side * r, y + r * 0.1, x + (side + 0.28) * r, y + r * 0.45), fill=(120, 170, 205))


def tree(draw: ImageDraw.ImageDraw, random: np.random.Generator, x: float, y: float, r: float) -> None:
    draw.rectangle((x - r * 0.13, y, x + r * 0.13, y + r * 1.2), fill=_color(random, 100, 70, 45, spread=10))
    for _ in range(14):
        angle, far = random.uniform(0, 2 * math.pi), random.uniform(0, 0.55) * r
        cx, cy, size = x + far * math.cos(angle), y - r * 0.35 + far * math.sin(angle), r * random.uniform(0.25, 0.45)
        draw.ellipse((cx - size, cy - size, cx + size, cy + size), fill=_color(random, 60, 125, 60, spread=18))


def fir(draw: ImageDraw.ImageDraw, random: np.random.Generator, x: float, y: float, r: float) -> None:
    draw.rectangle((x - r * 0.1, y + r * 0.7, x + r * 0.1, y + r * 1.2), fill=(90, 62, 40))
    color = _color(random, 35, 90, 62, spread=14)
    for top, width in ((-1.2, 0.55), (-0.7, 0.75), (-0.15, 0.95)):
        draw.polygon([(x, y + top * r), (x - width * r, y + (top + 0.95) * r), (x + width * r, y + (top + 0.95) * r)],
                     fill=tuple(int(c * (1 + 0.12 * top)) for c in color))  # fmt: skip


def windmill(draw: ImageDraw.ImageDraw, random: np.random.Generator, x: float, y: float, r: float) -> None:
    tower = _trapezoid(x, y - r * 0.3, r * 0.3, y + r * 1.2, r * 0.5)
    draw.polygon(tower, fill=_color(random, 200, 190, 180, spread=14))
    turn = random.uniform(0, math.pi / 2)
    for i in range(4):
        angle = turn + i * math.pi / 2
        tip = (x + 1.15 * r * math.cos(angle), y - r * 0.3 + 1.15 * r * math.sin(angle))
        side = (x + 0.9 * r * math.cos(angle + 0.25), y - r * 0.3 + 0.9 * r * math.sin(angle + 0.25))
        draw.polygon([(x, y - r * 0.3), tip, side], fill=(100, 70, 60))


def lighthouse(draw: ImageDraw.ImageDraw, random: np.random.Generator, x: float, y: float, r: float) -> None:
    red = _color(random, 190, 50, 50, spread=18)
    for i in range(6):
        top, bottom = -0.7 + i * 0.32, -0.7 + (i + 1) * 0.32
        a, b = 0.22 + 0.05 * i, 0.22 + 0.05 * (i + 1)
        stripe = _trapezoid(x, y + top * r, a * r, y + bottom * r, b * r)
        draw.polygon(stripe, fill=red if i % 2 == 0 else (240, 238, 232))
    draw.rectangle((x - r * 0.17, y - r, x + r * 0.17, y - r * 0.7), fill=(250, 215, 110))
    draw.polygon([(x - r * 0.24, y - r), (x, y - r * 1.25), (x + r * 0.24, y - r)], fill=(60, 55, 60))


DRAWINGS: dict[str, Draw] = {
    "hot-air balloon": balloon, "sailing boat": sailing_boat, "house": house, "tree": tree, "fir": fir,
    "windmill": windmill, "lighthouse": lighthouse,
}  # fmt: skip


def scene(drawing: Draw, random: np.random.Generator, *, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Returns a drawing somewhere in a landscape."""
    top, low = np.array(_color(random, 120, 170, 215)), np.array(_color(random, 225, 215, 200, spread=20))
    share = np.linspace(0, 1, height)[:, None, None]
    image = Image.fromarray(np.broadcast_to((1 - share) * top + share * low, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for depth in range(2):
        level = height * random.uniform(0.55, 0.7) + depth * height * 0.14
        phase, color = (
            random.uniform(0, 6),
            _color(random, 110 - 25 * depth, 145 - 20 * depth, 105 - 30 * depth, spread=16),
        )
        waves = random.uniform(3, 6)
        ridge = [(i, level + height * 0.05 * math.sin(phase + i / width * waves)) for i in range(0, width + 8, 8)]
        draw.polygon([(0, height), *ridge, (width, height)], fill=color)
    size = min(width, height) * random.uniform(0.2, 0.3)
    drawing(draw, random, width * random.uniform(0.3, 0.7), height * random.uniform(0.4, 0.62), size)
    grain = random.normal(0, 5, (height, width, 1))
    return Image.fromarray(
        np.clip(np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), float) + grain, 0, 255).astype(np.uint8)
    )


def draw_folder(folder: Path, count: int, *, seed: int, side: int = 128) -> None:
    for number, (name, drawing) in enumerate(DRAWINGS.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            random = np.random.default_rng((seed, number, i))
            scene(drawing, random).resize((side * 4 // 3, side)).save(folder / name / f"{i}.jpg", quality=92)


def train(work: Path) -> Path:
    """Trains a model of two heads and calibrates it."""
    from tests.cli.conftest import succeeds

    model = work / "scenes"
    if not (model / "calibration.json").exists():
        draw_folder(work / "images" / "train", 80, seed=1)
        draw_folder(work / "images" / "val", 8, seed=2)
        draw_folder(work / "held-out", 30, seed=3)
        shutil.rmtree(model, ignore_errors=True)
        size = ("--image-size", "64", "--batch-size", "28", "--device", "cpu")
        rate = ("--set", "optimizer.lr=0.0015", "--set", "optimizer.reference_batch_size=0")
        teacher = work / "teacher"
        if not (teacher / "config.json").exists():
            shutil.rmtree(teacher, ignore_errors=True)
            few = ("--epochs", "6", "--out", teacher)
            succeeds("train", work / "images", "--student", "timm/test_resnet", *size, *rate, *few)
        # Few steps: no blends, and views that stay near the image.
        quick = (
            "drop_path_rate=0",
            "augment.mix_rate=0",
            "augment.erase_rate=0",
            "augment.rand_augment=rand-m4-mstd0.5-inc1",
        )
        views = [word for setting in (*quick, "eval_epochs=10") for word in ("--set", setting)]
        student = ("--student", "deit-digits-distilled-patch8-32", "--teacher", teacher, "--epochs", "40", *views)
        succeeds("train", work / "images", *student, *size, *rate, "--out", model)
        succeeds("calibrate", model, work / "held-out", "--training-images", work / "images" / "train")
    return model


def photograph(url: str, out: Path) -> None:
    """Writes the page with an answer, for a desktop and a phone, light and dark."""
    from playwright.sync_api import sync_playwright

    from tests.serve.page.conftest import DESKTOP, PHONE, PROGRAMS

    program = next(filter(None, map(shutil.which, PROGRAMS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--hide-scrollbars"])
        for device, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
            for scheme in ("light", "dark"):
                sizes = {"viewport": viewport, "device_scale_factor": 1 if device == "desktop" else 2}
                page = browser.new_context(color_scheme=scheme, reduced_motion="reduce", **sizes).new_page()
                page.goto(url)
                page.get_by_role("button", name="house.jpg", exact=True).click()
                page.locator("#map").wait_for()
                page.locator("#working").wait_for(state="hidden")
                page.get_by_role("button", name="Test the map").click()
                page.locator("#map-score").wait_for()
                page.locator("#working").wait_for(state="hidden")
                page.mouse.move(0, 0)
                name = f"serving-page-{device}-{scheme}.webp"
                shot = io.BytesIO(page.screenshot(full_page=device == "desktop"))
                Image.open(shot).convert("RGB").save(out / name, quality=82, method=6)
        browser.close()


def main() -> None:
    """Trains if that was not done, and takes the pictures."""
    from deit.inference.predictor import Predictor
    from tests.serve.live_server import live_server

    work, out = Path(sys.argv[1]).resolve(), Path(__file__).parents[3] / "docs" / "images"
    model, examples = train(work), work / "examples"
    examples.mkdir(exist_ok=True)
    for number, (name, drawing) in enumerate(DRAWINGS.items()):
        scene(drawing, np.random.default_rng((9, number, 0))).save(examples / f"{name}.jpg", quality=90)
    with live_server((f"scenes={model}",), Predictor.open, examples=str(examples)) as server:
        photograph(f"http://127.0.0.1:{server.port}/", out)


if __name__ == "__main__":
    main()
