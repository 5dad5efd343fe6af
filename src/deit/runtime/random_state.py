"""Seeds random generators from a key, so that draws do not depend on what ran before."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# The three generators belong to the whole process: of its threads, one at a time may set and draw.
_one_thread = threading.RLock()


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
