"""Measures the gain from pre-training without labels and from a teacher with few labels, on CIFAR-10, over seeds.

    python benchmarks/few_labels.py FOLDER --out runs/few-labels

FOLDER holds CIFAR-10 as Parquet in the Hugging Face layout, a file for training and one for testing. For each seed and
each share of labels it trains four students for the same number of steps:

* scratch: learns from the labeled images only;
* pre-trained: reconstructs all images, masked and without labels, for a third of the steps, then learns from the
  labeled images;
* distilled: learns from the labels, and from a convnet's answers on all images. The convnet is trained on the labeled
  images only;
* both: a third of the steps as pre-training, two thirds as distilled.

Other cells change one thing of "distilled", see `INGREDIENTS`; "together" changes several. Some learn from a better
convnet, which is trained on all images: the running average of its weights labels those that have no label.

The steps of a student do not include the convnet's training, which uses the same labels. The same command resumes a
stopped run. The default budget suits two CPU cores; `--budget gpu` suits a GPU.
`--only 0.01` runs one share of labels, `--cells scratch distilled` two of the students, `--steps 6000` another length,
`--images 50000` all images. `--often 25` uses strong augmentation for images that are shown more often than that.
`--budget screen` compares cells on 5,000 images in some minutes each. `--budget tiny` runs everything in a minute, as a
test.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import report, tells

from deit.data.augment import Augmentation
from deit.data.few_labels import with_fewer_labels
from deit.data.open_data import open_data
from deit.data.sources import Data, WithoutLabels
from deit.train.loop import fit
from deit.train.progress import FitResult
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import DataOptions, Distillation, Masking, Optimizer, PseudoLabels, Schedule
from deit.train.students.deit import build_masked_student, build_student
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.tasks.masked_images import MaskedImageTask
from deit.train.teachers.teacher import match_teacher, open_teacher

LIGHT_VIEWS = Augmentation(crop="padded", rand_augment="", erase_rate=0.0, mix_rate=0.0)
STRONG_VIEWS = Augmentation(crop="padded", mixup_alpha=0.0, mix_rate=0.5)  # with RandAugment, erasing and CutMix
CONVNET_VIEWS = Augmentation(crop="padded", mix_rate=0.0)  # with RandAugment and erasing

CELLS = ("scratch", "pre-trained", "distilled", "both")
BEGIN_MASKED = ("pre-trained", "both")  # students that start with pre-training

_ADAMW = Optimizer(lr=1e-3, reference_batch_size=0, clip_grad=1.0)
_SOFT = Distillation(kind="soft", temperature=1.0, weight=0.8)
_PSEUDO = PseudoLabels(weight=2.0, threshold=0.7)
_BY_AVERAGE: dict[str, Any] = {"pseudo_labels": _PSEUDO, "ema_decay": 0.995, "data": DataOptions(labelled_share=0.2)}


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """What a cell changes of "distilled".

    Attributes:
        settings: Of the recipe.
        teacher: "teacher", the convnet that learns from the labels alone; "convnet", the better one; "" for none.
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    teacher: str = "teacher"


