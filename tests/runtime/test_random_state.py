"""`seeded`: equal keys, equal numbers; and nobody outside of the block notices."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
import torch

from deit.runtime.random_state import random_state_kept, seeded, set_random_state


def draw() -> tuple[float, float, float]:
    """One number of each generator that timm's augmentations use."""
    return random.random(), np.random.random(), torch.rand(()).item()


def draw_with(*key: int) -> tuple[float, float, float]:
    with seeded(*key):
        return draw()


def draw_and_fail() -> None:
    draw()
    raise ZeroDivisionError


def test_equal_keys_give_equal_numbers_from_all_three_generators():
    random.seed(1)
    first = draw_with(3, 1, 4)
    random.seed(2)
    np.random.seed(2)
    torch.manual_seed(2)
    assert draw_with(3, 1, 4) == first


def test_different_keys_give_different_numbers_from_each_generator():
    keys = [(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 1, 1), (0, 2, 1), (2**40, 0, 0, 1)]
    drawn = [draw_with(*key) for key in keys]
    for one, other in combinations(drawn, 2):
        assert all(a != b for a, b in zip(one, other, strict=True))


def test_the_three_generators_do_not_repeat_each_other():
    assert len(set(draw_with(0, 0, 0, 0))) == 3


def test_the_states_outside_of_the_block_are_put_back():
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = [draw() for _ in range(2)]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    first = draw()
    draw_with(7, 7)
    assert [first, draw()] == expected


def test_the_states_are_put_back_after_an_exception_too():
    random.seed(6)
    np.random.seed(6)
    torch.manual_seed(6)
    expected = draw()
    random.seed(6)
    np.random.seed(6)
    torch.manual_seed(6)
    with pytest.raises(ZeroDivisionError), seeded(1):
        draw_and_fail()
    assert draw() == expected


def test_blocks_can_be_nested():
    with seeded(1):
        draw()
        expected = draw()
    with seeded(1):
        draw()
        draw_with(2)
        assert draw() == expected


def test_one_block_can_hold_many_states_and_puts_back_what_was_before_the_first():
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    # One of numpy's normal numbers is drawn ahead: it is part of the state.
    np.random.normal()
    expected = np.random.normal(), draw()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    np.random.normal()
    with random_state_kept():
        drawn = []
        for key in (1, 2, 1):
            set_random_state(key)
            drawn.append(draw())
    assert drawn == [draw_with(1), draw_with(2), draw_with(1)]
    assert (np.random.normal(), draw()) == expected


def test_setting_a_state_forgets_normal_numbers_that_were_drawn_ahead():
    set_random_state(3)
    expected = random.gauss(0, 1), np.random.normal(), torch.randn(1).item()
    random.gauss(0, 1)
    set_random_state(3)
    assert (random.gauss(0, 1), np.random.normal(), torch.randn(1).item()) == expected
