"""Asks for packages that not every user has: whether they are there, in which version, and without their telemetry."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deit.core.errors import MissingPackageError


def require_packages(what: str, *names: str, extra: str) -> None:
    """Imports packages of an extra; every part that needs OpenVINO, NNCF or ONNX asks here first.

    Args:
        what: What needs them, as the message begins: "The engine openvino".
        names: The packages.
        extra: The extra that brings them.

    Raises:
        MissingPackageError: One is not installed.
    """
    refuse_telemetry()
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f'{what} needs the {error.name!r} package. Install it with: pip install "deit[{extra}]"',
                name=error.name,
            ) from error


def refuse_telemetry() -> None:
    """Makes OpenVINO and NNCF do without `openvino_telemetry`; call it before they are imported.

    `import openvino` reports itself over the network by default, from a process that it forks in a thread. Both
    packages work without the module. One that is imported already stays.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # its import fails from now on


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Returns package -> version, for those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
