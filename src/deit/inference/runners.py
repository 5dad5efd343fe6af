"""A runner is any function from pixels (B, 3, H, W) to logits (B, K); this opens one from a model directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.config.config_file import read_config
from deit.core.errors import UserError
from deit.core.known_images import KnownImages
from deit.core.labels import names_in_order
from deit.core.model_directory import kind_of_model, read_image_processor, read_known_images
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.metrics import SINGLE_LABEL
from deit.models.timm.preprocessing import processor_from_timm, says_preprocessing
from deit.runtime.devices import resolve

Array = npt.NDArray[np.float32]

PRECISIONS = ("fp32", "bf16")


class TorchRunner:
    """Runs a classifier with PyTorch.

    Args:
        model: A module from pixels to logits or to a known output; it is put in evaluation mode.
        label_names: Class names in the order of the logits.
        device: "cpu", "cuda", ..., or "auto" for a GPU if there is one.
        problem_type: What the logits mean, by the names of transformers.
        precision: "fp32", or "bf16" to multiply in bfloat16 where PyTorch finds that safe (autocast).
        known_images: Which images the model has learnt from, if that is recorded.

    Raises:
        ValueError: There is no such device or precision.
    """

    def __init__(
        self,
        model: Any,
        label_names: list[str],
        device: str = "cpu",
        *,
        problem_type: str = SINGLE_LABEL,
        precision: str = "fp32",
        known_images: KnownImages | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"The precision must be {' or '.join(PRECISIONS)}. Received: {precision!r}.")
        self.placement = resolve(device, precision)
        self.device = str(self.placement.device)
        self.model = self.placement.move(model).eval()
        self.label_names = label_names
        self.problem_type = problem_type
        self.precision = precision
        self.known_images = known_images

    def heads(self, pixels: Array) -> dict[str, Array]:
        """Returns the logits (B, K) of each head; the first is the model's answer.

        Args:
            pixels: (B, 3, H, W), float32.
        """
        import torch

        from deit.models.classifier import head_logits

        with torch.inference_mode(), self.placement.autocast():
            heads = head_logits(self.model, torch.from_numpy(pixels).to(self.placement.device))
        return {name: logits.float().cpu().numpy() for name, logits in heads.items()}

    def __call__(self, pixels: Array) -> Array:
        """Returns the logits (B, K) that the model answers with: the mean of its heads."""
        return next(iter(self.heads(pixels).values()))


def open_runner(
    folder: Path,
    device: str = "cpu",
    *,
    precision: str = "fp32",
    head_average: str | None = None,
    published: bool = False,
) -> TorchRunner:
    """Opens a model directory of this package or of timm.

    Args:
        folder: The model directory.
        device: See `TorchRunner`.
        precision: See `TorchRunner`.
        head_average: What two heads answer with together: "logits" (their mean, as the paper's code and transformers)
            or "probabilities" (the mean of their softmax outputs, as the paper's text). None follows the model's
            configuration, whose default is "logits".
        published: Of a folder of timm: it holds weights that timm published. Those of 1000 classes are ImageNet's,
            whose names the files do not write.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or describes something that is no classifier; there is no such device or average;
            or the model has one head, of which there is no average.
    """
    config = read_config(folder)
    problem_type = str(config.get("problem_type") or SINGLE_LABEL)
    settings: Any = {
        "device": device,
        "problem_type": problem_type,
        "precision": precision,
        "known_images": read_known_images(folder),
    }
    if kind_of_model(folder) == "deit":
        from deit.models.classifier import open_classifier

        classifier = open_classifier(folder)
        if head_average is not None:
            _require_two_heads(classifier, folder)
            classifier.config.update({"head_average": head_average})
        if resolve(device).device.type == "cpu":
            classifier.pack_weights()  # autocast leaves them aside
        return TorchRunner(classifier, names_in_order(classifier.config.id2label), **settings)
    from deit.models.timm.models import open_timm_folder, published_label_names

    if head_average is not None:
        raise UserError(f"{folder} is a model of timm, whose heads are averaged by timm. Leave out the average.")

    model: Any = open_timm_folder(folder)
    names = config.get("label_names") or (published and published_label_names(model))
    names = names or [str(i) for i in range(model.num_classes)]
    return TorchRunner(model, names, **settings)


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model that was opened by its name or path.

    Attributes:
        folder: Where its files are on this machine.
        runner: From pixels to logits.
        processor: The preprocessing that the weights were scored with.
    """

    folder: Path
    runner: TorchRunner
    processor: DeiTImageProcessor


def open_model(
    name_or_path: str | os.PathLike[str],
    device: str = "cpu",
    *,
    precision: str = "fp32",
    head_average: str | None = None,
) -> OpenedModel:
    """Opens a classifier by its path or name, with its preprocessing.

    Args:
        name_or_path: See `deit.models.weights.model_names.find_model`. `timm/NAME` is prepared for as timm says.
        device: See `TorchRunner`.
        precision: See `TorchRunner`.
        head_average: See `open_runner`.

    Raises:
        OSError: See `find_model`; or a file is missing.
        ValueError: See `open_runner`.
    """
    from deit.models.weights.model_names import find_model, timm_name

    folder = find_model(name_or_path)
    published = timm_name(name_or_path) is not None and kind_of_model(folder) == "timm"
    settings: Any = {"precision": precision, "head_average": head_average, "published": published}
    runner = open_runner(folder, device, **settings)
    if not published:
        return OpenedModel(folder=folder, runner=runner, processor=read_image_processor(folder))
    cfg = runner.model.pretrained_cfg
    if not says_preprocessing(cfg):
        raise UserError(f"timm prepares images for {name_or_path} in a way that is not known here. Choose another.")
    height, width = cfg["input_size"][1:]
    return OpenedModel(folder=folder, runner=runner, processor=processor_from_timm(cfg, (height, width)))


def _require_two_heads(classifier: Any, folder: Path) -> None:
    if not hasattr(classifier, "distillation_classifier"):
        raise UserError(f"{folder} holds a model with one head. An average is for models with two (distilled ones).")
