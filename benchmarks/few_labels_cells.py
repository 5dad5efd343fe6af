"""What `few_labels.py` compares: its cells and budgets, and how each model is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import tells
from PIL import Image

from deit.core.file_names import RECIPE_NAME
from deit.core.files import write_json_atomically
from deit.data.augment import Augmentation
from deit.data.few_labels import with_fewer_labels
from deit.data.sources import Data, Derived, Source, WithoutLabels
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import DataOptions, Distillation, Masking, Optimizer, PseudoLabels, Schedule
from deit.train.students.deit import build_masked_student, build_student
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.tasks.masked_images import MaskedImageTask
from deit.train.tasks.task import Task
from deit.train.teachers.teacher import match_teacher, open_teacher

LIGHT_VIEWS = Augmentation(crop="padded", rand_augment="", erase_rate=0.0, mix_rate=0.0)
STRONG_VIEWS = Augmentation(crop="padded", mixup_alpha=0.0, mix_rate=0.5)  # with RandAugment, erasing and CutMix
CONVNET_VIEWS = Augmentation(crop="padded", mix_rate=0.0)  # with RandAugment and erasing

PRE_TRAINING, TEACHER, CONVNET = "pre-training", "teacher", "convnet"  # what is trained for the cells
CELLS = ("scratch", "pre-trained", "distilled", "both")
BEGIN_MASKED = ("pre-trained", "both")  # students that start with pre-training

_ADAMW = Optimizer(lr=1e-3, reference_batch_size=0, clip_grad=1.0)
_SOFT = Distillation(kind="soft", temperature=1.0, weight=0.8)
_PSEUDO = PseudoLabels(weight=2.0, threshold=0.7)
_CONVNET_ADAMW = Optimizer(lr=2e-3, reference_batch_size=0)
_MASKED: dict[str, Any] = {
    "augment": Augmentation(crop_scale=(0.67, 1.0), rand_augment="", erase_rate=0.0, mix_rate=0.0),
    "masking": Masking(patch=8, picture_steps=0),
}
# Of the better convnet: labels where there are some, else pseudo-labels of its running average.
_BY_ITSELF: dict[str, Any] = {
    "augment": CONVNET_VIEWS,
    "ema_decay": 0.99,
    "optimizer": _CONVNET_ADAMW,
    "data": DataOptions(labelled_share=0.3),
    "pseudo_labels": PseudoLabels(weight=1.0, threshold=0.8, mixup=False),
}
_STANDARDIZED: dict[str, Any] = {"distillation": Distillation(kind="standardized", weight=0.8)}
_DIST: dict[str, Any] = {"distillation": Distillation(kind="dist", weight=0.8)}
_MUON: dict[str, Any] = {"optimizer": dataclasses.replace(_ADAMW, name="muon")}
_MIMETIC: dict[str, Any] = {"initialization": "mimetic"}
_GUIDED: dict[str, Any] = {"distillation": dataclasses.replace(_SOFT, guidance=10.0)}
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
    "standardized": Ingredient(settings=_STANDARDIZED),
    "wttm": Ingredient(settings={"distillation": Distillation(kind="wttm", temperature=2.0, weight=0.8)}),
    "dist": Ingredient(settings=_DIST),
    "flip": Ingredient(settings={"distillation": dataclasses.replace(_SOFT, flip_teacher=True)}),
    "muon": Ingredient(settings=_MUON),
    "average": Ingredient(settings={"ema_decay": 0.995}),
    "pseudo": Ingredient(settings=_BY_AVERAGE, teacher=""),
    "pseudo-distilled": Ingredient(settings=_BY_AVERAGE),
    "mimetic": Ingredient(settings=_MIMETIC),
    "guided": Ingredient(settings=_GUIDED),
    "mimetic-guided": Ingredient(settings={**_MIMETIC, **_GUIDED}),
    "mimetic-guided-better": Ingredient(settings={**_MIMETIC, **_GUIDED}, teacher="convnet"),
    "mimetic-dist": Ingredient(settings={**_MIMETIC, **_DIST}),
    "mimetic-standardized": Ingredient(settings={**_MIMETIC, **_STANDARDIZED}),
    "mimetic-muon": Ingredient(settings={**_MIMETIC, **_MUON}),
    "mimetic-scratch": Ingredient(settings=_MIMETIC, teacher=""),
    "better-teacher": Ingredient(teacher="convnet"),
    "mimetic-better": Ingredient(settings=_MIMETIC, teacher="convnet"),
    "together": Ingredient(
        settings={**_MIMETIC, "ema_decay": 0.995, "distillation": dataclasses.replace(_SOFT, flip_teacher=True)},
        teacher="convnet",
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


class Decoded(Derived):
    """The same images, each decoded once.

    Args:
        source: Small images, which all fit in memory.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.labels = source.labels
        self._images: dict[int, Image.Image] = {}

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        if index not in self._images:
            self._images[index] = super().image(index)
        return self._images[index].copy()

    def _fingerprint(self, of_source: str) -> str:
        return of_source


