"""The configuration and the image processor that a checkpoint needs, found by its files; no framework is loaded."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deit.core.config import config as configuration
from deit.core.config.config_file import read_config
from deit.core.errors import UserError, WrongTypeError
from deit.core.file_names import CONFIG_NAME
from deit.core.hub import HubOptions, local_path
from deit.core.processing.image_processor import processor_family
from deit.core.processing.settings import ImageProcessor
from deit.core.processing.settings_file import read_preprocessor_config, whole_processor
from deit.runtime.library_order import torchvision_is_loaded

CONFIGURATIONS = {"deit": "DeiTConfig", "vit": "ViTConfig"}  # model type of config.json -> class
BACKENDS = ("pil", "torchvision")
# What users registered: model type -> class; model type -> backend -> class; model type -> class
_CONFIGURATIONS_OF_USERS: dict[str, type[Any]] = {}
_PROCESSORS_OF_USERS: dict[str, dict[str, type[Any]]] = {}
_WHOLE_PROCESSORS_OF_USERS: dict[str, type[Any]] = {}
_PROCESSORS = {
    ("deit", "pil"): ("deit.core.processing.image_processor", "DeiTImageProcessor"),
    ("deit", "torchvision"): ("deit.models.fast_image_processor", "DeiTImageProcessorFast"),
    ("vit", "pil"): ("deit.core.processing.image_processor", "ViTImageProcessor"),
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
    known = (*CONFIGURATIONS, *_CONFIGURATIONS_OF_USERS)
    if model_type not in known:
        where = f" in {source}" if source else ""
        raise UserError(
            f"Unknown model type {model_type!r}{where}. Known: {', '.join(known)}. "
            "AutoConfig.register and AutoModel.register make a type of your own known."
        )


def configuration_class(model_type: str) -> type[Any]:
    """Returns the configuration's class of a model type that is known."""
    own = _CONFIGURATIONS_OF_USERS.get(model_type)
    return getattr(configuration, CONFIGURATIONS[model_type]) if own is None else own


def model_type_of(config_class: type[Any]) -> str:
    """Returns the model type that a configuration's class is registered under.

    Raises:
        ValueError: The class has no `model_type`.
    """
    model_type = getattr(config_class, "model_type", "")
    if not model_type:
        raise UserError(f"{config_class!r} is no class of configurations: it has no model_type.")
    return str(model_type)


def refuse_second(known: bool, exist_ok: bool, what: str) -> None:
    """Refuses to register something again.

    Raises:
        ValueError: It is registered, and `exist_ok` is off.
    """
    if known and not exist_ok:
        raise UserError(f"{what} is known already. Choose another model_type, or pass exist_ok=True to replace it.")


class NotBuilt:
    """A class that only opens others."""

    def __init__(self) -> None:
        raise WrongTypeError(
            f"{type(self).__name__} is not built directly. Use {type(self).__name__}.from_pretrained(...)."
        )


