"""Resolves the device and the precision of a computation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deit.core.errors import UserError

if TYPE_CHECKING:
    import torch

AUTO = "auto"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

_BF16_FEATURES = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # of the CPU


@dataclass(frozen=True)
class Placement:
    """Where a model computes, and in which type it multiplies matrices.

    Attributes:
        device: The device.
        dtype: Type of matrix products under autocast; None for fp32.
    """

    device: torch.device
    dtype: torch.dtype | None = None

    def autocast(self) -> Any:
        """Returns the context in which PyTorch computes in this precision; it does nothing for fp32."""
        import torch

        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def move(self, model: Any) -> Any:
        """Moves a module or tensor to the device, and returns it.

        Raises:
            UserError: The device cannot be used.
        """
        try:
            return model.to(self.device)
        except (RuntimeError, AssertionError) as error:  # PyTorch's errors for missing drivers and full memory
            raise _unusable(str(self.device), error) from error


def resolve(device: int | str | torch.device | None = AUTO, precision: str = "fp32") -> Placement:
    """Resolves a device and a precision as a user writes them. Every command, class and function asks here.

    Args:
        device: A device of PyTorch by name, such as "cpu" or "cuda:1". "auto" and None take the GPU of CUDA if there
            is one, else the CPU. A number counts accelerators, -1 is the CPU. Under `torchrun`, "cuda" is the GPU of
            this process.
        precision: "fp32", "bf16" or "fp16". "auto" measures nothing here and follows `multiplies_bf16`; a training or
            an engine asks `choose_precision` first, and passes its answer.

    Raises:
        UserError: The device does not exist or cannot be used, or the precision is unknown.
    """
    import torch

    if precision not in PRECISIONS:
        raise UserError(f"The precision must be {' or '.join(PRECISIONS)}. Received: {precision!r}.")
    name = _device_name(device)
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"Unknown device {name!r}. Pass device='cpu' or device='cuda:0'.") from error
    if found.type == "meta":
        raise UserError("The device 'meta' holds no numbers. Pass device='cpu' or device='cuda:0'.")
    placement = Placement(found, autocast_type(precision, found))
    placement.move(torch.empty(0))
    return placement


def accelerator() -> torch.device:
    """Returns the accelerator of this machine (CUDA, MPS, XPU, ...), or the CPU where there is none."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def gpu_name(device: torch.device) -> str:
    """Returns the name of a GPU of CUDA, such as "NVIDIA H200"; empty for another device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def local_rank() -> int:
    """Returns the number of this process on its machine, as `torchrun` counts; 0 without it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _device_name(device: int | str | torch.device | None) -> str:
    import torch

    if isinstance(device, int):
        if device < 0:
            return "cpu"
        found = accelerator()
        if found.type == "cpu":
            raise UserError(f"There is no accelerator number {device} here. Pass device='cpu'.")
        return f"{found.type}:{device}"
    if device is None or device == AUTO:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    under_torchrun = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"cuda:{local_rank()}" if str(device) == "cuda" and under_torchrun else str(device)


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Returns the type in which matrices are multiplied, or None for fp32; see `resolve`."""
    import torch

    if precision == AUTO:
        return torch.bfloat16 if multiplies_bf16(device) else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware: GPUs of CUDA, and CPUs with AMX or AVX512-BF16."""
    return device.type == "cuda" or (device.type == "cpu" and bool(bf16_instructions()))


def bf16_instructions() -> str:
    """Returns the name of the CPU's instructions that multiply bf16 matrices, "AMX" or "AVX512-BF16"; "" without."""
    features = cpu_features()
    return next((name for feature, name in _BF16_FEATURES.items() if feature in features), "")


def cpu_features() -> frozenset[str]:
    """Returns the instruction sets of the CPU as PyTorch names them, such as "avx2"."""
    import torch

    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        return frozenset(name for name, value in ask().items() if value is True)
    # Earlier versions of PyTorch answer in private functions; without them, fp32 is the careful answer.
    older = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return frozenset(name for name, question in older.items() if getattr(torch.cpu, question, bool)())


def _unusable(device: str, error: Exception) -> UserError:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return UserError(f"The device {device!r} was asked for, but PyTorch finds no GPU. Pass device='cpu'.")
    return UserError(f"The device {device!r} cannot be used ({error}). Pass device='cpu'.")
