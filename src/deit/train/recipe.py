"""All hyper-parameters of a training, as frozen data. The defaults are the paper's (Table 9)."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from deit.core.errors import shown
from deit.core.files import write_text_atomically
from deit.core.metrics import PROBLEM_TYPES
from deit.core.sample_values import ValueRange, checked_range
from deit.data.augment import Augmentation
from deit.models.losses import CLASSIFICATION_LOSSES, DISTILLATION_KINDS, REDUCTIONS
from deit.models.vision_transformer import DROP_PATH_SHAPES
from deit.train.yaml_files import read_yaml

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OPTIMIZERS = ("adamw", "lamb", "sgd")
UPDATES = ("step", "epoch", "original")
STUDENT_MODES = ("train", "eval")
EMA_USES = ("save", "keep")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer; see `deit.train.optimization`.

    Attributes:
        name: "adamw" (DeiT), "lamb" (DeiT III) or "sgd" (with Nesterov's momentum, as timm's).
        lr: Learning rate for a batch of `reference_batch_size`; other batch sizes scale it in proportion.
        reference_batch_size: 512 in the paper; 0 takes `lr` as it is.
        weight_decay: Of weight matrices and convolutions; norms, biases, tokens and position embeddings have none.
        betas: Decay rates of the running averages of AdamW and LAMB.
        eps: Added to the denominator of AdamW and LAMB.
        momentum: Of SGD.
        clip_grad: Largest norm of the gradient; 0 for no limit (the paper's choice for DeiT).
        layer_decay: Factor of the learning rate from one block to the one before it; 1 for one rate everywhere.
        decay_distillation_token: True decays the weights of the distillation token too, a slip of the paper's code.
    """

    name: str = "adamw"
    lr: float = 5e-4
    reference_batch_size: int = 512
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    clip_grad: float = 0.0
    layer_decay: float = 1.0
    decay_distillation_token: bool = False

    def __post_init__(self) -> None:
        _require_one_of("optimizer.name", self.name, OPTIMIZERS)
        _require(self.lr > 0, "optimizer.lr must be positive", self.lr)
        received = self.reference_batch_size
        _require(received >= 0, "optimizer.reference_batch_size must be at least 0", received)
        _require(self.weight_decay >= 0, "optimizer.weight_decay must be at least 0", self.weight_decay)
        _require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas must lie in [0, 1)", self.betas)
        _require(self.eps > 0, "optimizer.eps must be positive", self.eps)
        _require(0 <= self.momentum < 1, "optimizer.momentum must lie in [0, 1)", self.momentum)
        _require(self.clip_grad >= 0, "optimizer.clip_grad must be at least 0", self.clip_grad)
        _require(0 < self.layer_decay <= 1, "optimizer.layer_decay must lie in (0, 1]", self.layer_decay)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a cosine.

    Attributes:
        epochs: Passes over the training images.
        warmup_epochs: Length of the warm-up, parts of an epoch allowed; at most `epochs`.
        warmup_lr: Where the warm-up begins; not scaled by the batch size.
        min_lr: Where the cosine ends; not scaled by the batch size.
        updates: When the rate changes: "step" after each step; "epoch" after each epoch; "original" after each epoch
            and one epoch late, as in the paper's code, whose epochs 0 and 1 both train at `warmup_lr`.
    """

    epochs: int = 300
    warmup_epochs: float = 5.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    updates: str = "step"

    def __post_init__(self) -> None:
        _require_one_of("schedule.updates", self.updates, UPDATES)
        _require(self.epochs >= 1, "schedule.epochs must be at least 1", self.epochs)
        object.__setattr__(self, "warmup_epochs", float(self.warmup_epochs))  # a setting of text follows its type
        _require(0 <= self.warmup_epochs <= self.epochs, "schedule.warmup_epochs must lie in [0, epochs]", self)
        _require(self.warmup_lr >= 0, "schedule.warmup_lr must be at least 0", self.warmup_lr)
        _require(self.min_lr >= 0, "schedule.min_lr must be at least 0", self.min_lr)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How the distillation head learns from the teacher (paper, section 4).

    Attributes:
        kind: "hard" (the teacher's first class; the paper's choice) or "soft" (its distribution).
        temperature: Of soft distillation; 3 in the paper.
        weight: Share of the distillation loss; 0.5 for hard, 0.1 for soft in the paper.
        reduction: "batchmean", or "numel" as in the paper's code, which is K times smaller; see `distillation_loss`.
        cache_top_k: Largest logits kept for each view of an image when a soft teacher's answers are stored.
    """

    kind: str = "hard"
    temperature: float = 1.0
    weight: float = 0.5
    reduction: str = "batchmean"
    cache_top_k: int = 100

    def __post_init__(self) -> None:
        _require_one_of("distillation.kind", self.kind, DISTILLATION_KINDS)
        _require(self.temperature > 0, "distillation.temperature must be positive", self.temperature)
        _require(0 <= self.weight <= 1, "distillation.weight must lie in [0, 1]", self.weight)
        _require_one_of("distillation.reduction", self.reduction, REDUCTIONS)
        _require(self.cache_top_k >= 1, "distillation.cache_top_k must be at least 1", self.cache_top_k)


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What a masked-image training hides (SimMIM, arXiv 2111.09886); unused elsewhere.

    Attributes:
        patch: Side of the hidden blocks in pixels: whole patches of the model, whole blocks in the image.
        ratio: Share of the blocks that are hidden.
        picture_steps: Steps between two pictures of reconstructions; 0 for one at the end alone.
        pictures: Images in such a picture.
    """

    patch: int = 32
    ratio: float = 0.6
    picture_steps: int = 1000
    pictures: int = 8

    def __post_init__(self) -> None:
        _require(self.patch >= 1, "masking.patch must be at least 1", self.patch)
        _require(0 < self.ratio < 1, "masking.ratio must lie between 0 and 1", self.ratio)
        _require(self.picture_steps >= 0, "masking.picture_steps must be at least 0", self.picture_steps)
        _require(self.pictures >= 1, "masking.pictures must be at least 1", self.pictures)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How the data set is read.

    Attributes:
        val_fraction: Share kept for validation where the data set has no validation part.
        strict: True stops at the first image that cannot be used; False leaves it out and says so.
        max_bad_images: Training images that may become unreadable during a run (deleted, truncated, changed); in place
            of each stands another image of its batch, and the run tells of it. More stop the run, its state is saved:
            then a disk or a network fails, and what is left would be another data set. `strict` allows none.
        image_column: Column of a table that holds the images; empty finds it.
        label_column: Column of a table that holds the labels; empty finds it.
        problem_type: What the labels are; transformers' names.
        label_separator: What separates several classes in one text; see `deit.data.label_cells.read_separator`.
        value_range: The values that become black and white in grey images of more than 8 bits; 0, 0 where the type or
            the file says it. Saved with the model. See `deit.core.sample_values`.
        labels_per_class: Images of each class that keep their labels; 0 for all. See `deit.data.few_labels`.
        label_fraction: Likewise as a share of each class; 1 for all.
        label_seed: Chooses which; apart from the run's seed, so that runs of several seeds can be compared.
        labelled_share: Least share of labelled images among those shown, where a teacher speaks of unlabelled ones as
            well: labelled ones come more often for it. A tenth, so that each batch has some and none is learnt by
            heart; 0 shows all equally often.
        max_train_images: Largest number of training images, chosen at random; 0 for all.
        max_val_images: Likewise of validation images.
    """

    val_fraction: float = 0.2
    strict: bool = False
    max_bad_images: int = 10
    image_column: str = ""
    label_column: str = ""
    problem_type: str = "single_label_classification"
    label_separator: str = ""
    value_range: tuple[float, float] = (0.0, 0.0)
    labels_per_class: int = 0
    label_fraction: float = 1.0
    label_seed: int = 0
    labelled_share: float = 0.1
    max_train_images: int = 0
    max_val_images: int = 0

    def __post_init__(self) -> None:
        for name in ("labels_per_class", "label_seed", "max_train_images", "max_val_images", "max_bad_images"):
            _require(getattr(self, name) >= 0, f"data.{name} must be at least 0", getattr(self, name))
        if self.range is not None:
            checked_range(self.range, "data.value_range")
        _require(0 <= self.labelled_share < 1, "data.labelled_share must lie in [0, 1)", self.labelled_share)
        _require(0 < self.label_fraction <= 1, "data.label_fraction must lie in (0, 1]", self.label_fraction)
        _require(
            not (self.labels_per_class and self.label_fraction < 1),
            "Pass data.labels_per_class or data.label_fraction, not both",
            f"{self.labels_per_class} and {self.label_fraction}",
        )
        _require(0 < self.val_fraction < 1, "data.val_fraction must lie between 0 and 1", self.val_fraction)
        _require_one_of("data.problem_type", self.problem_type, PROBLEM_TYPES)

    @property
    def range(self) -> ValueRange | None:
        """`value_range`, or None where none is set."""
        return None if self.value_range == (0, 0) else self.value_range


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All hyper-parameters of one training.

    Attributes:
        batch_size: Images in a step, over all processes and accumulated parts together.
        accumulate: Parts that each process computes one after the other and sums up to one step, to save memory.
        seed: Of order, views, mixing, dropout and drop path.
        precision: "fp32", "bf16" or "fp16" (autocast; weights stay fp32), or "auto": bf16 on GPUs and on CPUs with
            AMX, which multiply it in hardware; fp32 elsewhere.
        compile: True compiles the student with torch.compile.
        loss: "ce", cross-entropy, or "bce", a yes or no for each class (DeiT III); see `classification_loss`.
        label_smoothing: Share of the target mass spread over all classes; 0 with "bce".
        drop_path_rate: Of a student that `build_student` makes; a student made otherwise has its own.
        drop_path_shape: "linear" rises from 0 to the rate of the last block (DeiT); "constant" is the same in all
            blocks (DeiT III).
        student_mode: "train", or "eval", which switches off drop path and dropout, as the paper's code did when it
            fine-tuned.
        freeze: What keeps its weights, in evaluation mode: "trunk" (a linear probe), "blocks:N" (embeddings and the
            first N blocks), or nothing when empty; see `deit.train.freezing`.
        ema_decay: Of the running average of the weights; 0 for none. The first steps use less, so that short trainings
            are not dominated by the initial values.
        ema_use: "save": the average is what is evaluated and saved as the model. "keep": it stays in the training state
            and is not used, as in the paper's code.
        crop_ratio: Of the evaluation; see `evaluation_processor`.
        eval_epochs: Epochs between two evaluations; the last epoch is always evaluated.
        num_workers: Processes that prepare images; -1 chooses.
        augment: How training images are varied.
        optimizer: What turns gradients into steps.
        schedule: Learning rate over time.
        distillation: The teacher's loss; unused without a teacher.
        data: How the data set is read.
        masking: What a masked-image training hides.
    """

    batch_size: int = 64
    accumulate: int = 1
    seed: int = 0
    precision: str = "auto"
    compile: bool = False
    loss: str = "ce"
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.1
    drop_path_shape: str = "linear"
    student_mode: str = "train"
    freeze: str = ""
    ema_decay: float = 0.0
    ema_use: str = "save"
    crop_ratio: float = 0.875
    eval_epochs: int = 1
    num_workers: int = -1
    augment: Augmentation = field(default_factory=Augmentation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    distillation: Distillation = field(default_factory=Distillation)
    data: DataOptions = field(default_factory=DataOptions)
    masking: Masking = field(default_factory=Masking)

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        _require(self.accumulate >= 1, "accumulate must be at least 1", self.accumulate)
        _require(
            self.batch_size % self.accumulate == 0,
            f"batch_size must be a multiple of accumulate ({self.accumulate})",
            self.batch_size,
        )
        _require(self.seed >= 0, "seed must be at least 0", self.seed)
        _require_one_of("precision", self.precision, PRECISIONS)
        _require_one_of("loss", self.loss, CLASSIFICATION_LOSSES)
        _require_one_of("drop_path_shape", self.drop_path_shape, DROP_PATH_SHAPES)
        _require_one_of("student_mode", self.student_mode, STUDENT_MODES)
        _require_one_of("ema_use", self.ema_use, EMA_USES)
        blocks = self.freeze.removeprefix("blocks:")
        _require(
            self.freeze in ("", "trunk") or (blocks != self.freeze and blocks.isdecimal()),
            'freeze must be "trunk", "blocks:N" or empty',
            repr(self.freeze),
        )
        _require(0 <= self.label_smoothing < 1, "label_smoothing must lie in [0, 1)", self.label_smoothing)
        _require(
            self.loss != "bce" or self.label_smoothing == 0,
            'label_smoothing must be 0 with loss "bce", which counts every class above 0 as present',
            self.label_smoothing,
        )
        _require(0 <= self.ema_decay < 1, "ema_decay must lie in [0, 1)", self.ema_decay)
        _require(0 <= self.drop_path_rate < 1, "drop_path_rate must lie in [0, 1)", self.drop_path_rate)
        _require(self.eval_epochs >= 1, "eval_epochs must be at least 1", self.eval_epochs)
        _require(
            not (self.augment.mixes and self.batch_size % 2),
            "Mixup and CutMix pair the images of a batch, so batch_size must be even",
            self.batch_size,
        )

    def learning_rate(self) -> float:
        """Returns the peak learning rate, scaled to the batch size."""
        reference = self.optimizer.reference_batch_size
        return self.optimizer.lr * self.batch_size / reference if reference else self.optimizer.lr

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain values."""
        return dataclasses.asdict(self)

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """Returns a recipe with some values replaced.

        Args:
            settings: Dotted names, such as `{"optimizer.lr": 1e-3}`; text is converted to the value's type.

        Raises:
            ValueError: A name is unknown, or a value cannot be used.

        Example:
            >>> Recipe().with_settings({"schedule.epochs": "10"}).schedule.epochs
            10
        """
        values = self.to_dict()
        for name, value in settings.items():
            place, default = values, _flat(self.to_dict())
            if name not in default:
                near = difflib.get_close_matches(name, default, n=1, cutoff=0.4)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"Unknown setting {name!r}.{hint} Known: {', '.join(default)}.")
            *parents, last = name.split(".")
            for parent in parents:
                place = place[parent]
            place[last] = _convert(name, value, default[name])
        return Recipe.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Builds a recipe from nested values.

        Raises:
            ValueError: A name is unknown, or a value cannot be used.
        """
        recipe: Recipe = _build(cls, values, "")
        return recipe

    def to_yaml(self) -> str:
        """Returns the recipe as YAML, every setting included."""
        text: str = yaml.safe_dump(_plain(self.to_dict()), sort_keys=False)
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
        if not path.exists():
            raise FileNotFoundError(f"No recipe at {path}.")
        return cls.from_dict(read_yaml(path, "a recipe"))


_SECTIONS = ("augment", "optimizer", "schedule", "distillation", "data", "masking")
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


def differences(first: Recipe, second: Recipe) -> list[str]:
    """Returns the dotted names of the settings in which two recipes differ."""
    one, two = _flat(first.to_dict()), _flat(second.to_dict())
    return [name for name in one if one[name] != two[name]]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _build(cls: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    types = get_type_hints(cls)
    unknown = set(values) - set(types)
    if unknown:
        raise ValueError(f"Unknown setting {prefix}{shown(min(unknown, key=str))}. Known: {', '.join(types)}.")
    built = {}
    for key, value in values.items():
        kind: Any = types[key]
        if key in _SECTIONS:
            if not isinstance(value, Mapping):
                raise ValueError(f"{prefix}{key} must hold settings. Received: {shown(value)}.")
            built[key] = _build(kind, value, f"{prefix}{key}.")
        else:
            default = next(f.default for f in dataclasses.fields(cls) if f.name == key)
            built[key] = _convert(prefix + key, value, default)
    return cls(**built)


def _convert(name: str, value: Any, default: Any) -> Any:
    """Converts text, and YAML's numbers and lists, to the type of the default."""
    try:
        if isinstance(default, tuple):
            parts = value.strip("[]() ").split(",") if isinstance(value, str) else list(value)
            if len(parts) != len(default):
                raise ValueError
            return tuple(float(part) for part in parts)
        if isinstance(default, bool):
            return _truth(value)
        if isinstance(value, bool):  # YAML reads a bare `no` as False; it is neither a number nor a name
            raise ValueError
        if isinstance(default, int) and float(value) != int(float(value)):
            raise ValueError
        return type(default)(float(value)) if isinstance(default, (int, float)) else str(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be like {default!r}. Received: {shown(value)}.") from None


def _truth(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUTH:
        raise ValueError
    return _TRUTH[text]


def _require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {known}. Received: {shown(value)}.{hint}")


def _require(condition: bool, message: str, received: Any) -> None:
    if not condition:
        raise ValueError(f"{message}. Received: {received}.")