def some_of(data: Data, budget: Budget) -> Data:
    """Returns a fixed choice of images, equally many of each class."""
    classes, train, val = len(data.train.classes), Decoded(data.train), Decoded(data.val)
    train_images, val_images = budget.train_images // classes, budget.val_images // classes
    return Data(
        train=with_fewer_labels(Data(train=train, val=val), labels_per_class=train_images, seed=1).train,
        val=with_fewer_labels(Data(train=val, val=val), labels_per_class=val_images).train,
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model to train.

    Attributes:
        seed: Of the labels and of the training.
        share: Of the labels; 0 for pre-training.
        name: A cell or one of `PRE_TRAINING`, `TEACHER` and `CONVNET`.
    """

    seed: int
    share: float = 0.0
    name: str

    @property
    def folder(self) -> str:
        """Its folder in that of the benchmark."""
        return f"seed-{self.seed}/{self.name if not self.share else f'labels-{self.share:g}/{self.name}'}"

    def needs(self) -> list[Run]:
        """Returns what must be trained before."""
        teacher = teacher_of(self.name)
        return [
            *([Run(seed=self.seed, name=PRE_TRAINING)] if self.name in BEGIN_MASKED else []),
            *([dataclasses.replace(self, name=teacher)] if teacher else []),
        ]


def teacher_of(cell: str) -> str:
    """Returns which convnet a cell learns from; nothing for those that learn without, and for the convnets."""
    if cell in ("scratch", "pre-trained", PRE_TRAINING, TEACHER, CONVNET):
        return ""
    return INGREDIENTS.get(cell, Ingredient()).teacher


def all_runs(seeds: Sequence[int], shares: Sequence[float], cells: Sequence[str]) -> list[Run]:
    """Returns the runs in the order of the table; what a run needs comes before it."""
    runs: list[Run] = []
    for seed in seeds:
        if set(BEGIN_MASKED) & set(cells):
            runs.append(Run(seed=seed, name=PRE_TRAINING))
        for share in shares:
            convnets = [TEACHER, *([CONVNET] if any(teacher_of(cell) == CONVNET for cell in cells) else [])]
            runs += [Run(seed=seed, share=share, name=name) for name in (*convnets, *cells)]
    return runs


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run is shown by. Lies in its folder, so that the same command does not measure it again.

    Attributes:
        recipe: Of the run, without the number of workers; another one is another run.
        images: Number of images to learn from, and to measure on.
        heads: Scores by head; the first is that of the table.
        history: A row of metrics for each evaluation.
    """

    recipe: dict[str, Any]
    images: list[int]
    heads: dict[str, dict[str, float]]
    history: list[dict[str, Any]]

    @property
    def score(self) -> float:
        """Top-1 in percent, or the loss of a reconstruction."""
        return next(iter(next(iter(self.heads.values())).values()))


class Trainings:
    """All runs. Resumes unfinished runs in their folders, and only reads finished ones.

    Args:
        data: Images to learn from and to measure on, all of them labeled.
        budget: Sizes and lengths.
        out: Folder for the folders of the runs.
        device: Of all runs; None takes the GPU if there is one.
        workers: Processes that prepare the images of each run; -1 chooses the number.
    """

    def __init__(self, data: Data, budget: Budget, out: Path, device: str | None, workers: int) -> None:
        self.data, self.budget, self.out, self.device, self.workers = data, budget, out, device, workers

    def finished(self, run: Run) -> Outcome | None:
        """Returns the outcome of a run if it has the recipe of now and is finished."""
        path = self.out / run.folder / "outcome.json"
        if not path.is_file():
            return None
        found = Outcome(**json.loads(path.read_text()))
        data = self.data_of(run)
        same = found.recipe == _plain(self.recipe_of(run, data)) and found.images == _counts(data)
        return found if same else None

    def train(self, run: Run) -> Outcome:
        """Trains one model; what it needs must be finished."""
        if found := self.finished(run):
            return found
        folder, data = self.out / run.folder, self.data_of(run)
        its_recipe = self.recipe_of(run, data)
        result = fit(
            self.task_of(run, its_recipe), data, its_recipe, out=folder, device=self.device,
            resume=(folder / RECIPE_NAME).is_file(), on_step=tells(run.folder, every=400),
        )  # fmt: skip
        heads = {head: scores.as_dict() for head, scores in result.scores.items()}
        outcome = Outcome(recipe=_plain(its_recipe), images=_counts(data), heads=heads, history=result.history)
        write_json_atomically(folder / "outcome.json", dataclasses.asdict(outcome))
        return outcome

    def data_of(self, run: Run) -> Data:
        """Returns all images without labels, those with a label, or all with some labels."""
        if run.name == PRE_TRAINING:
            return Data(train=WithoutLabels(self.data.train), val=WithoutLabels(self.data.val))
        labels_itself = "pseudo_labels" in INGREDIENTS.get(run.name, Ingredient()).settings
        everything = run.name == CONVNET or labels_itself or bool(teacher_of(run.name))
        return with_fewer_labels(self.data, label_fraction=run.share, seed=run.seed, keep_others=everything)

    def recipe_of(self, run: Run, data: Data) -> Recipe:
        """Returns the recipe of a run on its data."""
        budget, images, settings = self.budget, len(data.train.labels), {"num_workers": self.workers}
        if run.name == PRE_TRAINING:
            return recipe(budget, run.seed, budget.masked_steps, images, **_MASKED, **settings)
        if run.name == TEACHER:
            return recipe(budget, run.seed, budget.teacher_steps, images, optimizer=_CONVNET_ADAMW, **settings)
        if run.name == CONVNET:
            return recipe(budget, run.seed, budget.convnet_steps, images, **_BY_ITSELF, **settings)
        starts, change = run.name in BEGIN_MASKED, INGREDIENTS.get(run.name, Ingredient())
        steps = budget.steps - budget.masked_steps if starts else budget.steps
        its_recipe = recipe(budget, run.seed, steps, images, **change.settings, **settings)
        if starts:
            decay = dataclasses.replace(its_recipe.optimizer, layer_decay=budget.layer_decay)
            its_recipe = dataclasses.replace(its_recipe, optimizer=decay)
        return its_recipe

    def task_of(self, run: Run, its_recipe: Recipe) -> Task:
        """Builds the model of a run and its losses."""
        budget, classes = self.budget, self.data.train.classes
        if run.name == PRE_TRAINING:
            masked = build_masked_student(budget.student, its_recipe)
            return MaskedImageTask(masked.model, masked.processor, masking=its_recipe.masking, seed=run.seed)
        if run.name in (TEACHER, CONVNET):
            convnet = build_student(budget.teacher, classes, its_recipe, image_size=budget.teacher_side)
            return ClassificationTask(convnet.model, convnet.processor)
        init = self.out / Run(seed=run.seed, name=PRE_TRAINING).folder if run.name in BEGIN_MASKED else None
        student = build_student(budget.student, classes, its_recipe, init=init)
        teacher = teacher_of(run.name)
        if not teacher:
            return ClassificationTask(student.model, student.processor)
        speaker = open_teacher(self.out / dataclasses.replace(run, name=teacher).folder)
        speaker = match_teacher(speaker, classes, student.processor.output_size)
        return DistillationTask(student.model, speaker, student.processor, distillation=its_recipe.distillation)


def _plain(its_recipe: Recipe) -> dict[str, Any]:
    values = json.loads(json.dumps(its_recipe.to_dict()))
    return {name: value for name, value in values.items() if name != "num_workers"}


def _counts(data: Data) -> list[int]:
    return [len(data.train.labels), len(data.val.labels)]
