"""All hyper-parameters of a training, as frozen data. The defaults are the paper's (Table 9)."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from deit.core.files import write_text_atomically
from deit.data.augment import Augmentation
from deit.models.losses import DISTILLATION_KINDS, REDUCTIONS

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW.

    Attributes:
        lr: Learning rate for a batch of `reference_batch_size`; other batch sizes scale it in proportion.
        reference_batch_size: 512 in the paper; 0 takes `lr` as it is.
        weight_decay: Of weight matrices and convolutions; norms, biases, tokens and position embeddings have none.
        betas: Decay rates of the running averages.
        eps: Added to the denominator.
        clip_grad: Largest norm of the gradient; 0 for no limit (the paper's choice for DeiT).
    """

    lr: float = 5e-4
    reference_batch_size: int = 512
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad: float = 0.0

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optimizer.lr must be positive", self.lr)
        received = self.reference_batch_size
        _require(received >= 0, "optimizer.reference_batch_size must be at least 0", received)
        _require(self.weight_decay >= 0, "optimizer.weight_decay must be at least 0", self.weight_decay)
        _require(self.clip_grad >= 0, "optimizer.clip_grad must be at least 0", self.clip_grad)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a cosine.

    Attributes:
        epochs: Passes over the training images.
        warmup_epochs: Length of the warm-up; at most `epochs`.
        warmup_lr: Where the warm-up begins; not scaled by the batch size.
        min_lr: Where the cosine ends; not scaled by the batch size.
    """

    epochs: int = 300
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "schedule.epochs must be at least 1", self.epochs)
        _require(0 <= self.warmup_epochs <= self.epochs, "schedule.warmup_epochs must lie in [0, epochs]", self)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How the distillation head learns from the teacher (paper, section 4).

    Attributes:
        kind: "hard" (the teacher's first class; the paper's choice) or "soft" (its distribution).
        temperature: Of soft distillation; 3 in the paper.
        weight: Share of the distillation loss; 0.5 for hard, 0.1 for soft in the paper.
        reduction: "batchmean", or "numel" as in the paper's code, which is K times smaller; see `distillation_loss`.
    """

    kind: str = "hard"
    temperature: float = 1.0
    weight: float = 0.5
    reduction: str = "batchmean"

    def __post_init__(self) -> None:
        _require(self.kind in DISTILLATION_KINDS, f"distillation.kind must be one of {DISTILLATION_KINDS}", self.kind)
        _require(self.temperature > 0, "distillation.temperature must be positive", self.temperature)
        _require(0 <= self.weight <= 1, "distillation.weight must lie in [0, 1]", self.weight)
        _require(self.reduction in REDUCTIONS, f"distillation.reduction must be one of {REDUCTIONS}", self.reduction)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All hyper-parameters of one training.

    Attributes:
        batch_size: Images in a step.
        seed: Of order, views, mixing, dropout and drop path.
        precision: "fp32", "bf16" (autocast; weights stay fp32), or "auto": bf16 on a GPU, fp32 on a CPU.
        label_smoothing: Share of the target mass spread over all classes.
        drop_path_rate: Of the last block of a student that `build_student` makes; a student made otherwise has its own.
        ema_decay: Of the running average of the weights; 0 for none. With it, the average is what is saved. The first
            steps use less, so that short trainings are not dominated by the initial values.
        crop_ratio: Of the evaluation; see `evaluation_processor`.
        eval_epochs: Epochs between two evaluations; the last epoch is always evaluated.
        num_workers: Processes that prepare images; -1 chooses.
        augment: How training images are varied.
        optimizer: AdamW.
        schedule: Learning rate over time.
        distillation: The teacher's loss; unused without a teacher.
    """

    batch_size: int = 64
    seed: int = 0
    precision: str = "auto"
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.1
    ema_decay: float = 0.0
    crop_ratio: float = 0.875
    eval_epochs: int = 1
    num_workers: int = -1
    augment: Augmentation = field(default_factory=Augmentation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    distillation: Distillation = field(default_factory=Distillation)

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        _require(self.seed >= 0, "seed must be at least 0", self.seed)
        _require(self.precision in PRECISIONS, f"precision must be one of {PRECISIONS}", self.precision)
        _require(0 <= self.label_smoothing < 1, "label_smoothing must lie in [0, 1)", self.label_smoothing)
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

    def save(self, path: Path) -> None:
        """Writes the recipe as YAML."""
        write_text_atomically(path, yaml.safe_dump(_plain(self.to_dict()), sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a recipe from YAML.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not YAML, or not a recipe.
        """
        if not path.is_file():
            raise FileNotFoundError(f"No recipe at {path}.")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML ({error}).") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold the settings of a recipe. Received: {type(values).__name__}.")
        return cls.from_dict(values)


_SECTIONS = ("augment", "optimizer", "schedule", "distillation")


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
        raise ValueError(f"Unknown setting {prefix}{sorted(unknown)[0]!r}. Known: {', '.join(types)}.")
    built = {}
    for key, value in values.items():
        kind: Any = types[key]
        if key in _SECTIONS:
            if not isinstance(value, Mapping):
                raise ValueError(f"{prefix}{key} must hold settings. Received: {value!r}.")
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
        if isinstance(default, int) and float(value) != int(float(value)):
            raise ValueError
        return type(default)(float(value)) if isinstance(default, (int, float)) else str(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be like {default!r}. Received: {value!r}.") from None


def _require(condition: bool, message: str, received: Any) -> None:
    if not condition:
        raise ValueError(f"{message}. Received: {received}.")
