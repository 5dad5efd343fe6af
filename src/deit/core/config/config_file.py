"""Reads `config.json`, of a folder or of a model on the hub, and writes its text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from deit.core.config.field_checks import check_architectures
from deit.core.errors import DamagedConfigurationError, DamagedFileError, UserError, read_json, shown
from deit.core.file_names import CONFIG_NAME
from deit.core.hub import HubOptions, is_hub_name, local_path

_OF_TRANSFORMERS_TRAINER = "training_args.bin"


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a `config.json`, given itself or its folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a JSON object.
    """
    file = Path(path)
    if file.is_dir():
        file = file / CONFIG_NAME
    if not file.exists() and (file.parent / _OF_TRANSFORMERS_TRAINER).exists():
        raise FileNotFoundError(
            f"{file.parent} has no {CONFIG_NAME}: transformers.Trainer writes none for models of other packages. "
            "Train with deit.Trainer, or pass the model's configuration as config=."
        )
    if not file.exists():
        raise FileNotFoundError(f"No {CONFIG_NAME} at {path}. Pass a model directory, as save_pretrained writes it.")
    try:
        values = read_json(file, "a configuration")
    except DamagedFileError as error:
        raise DamagedConfigurationError(str(error)) from error
    # What class opens the folder follows from these two, before the other fields are checked.
    check_architectures(values.get("architectures"))
    if not isinstance(values.get("model_type"), (str, NoneType)):
        raise DamagedConfigurationError(f"{file} is damaged: its model_type is {shown(values['model_type'])}, no text.")
    return values


def find_config(path: str | os.PathLike[str], kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a `config.json`, given itself, its folder or a name on the hub.

    Args:
        path: Any of them.
        kwargs: `subfolder` and how to ask the hub, which are taken out; and others.

    Returns:
        (what the file holds, the other keywords).

    Raises:
        OSError: There is no such folder or file, it is not JSON, or the hub cannot be reached.
    """
    options, subfolder = HubOptions.take_from(kwargs), kwargs.pop("subfolder", None) or ""
    if subfolder or is_hub_name(path):
        path = local_path(path, need="config", options=options, subfolder=subfolder)
    return read_config(path), kwargs


def check_model_type(values: Mapping[str, Any], wanted: str, asker: str, place: str) -> None:
    """Checks that a configuration describes a kind of model.

    Args:
        values: What its file holds.
        wanted: The model type.
        asker: Name of the class that needs it, for the message.
        place: Where it was read from, for the message.

    Raises:
        ValueError: It is of another kind, or timm's.
    """
    if "architecture" in values and "model_type" not in values:
        raise UserError(f"The configuration in {place} is timm's and says too little. Open the model with its class.")
    model_type = values.get("model_type", wanted)
    if model_type != wanted:
        raise UserError(f"The configuration in {place} is of model type {shown(model_type)}, {asker} needs {wanted!r}.")


def config_json(values: Mapping[str, Any]) -> str:
    """Returns fields as JSON: sorted keys, indented by two, with a trailing newline.

    Raises:
        ValueError: A value, such as an activation given as a function, cannot be written as JSON.
    """
    for name, value in values.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise UserError(f"{name} cannot be written as JSON ({error}). Replace {value!r} before saving.") from error
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