class AutoConfig(NotBuilt):
    """Opens a configuration of the class that its `model_type` names: `DeiTConfig` or `ViTConfig`."""

    @classmethod
    def for_model(cls, model_type: str, **fields: Any) -> Any:
        """Returns a configuration of a model type, "deit" or "vit".

        Raises:
            ValueError: The type is not known.
        """
        check_model_type(model_type)
        return configuration_class(model_type)(**fields)

    @staticmethod
    def register(model_type: str, config: type[Any], exist_ok: bool = False) -> None:
        """Makes a configuration of a user's known, for this process.

        Args:
            model_type: As in config.json.
            config: The class; its `model_type` must be the same.
            exist_ok: Replace what is known under that type.

        Raises:
            ValueError: The types differ, or the type is known and `exist_ok` is off.
        """
        if model_type_of(config) != model_type:
            raise UserError(f"{config.__name__}.model_type is {config.model_type!r}, not {model_type!r}.")
        known = model_type in CONFIGURATIONS or model_type in _CONFIGURATIONS_OF_USERS
        refuse_second(known, exist_ok, f"The model type {model_type!r}")
        _CONFIGURATIONS_OF_USERS[model_type] = config

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
            raise UserError(f"{path} names no model_type. Open it with DeiTConfig or ViTConfig.")
        check_model_type(values["model_type"], path)
        return configuration_class(values["model_type"]).from_pretrained(path, **kwargs)


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
        model_type = _model_type(config, file)
        own = _of_user(values, model_type)
        if own is not None:
            return _chosen(own, backend, use_fast).from_pretrained(file, **kwargs)
        found = processor_class(processor_family(values, model_type, file), backend, use_fast)
        return found.from_pretrained(file, **kwargs)

    @staticmethod
    def register(
        config_class: type[Any],
        slow_image_processor_class: type[Any] | None = None,
        fast_image_processor_class: type[Any] | None = None,
        image_processor_classes: dict[str, type[Any]] | None = None,
        exist_ok: bool = False,
    ) -> None:
        """Makes an image processor of a user's known, for this process.

        A file that names the class is then opened with it, and one that names none beside a configuration of that
        type.

        Args:
            config_class: The configuration's class.
            slow_image_processor_class: Same as {"pil": ...}.
            fast_image_processor_class: Same as {"torchvision": ...}.
            image_processor_classes: Backend, "pil" or "torchvision", to class.
            exist_ok: Replace what is known for that type.

        Raises:
            ValueError: No class is given, a backend is not known, or the type is known and `exist_ok` is off.
        """
        named = {"pil": slow_image_processor_class, "torchvision": fast_image_processor_class}
        named.update(image_processor_classes or {})
        given = {name: found for name, found in named.items() if found is not None}
        if not given or set(given) - set(BACKENDS):
            raise UserError(f"Pass a class for {' or '.join(BACKENDS)}. Received: {given}.")
        model_type = model_type_of(config_class)
        known = model_type in CONFIGURATIONS or model_type in _PROCESSORS_OF_USERS
        refuse_second(known, exist_ok, f"An image processor of {model_type!r}")
        _PROCESSORS_OF_USERS[model_type] = {**_PROCESSORS_OF_USERS.get(model_type, {}), **given}


class AutoProcessor(NotBuilt):
    """Opens the preprocessing of a checkpoint, which for DeiT and ViT is its image processor."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, config: Any = None, **kwargs: Any
    ) -> Any:
        """Same as `AutoImageProcessor.from_pretrained`, or as that of a class that was registered.

        Raises:
            ValueError: The files hold a processor of several parts (a tokenizer, for example).
        """
        options = HubOptions.take_from(dict(kwargs))
        subfolder = kwargs.get("subfolder") or ""
        values, file = read_preprocessor_config(pretrained_model_name_or_path, subfolder=subfolder, options=options)
        own = _WHOLE_PROCESSORS_OF_USERS.get(str(_model_type(config, file)))
        if own is not None:
            return own.from_pretrained(pretrained_model_name_or_path, **kwargs)
        whole = whole_processor(file, values)
        if whole is not None:
            raise UserError(
                f"{file} belongs to a {whole}, which is more than an image processor and not part of this package. "
                "AutoImageProcessor opens its preprocessing of images; transformers opens the whole."
            )
        return AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, config=config, **kwargs)

    @staticmethod
    def register(config_class: type[Any], processor_class: type[Any], exist_ok: bool = False) -> None:
        """Makes a processor of a user's known, for this process.

        Args:
            config_class: The configuration's class.
            processor_class: Whatever `from_pretrained` shall return.
            exist_ok: Replace what is known for that type.

        Raises:
            ValueError: The type is known and `exist_ok` is off.
        """
        model_type = model_type_of(config_class)
        known = model_type in CONFIGURATIONS or model_type in _WHOLE_PROCESSORS_OF_USERS
        refuse_second(known, exist_ok, f"A processor of {model_type!r}")
        _WHOLE_PROCESSORS_OF_USERS[model_type] = processor_class


def _of_user(values: Mapping[str, Any], model_type: str | None) -> dict[str, type[Any]] | None:
    """Returns a user's classes by backend that a file names, or, when it names none, that its model type means."""
    name = values.get("image_processor_type")
    for classes in _PROCESSORS_OF_USERS.values():
        if any(name in (found.__name__, found.__name__.removesuffix("Pil")) for found in classes.values()):
            return classes
    return _PROCESSORS_OF_USERS.get(str(model_type)) if name is None else None


def _chosen(classes: dict[str, type[Any]], backend: str | None, use_fast: bool | None) -> type[Any]:
    wanted = backend or ("torchvision" if use_fast or (use_fast is None and torchvision_is_loaded()) else "pil")
    if backend is not None and backend not in classes:
        raise UserError(f"No class is registered for the backend {backend!r}. Registered: {', '.join(classes)}.")
    return classes.get(wanted) or next(iter(classes.values()))


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
        raise UserError(f"backend must be 'torchvision', 'pil' or None. Received: {backend!r}.")
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
