"""Lets PyTorch compute the same bits each time, on GPUs too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from deit.core.errors import UserError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # of cuBLAS; PyTorch asks for one of two values, of which this is the faster


@contextmanager
def deterministic_kernels(asked: bool = True) -> Iterator[None]:
    """Allows only kernels that add in a fixed order, so the same training on the same GPU ends with the same bits.

    On the CPU, training does so by itself. On a GPU, attention is FlashAttention in bf16 and fp16 (in a form that is
    slower to go back through) and plain products in fp32, which take more memory.

    The settings are PyTorch's, for the whole process, and are set back at the end.

    Args:
        asked: False changes nothing.

    Raises:
        UserError: PyTorch has no such kernel for an operation of the block.
    """
    if not asked:
        yield
        return
    import torch
    from torch.backends import cuda, cudnn

    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    chosen, benchmarks = os.environ.get(_WORKSPACE), cudnn.benchmark
    fast = cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()  # add in any order on the way back
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark = False
    cuda.enable_mem_efficient_sdp(False)
    cuda.enable_cudnn_sdp(False)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        what = str(error).partition(" does not have a deterministic implementation")[0].partition("\n")[0]
        raise UserError(f"PyTorch cannot do this deterministically: {what}. Leave out --deterministic.") from error
    finally:
        cuda.enable_cudnn_sdp(fast[1])
        cuda.enable_mem_efficient_sdp(fast[0])
        cudnn.benchmark = benchmarks
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
        if chosen is None:
            del os.environ[_WORKSPACE]
