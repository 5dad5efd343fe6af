"""Randomness as a function of a key, so that nothing depends on what ran before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds Python's, numpy's and torch's generators for a block, and puts their states back after it.

    timm's augmentations draw from all three. Keyed by (seed, epoch, image) they give the same view whichever
    process, batch or resumed run asks for it.

    Args:
        *key: Non-negative integers.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2])
    torch.default_generator.manual_seed(int(words[3]))  # this process's CPU stream alone
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
