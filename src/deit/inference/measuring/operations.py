"""Counts the floating-point operations of a model."""

from __future__ import annotations

from typing import Any


def count_operations(name_or_path: str) -> int | None:
    """Returns the floating-point operations of one image: two for each product of a matrix product or convolution.

    Counts the model as it is written, with every token in every block. An engine that leaves out what no answer needs
    does less work than that: of the last block of a DeiT only the prefix tokens are read.

    Args:
        name_or_path: See `open_engine`.

    Returns:
        The number; None for a model that PyTorch does not run.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from deit.inference.engines.opening import open_engine
    from deit.models.classifier import head_logits

    engine = open_engine(name_or_path)
    model: Any = getattr(engine, "model", None)
    if not isinstance(model, torch.nn.Module):
        return None
    contract = engine.contract
    size = contract.image_size or contract.processor.output_size
    pixels = torch.zeros(1, contract.num_channels, *size)
    # The fused kernels for CPUs are unknown to the counter; their steps are not.
    with torch.inference_mode(), sdpa_kernel([SDPBackend.MATH]), FlopCounterMode(display=False) as counter:
        head_logits(model, pixels)
    return int(counter.get_total_flops()) or None
