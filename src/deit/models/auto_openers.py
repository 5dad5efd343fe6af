"""The configuration and the image processor that a checkpoint needs, found by its files; no framework is loaded."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from deit.core import configuration
from deit.core.configuration import CONFIG_NAME, read_config
from deit.core.hub import HubOptions, local_path
from deit.core.image_processor import processor_family
from deit.core.library_order import torchvision_is_loaded
from deit.core.processor_settings import ImageProcessor, read_preprocessor_config

CONFIGURATIONS = {"deit": "DeiTConfig", "vit": "ViTConfig"}  # model type of config.json -> class
_PROCESSORS = {
    ("deit", "pil"): ("deit.core.image_processor", "DeiTImageProcessor"),
    ("deit", "torchvision"): ("deit.models.fast_image_processor", "DeiTImageProcessorFast"),
    ("vit", "pil"): ("deit.core.image_processor", "ViTImageProcessor"),
    ("vit", "torchvision"): ("deit.models.fast_image_processor", "ViTImageProcessorFast"),
}
WITHOUT_EFFECT = ("trust_remote_code", "code_revision", "_from_auto", "_from_pipeline")  # no code is ever fetched


def check_model_type(model_type: str | None, source: object = None) -> None:
    """Checks that a model type is known.

    Args:
        model_type: As in config.json.
        source: Named in the message.

    Raises:
        ValueError: It is not.
    """
    if model_type not in CONFIGURATIONS:
        where = f" in {source}" if source else ""
        raise ValueError(f"Unknown model type {model_type!r}{where}. Known: {', '.join(CONFIGURATIONS)}.")


class NotBuilt:
    """A class that only opens others."""

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is not built directly. Use {type(self).__name__}.from_pretrained(...).")


class AutoConfig(NotBuilt):
    """Opens a configuration of the class that its `model_type` names: `DeiTConfig` or `ViTConfig`."""

    @classmethod
    def for_model(cls, model_type: str, **fields: Any) -> Any:
        """Returns a configuration of a model type, "deit" or "vit".

        Raises:
            ValueError: The type is not known.
        """
        check_model_type(model_type)
        return getattr(configuration, CONFIGURATIONS[model_type])(**fields)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, subfolder: str = "", **kwargs: Any
    ) -> Any:
        """Reads `config.json` of a model directory, a file, or a model on the hub.

        Args:
            pretrained_model_name_or_path: Folder, file, or name on the hub.
            subfolder: Folder inside the model's.
            **kwargs: Fields that override the file's; `return_unused_kwargs`; the fields of `HubOptions`.

        Returns:
            The configuration, or (configuration, unused keywords).

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged, or of another kind of model.
        """
        options = take_common(kwargs)
        path = local_path(pretrained_model_name_or_path, need="config", options=options, subfolder=subfolder)
        values = read_config(path)
        if "model_type" not in values:
            raise ValueError(f"{path} names no model_type. Open it with DeiTConfig or ViTConfig.")
        check_model_type(values["model_type"], path)
        return getattr(configuration, CONFIGURATIONS[values["model_type"]]).from_pretrained(path, **kwargs)


def take_common(kwargs: dict[str, Any]) -> HubOptions:
    """Removes hub options, and arguments of transformers that change nothing here."""
    for name in WITHOUT_EFFECT:
        kwargs.pop(name, None)
    return HubOptions.take_from(kwargs)


class AutoImageProcessor(NotBuilt):
    """Opens the image processor of a checkpoint."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        use_fast: bool | None = None,
        backend: str | None = None,
        config: Any = None,
        subfolder: str = "",
        **kwargs: Any,
    ) -> Any:
        """Reads `preprocessor_config.json`; the class is the one that it names, or that the model's type means.

        Args:
            pretrained_model_name_or_path: Folder, file, or name on the hub.
            use_fast: True is backend="torchvision", False is backend="pil".
            backend: "torchvision" (`DeiTImageProcessorFast`), "pil" (`DeiTImageProcessor`), or None: torchvision where
                the process has imported it already, else Pillow, which needs neither PyTorch nor torchvision.
            config: The model's configuration, when it is at hand.
            subfolder: Folder inside the model's.
            **kwargs: Options that override the file's; `return_unused_kwargs`; the fields of `HubOptions`.

        Returns:
            The processor, or (processor, unused keywords).

        Raises:
            FileNotFoundError: There is no such file.
            TypeError: An option is unknown or has the wrong type.
            ValueError: The processor is of another type, the backend is not known, or the file is damaged.
            ModuleNotFoundError: torchvision was asked for by name and is not installed.
        """
        options = take_common(kwargs)
        values, file = read_preprocessor_config(pretrained_model_name_or_path, subfolder=subfolder, options=options)
        found = processor_class(processor_family(values, _model_type(config, file), file), backend, use_fast)
        return found.from_pretrained(file, **kwargs)


def processor_class(family: str, backend: str | None = None, use_fast: bool | None = None) -> type[ImageProcessor]:
    """Returns the class of a processor.

    Args:
        family: "deit" or "vit".
        backend: See `AutoImageProcessor`.
        use_fast: See `AutoImageProcessor`; `backend` wins.

    Raises:
        ValueError: The backend is not known.
        ModuleNotFoundError: It is torchvision, which is not installed.
    """
    if backend is None:
        backend = "torchvision" if use_fast or (use_fast is None and torchvision_is_loaded()) else "pil"
    if (family, backend) not in _PROCESSORS:
        raise ValueError(f"backend must be 'torchvision', 'pil' or None. Received: {backend!r}.")
    module, name = _PROCESSORS[family, backend]
    try:
        found: type[ImageProcessor] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{name} needs the {error.name!r} package. Install it with: pip install "deit[torch]", or take the Pillow '
            'processor: backend="pil" (use_fast=False).',
            name=error.name,
        ) from error
    return found


def _model_type(config: Any, file: Path) -> str | None:
    if config is not None:
        return str(config.model_type)
    if not (file.parent / CONFIG_NAME).is_file():
        return None
    model_type: str | None = read_config(file.parent).get("model_type")
    return model_type
