"""The class that a checkpoint needs, found by its files: AutoModel and those for a task."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from deit.core.config import config as configuration
from deit.core.config.config_file import read_config
from deit.core.errors import UserError
from deit.core.hub import HubOptions, local_path
from deit.core.weights.inferred_config import infer_config
from deit.models.auto_openers import (
    CONFIGURATIONS,
    WITHOUT_EFFECT,
    AutoConfig,
    NotBuilt,
    check_model_type,
    model_type_of,
    refuse_second,
    take_common,
)
from deit.models.weights.from_pretrained import FileOptions, open_checkpoint

# Model type of config.json -> module of the networks, and the class for each task. Of several classes the one that
# `architectures` names is taken, else the first.
_MODULES = {"deit": "deit.models.deit", "vit": "deit.models.vit"}
CLASSIFICATION, MASKED_IMAGE, FEATURES = "image classification", "masked image modeling", "features"
CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    FEATURES: {"deit": ("DeiTModel",), "vit": ("ViTModel",)},
    CLASSIFICATION: {
        "deit": ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
        "vit": ("ViTForImageClassification",),
    },
    MASKED_IMAGE: {"deit": ("DeiTForMaskedImageModeling",), "vit": ("ViTForMaskedImageModeling",)},
}
_OF_USERS: dict[tuple[str, str], type[Any]] = {}  # (task, model type) -> class that a user registered
HUB_ARGUMENTS = (*HubOptions.__dataclass_fields__, "use_auth_token")


def names_of(task: str) -> tuple[str, ...]:
    """Returns the names of all classes for a task, a key of `CLASSES`."""
    own = (found.__name__ for (of, _), found in _OF_USERS.items() if of == task)
    return (*(name for names in CLASSES[task].values() for name in names), *own)


def find_class(task: str, model_type: str | None, architectures: Sequence[str] | None) -> type[Any]:
    """Returns the class of a model.

    Args:
        task: A key of `CLASSES`.
        model_type: As in config.json.
        architectures: Class names, as in config.json; the first that fits the task is taken.

    Raises:
        ValueError: No model of that type is known.
    """
    check_model_type(model_type)
    own = _OF_USERS.get((task, str(model_type)))
    if own is not None:
        return own
    if model_type not in CLASSES[task]:
        raise UserError(f"No class for {task} is registered for {model_type!r}. AutoModel....register names one.")
    candidates = CLASSES[task][str(model_type)]
    named = [name for name in architectures or () if name in candidates]
    found: type[Any] = getattr(importlib.import_module(_MODULES[str(model_type)]), (named or list(candidates))[0])
    return found


class _AutoModel(NotBuilt):
    """Opens a model of the class for one task."""

    task: ClassVar[str]

    @classmethod
    def register(cls, config_class: type[Any], model_class: type[Any], exist_ok: bool = False) -> None:
        """Makes a model of a user's known for this task, for this process; its type is that of the configuration.

        Args:
            config_class: The configuration's class, which `AutoConfig.register` must know too.
            model_class: The model's; its `config_class` must be the same.
            exist_ok: Replace what is known for that type.

        Raises:
            ValueError: The classes do not belong together, or the type is known and `exist_ok` is off.
        """
        model_type = model_type_of(config_class)
        own = getattr(model_class, "config_class", config_class)
        if own is not None and own.__name__ != config_class.__name__:
            raise UserError(f"{model_class.__name__}.config_class is {own.__name__}, not {config_class.__name__}.")
        known = model_type in CLASSES[cls.task] or (cls.task, model_type) in _OF_USERS
        refuse_second(known, exist_ok, f"A class of {model_type!r} for {cls.task}")
        _OF_USERS[cls.task, model_type] = model_class

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """Builds a model with new weights.

        Args:
            config: A configuration; it needs no `architectures`.
            **kwargs: `dtype` (or `torch_dtype`), `attn_implementation`; others go to the constructor.

        Raises:
            ValueError: The configuration is of another kind of model.
        """
        take_common(kwargs)
        found = find_class(cls.task, config.model_type, config.architectures)
        return getattr(found, "_from_config", found)(config, **kwargs)

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
        for name in WITHOUT_EFFECT:
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
        check_model_type(values.get("model_type"), place)
        return values
    files = FileOptions(subfolder=subfolder, use_safetensors=kwargs.get("use_safetensors"), hub=hub)
    checkpoint = open_checkpoint(name_or_path, files)
    inferred = infer_config(checkpoint.source.shapes, values, source=checkpoint.name)
    return {"model_type": inferred.model_type, "architectures": inferred.architectures}


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


MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING: dict[type[Any], Any]
"""Configuration class to its classifier, or to a tuple of them; computed when it is read."""

MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING: dict[type[Any], Any]
"""Configuration class to its masked-image model; computed when it is read."""


def __getattr__(name: str) -> Any:
    tasks = {
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": CLASSIFICATION,
        "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING": MASKED_IMAGE,
    }
    if name not in tasks:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    table: dict[type[Any], Any] = {}
    for model_type, names in CLASSES[tasks[name]].items():
        classes = tuple(dict.fromkeys(find_class(tasks[name], model_type, [own]) for own in names))
        table[getattr(configuration, CONFIGURATIONS[model_type])] = classes if len(classes) > 1 else classes[0]
    return table
