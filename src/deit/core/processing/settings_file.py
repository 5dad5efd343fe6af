"""Reads `preprocessor_config.json`, of a folder or of a model on the hub, and writes its text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deit.core.errors import WrongTypeError, read_json
from deit.core.file_names import PREPROCESSOR_NAME, PROCESSOR_NAME
from deit.core.hub import HubOptions, local_path


def read_preprocessor_config(
    path: str | os.PathLike[str], *, subfolder: str = "", options: HubOptions | None = None
) -> tuple[dict[str, Any], Path]:
    """Reads the settings of a processor, given a folder, the file itself or a name on the hub.

    Returns:
        The settings and the file they are from.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a JSON object.
    """
    place = local_path(path, need="processor", options=options, subfolder=subfolder)
    if place.is_dir():
        together = place / PROCESSOR_NAME
        if together.is_file() and isinstance((values := _settings(together)).get("image_processor"), dict):
            return values["image_processor"], together
    file = place / PREPROCESSOR_NAME if place.is_dir() else place
    if not file.exists():
        raise FileNotFoundError(f"No {PREPROCESSOR_NAME} at {path}. Pass a model directory with one.")
    values = _settings(file)
    return values["image_processor"] if isinstance(values.get("image_processor"), dict) else values, file


def whole_processor(file: Path, values: Mapping[str, Any]) -> str | None:
    """Returns the class of the whole processor that an image processor is a part of, if any.

    Args:
        file: Where they are from.
        values: The settings.
    """
    together = file.parent / PROCESSOR_NAME
    whole = _settings(together) if together.is_file() else {}
    name = whole.get("processor_class") or values.get("processor_class")
    return None if name is None or name == values.get("image_processor_type") else str(name)


def _settings(file: Path) -> dict[str, Any]:
    return read_json(file, "the settings of a processor")


def preprocessor_file(path: str | os.PathLike[str], subfolder: str) -> Path:
    """Names the file of a processor in a message."""
    folder = Path(path) / subfolder
    return folder / PREPROCESSOR_NAME if folder.is_dir() else folder


def settings_json(values: Mapping[str, Any]) -> str:
    """Returns settings as JSON: sorted keys, indented by two, with a trailing newline; arrays become lists.

    Raises:
        TypeError: A value cannot be written as JSON.
    """
    return json.dumps(values, indent=2, sort_keys=True, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise WrongTypeError(f"A file of settings cannot hold {value!r}. Remove the attribute, or give it a name with _.")
