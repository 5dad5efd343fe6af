"""The class that a checkpoint needs, found by its files: AutoConfig, AutoModel..., AutoImageProcessor."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from deit.core import configuration
from deit.core.architecture import infer_config
from deit.core.configuration import CONFIG_NAME, read_config
from deit.core.hub import HubOptions, local_path
from deit.core.image_processor import processor_family
from deit.core.processor_settings import ImageProcessor, read_preprocessor_config
from deit.models.opening import FileOptions, open_checkpoint

# Model type of config.json -> module of the networks, and the class for each task. Of several classes the one that
# `architectures` names is taken, else the first.
_MODULES = {"deit": "deit.models.deit", "vit": "deit.models.vit"}
_CONFIGURATIONS = {"deit": "DeiTConfig", "vit": "ViTConfig"}
CLASSIFICATION, MASKED_IMAGE, FEATURES = "image classification", "masked image modeling", "features"
CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    FEATURES: {"deit": ("DeiTModel",), "vit": ("ViTModel",)},
    CLASSIFICATION: {
        "deit": ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
        "vit": ("ViTForImageClassification",),
    },
    MASKED_IMAGE: {"deit": ("DeiTForMaskedImageModeling",), "vit": ("ViTForMaskedImageModeling",)},
}
_PROCESSORS = {
    ("deit", "pil"): ("deit.core.image_processor", "DeiTImageProcessor"),
    ("deit", "torchvision"): ("deit.models.fast_image_processor", "DeiTImageProcessorFast"),
    ("vit", "pil"): ("deit.core.image_processor", "ViTImageProcessor"),
    ("vit", "torchvision"): ("deit.models.fast_image_processor", "ViTImageProcessorFast"),
}
HUB_ARGUMENTS = (*HubOptions.__dataclass_fields__, "use_auth_token")
_WITHOUT_EFFECT = ("trust_remote_code", "code_revision", "_from_auto", "_from_pipeline")  # no code is ever fetched


def names_of(task: str) -> tuple[str, ...]:
    """Returns the names of all classes for a task, a key of `CLASSES`."""
    return tuple(name for names in CLASSES[task].values() for name in names)


def find_class(task: str, model_type: str | None, architectures: Sequence[str] | None) -> type[Any]:
    """Returns the class of a model.

    Args:
        task: A key of `CLASSES`.
        model_type: As in config.json.
        architectures: Class names, as in config.json; the first that fits the task is taken.

    Raises:
        ValueError: No model of that type is known.
    """
    _check_model_type(model_type)
    candidates = CLASSES[task][str(model_type)]
    named = [name for name in architectures or () if name in candidates]
    found: type[Any] = getattr(importlib.import_module(_MODULES[str(model_type)]), (named or list(candidates))[0])
    return found


def _check_model_type(model_type: str | None, source: object = None) -> None:
    if model_type not in _MODULES:
        where = f" in {source}" if source else ""
        raise ValueError(f"Unknown model type {model_type!r}{where}. Known: {', '.join(_MODULES)}.")


class _NotBuilt:
    """A class that only opens others."""

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is not built directly. Use {type(self).__name__}.from_pretrained(...).")


class AutoConfig(_NotBuilt):
    """Opens a configuration of the class that its `model_type` names: `DeiTConfig` or `ViTConfig`."""

    @classmethod
    def for_model(cls, model_type: str, **fields: Any) -> Any:
        """Returns a configuration of a model type, "deit" or "vit".

        Raises:
            ValueError: The type is not known.
        """
        _check_model_type(model_type)
        return getattr(configuration, _CONFIGURATIONS[model_type])(**fields)

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
        options = _take_common(kwargs)
        path = local_path(pretrained_model_name_or_path, need="config", options=options, subfolder=subfolder)
        values = read_config(path)
        if "model_type" not in values:
            raise ValueError(f"{path} names no model_type. Open it with DeiTConfig or ViTConfig.")
        _check_model_type(values["model_type"], path)
        return getattr(configuration, _CONFIGURATIONS[values["model_type"]]).from_pretrained(path, **kwargs)


class _AutoModel(_NotBuilt):
    """Opens a model of the class for one task."""

    task: ClassVar[str]

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """Builds a model with new weights.

        Args:
            config: A configuration; it needs no `architectures`.
            **kwargs: `dtype` (or `torch_dtype`), `attn_implementation`; others go to the constructor.

        Raises:
            ValueError: The configuration is of another kind of model.
        """
        _take_common(kwargs)
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        attention = kwargs.pop("attn_implementation", None)
        if attention is not None:
            config = type(config).from_dict(config.to_dict(), attn_implementation=attention)
        model = find_class(cls.task, config.model_type, config.architectures)(config, **kwargs)
        return model if dtype in (None, "auto") else model.to(getattr(torch, str(dtype).removeprefix("torch.")))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Opens a model directory or a model on the hub; see `DeiTPreTrainedModel.from_pretrained`.

        Args:
            pretrained_model_name_or_path: Folder or name on the hub.
            *model_args: Passed to the constructor.
            config: Replaces the directory's configuration.
            **kwargs: As for the class that is opened.

        Raises:
            FileNotFoundError: The folder or a file of it is missing.
            ValueError: It is damaged, or of another kind of model.
        """
        for name in _WITHOUT_EFFECT:
            kwargs.pop(name, None)
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if isinstance(config, (str, os.PathLike)):
            config = AutoConfig.from_pretrained(config, **hub_arguments)
        if config is None:
            options = HubOptions.take_from(dict(hub_arguments))
            values = _describe(pretrained_model_name_or_path, options, kwargs)
        else:
            values = {"model_type": config.model_type, "architectures": config.architectures}
            kwargs["config"] = config
        found = find_class(cls.task, values["model_type"], values.get("architectures"))
        return found.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


