"""Runs classifiers with PyTorch: those of this package, and those of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deit.core.config.config_file import read_config
from deit.core.errors import UserError
from deit.core.labels import names_in_order
from deit.core.model_directory import kind_of_model, read_image_processor, read_known_images
from deit.core.scores.metrics import SINGLE_LABEL
from deit.inference.contract import FEATURES, Array, Contract
from deit.runtime.auto_precision import INFERENCE, choose_precision
from deit.runtime.devices import resolve

PRECISIONS = ("auto", "fp32", "bf16")


class TorchEngine:
    """Runs a classifier with PyTorch.

    Args:
        model: A module from pixels to logits or to a known output; it is put in evaluation mode.
        contract: What it takes and what its answers mean.
        device: "cpu", "cuda", ..., or "auto" for a GPU if there is one.
        precision: "fp32", or "bf16" to multiply in bfloat16 where PyTorch finds that safe (autocast); "auto" takes the
            faster one, see `choose_precision`.

    Raises:
        UserError: There is no such device or precision.
    """

    name = "torch"

    def __init__(self, model: Any, contract: Contract, device: str = "cpu", *, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise UserError(f"The precision must be {' or '.join(PRECISIONS)}. Received: {precision!r}.")
        precision = choose_precision(precision, resolve(device).device, INFERENCE).precision
        self.placement = resolve(device, precision)
        self.device = str(self.placement.device)
        self.model = self.placement.move(model).eval()
        self.contract = contract
        self.precision = precision

    def __call__(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits (B, K) of each head; the first one is the answer of the model.

        Args:
            pixels: (B, 3, H, W), float32.
        """
        import torch

        from deit.models.classifier import head_logits

        with torch.inference_mode(), self.placement.autocast():
            heads = head_logits(self.model, torch.from_numpy(pixels).to(self.placement.device))
        return {name: logits.float().cpu().numpy() for name, logits in heads.items()}

    def with_features(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits of each head, and as `FEATURES` what the class head is given, (B, D).

        Of a model whose last layer is unknown, there are no features.

        Args:
            pixels: (B, 3, H, W), float32.
        """
        from deit.models.classifier import last_inputs

        with last_inputs(self.model) as taken:
            heads = self(pixels)
        if len(taken) == 1 and taken[0].ndim == 2:
            heads[FEATURES] = taken[0].float().cpu().numpy()
        return heads


def open_torch_engine(
    path: Path,
    device: str = "cpu",
    *,
    precision: str = "fp32",
    head_average: str | None = None,
    published: bool = False,
) -> TorchEngine:
    """Opens a model directory of this package or of timm.

    Args:
        path: The model directory.
        device: See `TorchEngine`.
        precision: See `TorchEngine`.
        head_average: See `open_engine`.
        published: See `open_timm_classifier`.

    Raises:
        FileNotFoundError: A file is missing.
        UserError: See `open_engine`.
    """
    problem_type = str(read_config(path).get("problem_type") or SINGLE_LABEL)
    facts: dict[str, Any] = {"problem_type": problem_type, "folder": path, "known_images": read_known_images(path)}
    if kind_of_model(path) == "timm":
        from deit.models.timm.opening import open_timm_classifier

        if head_average is not None:
            raise UserError(f"{path} is a model of timm, whose heads are averaged by timm. Leave out the average.")
        opened = open_timm_classifier(path, published=published)
        contract = Contract(
            processor=opened.processor, label_names=opened.label_names, image_size=opened.image_size, **facts
        )
        return TorchEngine(opened.model, contract, device, precision=precision)
    from deit.models.classifier import head_names, open_classifier

    model = open_classifier(path)
    heads = head_names(model)
    if head_average is not None:
        if len(heads) == 1:
            raise UserError(f"{path} holds a model with one head. An average is for models with two (distilled ones).")
        model.config.update({"head_average": head_average})
    if resolve(device).device.type == "cpu":
        model.pack_weights()  # autocast leaves them aside
    contract = Contract(
        processor=read_image_processor(path),
        label_names=names_in_order(model.config.id2label),
        head_names=heads,
        image_size=model.config.grid_image_size,
        num_channels=model.config.num_channels,
        head_average=model.config.head_average if len(heads) > 1 else None,
        **facts,
    )
    return TorchEngine(model, contract, device, precision=precision)


def open_torchvision_engine(
    name: str, device: str = "cpu", *, precision: str = "fp32", head_average: str | None = None
) -> TorchEngine:
    """Opens a classifier that torchvision publishes.

    Args:
        name: `torchvision/NAME`.
        device: See `TorchEngine`.
        precision: See `TorchEngine`.
        head_average: Must be None: such a model has one head.

    Raises:
        ConnectionError: The weights cannot be downloaded.
        UserError: torchvision has no such model, or does not name its classes; or see `open_engine`.
    """
    from deit.models.weights.torchvision import open_torchvision

    if head_average is not None:
        raise UserError(f"{name} is a model with one head. An average is for models with two (distilled ones).")
    published = open_torchvision(name.partition("/")[2])
    if published.label_names is None:
        raise UserError(f"torchvision does not name the classes of {name}. Pass another model.")
    contract = Contract(
        processor=published.processor,
        label_names=list(published.label_names),
        image_size=published.processor.output_size,
    )
    return TorchEngine(published.model, contract, device, precision=precision)
