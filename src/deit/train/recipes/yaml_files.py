"""YAML from outside, read within limits: small, shallow, and without references that multiply it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deit.core.errors import DamagedFileError, parsing, read_bytes

MOST_YAML_BYTES = 256 * 1024  # a recipe with every setting has 3 KiB; PyYAML takes a second for 100 KiB
_MOST_LEVELS = 20
_MOST_NUMBER = 400  # characters of a plain value: Python takes a long time for numbers of many digits


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """Reads a YAML file that holds one mapping.

    Anchors and aliases are refused: a few of them make a file of one KB a value of gigabytes.

    Args:
        path: The file.
        kind: What it should be, with its article, for the message.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It is larger than `MOST_YAML_BYTES`, not YAML, nested too deeply, uses aliases or tags of
            Python, or holds no mapping.
    """
    text = read_bytes(path, kind, MOST_YAML_BYTES)
    with parsing(path, kind):
        content = text.decode("utf-8")
        depth = 0
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise DamagedFileError(f"{path} uses an alias (*{str(event.anchor)[:40]}). Write its value out.")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > _MOST_NUMBER:
                raise DamagedFileError(f"{path} holds a value of {len(event.value)} characters. It is no {kind[2:]}.")
            if depth > _MOST_LEVELS:
                raise DamagedFileError(f"{path} is nested more than {_MOST_LEVELS} deep. It is no {kind[2:]}.")
        values = yaml.safe_load(content)
    if not isinstance(values, dict):
        raise DamagedFileError(f"{path} must hold the settings of {kind}. Received: {type(values).__name__}.")
    return values
