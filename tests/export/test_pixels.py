"""The same photo gives the same pixels everywhere: with any Pillow, in PyTorch, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit import DeiTImageProcessor
from deit.core.errors import UserError
from deit.core.processing import resampling
from deit.export.pixels.geometry import Geometry, geometry_of

# Recorded with Pillow 12.2, whose order of passes docs/export.md defines. Pillow 13 resizes tall images otherwise.
HASHES = {
    "squashed, bicubic": "9ebbb520284341e0",
    "squashed, bilinear": "d226b76727385384",
    "shorter side, bicubic": "a96bffa017230afe",
    "shorter side, lanczos": "4c5cc49360e507e3",
    "enlarged, bicubic": "ac9aaa1cf218f9ff",
    "cropped beyond the edge": "ed9db6399106558b",
    "not resized": "4ece126e21a0fb60",
    "shorter side, hamming": "95d4cbddbc75d923",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "squashed, bicubic": {"size": {"height": 40, "width": 56}, "do_center_crop": False},
    "squashed, bilinear": {"size": 48, "do_center_crop": False, "resample": 2},
    "shorter side, bicubic": {"size": {"shortest_edge": 50}, "crop_size": 40},
    "shorter side, lanczos": {"size": {"shortest_edge": 50}, "crop_size": 41, "resample": 1},
    "enlarged, bicubic": {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 90}},
    "cropped beyond the edge": {"size": {"shortest_edge": 20}, "crop_size": 33},
    "not resized": {"do_resize": False, "crop_size": 70},
    "shorter side, hamming": {"size": {"shortest_edge": 50}, "crop_size": 40, "resample": 5},
}
SIZES = [(97, 31), (40, 133), (211, 80), (64, 64), (1, 30), (150, 150), (333, 90)]  # (height, width)


def photo(height: int, width: int) -> np.ndarray:
    """A picture made of whole numbers alone, so that it is the same on every machine: edges, slopes and noise."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = np.stack([rows * 3 + columns, rows * columns // 7, (rows // 9 + columns // 13) % 2 * 190], axis=-1)
    noise = np.random.default_rng(height * 1000 + width).integers(0, 60, channels.shape)
    return ((channels % 200) + noise).clip(0, 255).astype(np.uint8)


def with_pillow(processor: DeiTImageProcessor, geometry: Geometry) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: processor(Image.fromarray(image), return_tensors="np").pixel_values


def with_torch(processor: DeiTImageProcessor, geometry: Geometry) -> Callable[[np.ndarray], np.ndarray]:
    torch = pytest.importorskip("torch")
    from deit.export.pixels.torch_preprocessing import Preprocessing

    module = Preprocessing(geometry)
    return lambda image: module(torch.from_numpy(image)[None]).numpy()


def with_onnx(processor: DeiTImageProcessor, geometry: Geometry) -> Callable[[np.ndarray], np.ndarray]:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from deit.export.pixels.onnx_graph import preprocessing_graph

    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(preprocessing_graph(geometry), opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    session = runtime.InferenceSession(model.SerializeToString())
    return lambda image: session.run(None, {"images": image[None]})[0]


def with_openvino(processor: DeiTImageProcessor, geometry: Geometry) -> Callable[[np.ndarray], np.ndarray]:
    openvino = pytest.importorskip("openvino")
    from deit.export.pixels.openvino_graph import preprocessing_nodes

    images, pixels = preprocessing_nodes(geometry)
    model = openvino.Model([openvino.opset15.result(pixels)], [images], "preprocessing")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: compiled(image[None])[0]


def hash_of(run: Callable[[np.ndarray], np.ndarray]) -> str:
    found = hashlib.sha256()
    for size in SIZES:
        pixels = run(photo(*size))
        assert pixels.dtype == np.float32
        found.update(np.ascontiguousarray(pixels).tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("library", [with_pillow, with_torch, with_onnx, with_openvino])
def test_the_same_photo_gives_the_same_pixels_everywhere(library, settings):
    if library is with_openvino and SETTINGS[settings].get("resample") in (1, 5):
        pytest.skip("OpenVINO has no float64, and these filters need it")
    processor = DeiTImageProcessor(**SETTINGS[settings])
    geometry = geometry_of(processor, processor.output_size, 3)
    assert hash_of(library(processor, geometry)) == HASHES[settings]


def test_openvino_differs_by_a_level_at_most_in_one_of_ten_thousand_pixels_with_lanczos():
    processor = DeiTImageProcessor(**SETTINGS["shorter side, lanczos"])
    geometry = geometry_of(processor, processor.output_size, 3)
    run, oracle = with_openvino(processor, geometry), with_pillow(processor, geometry)
    found = np.concatenate([run(photo(*size)) for size in SIZES])
    wanted = np.concatenate([oracle(photo(*size)) for size in SIZES])
    assert np.abs(found - wanted).max() <= geometry.step * 1.001
    assert (found == wanted).mean() > 0.9998


def test_an_image_too_tall_for_columns_first_is_resized_rows_first(monkeypatch):
    image = Image.fromarray(photo(97, 31))
    rows_first = image.resize((31, 41), Image.Resampling.BICUBIC).resize((13, 41), Image.Resampling.BICUBIC)
    assert resampling.resized(image, (41, 13), 3) != rows_first
    monkeypatch.setattr(resampling, "_MOST_BETWEEN", 13 * 96)
    assert resampling.resized(image, (41, 13), 3) == rows_first


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resample": 0}, "the filter nearest cannot be exported"),
        ({"resample": 4}, "the filter box cannot be exported"),
        ({"do_pad": True, "pad_size": 300}, r"Padding \(do_pad\) cannot be exported"),
        ({"size": {"shortest_edge": 20, "longest_edge": 40}}, "only to a height and width, or a shorter side"),
        ({"size": {"max_height": 20, "max_width": 40}}, "only to a height and width, or a shorter side"),
        ({"size": {"shortest_edge": 20}, "do_center_crop": False}, "leave the size of the pixels open"),
        ({"do_resize": False, "do_center_crop": False}, "leave the size of the pixels open"),
        ({"crop_size": 192}, r"makes images of \(192, 192\), and the model takes \(224, 224\)"),
    ],
)
def test_what_no_export_can_contain_is_refused_with_the_way_around(options, told):
    with pytest.raises(UserError, match=told) as caught:
        geometry_of(DeiTImageProcessor(**options), (224, 224), 3)
    assert "--pixels" in str(caught.value)


def test_one_channel_is_refused():
    with pytest.raises(UserError, match="exported for 3 channels, and the model takes 1"):
        geometry_of(DeiTImageProcessor(), (224, 224), 1)
