"""The one loop that reads images: in threads, ahead of its caller, and always with the same result."""

from __future__ import annotations

import io
import os
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from deit.core.errors import UserError
from deit.core.images.pillow_warnings import pillow_warnings_ignored
from deit.core.processing.batches import DECODING_THREADS, begun, pixel_batches, prepared_batches
from deit.core.processing.image_processor import DeiTImageProcessor

PROCESSOR = DeiTImageProcessor(size=9, crop_size=8)


@pytest.fixture(params=[1, 4])
def cores(request, monkeypatch) -> int:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(request.param)), raising=False)
    return int(request.param)


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    photo(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("batch_size", [1, 3, 99])
@pytest.mark.parametrize("make", [list, iter], ids=["list", "iterator"])
def test_results_come_in_order_whatever_the_threads_and_batches(cores, batch_size, make):
    batches = [
        [(item, result()) for item, result in batch]
        for batch in prepared_batches(make(list(range(10))), lambda number: number * number, batch_size)
    ]
    assert [len(batch) for batch in batches] == {1: [1] * 10, 3: [3, 3, 3, 1], 99: [10]}[batch_size]
    assert [pair for batch in batches for pair in batch] == [(i, i * i) for i in range(10)]


def test_an_iterator_begins_in_a_thread_and_goes_on_where_it_is_read():
    started = threading.Event()
    places: list[int] = []

    def numbers():
        for number in range(3):
            places.append(threading.get_ident())
            started.set()
            yield number
        raise UserError("the end")

    items = begun(numbers())
    assert started.wait(10)  # nobody has asked for an item yet
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    assert places[0] != threading.get_ident() == places[1] == places[2]
    with pytest.raises(UserError, match="the end"):
        next(items)
    assert list(begun(iter(()))) == []


def test_a_list_is_prepared_ahead_and_an_iterator_is_not(cores):
    started: list[int] = []
    done = threading.Event()

    def prepare(number: int) -> int:
        started.append(number)
        if len(started) == 4:
            done.set()
        return number

    batches = prepared_batches([1, 2, 3, 4], prepare, 2)
    assert [result() for _, result in next(batches)] == [1, 2]
    assert done.wait(10)  # while the caller has the first batch
    taken: list[int] = []
    batches = prepared_batches((taken.append(i) or i for i in range(9)), prepare, 2)
    assert [result() for _, result in next(batches)] == [0, 1]
    assert taken == [0, 1]


def test_threads_end_with_the_loop(cores):
    before = threading.active_count()
    batches = prepared_batches(list(range(100)), lambda number: number, 2)
    next(batches)
    assert before < threading.active_count() <= before + min(cores, DECODING_THREADS)
    batches.close()
    assert threading.active_count() == before


def test_what_reading_changes_is_read_by_the_caller_alone():
    """One open file or image that stands in a list several times would be read by several threads at once."""
    file, lazy = io.BytesIO(png(1)), Image.open(io.BytesIO(png(2)))
    readers = set()

    class Watched(io.BytesIO):
        def read(self, *arguments):
            readers.add(threading.current_thread())
            return super().read(*arguments)

    given = [file, lazy, Watched(png(3)), file, lazy, {"image": lazy}, png(4)] * 3
    expected = [photo(number) for number in (1, 2, 3, 1, 2, 2, 4)] * 3
    (batch,) = pixel_batches(given, PROCESSOR, 99)
    assert np.array_equal(batch.pixels, PROCESSOR(expected, return_tensors="np").pixel_values)
    assert readers == {threading.main_thread()}


def test_pixels_do_not_depend_on_threads_and_batches(cores):
    given = [png(seed) for seed in range(11)] + [np.asarray(photo(11))]
    expected = np.concatenate([PROCESSOR(photo(seed), return_tensors="np").pixel_values for seed in range(12)])
    for batch_size in (1, 4, 99):
        found = [batch.pixels for batch in pixel_batches(given, PROCESSOR, batch_size)]
        assert np.array_equal(np.concatenate(found), expected)


def test_a_batch_needs_an_image():
    with pytest.raises(UserError, match=r"batch_size must be at least 1\. Received: 0"):
        next(prepared_batches([1], str, 0))


# --- warnings -----------------------------------------------------------------------------------------


def test_filters_of_warnings_are_as_before_after_threads_that_overlap():
    before = list(warnings.filters)
    first, second = pillow_warnings_ignored(), pillow_warnings_ignored()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.warn("of the caller", stacklevel=1)
    assert [str(warning.message) for warning in told] == ["of the caller"]
    assert len(warnings.filters) == len(before) + 1
    second.__exit__(None, None, None)
    assert warnings.filters == before


def test_a_filter_that_a_caller_brings_back_goes_with_the_next_image():
    before = list(warnings.filters)
    inside = pillow_warnings_ignored()
    inside.__enter__()
    with warnings.catch_warnings():  # it keeps the filters of this moment, and brings them back
        inside.__exit__(None, None, None)
    assert warnings.filters != before
    with pillow_warnings_ignored():
        pass
    assert warnings.filters == before