def _describe(name_or_path: str | os.PathLike[str], hub: HubOptions, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns `model_type` and `architectures` of a checkpoint.

    Weights of the original release and of timm come without a configuration that says them: they are read off the
    tensors.
    """
    subfolder = kwargs.get("subfolder") or ""
    place = local_path(name_or_path, need="config", options=hub, subfolder=subfolder)
    values = read_config(place) if place.is_dir() or place.suffix == ".json" else {}
    if place.is_dir() and "architecture" not in values:
        _check_model_type(values.get("model_type"), place)
        return values
    files = FileOptions(subfolder=subfolder, use_safetensors=kwargs.get("use_safetensors"), hub=hub)
    checkpoint = open_checkpoint(name_or_path, files)
    inferred = infer_config(checkpoint.source.shapes, values, source=checkpoint.name)
    return {"model_type": inferred.model_type, "architectures": inferred.architectures}


def _take_common(kwargs: dict[str, Any]) -> HubOptions:
    """Removes hub options, and arguments of transformers that change nothing here."""
    for name in _WITHOUT_EFFECT:
        kwargs.pop(name, None)
    return HubOptions.take_from(kwargs)


class AutoModel(_AutoModel):
    """Opens the bare model of a checkpoint: `DeiTModel` or `ViTModel`."""

    task = FEATURES


class AutoModelForImageClassification(_AutoModel):
    """Opens the classifier of a checkpoint.

    A distilled one becomes `DeiTForImageClassificationWithTeacher`, which has both heads. Name
    `DeiTForImageClassification` to fine-tune with one.
    """

    task = CLASSIFICATION


class AutoModelForMaskedImageModeling(_AutoModel):
    """Opens the masked-image model of a checkpoint."""

    task = MASKED_IMAGE


class AutoImageProcessor(_NotBuilt):
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
            backend: "torchvision" (`DeiTImageProcessorFast`), "pil" (`DeiTImageProcessor`), or None: torchvision, as
                in transformers 5.
            config: The model's configuration, when it is at hand.
            subfolder: Folder inside the model's.
            **kwargs: Options that override the file's; `return_unused_kwargs`; the fields of `HubOptions`.

        Returns:
            The processor, or (processor, unused keywords).

        Raises:
            FileNotFoundError: There is no such file.
            TypeError: An option is unknown or has the wrong type.
            ValueError: The processor is of another type, the backend is not known, or the file is damaged.
        """
        options = _take_common(kwargs)
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
    """
    if backend is None:
        backend = "pil" if use_fast is False else "torchvision"
    if (family, backend) not in _PROCESSORS:
        raise ValueError(f"backend must be 'torchvision', 'pil' or None. Received: {backend!r}.")
    module, name = _PROCESSORS[family, backend]
    found: type[ImageProcessor] = getattr(importlib.import_module(module), name)
    return found


def _model_type(config: Any, file: Path) -> str | None:
    if config is not None:
        return str(config.model_type)
    if not (file.parent / CONFIG_NAME).is_file():
        return None
    model_type: str | None = read_config(file.parent).get("model_type")
    return model_type


def __getattr__(name: str) -> Any:
    tasks = {
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": CLASSIFICATION,
        "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING": MASKED_IMAGE,
    }
    if name not in tasks:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    task = tasks[name]
    return {
        getattr(configuration, _CONFIGURATIONS[model_type]): find_class(task, model_type, None)
        for model_type in CLASSES[task]
    }
