"""Opens the right engine for the file of a model.

A new engine is one file like `torch_engine` and one row of `ENGINES`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from deit.core.errors import UserError
from deit.core.model_directory import kind_of_model
from deit.inference.engines.engine import Engine
from deit.inference.engines.torch_engine import open_torch_engine, open_torchvision_engine


class OpenEngine(Protocol):
    """Opens an engine; see `open_engine` for the arguments."""

    def __call__(  # noqa: D102
        self, path: Path, device: str, *, precision: str, head_average: str | None, published: bool
    ) -> Engine: ...


# Ending of what is opened -> engine. A model directory counts as one without ending.
ENGINES: dict[str, OpenEngine] = {
    "": open_torch_engine,
}


def open_engine(
    name_or_path: str | os.PathLike[str],
    device: str = "cpu",
    *,
    precision: str = "fp32",
    head_average: str | None = None,
) -> Engine:
    """Opens a classifier by its path or name.

    Args:
        name_or_path: See `deit.models.weights.model_names.find_model`. The preprocessing of `timm/NAME` is timm's.
            `torchvision/NAME` stands for the weights that torchvision publishes, with its preprocessing.
        device: "cpu", "cuda", ..., or "auto" for a GPU if there is one.
        precision: "fp32", or "bf16" to multiply in bfloat16 where PyTorch finds that safe (autocast); "auto" takes the
            faster one, see `choose_precision`.
        head_average: What two heads answer with together: "logits" (their mean, as the paper's code and transformers)
            or "probabilities" (the mean of their softmax outputs, as the paper's text). None follows the model's
            configuration, whose default is "logits".

    Raises:
        OSError: See `find_model`; or a file is missing.
        UserError: A file is damaged or holds no classifier; there is no such device, precision or average; or the model
            has one head, of which there is no average.
    """
    from deit.models.weights.model_names import find_model, timm_name
    from deit.models.weights.torchvision import torchvision_name

    if torchvision_name(name_or_path):
        return open_torchvision_engine(str(name_or_path), device, precision=precision, head_average=head_average)
    path = find_model(name_or_path)
    ending = "" if path.is_dir() else path.suffix.lower()
    if ending not in ENGINES:
        known = ", ".join(["a model directory", *(f"*{other}" for other in ENGINES if other)])
        raise UserError(f"{path} cannot be opened as a model. Pass one of: {known}.")
    published = timm_name(name_or_path) is not None and kind_of_model(path) == "timm"
    return ENGINES[ending](path, device, precision=precision, head_average=head_average, published=published)
