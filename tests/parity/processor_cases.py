"""What both image processors are compared with transformers on: images, options, arguments of the call."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

SMALL = {"size": {"height": 20, "width": 20}, "crop_size": {"height": 16, "width": 16}}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
NO_RESIZE = {**SMALL, "do_resize": False}
PLAIN = {"do_resize": False, "do_center_crop": False}
UNCROPPED = {"do_center_crop": False}
GREY = {**SMALL, "image_mean": [0.4], "image_std": [0.3]}


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth shapes and noise, (H, W, C), so that resize filters differ."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 127 + 90 * np.sin(rows[..., None] / (2 + np.arange(channels)) + columns[..., None] / 5)
    noise = np.random.default_rng(seed).normal(0, 25, (height, width, channels))
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def rgb(height: int, width: int) -> Image.Image:
    return Image.fromarray(photo(height, width))


def grey(height: int, width: int) -> Image.Image:
    return Image.fromarray(photo(height, width, 1)[..., 0])


def unit(array: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    return (array / 255).astype(dtype)


def first(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def mode(name: str) -> Image.Image:
    """A picture of another mode; transparent ones are so in part."""
    image = rgb(30, 41).convert("RGBA")
    image.putalpha(grey(30, 41).rotate(90).resize(image.size))
    return image if name == "RGBA" else (image if name == "LA" else rgb(30, 41)).convert(name)


def turned(image: Image.Image) -> Image.Image:
    image.getexif()[0x0112] = 6
    return image


# name -> (images, options of the constructor, options of the call)
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    # sizes
    "defaults, larger": (rgb(300, 400), {}, {}),
    "defaults, smaller": (rgb(100, 80), {}, {}),
    "ImageNet's mean": (rgb(280, 270), IMAGENET, {}),
    "larger": (rgb(40, 50), SMALL, {}),
    "odd": (rgb(37, 51), SMALL, {}),
    "smaller than the crop": (rgb(9, 11), SMALL, {}),
    "one pixel": (rgb(1, 1), SMALL, {}),
    "one row": (rgb(1, 30), SMALL, {}),
    "one column": (rgb(30, 1), SMALL, {}),
    "three rows": (rgb(3, 30), SMALL, {}),
    "of the size already": (rgb(20, 20), SMALL, {}),
    "odd size and crop": (rgb(33, 45), {"size": {"height": 21, "width": 27}, "crop_size": 15}, {}),
    "even size, odd crop": (rgb(33, 45), {"size": 20, "crop_size": {"height": 15, "width": 9}}, {}),
    "size not square": (rgb(33, 45), {"size": {"height": 24, "width": 18}, "crop_size": 16}, {}),
    "a list of sizes": ([rgb(40, 50), rgb(9, 70), rgb(20, 20)], SMALL, {}),
    # padding
    "crop larger, even rest": (rgb(10, 12), {**NO_RESIZE}, {}),
    "crop larger, odd rest": (rgb(11, 13), NO_RESIZE, {}),
    "crop larger in height": (rgb(9, 31), NO_RESIZE, {}),
    "crop larger in width": (rgb(31, 9), NO_RESIZE, {}),
    "crop larger by one": (rgb(15, 15), NO_RESIZE, {}),
    "crop larger, odd crop": (rgb(10, 30), {**NO_RESIZE, "crop_size": {"height": 13, "width": 17}}, {}),
    "crop without normalize": (rgb(11, 40), {**NO_RESIZE, "do_normalize": False}, {}),
    # types and channel order
    "uint8 last": (photo(30, 41), SMALL, {}),
    "uint8 first": (first(photo(30, 41)), SMALL, {}),
    "uint8 told last": (photo(30, 41), SMALL, {"input_data_format": "channels_last"}),
    "uint8 told first": (first(photo(30, 41)), SMALL, {"input_data_format": "channels_first"}),
    "three columns told last": (photo(3, 30), SMALL, {"input_data_format": "channels_last"}),
    "float32 in [0, 1]": (unit(photo(30, 41)), {**SMALL, "do_rescale": False}, {}),
    "float64 in [0, 1]": (unit(photo(30, 41), np.float64), {**SMALL, "do_rescale": False}, {}),
    "float32 in [0, 1] first": (first(unit(photo(30, 41))), {**SMALL, "do_rescale": False}, {}),
    "float32 whole": (photo(30, 41).astype(np.float32), SMALL, {}),
    "int64": (photo(30, 41).astype(np.int64), SMALL, {}),
    "int64 as it is": (photo(30, 41).astype(np.int64), NO_RESIZE, {}),
    "float32 as it is": (photo(30, 41).astype(np.float32) * 1.5 - 40, NO_RESIZE, {}),
    "float64 as it is": (unit(photo(30, 41), np.float64), {**NO_RESIZE, "do_rescale": False}, {}),
    "float64 normalized only": (unit(photo(30, 41), np.float64) - 2, {**PLAIN, "do_rescale": False}, {}),
    "float16 as it is": (unit(photo(30, 41), np.float16), {**NO_RESIZE, "do_rescale": False}, {}),
    "a batch of 4 dimensions": (np.stack([photo(30, 41), photo(30, 41, seed=1)]), SMALL, {}),
    "a tensor": (torch.from_numpy(first(photo(30, 41))), SMALL, {}),
    "a list of tensors": ([torch.from_numpy(first(photo(30, 41))).float()], SMALL, {}),
    # one channel
    "PIL L": (grey(30, 41), GREY, {}),
    "PIL L small": (grey(5, 7), GREY, {}),
    "PIL L one row": (grey(1, 7), GREY, {}),
    "array of one channel last": (photo(30, 41, 1), GREY, {}),
    "array of one channel first": (first(photo(30, 41, 1)), GREY, {}),
    "PIL L without normalize": (grey(30, 41), {**SMALL, "do_normalize": False}, {}),
    # filters
    "nearest": (rgb(37, 51), {**SMALL, "resample": 0}, {}),
    "lanczos": (rgb(37, 51), {**SMALL, "resample": 1}, {}),
    "bilinear": (rgb(37, 51), {**SMALL, "resample": 2}, {}),
    "box": (rgb(37, 51), {**SMALL, "resample": 4}, {}),
    "hamming": (rgb(37, 51), {**SMALL, "resample": 5}, {}),
    "bilinear enlarging": (rgb(7, 5), {**SMALL, "resample": Image.Resampling.BILINEAR}, {}),
    # switches
    "no resize": (rgb(37, 51), NO_RESIZE, {}),
    "no crop": (rgb(37, 51), {**SMALL, "do_center_crop": False}, {}),
    "no rescale": (rgb(37, 51), {**SMALL, "do_rescale": False}, {}),
    "no normalize": (rgb(37, 51), {**SMALL, "do_normalize": False}, {}),
    "neither rescale nor normalize": (rgb(37, 51), {**SMALL, "do_rescale": False, "do_normalize": False}, {}),
    "nothing at all": (rgb(37, 51), {**PLAIN, "do_rescale": False, "do_normalize": False}, {}),
    "another factor": (rgb(37, 51), {**SMALL, "rescale_factor": 1 / 127.5}, {}),
    "mean and std of one number": (rgb(37, 51), {**SMALL, "image_mean": 0.3, "image_std": 0.2}, {}),
    # proportions kept
    "shortest edge, wide": (rgb(37, 51), {"size": {"shortest_edge": 24}, "crop_size": 16}, {}),
    "shortest edge, tall": (rgb(51, 37), {"size": {"shortest_edge": 24}, "crop_size": 16}, {}),
    "shortest edge, uncropped": (rgb(37, 51), {"size": {"shortest_edge": 25}, "do_center_crop": False}, {}),
    "shortest edge, square": (rgb(37, 37), {"size": {"shortest_edge": 25}, "do_center_crop": False}, {}),
    "shortest edge, there already": (rgb(24, 51), {"size": {"shortest_edge": 24}, "do_center_crop": False}, {}),
    "shortest and longest edge": (
        rgb(37, 90), {"size": {"shortest_edge": 25, "longest_edge": 40}, "do_center_crop": False}, {},
    ),
    "longest edge not reached": (
        rgb(37, 51), {"size": {"shortest_edge": 25, "longest_edge": 60}, "do_center_crop": False}, {},
    ),
    "longest edge, tall": (
        rgb(97, 31), {"size": {"shortest_edge": 25, "longest_edge": 41}, "do_center_crop": False}, {},
    ),
    # overrides per call
    "override size": (rgb(37, 51), SMALL, {"size": {"height": 30, "width": 31}}),
    "override crop as a number": (rgb(37, 51), SMALL, {"crop_size": 12}),
    "override the filter": (rgb(37, 51), SMALL, {"resample": 0}),
    "override switches": (rgb(37, 51), SMALL, {"do_resize": False, "do_normalize": False}),
    "override mean and std": (rgb(37, 51), SMALL, IMAGENET),
    "override the factor": (rgb(37, 51), SMALL, {"rescale_factor": 1 / 100}),
    "override to keep proportions": (rgb(37, 51), SMALL, {"size": {"shortest_edge": 30}}),
    "override everything": (
        rgb(37, 51), {},
        {"size": 30, "resample": 2, "crop_size": 20, "rescale_factor": 0.01, "image_mean": 0.1, "image_std": [0.2] * 3},
    ),
    # proportions kept, other sizes
    "largest height and width, wide": (rgb(37, 90), {"size": {"max_height": 30, "max_width": 40}, **UNCROPPED}, {}),
    "largest height and width, tall": (rgb(90, 37), {"size": {"max_height": 30, "max_width": 40}, **UNCROPPED}, {}),
    "largest height and width, enlarging": (rgb(9, 7), {"size": {"max_height": 33, "max_width": 44}, **UNCROPPED}, {}),
    "largest sides, cropped": (rgb(37, 90), {"size": {"max_height": 30, "max_width": 9}, "crop_size": 8}, {}),
    "a number that is the shorter edge": (rgb(37, 51), {"size": 24, "default_to_square": False, "crop_size": 16}, {}),
    "a pair of sizes": (rgb(37, 51), {"size": [24, 30], "crop_size": (16, 18)}, {}),
    "very wide": (rgb(10, 200), {"size": {"shortest_edge": 24, "longest_edge": 60}, **UNCROPPED}, {}),
    # padding at the end
    "padded": (rgb(20, 24), {**PLAIN, "do_pad": True, "pad_size": {"height": 30, "width": 33}}, {}),
    "padded to a square": (rgb(20, 24), {**PLAIN, "do_pad": True, "pad_size": 40}, {}),
    "padded to the largest": ([rgb(20, 24), rgb(30, 9)], {**PLAIN, "do_pad": True}, {}),
    "padded, there already": (rgb(20, 24), {**PLAIN, "do_pad": True, "pad_size": (20, 24)}, {}),
    "padded without normalize": (rgb(20, 24), {**PLAIN, "do_normalize": False, "do_pad": True, "pad_size": 40}, {}),
    "padded in one call": (rgb(20, 24), PLAIN, {"do_pad": True, "pad_size": 40}),
    "a pad size that is not switched on": (rgb(20, 24), {**SMALL, "pad_size": 40}, {}),
    # conversion to RGB on demand
    "RGB to RGB": (rgb(30, 41), {**SMALL, "do_convert_rgb": True}, {}),
    "RGBA to RGB": (mode("RGBA"), {**SMALL, "do_convert_rgb": True}, {}),
    "LA to RGB": (mode("LA"), {**SMALL, "do_convert_rgb": True}, {}),
    "L to RGB": (mode("L"), {**SMALL, "do_convert_rgb": True}, {}),
    "P to RGB": (mode("P"), {**SMALL, "do_convert_rgb": True}, {}),
    "1 to RGB": (mode("1"), {**SMALL, "do_convert_rgb": True}, {}),
    "CMYK to RGB": (mode("CMYK"), {**SMALL, "do_convert_rgb": True}, {}),
    "YCbCr to RGB": (mode("YCbCr"), {**SMALL, "do_convert_rgb": True}, {}),
    "HSV to RGB in one call": (mode("HSV"), SMALL, {"do_convert_rgb": True}),
    "array of one channel to RGB": (photo(30, 41, 1), {**SMALL, "do_convert_rgb": True}, {}),
    "array of four channels to RGB": (photo(30, 41, 4), {**SMALL, "do_convert_rgb": True}, {}),
    "array of four channels first to RGB": (first(photo(30, 41, 4)), {**SMALL, "do_convert_rgb": True}, {}),
    "floats of four channels to RGB": (
        unit(photo(30, 41, 4)), {**SMALL, "do_convert_rgb": True, "do_rescale": False}, {},
    ),
    # modes that transformers takes as they are
    "YCbCr": (mode("YCbCr"), SMALL, {}),
    "HSV": (mode("HSV"), SMALL, {}),
    "RGBA, four channels": (mode("RGBA"), {**SMALL, "image_mean": [0.1, 0.2, 0.3, 0.4], "image_std": [0.5] * 4}, {}),
    "RGBA without normalize": (mode("RGBA"), {**SMALL, "do_normalize": False}, {}),
    "CMYK, four channels": (mode("CMYK"), {**SMALL, "image_mean": [0.5] * 4, "image_std": [0.5] * 4}, {}),
    "L, one number": (mode("L"), {**SMALL, "image_mean": 0.5, "image_std": 0.5}, {}),
    "array of four channels": (photo(30, 41, 4), {**SMALL, "image_mean": [0.5] * 4, "image_std": [0.5] * 4}, {}),
    "a photo that is to be turned": (turned(rgb(30, 41)), SMALL, {}),
    # lists, types, layouts
    "nested lists": ([[rgb(40, 50)], [rgb(9, 70), rgb(20, 20)]], SMALL, {}),
    "a tuple": ((rgb(40, 50), rgb(9, 70)), SMALL, {}),
    "PIL and arrays together": ([rgb(30, 41), photo(20, 21)], SMALL, {}),
    "layouts mixed": ([photo(30, 41), first(photo(30, 41))], SMALL, {}),
    "uint16": (photo(30, 41).astype(np.uint16), SMALL, {}),
    "int32": (photo(30, 41).astype(np.int32), SMALL, {}),
    "float64 whole": (photo(30, 41).astype(np.float64), SMALL, {}),
    "float16 in [0, 1]": (unit(photo(30, 41), np.float16), {**SMALL, "do_rescale": False}, {}),
    "float32 cropped only": (unit(photo(30, 41)), {**NO_RESIZE, "do_rescale": False, "do_normalize": False}, {}),
    "float64 rescaled only": (photo(30, 41).astype(np.float64), {**PLAIN, "do_normalize": False}, {}),
    "black": (np.zeros((30, 41, 3), np.uint8), SMALL, {}),
    "white": (np.full((30, 41, 3), 255, np.uint8), SMALL, {}),
    "not contiguous": (photo(60, 82)[::2, ::2], SMALL, {}),
    "both ends could be channels": (photo(3, 30), SMALL, {}),
    "four rows told last": (photo(4, 30), SMALL, {"input_data_format": "channels_last"}),
    "a batch, channels first": (np.stack([first(photo(30, 41))] * 2), SMALL, {}),
    "a tensor of a batch": (torch.from_numpy(np.stack([first(photo(30, 41))] * 2)), SMALL, {}),
    "a tensor, channels last": (torch.from_numpy(photo(30, 41)), SMALL, {}),
    "a float tensor in [0, 1]": (torch.from_numpy(unit(photo(30, 41))), {**SMALL, "do_rescale": False}, {}),
    # numbers
    "a factor above one": (rgb(30, 41), {**SMALL, "rescale_factor": 2.0}, {}),
    "a whole factor": (rgb(30, 41), {**SMALL, "rescale_factor": 1}, {}),
    "negative mean": (rgb(30, 41), {**SMALL, "image_mean": [-0.1, 0.0, 1.5]}, {}),
    "mean as a tuple": (rgb(30, 41), {**SMALL, "image_mean": (0.1, 0.2, 0.3), "image_std": (1.0, 2.0, 3.0)}, {}),
    "a filter as Pillow's enumeration": (rgb(30, 41), {**SMALL, "resample": Image.Resampling.LANCZOS}, {}),
    "lanczos enlarging": (rgb(7, 5), {**SMALL, "resample": 1}, {}),
    "nearest enlarging": (rgb(7, 5), {**SMALL, "resample": 0}, {}),
    "crop of one pixel": (rgb(37, 51), {**SMALL, "crop_size": 1}, {}),
    "size of one pixel": (rgb(37, 51), {"size": 1, "crop_size": 1}, {}),
}  # fmt: skip
