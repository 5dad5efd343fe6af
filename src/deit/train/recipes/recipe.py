"""All hyper-parameters of a training, as frozen data. The defaults are the paper's (Table 9)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deit.core.config.following_defaults import CLASSIFICATION_LOSSES, FOLLOWS, following
from deit.core.files import write_text_atomically
from deit.data.augment import Augmentation
from deit.models.trunk.vision_transformer import DROP_PATH_SHAPES
from deit.train.recipes.sections import DataOptions, Distillation, Masking, Optimizer, Schedule
from deit.train.recipes.values import build, flat, plain, require, require_one_of, unknown_setting, without_following
from deit.train.recipes.yaml_files import read_yaml

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STUDENT_MODES = ("train", "eval")
EMA_USES = ("save", "keep")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of a recipe.

    Attributes:
        start: Where the warm-up begins.
        peak: Where it ends.
        end: Where the cosine ends.
    """

    start: float
    peak: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All hyper-parameters of one training.

    Attributes:
        student: What is trained: a variant of this package or `timm/NAME`; empty leaves it to the caller.
        config: What is changed of the variant, such as "num_hidden_layers=4"; of masked images alone.
        image_size: Side of the input in pixels; 0 for the variant's own.
        partial_patches: True lets the image size be no multiple of the patch size. The last pixels of each row and
            column, which fill no patch, are then not seen, as in the authors' training of DeiT III huge.
        init: The weights to begin with: model directory, weight file or hub name; empty for random ones. "<NAME>"
            stands for the model that the recipe NAME makes, which has to be given.
        teacher: Teacher models; the answers of several are averaged. Empty trains on labels alone.
        batch_size: Images in a step, over all processes and accumulated parts together.
        accumulate: Parts that each process computes one after the other and sums up to one step, to save memory.
        seed: Of order, views, mixing, dropout and drop path.
        precision: "fp32", "bf16" or "fp16" (autocast; weights stay fp32), or "auto": bf16 on GPUs and on CPUs with
            AMX, which multiply it in hardware; fp32 elsewhere.
        compile: True compiles the student with torch.compile.
        loss: "ce", cross-entropy, or "bce", a yes or no for each class (DeiT III); see `classification_loss`.
        label_smoothing: Share of the target mass spread over all classes. Without a number 0.1, and 0 with "bce".
        drop_path_rate: Of a student that `build_student` makes; a student made otherwise has its own.
        drop_path_shape: "linear" rises from 0 to the rate of the last block (DeiT); "constant" is the same in all
            blocks (DeiT III).
        student_mode: "train", or "eval", which switches off drop path and dropout, as the paper's code did when it
            fine-tuned.
        freeze: What keeps its weights, in evaluation mode: "trunk" (a linear probe), "blocks:N" (embeddings and the
            first N blocks), or nothing when empty; see `deit.train.students.freezing`.
        ema_decay: Of the running average of the weights; 0 for none. The first steps use less, so that short trainings
            are not dominated by the initial values.
        ema_use: "save": the average is what is evaluated and saved as the model. "keep": it stays in the training state
            and is not used, as in the paper's code.
        crop_ratio: Of the evaluation; see `evaluation_processor`.
        eval_epochs: Epochs between two evaluations; the last epoch is always evaluated.
        keep_state: True keeps the newest training states after the last epoch too, three times the size of the model
            each, so that the run can go on; False removes them once the model is written.
        num_workers: Processes that prepare images; -1 chooses.
        augment: How training images are varied.
        optimizer: What turns gradients into steps.
        schedule: Learning rate over time.
        distillation: The teacher's loss; unused without a teacher.
        data: How the data set is read.
        masking: What a masked-image training hides.
    """

    student: str = ""
    config: str = ""
    image_size: int = 0
    partial_patches: bool = False
    init: str = ""
    teacher: tuple[str, ...] = ()
    batch_size: int = 64
    accumulate: int = 1
    seed: int = 0
    precision: str = "auto"
    compile: bool = False
    loss: str = "ce"
    label_smoothing: float = FOLLOWS
    drop_path_rate: float = 0.1
    drop_path_shape: str = "linear"
    student_mode: str = "train"
    freeze: str = ""
    ema_decay: float = 0.0
    ema_use: str = "save"
    crop_ratio: float = 0.875
    eval_epochs: int = 1
    keep_state: bool = True
    num_workers: int = -1
    augment: Augmentation = field(default_factory=Augmentation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    distillation: Distillation = field(default_factory=Distillation)
    data: DataOptions = field(default_factory=DataOptions)
    masking: Masking = field(default_factory=Masking)

    def __post_init__(self) -> None:
        require(self.image_size >= 0, "image_size must be at least 0", self.image_size)
        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        require(self.accumulate >= 1, "accumulate must be at least 1", self.accumulate)
        require(
            self.batch_size % self.accumulate == 0,
            f"batch_size must be a multiple of accumulate ({self.accumulate})",
            self.batch_size,
        )
        require(0 <= self.seed < 2**63, "seed must be at least 0 and less than 2**63", self.seed)
        require_one_of("precision", self.precision, PRECISIONS)
        require_one_of("loss", self.loss, CLASSIFICATION_LOSSES)
        object.__setattr__(self, "label_smoothing", following("label_smoothing", self.label_smoothing, self.loss))
        require_one_of("drop_path_shape", self.drop_path_shape, DROP_PATH_SHAPES)
        require_one_of("student_mode", self.student_mode, STUDENT_MODES)
        require_one_of("ema_use", self.ema_use, EMA_USES)
        blocks = self.freeze.removeprefix("blocks:")
        require(
            self.freeze in ("", "trunk") or (blocks != self.freeze and blocks.isdecimal()),
            'freeze must be "trunk", "blocks:N" or empty',
            repr(self.freeze),
        )
        require(0 <= self.label_smoothing < 1, "label_smoothing must lie in [0, 1)", self.label_smoothing)
        require(
            self.loss != "bce" or self.label_smoothing == 0,
            'label_smoothing must be 0 with loss "bce", which counts every class above 0 as present',
            self.label_smoothing,
        )
        require(0 <= self.ema_decay < 1, "ema_decay must lie in [0, 1)", self.ema_decay)
        require(0 <= self.drop_path_rate < 1, "drop_path_rate must lie in [0, 1)", self.drop_path_rate)
        require(self.eval_epochs >= 1, "eval_epochs must be at least 1", self.eval_epochs)
        require(
            not (self.augment.mixes and self.batch_size % 2),
            "Mixup and CutMix pair the images of a batch, so batch_size must be even",
            self.batch_size,
        )

    @property
    def init_made_by(self) -> str | None:
        """Name of the recipe whose model `init` only stands for, so that it has to be given; else None."""
        return self.init[1:-1] if self.init.startswith("<") and self.init.endswith(">") else None

    def batch_multiple(self, world_size: int = 1) -> int:
        """Returns what the batch size must be a multiple of: processes times parts, and two where images are paired."""
        return math.lcm(world_size * self.accumulate, 2 if self.augment.mixes else 1)

    def learning_rate(self) -> float:
        """Returns the peak learning rate, scaled to the batch size."""
        reference = self.optimizer.reference_batch_size
        return self.optimizer.lr * self.batch_size / reference if reference else self.optimizer.lr

    def learning_rates(self) -> Rates:
        """Returns where the learning rate begins, its peak and where it ends, for the batch size of this recipe.

        As in the paper's code the batch size scales the peak alone. A beginning or an end that the peak of a small
        batch does not rise above would leave a flat rate: it keeps its share of `optimizer.lr` instead.
        """
        peak, schedule = self.learning_rate(), self.schedule
        start, end = schedule.warmup_lr, schedule.min_lr
        if peak <= start < self.optimizer.lr:
            start = start / self.optimizer.lr * peak
        if peak <= end:
            end = min(end / self.optimizer.lr, 1.0) * peak
        return Rates(start=start, peak=peak, end=end)

    def check_learning_rates(self) -> None:
        """Refuses a learning rate that could only stay where it is or go the wrong way.

        Raises:
            ValueError: The schedule begins or ends above `optimizer.lr`.
        """
        for name, value, what in (
            ("warmup_lr", self.schedule.warmup_lr if self.schedule.warmup_epochs else 0.0, "begins"),
            ("min_lr", self.schedule.min_lr, "ends"),
        ):
            require(
                value <= self.optimizer.lr,
                f"schedule.{name}, where the learning rate {what}, must be at most optimizer.lr, its peak "
                f"({self.optimizer.lr:g}); set both",
                f"{value:g}",
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain values."""
        return dataclasses.asdict(self)

    def setting(self, name: str) -> Any:
        """Returns the value of a dotted name, such as "optimizer.lr"."""
        return flat(self.to_dict())[name]

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """Returns a recipe with some values replaced.

        Args:
            settings: Dotted names, such as `{"optimizer.lr": 1e-3}`; text is converted to the value's type. A value
                that follows another (`FOLLOWING`) changes with it, unless it was chosen.

        Raises:
            ValueError: A name is unknown, or a value cannot be used.

        Examples:
            >>> Recipe().with_settings({"schedule.epochs": "10"}).schedule.epochs
            10
        """
        values, known = self.to_dict(), flat(self.to_dict())
        for name, value in settings.items():
            if name not in known:
                raise unknown_setting(name, list(known))
            section, _, last = name.rpartition(".")
            (values[section] if section else values)[last] = value
        changed: Recipe = build(Recipe, values)
        return changed

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Builds a recipe from nested values.

        Raises:
            ValueError: A name is unknown, or a value cannot be used.
        """
        recipe: Recipe = build(cls, without_following(values))
        return recipe

    def to_yaml(self) -> str:
        """Returns the recipe as YAML, every setting included."""
        text: str = yaml.safe_dump(plain(self.to_dict()), sort_keys=False)
        return text

    def save(self, path: Path) -> None:
        """Writes the recipe as YAML."""
        write_text_atomically(path, self.to_yaml())

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a recipe from YAML.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not YAML, or not a recipe.
        """
        return cls.from_dict(read_settings(path))


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings that a YAML file names, as they stand there; see `Recipe.load`."""
    if not path.exists():
        raise FileNotFoundError(f"No recipe at {path}.")
    return read_yaml(path, "a recipe")


def differences(first: Recipe, second: Recipe) -> list[str]:
    """Returns the dotted names of the settings in which two recipes differ."""
    one, two = flat(first.to_dict()), flat(second.to_dict())
    return [name for name in one if one[name] != two[name]]
