"""DeiT: small, fast image classifiers, from a folder of images to a model you can trust.

Importing this package loads no framework. Each public name is imported when it is first used (PEP 562). The names stand
in `__init__.pyi`, which type checkers read as it is and this file reads at run time.
"""

from __future__ import annotations

import ast
import importlib
import os
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _read_names() -> dict[str, str]:
    """Returns each public name and the module that defines it, from the stub beside this file."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"deit.{node.module}" for node in imports for alias in node.names}


_HOME = _read_names()

# The extra that brings what a part of the package needs, and the parts that run without PyTorch.
_EXTRAS = {
    "deit.client": "client",
    "deit.models": "torch",
    "deit.inference": "torch",
    "deit.explain": "torch",
    "deit.data": "train",
    "deit.train": "train",
    "deit.evaluate": "train",
    "deit.export": "train",
    "deit.train.transformers_trainer": "transformers",
}
_WITHOUT_PYTORCH = ("deit.core.", "deit.client.", "deit.keras.", "deit.models.auto_openers")
# `from deit import *` leaves these out: it would start TensorFlow, or need transformers.
_LEFT_OUT_OF_ALL = ("deit.keras.", "deit.train.transformers_trainer")

__all__ = ["__version__", *sorted(name for name, home in _HOME.items() if not home.startswith(_LEFT_OUT_OF_ALL))]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deit' has no attribute {name!r}")
    module = _HOME[name]
    if not module.startswith(_WITHOUT_PYTORCH):
        from deit.runtime.library_order import make_order_safe

        make_order_safe()  # a model of PyTorch is there to be trained, and making its optimizer loads triton
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "deit":
            raise
        if module.startswith("deit.keras."):
            raise _without_keras(name, error) from error
        extra = _EXTRAS.get(module) or _EXTRAS.get(".".join(module.split(".")[:2]))
        package = "deit" if extra is None else f"deit[{extra}]"
        raise ModuleNotFoundError(
            f'deit.{name} needs the {error.name!r} package. Install it with: pip install "{package}"',
            name=error.name,
        ) from error


def _without_keras(name: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    missing = str(error.name).split(".")[0]
    if missing in ("tensorflow", "jax", "torch"):
        chosen = f"KERAS_BACKEND={missing}" if "KERAS_BACKEND" in os.environ else f"the backend {missing!r} by default"
        text = (
            f"deit.{name} runs on Keras, which takes {chosen}, and {missing!r} is not installed. Install it with: "
            f'pip install "deit[{missing}]", or set KERAS_BACKEND to tensorflow, jax or torch, whichever is installed.'
        )
    else:
        text = (
            f'deit.{name} needs the {missing!r} package. Install it with: pip install "deit[tensorflow]" or '
            '"deit[jax]"; with PyTorch, "deit[keras,torch]" and KERAS_BACKEND=torch.'
        )
    return ModuleNotFoundError(text, name=error.name)


def __dir__() -> list[str]:
    return ["__version__", *sorted(_HOME)]
