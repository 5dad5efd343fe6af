"""Reads where the models of a server come from, and what they are called."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deit.core.errors import UserError, shown
from deit.core.files import at_home
from deit.serve.served_model import label_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from, and what it is called.

    Attributes:
        name: Name in requests: letters, digits, ".", "_" and "-".
        version: A whole number of at least 1, as text.
        path: Model directory, exported file or name, see `Predictor.open`.
    """

    name: str
    version: str = "1"
    path: str

    @property
    def label(self) -> str:
        """How messages and metrics call it."""
        return label_of(self.name, self.version)


def read_sources(arguments: Sequence[str]) -> list[ModelSource]:
    """Reads the models of the command line: "PATH", "NAME=PATH" or "NAME@VERSION=PATH".

    A bare path is called after its last part. What stands before the first "=" is a name only if it can be one; write
    "./a=b" for a folder of that name.

    Raises:
        UserError: There is none, two have the same name and version, or a version is not a number.
    """
    sources = [_source(argument) for argument in arguments]
    if not sources:
        raise UserError('There is no model to serve. Pass a model directory, or "NAME=DIRECTORY".')
    labels = [source.label for source in sources]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"Two models are called {label!r}. Name one of them: NAME=PATH or NAME@VERSION=PATH.")
    return sources


def _source(argument: str) -> ModelSource:
    head, equals, path = argument.partition("=")
    name, at, version = head.partition("@")
    if not equals or not _NAME.fullmatch(name):
        return ModelSource(name=_name_of(argument), path=at_home(argument))
    if at and not _VERSION.fullmatch(version):
        raise UserError(f"The version of a model is a whole number of at least 1. Received: {shown(argument)}.")
    if not path:
        raise UserError(f"The model {name!r} has no path. Pass NAME=PATH. Received: {shown(argument)}.")
    return ModelSource(name=name, version=version or "1", path=at_home(path))


def _name_of(path: str) -> str:
    last = Path(os.path.abspath(path)).name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:100]
    return name or "model"
