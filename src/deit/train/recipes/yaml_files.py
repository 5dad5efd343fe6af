"""Reads YAML files within limits: small, shallow and without aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deit.core.errors import DamagedFileError, parsing, read_bytes

MOST_YAML_BYTES = 256 * 1024  # a recipe with every setting has 3 KiB; PyYAML takes a second for 100 KiB
_MOST_LEVELS = 20
_MOST_NUMBER = 400  # characters of a plain value; Python is slow at converting numbers of many digits


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """Reads a YAML file that holds one mapping.

    Refuses aliases: a few of them turn a file of 1 KB into a value of gigabytes.

    Args:
        path: The file.
        kind: Expected content with its article, for the message.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: The file is larger than `MOST_YAML_BYTES`, is not YAML, is nested too deeply, uses aliases
            or Python tags, or does not hold a mapping.
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
                raise DamagedFileError(f"{path} holds a value of {len(event.value)} characters. It is not {kind}.")
            if depth > _MOST_LEVELS:
                raise DamagedFileError(f"{path} is nested more than {_MOST_LEVELS} levels deep. It is not {kind}.")
        values = yaml.safe_load(content)
    if not isinstance(values, dict):
        raise DamagedFileError(f"{path} must hold the settings of {kind}. Received: {type(values).__name__}.")
    return values
