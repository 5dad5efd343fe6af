"""Defines `Recipe`: all hyper-parameters of a training. The defaults are the paper's (Table 9)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deit.core.config.field_checks import MOST_PATCHES
from deit.core.config.following_defaults import CLASSIFICATION_LOSSES, FOLLOWS, following
from deit.core.files import write_text_atomically
from deit.core.scores.comparing import all_score_names
from deit.data.augment import Augmentation
from deit.models.trunk.vision_transformer import DROP_PATH_SHAPES
from deit.train.recipes.sections import DataOptions, Distillation, Masking, Optimizer, PseudoLabels, Schedule
from deit.train.recipes.values import build, flat, plain, require, require_one_of, unknown_setting, without_following
from deit.train.recipes.yaml_files import read_yaml

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
INITIALIZATIONS = ("normal", "mimetic")
STUDENT_MODES = ("train", "eval")
CLASS_WEIGHTS = ("none", "balanced", "sqrt")
EMA_USES = ("save", "keep")
KEPT = ("last", "best")

_LEAST = {
    "image_size": 0, "batch_size": 1, "accumulate": 1, "eval_epochs": 1, "kept_states": 1, "state_steps": 0,
    "max_skipped_steps": 0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of a recipe.

    Attributes:
        start: Start of the warm-up.
        peak: End of the warm-up and start of the cosine.
        end: End of the cosine.
    """

    start: float
    peak: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All hyper-parameters of one training.

    Attributes:
        student: The model to train: a variant of this package or `timm/NAME`; empty if the caller chooses.
        config: Changes to the variant, such as "num_hidden_layers=4". Used only for masked images.
        image_size: Side of the input in pixels; 0 for the variant's own.
        partial_patches: True allows an image size that is not a multiple of the patch size. The network then ignores
            the last pixels of each row and column that do not fill a patch, as in the authors' DeiT III huge.
        init: Initial weights: model directory, weight file or hub name; empty for random weights. "<NAME>" is a
            placeholder for the model that the recipe NAME makes; the user must pass that model.
        initialization: Random weights of a DeiT or ViT: "normal" (the paper's) or "mimetic" (those of the attention
            resemble trained ones; better in short trainings, see docs/results.md). Unused with `init`.
        teacher: Teacher models; the probabilities of several are averaged. Empty trains on labels only.
        batch_size: Images per step, summed over all processes and accumulated parts.
        accumulate: Number of parts that each process computes one after another and sums to one step. Saves memory.
        seed: Random seed of order, views, mixing, dropout and drop path.
        precision: "fp32", "bf16" or "fp16" (autocast; weights stay fp32), or "auto": bf16 on GPUs, and on CPUs where a
            short measurement finds it faster; fp32 elsewhere. See `deit.runtime.auto_precision.choose_precision`.
        compile: True compiles the student with torch.compile.
        loss: "ce" (cross-entropy) or "bce" (binary cross-entropy of each class, DeiT III); see
            `classification_loss`.
        label_smoothing: Share of the target mass spread over all classes. Default: 0.1 with "ce", 0 with "bce".
        class_weights: Weights of the classes in the loss: "none", "balanced" (rare classes count more, so that all have
            the same share) or "sqrt" (halfway); see `deit.train.tasks.class_weights`. With loss "ce" only.
        drop_path_rate: Drop path rate of a student that `build_student` makes. Other students keep their own.
        drop_path_shape: "linear" rises from 0 in the first block to the full rate in the last (DeiT); "constant" uses
            the full rate in all blocks (DeiT III).
        token_merging: Number of similar patch tokens that each block but the last merges, so that training and the
            model are faster; 0 for none. A block merges at most half of its patch tokens. Not for masked images or
            students of timm. The model's `config.json` keeps it; see docs/token-merging.md.
        student_mode: "train", or "eval" to train without drop path and dropout, as the paper's code fine-tuned.
        freeze: Part of the student that is not trained and stays in evaluation mode: "trunk" (a linear probe),
            "blocks:N" (embeddings and the first N blocks) or empty for none; see `deit.train.students.freezing`.
        ema_decay: Decay of the running average of the weights; 0 for no average. The first steps use a smaller decay,
            so that the initial weights do not dominate the average of a short training.
        ema_use: "save" evaluates the average and saves it as the model. "keep" only stores the average in the training
            state, as in the paper's code.
        keep: Weights that become the model: "last" (after the last step) or "best" (of the evaluation with the best
            `keep_score`, whether the student's or their average where `ema_use` is "save"). With "best" the folder
            `last` beside the model holds the last weights.
        keep_score: Score that "best" and `schedule.patience` compare, such as "top1" or "loss"; empty for the main
            score of the problem type: top1, micro_f1 or mean_absolute_error. The lower loss decides between equal
            scores.
        crop_ratio: Crop ratio of the evaluation; see `evaluation_processor`.
        eval_epochs: Epochs between two evaluations; the last epoch is always evaluated.
        keep_state: True keeps the newest training states after the last epoch, so that the run can be continued. Each
            is three times as large as the model. False removes them after the model is written.
        kept_states: How many of the newest training states are kept. 2, so that a damaged one does not cost the run.
            One more is kept if the run would go back to an older one.
        state_steps: Steps between two training states, beside those before each evaluation; 0 for none beside.
        max_skipped_steps: Steps skipped in a row, because a loss or gradient is infinite or NaN, after which the run
            goes back to its last good state. 20, because the scale of fp16 begins at 2 ** 16 and may have to be halved
            16 times. 0 ends the run at the first such step.
        num_workers: Processes that prepare images; -1 chooses the number.
        augment: Augmentation of training images.
        optimizer: Optimizer settings.
        schedule: Learning rate schedule.
        distillation: Distillation settings; unused without a teacher.
        data: Settings that read and divide the data set.
        masking: Settings of masked-image training.
        pseudo_labels: Pseudo-labels for unlabeled images; none by default.
    """

    student: str = ""
    config: str = ""
    image_size: int = 0
    partial_patches: bool = False
    init: str = ""
    initialization: str = "normal"
    teacher: tuple[str, ...] = ()
    batch_size: int = 64
    accumulate: int = 1
    seed: int = 0
    precision: str = "auto"
    compile: bool = False
    loss: str = "ce"
    label_smoothing: float = FOLLOWS
    class_weights: str = "none"
    drop_path_rate: float = 0.1
    drop_path_shape: str = "linear"
    token_merging: int = 0
    student_mode: str = "train"
    freeze: str = ""
    ema_decay: float = 0.0
    ema_use: str = "save"
    keep: str = "last"
    keep_score: str = ""
    crop_ratio: float = 0.875
    eval_epochs: int = 1
    keep_state: bool = True
    kept_states: int = 2
    state_steps: int = 0
    max_skipped_steps: int = 20
    num_workers: int = -1
    augment: Augmentation = field(default_factory=Augmentation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    distillation: Distillation = field(default_factory=Distillation)
    data: DataOptions = field(default_factory=DataOptions)
    masking: Masking = field(default_factory=Masking)
    pseudo_labels: PseudoLabels = field(default_factory=PseudoLabels)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            require(getattr(self, name) >= least, f"{name} must be at least {least}", getattr(self, name))
        require(
            self.batch_size % self.accumulate == 0,
            f"batch_size must be a multiple of accumulate ({self.accumulate})",
            self.batch_size,
        )
        require(0 <= self.seed < 2**63, "seed must be at least 0 and less than 2**63", self.seed)
        require_one_of("initialization", self.initialization, INITIALIZATIONS)
        require_one_of("precision", self.precision, PRECISIONS)
        require_one_of("loss", self.loss, CLASSIFICATION_LOSSES)
        object.__setattr__(self, "label_smoothing", following("label_smoothing", self.label_smoothing, self.loss))
        require_one_of("drop_path_shape", self.drop_path_shape, DROP_PATH_SHAPES)
        most = MOST_PATCHES
        require(0 <= self.token_merging <= most, f"token_merging must lie between 0 and {most}", self.token_merging)
        require_one_of("student_mode", self.student_mode, STUDENT_MODES)
        require_one_of("ema_use", self.ema_use, EMA_USES)
        require_one_of("keep", self.keep, KEPT)
        if self.keep_score:
            require_one_of("keep_score", self.keep_score, all_score_names())
        blocks = self.freeze.removeprefix("blocks:")
        require(
            self.freeze in ("", "trunk") or (blocks != self.freeze and blocks.isdecimal()),
            'freeze must be "trunk", "blocks:N" or empty',
            repr(self.freeze),
        )
        require_one_of("class_weights", self.class_weights, CLASS_WEIGHTS)
        require(
            self.class_weights == "none" or self.loss == "ce",
            'class_weights must be "none" with loss "bce"',
            self.class_weights,
        )
        require(0 <= self.label_smoothing < 1, "label_smoothing must lie in [0, 1)", self.label_smoothing)
        require(
            self.loss != "bce" or self.label_smoothing == 0,
            'label_smoothing must be 0 with loss "bce", which counts every class above 0 as present',
            self.label_smoothing,
        )
        require(
            self.accumulate == 1 or self.distillation.kind != "dist" or self.distillation.intra_weight == 0,
            "distillation.kind=dist compares all images of a batch, so accumulate must be 1, or "
            "distillation.intra_weight 0",
            f"accumulate={self.accumulate}",
        )
        require(0 <= self.ema_decay < 1, "ema_decay must lie in [0, 1)", self.ema_decay)
        require(
            self.ema_decay > 0 or not self.pseudo_labels.weight,
            "Pseudo-labels come from the running average of the weights, so ema_decay must be above 0 (such as 0.999)",
            self.ema_decay,
        )
        require(0 <= self.drop_path_rate < 1, "drop_path_rate must lie in [0, 1)", self.drop_path_rate)
        require(
            not (self.augment.mixes and self.batch_size % 2),
            "Mixup and CutMix pair the images of a batch, so batch_size must be even",
            self.batch_size,
        )

    @property
    def init_made_by(self) -> str | None:
        """Name of the recipe in a placeholder `init` ("<NAME>"); None for other values."""
        return self.init[1:-1] if self.init.startswith("<") and self.init.endswith(">") else None

    def batch_multiple(self, world_size: int = 1) -> int:
        """Returns the number that must divide the batch size: processes times parts, and two if images are paired."""
        return math.lcm(world_size * self.accumulate, 2 if self.augment.mixes else 1)

    def learning_rate(self) -> float:
        """Returns the peak learning rate, scaled to the batch size."""
        reference = self.optimizer.reference_batch_size
        return self.optimizer.lr * self.batch_size / reference if reference else self.optimizer.lr

    def learning_rates(self) -> Rates:
        """Returns the learning rate at the start, at the peak and at the end, for the batch size of this recipe.

        The batch size scales only the peak, as in the paper's code. A small batch can lower the peak to the start or
        the end, which would make the rate flat. The start or end then keeps its ratio to `optimizer.lr`.
        """
        peak, schedule = self.learning_rate(), self.schedule
        start, end = schedule.warmup_lr, schedule.min_lr
        if peak <= start < self.optimizer.lr:
            start = start / self.optimizer.lr * peak
        if peak <= end:
            end = min(end / self.optimizer.lr, 1.0) * peak
        return Rates(start=start, peak=peak, end=end)

    def check_learning_rates(self) -> None:
        """Checks that the schedule does not start or end above its peak.

        Raises:
            ValueError: `schedule.warmup_lr` or `schedule.min_lr` is larger than `optimizer.lr`.
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
        """Returns the value of a setting by its dotted name, such as "optimizer.lr"."""
        return flat(self.to_dict())[name]

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """Returns a recipe with some values replaced.

        Args:
            settings: Dotted names, such as `{"optimizer.lr": 1e-3}`; text is converted to the value's type. A default
                that depends on another setting (`FOLLOWING`) changes with it, unless the user chose a value.

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
        """Returns the recipe as YAML with every setting."""
        text: str = yaml.safe_dump(plain(self.to_dict()), sort_keys=False)
        return text

    def save(self, path: Path, *, note: str = "") -> None:
        """Writes the recipe as YAML, under a comment of one line if there is a note."""
        comment = f"# {' '.join(note.split())}\n" if note else ""
        write_text_atomically(path, comment + self.to_yaml())

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a recipe from YAML.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not YAML, or not a recipe.
        """
        return cls.from_dict(read_settings(path))


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings in a YAML file, unconverted; see `Recipe.load`."""
    if not path.exists():
        raise FileNotFoundError(f"No recipe at {path}.")
    return read_yaml(path, "a recipe")


def differences(first: Recipe, second: Recipe) -> list[str]:
    """Returns the dotted names of the settings in which two recipes differ."""
    one, two = flat(first.to_dict()), flat(second.to_dict())
    return [name for name in one if one[name] != two[name]]
