"""What makes runs repeatable: random generators seeded from a key, and kernels that add in a fixed order."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.backends import cuda, cudnn

from deit.core.errors import UserError

# The three generators belong to the whole process: of its threads, one at a time may set and draw.
_one_thread = threading.RLock()

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # of cuBLAS; PyTorch asks for one of two values, of which this is the faster


def set_random_state(*key: int) -> None:
    """Seeds Python's, numpy's and torch's generators, from all of which timm's augmentations draw.

    Args:
        *key: Non-negative integers.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2])
    torch.default_generator.manual_seed(int(words[3]))  # this process's CPU stream alone


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Puts the states of the three generators back after a block.

    Other threads wait with theirs until the block ends. It costs several times as much as seeding: one block around
    many `set_random_state` is the fast way.
    """
    with _one_thread:
        states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.random.set_rng_state(states[2])


def forget_other_threads() -> None:
    """Frees, in a process that was just forked, what threads held that are not in it."""
    global _one_thread
    _one_thread = threading.RLock()


_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # of cuBLAS; PyTorch asks for one of two values, of which this is the faster


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds the three generators for a block, and puts their states back after it.

    Keyed by (seed, epoch, image) augmentations give the same view whichever process, batch or resumed run asks for it.

    Args:
        *key: Non-negative integers.
    """
    with random_state_kept():
        set_random_state(*key)
        yield


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
