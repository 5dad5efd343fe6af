"""Teachers: frozen models of any origin that compute logits for the student's images."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deit.core.errors import UserError, WrongTypeError
from deit.core.files import at_home
from deit.core.hub import is_hub_name
from deit.core.labels import names_in_order
from deit.core.model_directory import kind_of_model, read_image_processor
from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD
from deit.models.classifier import head_logits, open_classifier
from deit.models.timm.models import open_published_timm, open_timm_folder, published_label_names
from deit.models.weights.finiteness import refuse_non_finite_answers, refuse_non_finite_model
from deit.models.weights.model_names import find_model, timm_name
from deit.models.weights.torchvision import open_torchvision, torchvision_name
from deit.train.teachers.batch_norm import fold_batch_norms
from deit.train.teachers.label_matching import match_labels

logger = logging.getLogger(__name__)

# Fields of a configuration that change the logits but not the tensors.
_BEYOND_TENSORS = ("num_attention_heads", "hidden_act", "layer_norm_eps")


class Teacher:
    """A frozen model that computes logits for the student's pixels.

    It is not a module, so training, moving or saving a task that holds it leaves it unchanged: its parameters get no
    gradient, its buffers never change, and it stays in evaluation mode.

    The teacher sees the student's view, as in the paper: the same crop, mixing and erasing, but with its own
    normalization and size (a view of another shape is resized without keeping its aspect ratio). It applies no
    evaluation crop, because training views are already cropped.

    Convnets with batch norm use the memory format "channels last", which is faster and gives the same logits up to
    rounding. Under autocast the teacher computes in half precision, as the student does.

    Args:
        model: A module or function from pixels (B, 3, H, W) to logits (B, K).
        mean: Mean of each channel that the model expects.
        std: Standard deviation of each channel that the model expects.
        image_size: (height, width) that the model expects; None uses the student's.
        label_names: Names of the classes in the order of the logits; None if unknown.
        name: Name for records and messages. `fingerprint` of a function requires one.

    Raises:
        ValueError: A weight of the model is NaN or infinite.

    Examples:
        >>> teacher = Teacher(lambda pixels: pixels.mean((2, 3)))
        >>> teacher(torch.zeros(2, 3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        image_size: tuple[int, int] | None = None,
        label_names: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        self.model = model
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.image_size = image_size
        self.label_names = None if label_names is None else list(label_names)
        self.name = name or type(model).__name__
        self._is_named = bool(name)
        self._columns: tuple[int, ...] | None = None
        self._tensors_hash: str | None = None
        self._channels_last = False
        refuse_non_finite_model(model, f"The teacher {self.name}")
        if isinstance(model, nn.Module):
            model.eval().requires_grad_(False)
            self._channels_last = any(isinstance(module, _BatchNorm) for module in model.modules())
        if self._channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[union-attr]

    def to(self, device: torch.device) -> Teacher:
        """Moves the model to a device and returns the teacher."""
        if isinstance(self.model, nn.Module):
            self.model.to(device)
        return self

    def with_classes(self, columns: Sequence[int], label_names: Sequence[str]) -> Teacher:
        """Returns a teacher with the same model that is restricted to some of its classes.

        Args:
            columns: Indices of the model's logits, in the order to return.
            label_names: Names of these classes.
        """
        chosen = copy.copy(self)
        chosen._columns = tuple(columns if self._columns is None else (self._columns[i] for i in columns))
        chosen.label_names = list(label_names)
        return chosen

    def fingerprint(self) -> str:
        """Returns a SHA-256 (hex) of weights, buffers, preprocessing and classes, which determine the logits.

        Reads the tensors only at the first call. A function is identified by its name only, so pass another name for a
        function with other answers.

        Raises:
            ValueError: The teacher is a function without a name.
        """
        if not isinstance(self.model, nn.Module) and not self._is_named:
            raise UserError(
                "The teacher is a function without a name, so its answers cannot be identified. Pass name= to Teacher, "
                "a text that identifies the function."
            )
        settings: dict[str, Any] = {
            "mean": self.mean,
            "std": self.std,
            "image_size": self.image_size,
            "columns": self._columns,
            "model": type(self.model).__name__ if isinstance(self.model, nn.Module) else self.name,
        }
        config = getattr(self.model, "config", None)
        settings["architecture"] = _timm_architecture(self.model)
        settings |= {name: str(getattr(config, name)) for name in _BEYOND_TENSORS if hasattr(config, name)}
        if getattr(config, "token_merging", None):  # only then, so that other fingerprints stay as they were
            settings["token_merging"] = config.token_merging  # type: ignore[union-attr]
        if isinstance(self.model, nn.Module):
            if self._tensors_hash is None:
                self._tensors_hash = _hash_of_tensors(self.model)
            settings["tensors"] = self._tensors_hash
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def prepare(self) -> Teacher:
        """Folds batch norms into convolutions, which makes the teacher faster; returns the teacher.

        Changes the model in place, so call it only for models that nothing else uses; `open_teacher` does. The
        fingerprint remains that of the original weights.
        """
        if isinstance(self.model, nn.Module) and any(isinstance(m, _BatchNorm) for m in self.model.modules()):
            if self._tensors_hash is None:
                self._tensors_hash = _hash_of_tensors(self.model)
            fold_batch_norms(self.model)
        return self

    @torch.no_grad()  # not inference_mode: a loss must be able to keep the logits for its backward pass
    def __call__(self, pixels: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Returns logits (B, K).

        Args:
            pixels: The student's view (B, 3, H, W), normalized with `mean` and `std`, after mixing and erasing.
            mean: The student's mean of each channel.
            std: The student's standard deviation of each channel.

        Raises:
            TypeError: The model does not return logits.
            ValueError: A logit is NaN or infinite.
        """
        pixels = self._as_expected(pixels, mean, std)
        if isinstance(self.model, nn.Module):
            self.model.eval()  # again, so that batch norm never updates its statistics
            logits = next(iter(head_logits(self.model, pixels).values()))
        else:
            logits = self.model(pixels)
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise WrongTypeError(
                    f"A teacher must return logits (batch, classes). {self.name} returned {type(logits).__name__}."
                )
        logits = refuse_non_finite_answers(logits.detach(), f"The teacher {self.name}")
        return logits if self._columns is None else logits[:, self._columns]

    def _as_expected(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        if (tuple(mean), tuple(std)) != (self.mean, self.std):
            theirs_mean, theirs_std = _per_channel(mean, pixels), _per_channel(std, pixels)
            own_mean, own_std = _per_channel(self.mean, pixels), _per_channel(self.std, pixels)
            pixels = pixels * (theirs_std / own_std) + (theirs_mean - own_mean) / own_std
        if self.image_size is not None and tuple(pixels.shape[-2:]) != self.image_size:
            pixels = F.interpolate(pixels, size=self.image_size, mode="bicubic", antialias=True)
        return pixels.contiguous(memory_format=torch.channels_last) if self._channels_last else pixels


def _timm_architecture(model: Any) -> str | None:
    cfg = getattr(model, "pretrained_cfg", None)
    return str(cfg["architecture"]) if isinstance(cfg, dict) and "architecture" in cfg else None


def _hash_of_tensors(model: nn.Module) -> str:
    digest = hashlib.sha256()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


class TeacherEnsemble:
    """Several teachers used as one. Returns the logarithm of the mean of their probabilities.

    Has the interface of `Teacher`. Averages probabilities, not logits, so that a teacher with large logits does not
    dominate (as in Deep Ensembles, Lakshminarayanan et al. 2017). Each member keeps its own size and normalization.

    Args:
        teachers: The members.
        name: Name for records and messages. Default: the names of the members.

    Raises:
        ValueError: There is no member.

    Examples:
        >>> even, sure = Teacher(lambda pixels: torch.zeros(1, 2)), Teacher(lambda pixels: torch.tensor([[50.0, 0.0]]))
        >>> half = (0.5, 0.5, 0.5)
        >>> TeacherEnsemble([even, sure])(torch.zeros(1, 3, 8, 8), mean=half, std=half).exp()
        tensor([[0.7500, 0.2500]])
    """

    def __init__(self, teachers: Sequence[Teacher], *, name: str | None = None) -> None:
        if not teachers:
            raise UserError("An ensemble needs at least one teacher. Received none.")
        self.teachers = tuple(teachers)
        self.name = name or " + ".join(teacher.name for teacher in teachers)

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes in the order of the logits; None if no member has them.

        Raises:
            ValueError: The members differ in their classes or the order of classes.
        """
        known = [teacher for teacher in self.teachers if teacher.label_names is not None]
        for teacher in known[1:]:
            if teacher.label_names != known[0].label_names:
                raise UserError(
                    f"The teachers {known[0].name} and {teacher.name} differ in their classes or the order of classes. "
                    "Match them to the classes of the data with match_teacher."
                )
        return known[0].label_names if known else None

    def to(self, device: torch.device) -> TeacherEnsemble:
        """Moves all members to a device and returns the ensemble."""
        for teacher in self.teachers:
            teacher.to(device)
        return self

    def fingerprint(self) -> str:
        """Returns a SHA-256 (hex) over the members' fingerprints, in their order.

        Raises:
            ValueError: A member is a function without a name.
        """
        return hashlib.sha256(" ".join(teacher.fingerprint() for teacher in self.teachers).encode()).hexdigest()

    def __call__(self, pixels: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Returns the logarithm of the mean probabilities, (B, K); arguments as in `Teacher`.

        Raises:
            TypeError: A member does not return logits.
            ValueError: The members differ in their classes or the order of classes.
        """
        _ = self.label_names  # raises if members differ
        answers = [teacher(pixels, mean=mean, std=std).float() for teacher in self.teachers]
        counts = [answer.shape[1] for answer in answers]
        if len(set(counts)) > 1:
            raise UserError(
                f"The teachers of {self.name} have different numbers of classes: {counts}. "
                "Match them to the classes of the data with match_teacher."
            )
        # Uses logarithms throughout, so that tiny probabilities do not become minus infinity.
        return log_mean_probability(answers)


def log_mean_probability(answers: Sequence[Tensor]) -> Tensor:
    """Returns the logarithm of the mean of the probabilities of several logits, each (B, K)."""
    log_probabilities = torch.stack([F.log_softmax(answer.float(), dim=1) for answer in answers])
    return torch.logsumexp(log_probabilities, dim=0) - math.log(len(answers))


def open_teacher(name_or_dir: str | Path) -> Teacher:
    """Opens a teacher by name or from a folder.

    Args:
        name_or_dir: A model directory of this package or of timm; a name on the model hub or a short name of
            `deit.list_models()`; `timm/NAME` or `torchvision/NAME` for published weights of those libraries
            (downloaded by them, with their ImageNet classes).

    Raises:
        FileNotFoundError: There is no such folder or name.
        ValueError: The folder or name cannot be used as a teacher.
        ConnectionError: Published weights cannot be downloaded.
    """
    text = at_home(str(name_or_dir))
    _, _, name = text.partition("/")
    if timm_name(text):
        return _open_published_timm(name).prepare()
    if torchvision_name(text):
        return _open_torchvision(name).prepare()
    folder = find_model(text) if is_hub_name(text) else Path(text)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No teacher at {text}. Pass a model directory, or a published model as timm/NAME or torchvision/NAME."
        )
    if kind_of_model(folder) == "timm":
        return _of_timm(open_timm_folder(folder), str(folder)).prepare()
    model = open_classifier(folder)
    processor = read_image_processor(folder)
    config = model.config
    return Teacher(
        model,
        mean=processor.channel_mean,
        std=processor.channel_std,
        image_size=config.grid_image_size,
        label_names=names_in_order(config.id2label),
        name=text,
    )


def open_teachers(names_or_dirs: Sequence[str | Path]) -> Teacher | TeacherEnsemble:
    """Opens one teacher, or several as an ensemble.

    Args:
        names_or_dirs: See `open_teacher`.

    Raises:
        ValueError: The list is empty, or a model cannot be used as a teacher.
        OSError: See `open_teacher`.
    """
    teachers = [open_teacher(name) for name in names_or_dirs]
    return teachers[0] if len(teachers) == 1 else TeacherEnsemble(teachers)


def _of_timm(model: nn.Module, name: str) -> Teacher:
    cfg: Any = model.pretrained_cfg
    return Teacher(
        model,
        mean=cfg["mean"],
        std=cfg["std"],
        image_size=tuple(cfg["input_size"][1:]),
        label_names=cfg.get("label_names"),
        name=name,
    )


def _open_published_timm(name: str) -> Teacher:
    model = open_published_timm(name)
    teacher = _of_timm(model, f"timm/{name}")
    teacher.label_names = published_label_names(model)
    return teacher


def _open_torchvision(name: str) -> Teacher:
    published = open_torchvision(name)
    return Teacher(
        published.model,
        mean=published.processor.channel_mean,
        std=published.processor.channel_std,
        image_size=published.processor.output_size,
        label_names=published.label_names,
        name=f"torchvision/{name}",
    )


def match_teacher(
    teacher: Teacher | TeacherEnsemble, class_names: Sequence[str], image_size: tuple[int, int]
) -> Teacher | TeacherEnsemble:
    """Returns a teacher with exactly the classes of the data, in their order. Runs it once to count its logits.

    Selects the logits of a teacher with more classes or another order by the names of the classes (see
    `match_labels`); their probabilities then sum to 1. Returns a teacher without class names unchanged if the number of
    classes agrees. Matches each member of an ensemble.

    Args:
        teacher: Teacher to match.
        class_names: Classes of the data, in order.
        image_size: (height, width) of the student's input in pixels.

    Raises:
        TypeError: The teacher does not return logits.
        ValueError: The teacher lacks a class of the data, or has no class names and another number of classes.
    """
    if isinstance(teacher, TeacherEnsemble):
        members = [_match_one(member, class_names, image_size) for member in teacher.teachers]
        return TeacherEnsemble(members, name=teacher.name)
    return _match_one(teacher, class_names, image_size)


def _match_one(teacher: Teacher, class_names: Sequence[str], image_size: tuple[int, int]) -> Teacher:
    parameters = teacher.model.parameters() if isinstance(teacher.model, nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    zeros = torch.zeros(1, 3, *image_size, device=device)
    count = teacher(zeros, mean=teacher.mean, std=teacher.std).shape[1]
    known = teacher.label_names
    remedy = "Train it on this data first: deit train DATA --student timm/NAME --out TEACHER."
    if known is not None and len(known) != count:
        raise UserError(f"The teacher {teacher.name} names {len(known)} classes but returns {count} logits.")
    if known is None:
        if count == len(class_names):
            return teacher
        raise UserError(
            f"The teacher {teacher.name} has {count} classes without names, and the data has "
            f"{len(class_names)}. {remedy}"
        )
    match = match_labels(known, class_names)
    if match.missing:
        raise UserError(
            f"The teacher {teacher.name}, of {count} classes, does not know {len(match.missing)} of the data's "
            f"{len(class_names)}, or has several of that name: {', '.join(map(repr, match.missing[:3]))}"
            f"{', ...' if len(match.missing) > 3 else '.'} {remedy}"
        )
    if known == list(class_names):
        return teacher
    logger.warning(
        "The teacher %s has %d classes. The classes of the data are selected %s.", teacher.name, count, match.rule
    )
    return teacher.with_classes(match.places, class_names)
