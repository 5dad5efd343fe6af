"""Finds out whether processes that work together began alike: same libraries, same settings, same data."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import deit
from deit.core.errors import shown

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")  # on which results depend
_MOST = 5  # differences in a message


def versions() -> dict[str, str]:
    """Returns the versions of Python, of this package, and of those on which results depend."""
    found = {"Python": platform.python_version(), "deit": deit.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def describe_differences(facts: Sequence[Mapping[str, Any]]) -> str:
    """Returns a sentence that names the first process whose facts are not those of the first; empty if all agree.

    Args:
        facts: Of each process, by rank.
    """
    first = facts[0]
    for rank, other in enumerate(facts):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            listed = [f"{name} {shown(other.get(name))}, there {shown(first.get(name))}" for name in names[:_MOST]]
            more = f"; and {len(names) - _MOST} more" if len(names) > _MOST else ""
            return (
                f"Process {rank} of {len(facts)} differs from process 0: {'; '.join(listed)}{more}. All processes need "
                "the same libraries, images, weights, folders and options."
            )
    return ""
