"""The teacher: a fixed model of any origin that says what it sees in the student's images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from deit.core.configuration import CONFIG_NAME
from deit.core.labels import names_in_order
from deit.core.model_directory import kind_of_model, read_image_processor
from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD
from deit.models.classifier import head_logits, open_classifier


class Teacher:
    """A frozen model that gives logits for the student's pixels.

    It is not a module, so a task that holds it can be trained, moved or saved without touching it: its parameters get
    no gradient, its buffers never change, and it stays in evaluation mode.

    Args:
        model: A module or any function from pixels (B, 3, H, W) to logits (B, K).
        mean: Normalization the model expects, of each channel.
        std: Likewise.
        image_size: (height, width) the model expects; None takes the student's.
        label_names: Names of the classes in the order of the logits; None when unknown.
        name: For records and messages.

    Example:
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
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.image_size = image_size
        self.label_names = None if label_names is None else list(label_names)
        self.name = name or type(model).__name__
        if isinstance(model, nn.Module):
            model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> Teacher:
        """Moves the model to a device, and returns the teacher."""
        if isinstance(self.model, nn.Module):
            self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pixels: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Returns logits (B, K).

        Args:
            pixels: The student's, (B, 3, H, W), normalized with `mean` and `std`: the same view, mixed and erased
                alike, as in the paper.
            mean: The student's normalization.
            std: Likewise.

        Raises:
            TypeError: The model does not return logits.
        """
        if isinstance(self.model, nn.Module):
            self.model.eval()  # whatever happened to it since: batch norm must not learn
        pixels = self._as_expected(pixels, mean, std)
        if isinstance(self.model, nn.Module):
            return next(iter(head_logits(self.model, pixels).values()))
        logits = self.model(pixels)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise TypeError(
                f"A teacher must return logits (batch, classes). {self.name} returned {type(logits).__name__}."
            )
        return logits.detach()

    def _as_expected(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        if (tuple(mean), tuple(std)) != (self.mean, self.std):
            theirs_mean, theirs_std = _per_channel(mean, pixels), _per_channel(std, pixels)
            own_mean, own_std = _per_channel(self.mean, pixels), _per_channel(self.std, pixels)
            pixels = pixels * (theirs_std / own_std) + (theirs_mean - own_mean) / own_std
        if self.image_size is not None and tuple(pixels.shape[-2:]) != self.image_size:
            pixels = F.interpolate(pixels, size=self.image_size, mode="bicubic", antialias=True)
        return pixels


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


def open_teacher(name_or_dir: str | Path) -> Teacher:
    """Opens a teacher by name or from a folder.

    Args:
        name_or_dir: A model directory of this package or of timm; `timm/NAME` or `torchvision/NAME` for published
            weights of those libraries (downloaded by them, with their 1000 ImageNet classes).

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder or name cannot be used as a teacher.
        ConnectionError: Published weights cannot be fetched.
    """
    text = str(name_or_dir)
    library, _, name = text.partition("/")
    if library in ("timm", "torchvision") and name and not Path(text).exists():
        return _open_timm(name, pretrained=True) if library == "timm" else _open_torchvision(name)
    folder = Path(text)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No teacher at {text}. Pass a model directory, or a published model as timm/NAME or torchvision/NAME."
        )
    if kind_of_model(folder) == "timm":
        return _open_timm_folder(folder)
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


def create_timm(name: str, **options: Any) -> nn.Module:
    """Builds a timm model.

    Args:
        name: A timm architecture, or `local-dir:` and a folder.
        **options: Passed to `timm.create_model`.

    Raises:
        ValueError: timm has no such model, or refuses an option.
        ConnectionError: Its published weights cannot be fetched.
    """
    import timm

    try:
        model: nn.Module = timm.create_model(name, **options)
    except (RuntimeError, TypeError, AttributeError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"timm cannot build {name!r} ({str(error).strip(chr(39))}). See timm.list_models()."
        ) from error
    except OSError as error:  # what huggingface_hub raises without a network
        raise ConnectionError(
            f"The published weights of timm/{name} cannot be fetched. Save them as a folder where there is a network "
            "(timm.models.save_for_hf) and pass that folder."
        ) from error
    return model


def _open_timm(name: str, **options: Any) -> Teacher:
    model = create_timm(name, **options)
    cfg: Any = model.pretrained_cfg
    return Teacher(
        model, mean=cfg["mean"], std=cfg["std"], image_size=tuple(cfg["input_size"][1:]), name=f"timm/{name}"
    )


def _open_timm_folder(folder: Path) -> Teacher:
    teacher = _open_timm(f"local-dir:{folder}", pretrained=True)
    teacher.name = str(folder)
    values = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    teacher.label_names = values.get("label_names")
    return teacher


def _open_torchvision(name: str) -> Teacher:
    from urllib.error import URLError

    from torchvision.models import get_model, get_model_weights

    try:
        weights = get_model_weights(name).DEFAULT
        model = get_model(name, weights=weights)
    except ValueError as error:
        raise ValueError(f"torchvision has no model {name!r}. See torchvision.models.list_models().") from error
    except URLError as error:
        raise ConnectionError(
            f"The published weights of torchvision/{name} cannot be fetched ({error.reason}). Fetch them where "
            "there is a network, and put them in torch's cache folder."
        ) from error
    transform = weights.transforms()
    return Teacher(
        model,
        mean=transform.mean,
        std=transform.std,
        image_size=(transform.crop_size[0],) * 2,
        label_names=weights.meta.get("categories"),
        name=f"torchvision/{name}",
    )


def check_teacher(teacher: Teacher, label_names: Sequence[str], image_size: tuple[int, int]) -> None:
    """Checks that a teacher speaks of the student's classes, by running it once.

    Args:
        teacher: To be checked.
        label_names: Classes of the data, in order.
        image_size: Of the student, in pixels.

    Raises:
        ValueError: It has another number of classes, or other names or another order of them.
    """
    logits = teacher(torch.zeros(1, 3, *image_size), mean=teacher.mean, std=teacher.std)
    if logits.shape[1] != len(label_names):
        raise ValueError(
            f"The teacher {teacher.name} has {logits.shape[1]} classes and the data has {len(label_names)}. "
            "Train it on this data first: deit train DATA --student timm/NAME --out TEACHER."
        )
    if teacher.label_names is not None and list(label_names) != teacher.label_names:
        pairs = zip(teacher.label_names, label_names, strict=True)
        first = next((a, b) for a, b in pairs if a != b)
        raise ValueError(
            f"The teacher {teacher.name} has other classes than the data, or another order: its {first[0]!r} stands "
            f"where the data has {first[1]!r}. Train it on this data first."
        )
