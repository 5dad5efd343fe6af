"""Defines what runs a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from deit.core.errors import UserError
from deit.inference.contract import Array, Contract

# Between two layers, the tokens of more images than this leave the second-level cache of a core. On 2 cores, DeiT-Ti
# and DeiT-S answer a batch of 32 in parts of 8 up to 6 % faster than at once, and equally (OpenVINO 2026.4).
IMAGES_FOR_A_THREAD = 4


class Engine(Protocol):
    """Runs a model on pixels.

    Attributes:
        contract: What the engine takes and what its answers mean.
        device: Name of the device that computes: "cpu", "cuda", ...
        precision: "fp32" or "bf16"; of an exported model also "int8" or "fp16".
        name: "torch", "openvino", ...
    """

    @property
    def contract(self) -> Contract: ...  # noqa: D102

    @property
    def device(self) -> str: ...  # noqa: D102

    @property
    def precision(self) -> str: ...  # noqa: D102

    @property
    def name(self) -> str: ...  # noqa: D102

    def __call__(self, pixels: Array, /) -> Mapping[str, Array]:
        """Returns the logits (B, K) of each head of `contract.head_names`.

        Args:
            pixels: (B, 3, H, W) float32, as `contract.processor` makes them.
        """
        ...


def check_pixels(pixels: Array, contract: Contract) -> None:
    """Refuses pixels of another size, which a converted model cannot take.

    Raises:
        UserError: The pixels are not (B, C, H, W) of the contract.
    """
    size = (*pixels.shape[-2:],) if contract.image_size is None else contract.image_size
    if pixels.ndim != 4 or pixels.shape[1:] != (contract.num_channels, *size):
        channels = contract.num_channels
        raise UserError(f"The model takes pixels of (B, {channels}, {size[0]}, {size[1]}). Received: {pixels.shape}.")


def ask_in_parts(ask: Callable[[Array], dict[str, Array]], pixels: Array, threads: int) -> dict[str, Array]:
    """Asks a model of OpenVINO or ONNX Runtime about a batch, in parts of at most `IMAGES_FOR_A_THREAD` per thread.

    Args:
        ask: Takes pixels (b, C, H, W) and returns name -> (b, ...), in arrays that the next call leaves alone.
        pixels: (B, C, H, W).
        threads: That the model computes with.
    """
    parts = -(-len(pixels) // (IMAGES_FOR_A_THREAD * threads))
    if parts < 2:
        return ask(pixels)
    told = [ask(part) for part in np.array_split(pixels, parts)]
    return {name: np.concatenate([each[name] for each in told]) for name in told[0]}


class FunctionEngine:
    """Makes an engine of a function from pixels (B, 3, H, W) to logits (B, K).

    Args:
        function: The function.
        contract: Its contract.
    """

    device = "cpu"
    precision = "fp32"
    name = "function"

    def __init__(self, function: Callable[[Array], Array], contract: Contract) -> None:
        self.function = function
        self.contract = contract

    def __call__(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits (B, K) of the one head."""
        return {self.contract.head_names[0]: self.function(pixels)}
