"""Makes the order safe in which TensorFlow and triton enter a process.

Both carry LLVM, and triton crashes (a segmentation fault) when it is loaded after TensorFlow. PyTorch loads triton as
soon as something needs `torch._dynamo`: torchvision does at its import, timm through it, an optimizer when it is made.
"""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from typing import Any

logger = logging.getLogger(__name__)


def make_order_safe() -> None:
    """Keeps triton out of a process that has TensorFlow and not triton yet; else does nothing.

    Call it before torchvision, timm or `torch._dynamo` is imported. PyTorch then works as it does without triton: all
    but what `torch.compile` makes for GPUs, which it refuses by name. A warning says so, once.
    """
    modules: dict[str, Any] = sys.modules  # None is Python's own mark of a module that must not be imported
    if "tensorflow" not in modules or "triton" in modules:
        return
    try:
        if find_spec("triton") is None:
            return
    except ModuleNotFoundError:  # from a finder that forbids it
        return
    modules["triton"] = None
    logger.warning(
        "TensorFlow was imported before torchvision. Loading triton now would end the process, so it is left out, and "
        "torch.compile makes no GPU kernels here. To have them, import torchvision before tensorflow."
    )


def torchvision_is_loaded() -> bool:
    """Whether this process has torchvision already, so that using it costs nothing and changes nothing."""
    return sys.modules.get("torchvision") is not None
