"""An image processor as a TensorFlow graph: 8-bit images to pixels, bit for bit those of Pillow.

`tf.image.resize` computes in floating point and differs from Pillow by several 8-bit levels. This module resizes as
`deit.core.processing.resampling.resized` does: two passes with 22-bit integer coefficients, columns first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.processing.operations import rescale_and_normalize

_BITS = 22  # of Pillow's coefficients: 32, minus 8 for the pixel and 2 for sums

# Pillow's source has these two of the Hamming filter as single-precision constants.
_054, _046 = float(np.float32(0.54)), float(np.float32(0.46))

# Radius of each filter at scale 1, in pixels.
_REACH = {
    Image.Resampling.BOX: 0.5,
    Image.Resampling.BILINEAR: 1.0,
    Image.Resampling.HAMMING: 1.0,
    Image.Resampling.BICUBIC: 2.0,
    Image.Resampling.LANCZOS: 3.0,
}


def preprocessing_in_graph(processor: DeiTImageProcessor, data_format: str) -> Callable[[Any], Any]:
    """Returns a TensorFlow function that computes what a processor computes.

    Args:
        processor: Its current settings are used.
        data_format: Order of axes of the result, "channels_first" or "channels_last".

    Returns:
        Maps uint8 (B, H, W, 3), images of one size, to float32 (B, 3, h, w) or (B, h, w, 3).

    Raises:
        ValueError: The settings do not fix the size of the result, or are not for three channels.
    """
    import tensorflow as tf

    height, width = processor.output_size
    size, resample = processor.size, processor.resample
    crops, crop = processor.do_center_crop, processor.crop_size
    table = tf.constant(_table_of_levels(processor).reshape(-1))
    resizes = processor.do_resize
    pads = processor.pad_size if processor.do_pad else None

    def process(images: Any) -> Any:
        if resizes:
            wanted = _resized_size(tf, size, tf.shape(images)[1], tf.shape(images)[2])
            images = _resize(tf, images, wanted, resample)
        if crops:
            images = _center_crop(tf, images, crop["height"], crop["width"])
        pixels = tf.gather(table, tf.cast(images, tf.int32) + 256 * tf.range(3))
        if pads is not None:
            missing = [[0, 0], [0, pads["height"] - height], [0, pads["width"] - width], [0, 0]]
            pixels = tf.pad(pixels, missing)
        if resizes or crops:
            whole = (height, width) if pads is None else (pads["height"], pads["width"])
            pixels = tf.ensure_shape(pixels, (None, *whole, 3))
        return pixels if data_format == "channels_last" else tf.transpose(pixels, (0, 3, 1, 2))

    return process


def _table_of_levels(processor: DeiTImageProcessor) -> Any:
    """Returns the pixel of each 8-bit value of each channel, (3, 256)."""
    levels = np.tile(np.arange(256, dtype=np.uint8), (3, 1))[:, None]  # (3, 1, 256)
    factor = processor.rescale_factor if processor.do_rescale else None
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (None, None)
    return rescale_and_normalize(levels, factor, mean, std)[:, 0].astype(np.float32)


def _resized_size(tf: Any, size: Any, height: Any, width: Any) -> tuple[Any, Any]:
    """Computes `resized_size` of `deit.core.processing` in the graph."""
    if "height" in size:
        return size["height"], size["width"]
    tall, wide = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    if "max_height" in size:
        scale = tf.minimum(size["max_height"] / tall, size["max_width"] / wide)
        return tf.maximum(tf.cast(tall * scale, tf.int32), 1), tf.maximum(tf.cast(wide * scale, tf.int32), 1)
    low, high = tf.minimum(tall, wide), tf.maximum(tall, wide)
    exact = shortest = tf.constant(size["shortest_edge"], tf.float64)
    if "longest_edge" in size:
        too_long = high / low * shortest > size["longest_edge"]
        exact = tf.where(too_long, size["longest_edge"] * low / high, exact)
        shortest = tf.where(too_long, tf.maximum(tf.round(exact), 1.0), shortest)
    other = tf.where(low == shortest, high, tf.maximum(tf.floor(exact * high / low), 1.0))
    short, long = tf.cast(shortest, tf.int32), tf.cast(other, tf.int32)
    return tf.where(height <= width, short, long), tf.where(height <= width, long, short)


def _center_crop(tf: Any, images: Any, height: int, width: int) -> Any:
    """Crops the center of (B, H, W, C), padding with zeros, as `deit.core.processing` does."""
    padding, starts = [[0, 0]], [0]
    for axis, side in ((1, height), (2, width)):
        full = tf.shape(images)[axis]
        missing = tf.maximum(side - full, 0)
        before = (missing + 1) // 2
        padding.append([before, missing - before])
        starts.append(tf.maximum(full - side, 0) // 2)
    images = tf.pad(images, [*padding, [0, 0]])
    return images[:, starts[1] : starts[1] + height, starts[2] : starts[2] + width]


def _resize(tf: Any, images: Any, size: tuple[Any, Any], resample: Image.Resampling) -> Any:
    height, width = size
    if resample == Image.Resampling.NEAREST:
        return _take_nearest(tf, _take_nearest(tf, images, 2, width), 1, height)
    return _one_pass(tf, _one_pass(tf, images, 2, width, resample), 1, height, resample)


def _take_nearest(tf: Any, images: Any, axis: int, side: Any) -> Any:
    step = tf.cast(tf.shape(images)[axis], tf.float64) / tf.cast(side, tf.float64)
    # Pillow accumulates the steps; the same sum gives the same rounding.
    steps = tf.concat([[step * 0.5], tf.fill([side - 1], step)], axis=0)
    return tf.gather(images, tf.cast(tf.cumsum(steps), tf.int32), axis=axis)


def _one_pass(tf: Any, images: Any, axis: int, side: Any, resample: Image.Resampling) -> Any:
    """Resizes one axis of uint8 (B, H, W, C)."""
    full = tf.shape(images)[axis]
    first, coefficients = _coefficients(tf, full, side, resample)
    shape = (1, 1, -1, 1) if axis == 2 else (1, -1, 1, 1)
    start = tf.gather(tf.cast(images, tf.int32), first, axis=axis)
    total = start * tf.reshape(coefficients[:, 0], shape) + (1 << (_BITS - 1))

    def add(tap: Any, total: Any) -> tuple[Any, Any]:
        place = tf.minimum(first + tap, full - 1)  # places beyond the edge have the coefficient 0
        values = tf.cast(tf.gather(images, place, axis=axis), tf.int32)
        return tap + 1, total + values * tf.reshape(coefficients[:, tap], shape)

    count = tf.shape(coefficients)[1]
    _, total = tf.while_loop(lambda tap, _: tap < count, add, (tf.constant(1), total))
    return tf.cast(tf.clip_by_value(tf.bitwise.right_shift(total, _BITS), 0, 255), tf.uint8)


def _coefficients(tf: Any, full: Any, side: Any, resample: Image.Resampling) -> tuple[Any, Any]:
    """Returns the first source pixel of each new pixel, (side,), and the coefficients from there, (side, taps)."""
    scale = tf.cast(full, tf.float64) / tf.cast(side, tf.float64)
    stretch = tf.maximum(scale, 1.0)
    reach = _REACH[resample] * stretch
    center = (tf.cast(tf.range(side), tf.float64) + 0.5) * scale
    first = tf.maximum(tf.cast(center - reach + 0.5, tf.int32), 0)  # (side,)
    count = tf.minimum(tf.cast(center + reach + 0.5, tf.int32), full) - first
    taps = tf.range(2 * tf.cast(tf.math.ceil(reach), tf.int32) + 1)
    place = tf.cast(first[:, None] + taps, tf.float64)  # (side, taps)
    weights = _filter(tf, resample, (place - center[:, None] + 0.5) * (1.0 / stretch))
    weights = tf.where(taps < count[:, None], weights, 0.0)
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    whole = weights * (1 << _BITS)
    return first, tf.cast(whole + tf.where(whole < 0, tf.constant(-0.5, tf.float64), 0.5), tf.int32)


def _filter(tf: Any, resample: Image.Resampling, x: Any) -> Any:
    if resample == Image.Resampling.BOX:
        return tf.cast((x > -0.5) & (x <= 0.5), tf.float64)
    inside = x
    x = tf.abs(x)
    zero = tf.zeros_like(x)
    if resample == Image.Resampling.BILINEAR:
        return tf.maximum(1.0 - x, 0.0)
    if resample == Image.Resampling.BICUBIC:
        a = -0.5
        near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
        return tf.where(x < 1.0, near, tf.where(x < 2.0, far, zero))
    if resample == Image.Resampling.HAMMING:
        return tf.where(x < 1.0, _sinc(tf, x) * (_054 + _046 * tf.cos(x * math.pi)), zero)
    return tf.where((inside >= -3.0) & (inside < 3.0), _sinc(tf, inside) * _sinc(tf, inside / 3.0), zero)


def _sinc(tf: Any, x: Any) -> Any:
    angle = x * math.pi
    return tf.where(x == 0.0, tf.ones_like(x), tf.math.divide_no_nan(tf.sin(angle), angle))