INGREDIENTS = {
    "standardized": Ingredient(settings={"distillation": Distillation(kind="standardized", weight=0.8)}),
    "wttm": Ingredient(settings={"distillation": Distillation(kind="wttm", temperature=2.0, weight=0.8)}),
    "dist": Ingredient(settings={"distillation": Distillation(kind="dist", weight=0.8)}),
    "flip": Ingredient(settings={"distillation": dataclasses.replace(_SOFT, flip_teacher=True)}),
    "muon": Ingredient(settings={"optimizer": dataclasses.replace(_ADAMW, name="muon")}),
    "average": Ingredient(settings={"ema_decay": 0.995}),
    "pseudo": Ingredient(settings=_BY_AVERAGE, teacher=""),
    "pseudo-distilled": Ingredient(settings=_BY_AVERAGE),
    "better-teacher": Ingredient(teacher="convnet"),
    "together": Ingredient(
        settings={"distillation": Distillation(kind="dist", weight=0.8, flip_teacher=True)}, teacher="convnet"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Sizes and lengths of the trainings.

    Attributes:
        train_images: Number of training images out of 50,000, the same number of each class.
        val_images: Number of test images out of 10,000.
        shares: Shares of the labels.
        student: Variant of the students.
        teacher: timm's architecture of the convnet.
        teacher_side: Side of the convnet's input in pixels.
        steps: Steps of each student, including pre-training.
        teacher_steps: Steps of each convnet.
        batch_size: Batch size of all trainings.
        layer_decay: Layer decay of students that start from pre-trained weights.
        often: Images that are shown more often than this get strong augmentation.
        convnet_steps: Steps of each better convnet, which sees all images.
    """

    train_images: int
    val_images: int = 10_000
    shares: tuple[float, ...] = (0.01, 0.1, 1.0)
    student: str
    teacher: str
    teacher_side: int
    steps: int
    teacher_steps: int
    batch_size: int
    layer_decay: float = 0.85
    often: int = 100
    convnet_steps: int = 4_000

    @property
    def masked_steps(self) -> int:
        """Steps of pre-training, which are part of the steps of a student."""
        return self.steps // 3


BUDGETS = {
    "tiny": Budget(
        train_images=200, val_images=100, shares=(0.1, 1.0), student="deit-digits-distilled-patch8-32",
        teacher="timm/test_resnet", teacher_side=32, steps=60, teacher_steps=20, batch_size=10, convnet_steps=40,
    ),
    "screen": Budget(
        train_images=5_000, val_images=2_000, shares=(0.1,), student="deit-digits-distilled-patch8-32",
        teacher="timm/resnet10t", teacher_side=32, steps=1_000, teacher_steps=400, batch_size=50, convnet_steps=500,
    ),
    "cpu": Budget(
        train_images=25_000, student="deit-mini-distilled-patch4-32", teacher="timm/resnet10t", teacher_side=64,
        steps=4_500, teacher_steps=1_600, batch_size=50,
    ),
    "gpu": Budget(
        train_images=50_000, student="deit-tiny-distilled-patch4-32", teacher="timm/resnet18", teacher_side=128,
        steps=24_000, teacher_steps=6_000, batch_size=500,
    ),
}  # fmt: skip


def recipe(budget: Budget, seed: int, steps: int, images: int, **settings: Any) -> Recipe:
    """Returns a recipe for a number of steps and images."""
    epochs = max(steps // (images // budget.batch_size), 1)
    values: dict[str, Any] = {
        "batch_size": budget.batch_size,
        "seed": seed,
        "drop_path_rate": 0.0,
        "crop_ratio": 1.0,
        "eval_epochs": max(epochs // 4, 1),
        "augment": STRONG_VIEWS if epochs > budget.often else LIGHT_VIEWS,
        "optimizer": _ADAMW,
        "schedule": Schedule(epochs=epochs, warmup_epochs=epochs / 10),
        "distillation": _SOFT,
    }
    return Recipe(**{**values, **settings})


def some_of(data: Data, budget: Budget) -> Data:
    """Returns a fixed choice of images, equally many of each class."""
    classes = len(data.train.classes)
    train = with_fewer_labels(data, labels_per_class=budget.train_images // classes, seed=1).train
    val = with_fewer_labels(Data(train=data.val, val=data.val), labels_per_class=budget.val_images // classes).train
    return Data(train=train, val=val)


class Seed:
    """All runs of one seed. Resumes unfinished runs in its folder, and only scores finished ones."""

    def __init__(self, data: Data, budget: Budget, seed: int, out: Path, device: str | None) -> None:
        self.data, self.budget, self.seed, self.out, self.device = data, budget, seed, out, device
        self.images = len(data.train.labels)

    def fit(self, name: str, task: Any, data: Data, its_recipe: Recipe) -> FitResult:
        """Trains one model."""
        folder = self.out / name
        return fit(
            task, data, its_recipe, out=folder, device=self.device, resume=folder.exists(),
            on_step=tells(f"seed {self.seed}, {name}", every=400),
        )  # fmt: skip

    def pretrain(self) -> FitResult:
        """Reconstructs masked images: the first steps of two of the students."""
        augment = Augmentation(crop_scale=(0.67, 1.0), rand_augment="", erase_rate=0.0, mix_rate=0.0)
        its_recipe = recipe(
            self.budget, self.seed, self.budget.masked_steps, self.images, augment=augment,
            masking=Masking(patch=8, picture_steps=0),
        )  # fmt: skip
        student = build_masked_student(self.budget.student, its_recipe)
        task = MaskedImageTask(student.model, student.processor, masking=its_recipe.masking, seed=self.seed)
        data = Data(train=WithoutLabels(self.data.train), val=WithoutLabels(self.data.val))
        return self.fit("pre-training", task, data, its_recipe)

    def cells(self, share: float, names: Sequence[str]) -> dict[str, FitResult]:
        """Trains the convnet and the students of one share of labels."""
        few = with_fewer_labels(self.data, label_fraction=share, seed=self.seed)
        all_images = with_fewer_labels(self.data, label_fraction=share, seed=self.seed, keep_others=True)
        budget, classes, folder = self.budget, self.data.train.classes, f"labels-{share:g}"
        labelled = len(few.train.labels)
        for_teacher = recipe(
            budget, self.seed, budget.teacher_steps, labelled, optimizer=Optimizer(lr=2e-3, reference_batch_size=0)
        )
        convnet = build_student(budget.teacher, classes, for_teacher, image_size=budget.teacher_side)
        runs = {
            "teacher": self.fit(
                f"{folder}/teacher", ClassificationTask(convnet.model, convnet.processor), few, for_teacher
            )
        }
        if any(INGREDIENTS[cell].teacher == "convnet" for cell in names if cell in INGREDIENTS):
            runs["convnet"] = self.better_convnet(f"{folder}/convnet", all_images)
        for cell in names:
            change = INGREDIENTS.get(cell, Ingredient())
            starts = cell in BEGIN_MASKED
            asks = bool(change.teacher) and cell not in ("scratch", "pre-trained")
            data = all_images if asks or cell in INGREDIENTS else few
            steps = budget.steps - budget.masked_steps if starts else budget.steps
            its_recipe = recipe(budget, self.seed, steps, len(data.train.labels), **change.settings)
            if starts:
                decay = dataclasses.replace(its_recipe.optimizer, layer_decay=budget.layer_decay)
                its_recipe = dataclasses.replace(its_recipe, optimizer=decay)
            init = self.out / "pre-training" if starts else None
            student = build_student(budget.student, classes, its_recipe, init=init)
            task: Any = ClassificationTask(student.model, student.processor)
            if asks:
                speaker = open_teacher(self.out / folder / change.teacher)
                speaker = match_teacher(speaker, classes, student.processor.output_size)
                task = DistillationTask(student.model, speaker, student.processor, distillation=its_recipe.distillation)
            runs[cell] = self.fit(f"{folder}/{cell}", task, data, its_recipe)
        return runs

    def better_convnet(self, name: str, data: Data) -> FitResult:
        """Trains a convnet on all images: labels where there are some, else pseudo-labels of its running average."""
        budget = self.budget
        its_recipe = recipe(
            budget, self.seed, budget.convnet_steps, self.images, augment=CONVNET_VIEWS, ema_decay=0.99,
            optimizer=Optimizer(lr=2e-3, reference_batch_size=0), data=DataOptions(labelled_share=0.3),
            pseudo_labels=PseudoLabels(weight=1.0, threshold=0.8, mixup=False),
        )  # fmt: skip
        convnet = build_student(budget.teacher, self.data.train.classes, its_recipe, image_size=budget.teacher_side)
        return self.fit(name, ClassificationTask(convnet.model, convnet.processor), data, its_recipe)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns top-1 in percent as a Markdown table: mean and spread over the seeds."""
    names = list(dict.fromkeys(name for row in rows for name in row["top-1"]))
    lines = [f"| labels | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for share in sorted({row["share"] for row in rows}):
        shown = []
        for name in names:
            values = [row["top-1"][name] for row in rows if row["share"] == share]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            shown.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {100 * share:g} % | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw(runs: dict[tuple[float, int], dict[str, FitResult]], masked_steps: int, path: Path) -> None:
    """Draws top-1 over a student's steps, pre-training included: a picture for each share, a line for each seed.

    Args:
        runs: (share of labels, seed) -> name -> run.
        masked_steps: Steps of pre-training, the offset of students that start with it.
        path: Path of the PNG.
    """
    from matplotlib.figure import Figure

    shares = sorted({share for share, _ in runs})
    figure = Figure(figsize=(3.6 * len(shares), 3.6), layout="constrained")
    for axis, share in zip(figure.subplots(1, len(shares), sharey=True, squeeze=False)[0], shares, strict=True):
        of_share = [each for (own_share, _), each in sorted(runs.items()) if own_share == share]
        shown = [name for name in ("teacher", "convnet", *CELLS, *INGREDIENTS) if any(name in run for run in of_share)]
        for number_of_colour, name in enumerate(shown):
            colour = "C7" if name == "teacher" else f"C{number_of_colour - 1}"
            for number, each in enumerate(run[name] for run in of_share if name in run):
                label = name if not number else None
                if name in ("teacher", "convnet"):
                    axis.axhline(each.history[-1]["val_top1"], color=colour, linestyle=":", label=label)
                    continue
                start = masked_steps if name in BEGIN_MASKED else 0
                steps, top1 = [start + row["step"] for row in each.history], [row["val_top1"] for row in each.history]
                axis.plot(steps, top1, color=colour, marker="o", markersize=3, linewidth=1.4, label=label)
        axis.set(title=f"{100 * share:g} % of the labels", xlabel="step")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("top-1 (%)")
    figure.axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budget", choices=list(BUDGETS), default="cpu")
    parser.add_argument("--only", type=float, nargs="+", help="shares of labels; all of the budget without")
    parser.add_argument("--cells", choices=(*CELLS, *INGREDIENTS), nargs="+", default=CELLS)
    parser.add_argument("--steps", type=int, help="of a student; those of the budget without")
    parser.add_argument("--images", type=int, help="to train on, labeled or not; those of the budget without")
    parser.add_argument("--often", type=int, help="images shown more often than this get strong augmentation; 100")
    parser.add_argument("--device")
    options = parser.parse_args()
    budget = BUDGETS[options.budget]
    budget = dataclasses.replace(
        budget,
        steps=options.steps or budget.steps,
        train_images=options.images or budget.train_images,
        often=options.often or budget.often,
    )
    data = some_of(open_data(options.data), budget)
    rows: list[dict[str, Any]] = []
    finished = {}
    for seed in options.seeds:
        runs_of_seed = Seed(data, budget, seed, options.out / f"seed-{seed}", options.device)
        masked = runs_of_seed.pretrain() if set(BEGIN_MASKED) & set(options.cells) else None
        for share in options.only or budget.shares:
            runs = runs_of_seed.cells(share, options.cells)
            finished[share, seed] = runs
            rows.append(
                {
                    "seed": seed,
                    "share": share,
                    "top-1": {name: next(iter(run.scores.values())).top1 for name, run in runs.items()},
                    "heads": {
                        name: {head: score.top1 for head, score in run.scores.items()} for name, run in runs.items()
                    },
                    "reconstruction": masked and masked.scores["reconstruction"].loss,
                    "seconds": {name: run.history[-1]["seconds"] for name, run in runs.items()},
                }
            )
            print(rows[-1], flush=True)
    draw(finished, budget.masked_steps, options.out / "curves.png")
    print(table(rows))
    for share in sorted({row["share"] for row in rows} if {"distilled", "scratch"} <= set(options.cells) else ()):
        gains = [row["top-1"]["distilled"] - row["top-1"]["scratch"] for row in rows if row["share"] == share]
        print(f"{100 * share:g} % of the labels: distilled over scratch {statistics.mean(gains):+.2f} points")
    complete = budget == BUDGETS[options.budget] and not options.only and set(options.cells) == set(CELLS)
    name = "few-labels" if complete else f"few-labels-{budget.train_images}-images-{budget.steps}-steps"
    report(name, [{"budget": dataclasses.asdict(budget)}, *rows], write=options.budget != "tiny")


if __name__ == "__main__":
    main()
