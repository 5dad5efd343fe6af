"""Where a model computes: the one rule for the device that nobody named."""

from __future__ import annotations

from typing import Any

from deit.core.errors import UserError

AUTO = "auto"


def chosen_device(device: str | None) -> str:
    """Returns a device's name for PyTorch: for "auto" or None a GPU of CUDA if there is one, any other as it is."""
    if device is not None and device != AUTO:
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def on_device(model: Any, device: str) -> Any:
    """Moves a module to a device, and returns it.

    Raises:
        UserError: There is no such device.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises for names and for missing drivers
        raise unusable_device(device, error) from error


def unusable_device(device: str, error: Exception) -> UserError:
    """Returns the error that says why a device cannot be used."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return UserError(f"The device {device!r} was asked for, but PyTorch finds no GPU. Pass device='cpu'.")
    return UserError(f"The device {device!r} cannot be used ({error}). Pass device='cpu'.")
