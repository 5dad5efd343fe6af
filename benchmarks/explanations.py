"""Measures explanations on trained models: does a map say more than chance, and more than the center of the image?

    python benchmarks/explanations.py --data FOLDER --train --out runs/explain          # train 3 models, measure them
    python benchmarks/explanations.py --data FOLDER --trained runs/explain/seed-*       # measure models

FOLDER holds CIFAR-10 as Parquet in the Hugging Face layout (any labeled images that `deit train` takes will do). The
models are DeiTs with 6 blocks of width 192 for 32 x 32 pixels, trained from labels, one for each seed.

For each model, method and image of the validation split it explains the predicted class by the model's answer (both
heads), and computes

* SaCo (Wu et al., CVPR 2024, arXiv 2404.01415): patches in 10 groups by their salience; a pair of groups counts for the
  map if the more salient one changes the probability more when it is replaced by the mean color, weighted by the
  difference in salience. From -1 to 1.
* insertion minus deletion, as `deit explain` scores each map (`deit.explain.score`).

Beside the methods stand a random map and a centered Gaussian, whose width is chosen on other images, by SaCo. Intervals
are of the mean over images, 95 %, by the bootstrap; differences are paired by image.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from harness import report, tells
from token_merging import part_of

from deit.data.augment import Augmentation
from deit.data.open_data import open_data
from deit.data.sources import Data
from deit.explain.maps import METHODS, explain_image
from deit.explain.network import Network
from deit.explain.score import Curves, ScoredMap, centered, score_maps
from deit.inference.engines.torch_engine import open_torch_engine
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Optimizer, Schedule
from deit.train.students.deit import build_student
from deit.train.tasks.classification import ClassificationTask

Array = npt.NDArray[np.float64]

GROUPS = 10
WIDTHS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6)
RANDOM, CENTER = "random", "centered Gaussian"


# --- models -------------------------------------------------------------------------------------------


def train(data: Data, seed: int, options: argparse.Namespace) -> Path:
    recipe = Recipe(
        batch_size=50,
        seed=seed,
        precision="auto",
        label_smoothing=0.1,
        drop_path_rate=0.0,
        crop_ratio=1.0,
        eval_epochs=1000,
        initialization="mimetic",
        augment=Augmentation(crop="padded", rand_augment="", erase_rate=0.0, mixup_alpha=0.0, mix_rate=0.0),
        optimizer=Optimizer(lr=1e-3, reference_batch_size=0, clip_grad=1.0),
        schedule=Schedule(epochs=options.epochs, warmup_epochs=1),
    )
    out: Path = options.out / f"seed-{seed}"
    student = build_student(options.student, data.train.classes, recipe)
    fit(
        ClassificationTask(student.model, student.processor), data, recipe, out=out, resume=out.exists(),
        on_step=functools.partial(tells, every=100)(f"seed {seed}"),
    )  # fmt: skip
    return out


# --- scores -------------------------------------------------------------------------------------------


def changes_of(curves: Curves, values: Array, probability: Callable[[dict[str, Any]], Array], whole: float) -> Array:
    """Returns by how much the probability falls when each group of patches becomes the mean color."""
    groups = np.array_split(np.argsort(-values.ravel(), kind="stable"), GROUPS)
    kept = torch.ones(len(groups), values.size, dtype=torch.bool)
    for row, group in enumerate(groups):
        kept[row, group] = False
    return whole - probability(curves.masked(kept))


def saco(values: Array, changes: Array) -> float:
    """Returns the Salience-guided Faithfulness Coefficient (algorithm 1 of the paper)."""
    groups = np.array_split(np.sort(values.ravel())[::-1], len(changes))
    salience = np.array([group.sum() for group in groups])
    agreed = total = 0.0
    for i in range(len(groups)):
        for j in range(i + 1, len(groups)):
            weight = salience[i] - salience[j]
            agreed += weight if changes[i] >= changes[j] else -weight
            total += abs(weight)
    return agreed / total if total else 0.0


class Measured:
    """Scores maps of one image.

    Args:
        model: The classifier.
        pixels: (1, 3, H, W).
    """

    def __init__(self, model: Any, pixels: torch.Tensor) -> None:
        self.network, self.pixels = Network(model), pixels
        with torch.no_grad():
            logits = self.network.logits(pixels)
        self.head = next(iter(logits))
        self.target = int(logits[self.head].argmax())
        patch = self.network.trunk.patch_embed.patch_size
        self.grid = (pixels.shape[2] // patch[0], pixels.shape[3] // patch[1])
        self.to_mean = Curves(self.network, pixels, self.grid)
        self.to_mean.blurred = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
        self.whole = float(self.probability({name: row.numpy() for name, row in logits.items()})[0])

    def probability(self, logits: dict[str, Any]) -> Array:
        rows = torch.from_numpy(logits[self.head]).double()
        result: Array = rows.softmax(-1)[:, self.target].numpy()
        return result

    def saco(self, values: Array) -> float:
        with torch.no_grad():
            return saco(values, changes_of(self.to_mean, values, self.probability, self.whole))

    def insertion_minus_deletion(self, maps: dict[str, Array], *, seed: int) -> dict[str, Any]:
        scored = [ScoredMap(head=self.head, target=self.target, values=values) for values in maps.values()]
        return dict(zip(maps, score_maps(self.network, self.pixels, scored, seed=seed), strict=True))


def rows_of(model: Any, images: list[torch.Tensor], width: float) -> dict[str, dict[str, Array]]:
    """Returns for each map the scores of all images, by the name of the score."""
    found: dict[str, dict[str, list[float]]] = {}
    for number, pixels in enumerate(images):
        measured, generator = Measured(model, pixels), np.random.default_rng(number)
        maps: dict[str, Array] = {
            method: explain_image(model, pixels, method=method, heads=[measured.head]).heads[measured.head].overall
            for method in METHODS
        }
        maps |= {RANDOM: generator.random(measured.grid), CENTER: centered(measured.grid, width)}
        scores = measured.insertion_minus_deletion(maps, seed=number)
        for name, values in maps.items():
            into = found.setdefault(name, {"SaCo": [], "insertion - deletion": [], "better": [], "worse": []})
            into["SaCo"].append(measured.saco(values))
            into["insertion - deletion"].append(scores[name].score)
            into["better"].append(scores[name].verdict == "better")
            into["worse"].append(scores[name].verdict == "worse")
    return {name: {score: np.array(values, float) for score, values in of.items()} for name, of in found.items()}


def best_width(model: Any, images: list[torch.Tensor]) -> float:
    """Returns the width of the centered Gaussian with the highest mean SaCo."""
    measured = [Measured(model, pixels) for pixels in images]
    return max(WIDTHS, key=lambda w: statistics.fmean(m.saco(centered(m.grid, w).astype(float)) for m in measured))


def interval(values: Array, *, resamples: int = 2000) -> tuple[float, float]:
    """Returns the 95 % interval of a mean by the bootstrap over images."""
    generator = np.random.default_rng(0)
    means = values[generator.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def measure(folder: Path, data: Data, options: argparse.Namespace) -> list[dict[str, Any]]:
    engine = open_torch_engine(folder)
    random = np.random.default_rng(0).permutation(len(data.val.labels))

    def pixels_of(numbers: npt.NDArray[np.int64]) -> list[torch.Tensor]:
        return [
            torch.from_numpy(engine.contract.processor(data.val.image(int(n)), return_tensors="np").pixel_values)
            for n in numbers
        ]

    others, images = random[: options.width_images], random[options.width_images :][: options.images]
    width = best_width(engine.model, pixels_of(others))
    pixels = pixels_of(images)
    with torch.no_grad():
        answers = np.array([int(engine.model(one).logits.argmax()) for one in pixels])
    top1 = 100 * float((answers == np.asarray(data.val.labels)[images]).mean())
    found = rows_of(engine.model, pixels, width)
    rows = []
    for name, scores in found.items():
        row: dict[str, Any] = {"model": folder.name, "top-1": top1, "images": len(pixels), "map": name}
        row |= {"width of the Gaussian": width}
        for score in ("SaCo", "insertion - deletion"):
            row[score], row[f"{score}, interval"] = float(scores[score].mean()), interval(scores[score])
            for baseline in (RANDOM, CENTER):
                difference = scores[score] - found[baseline][score]
                row[f"{score}, minus {baseline}"] = float(difference.mean())
                row[f"{score}, minus {baseline}, interval"] = interval(difference)
        row |= {f"{word} than random orders, %": 100 * float(scores[word].mean()) for word in ("better", "worse")}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table: the mean over models, and the lowest and highest model."""
    lines = [
        "| map | SaCo | insertion - deletion | minus random | minus centered Gaussian | better than random orders |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for name in dict.fromkeys(row["map"] for row in rows):
        own = [row for row in rows if row["map"] == name]
        cells = []
        for column in ("SaCo", "insertion - deletion", f"insertion - deletion, minus {RANDOM}",
                       f"insertion - deletion, minus {CENTER}"):  # fmt: skip
            values = [row[column] for row in own]
            cells.append(f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        share = statistics.fmean(row["better than random orders, %"] for row in own)
        lines.append(f"| {name} | {' | '.join(cells)} | {share:.0f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="labeled images")
    parser.add_argument("--train", action="store_true", help="train the models into --out first")
    parser.add_argument("--trained", type=Path, nargs="+", default=[], metavar="FOLDER", help="model directories")
    parser.add_argument("--out", type=Path, help="folder of the trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--student", default="deit-micro-distilled-patch4-32")
    parser.add_argument("--train-images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=200, help="images to explain, of the validation split")
    parser.add_argument("--width-images", type=int, default=50, help="others, to choose the width of the Gaussian")
    parser.add_argument("--quick", action="store_true", help="writes no file")
    options = parser.parse_args()
    if options.train and options.out is None:
        parser.error("--train needs --out")
    if not options.train and not options.trained:
        parser.error("pass --train, or --trained with model directories")
    data = open_data(options.data)
    folders = list(options.trained)
    if options.train:
        part = Data(train=part_of(data.train, options.train_images), val=part_of(data.val, 1000))
        folders += [train(part, seed, options) for seed in options.seeds]
    rows = []
    for folder in folders:
        rows += measure(folder, data, options)
        print(table(rows[-len(METHODS) - 2 :]), flush=True)
    report("explanations", rows, write=not options.quick)
    print(table(rows))


if __name__ == "__main__":
    main()
