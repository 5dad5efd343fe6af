"""The processor's options, errors and files."""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import sys
import types

import numpy as np
import pytest
from PIL import Image

from deit.core.images.reading import ImageError, load_image
from deit.core.processing.batch_feature import BatchFeature
from deit.core.processing.image_processor import (
    DeiTFeatureExtractor,
    DeiTImageProcessor,
    ViTImageProcessor,
    evaluation_processor,
    open_image_processor,
)
from deit.core.processing.options import size_dict

WHITE = (255, 255, 255)


def noise(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (224, {"height": 224, "width": 224}),
        ((20, 30), {"height": 20, "width": 30}),
        ([20, 30], {"height": 20, "width": 30}),
        ({"width": 30, "height": 20}, {"height": 20, "width": 30}),
        ({"shortest_edge": 7}, {"shortest_edge": 7}),
        ({"shortest_edge": 7, "longest_edge": 9}, {"shortest_edge": 7, "longest_edge": 9}),
        ({"height": 20, "width": 30, "shortest_edge": None}, {"height": 20, "width": 30}),
    ],
    ids=str,
)
def test_sizes_of_every_form_are_understood(size, expected):
    assert size_dict(size, "size") == expected


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 20}, "crop_size must have exactly the keys of one of"),
        ({"longest_edge": 20}, "must have exactly the keys of one of"),
        ({"height": 20, "width": 20, "shortest_edge": 3}, "must have exactly the keys of one of"),
        ({}, "must have exactly the keys of one of"),
        ({"height": 0, "width": 20}, "crop_size must hold whole numbers of at least 1"),
        ({"height": 2.5, "width": 20}, "whole numbers"),
        (0, "whole numbers of at least 1"),
        ((1, 2, 3), "crop_size must be a number, a pair or a dict. Received: \\(1, 2, 3\\)"),
        ("224", "must be a number, a pair or a dict"),
        (True, "must be a number, a pair or a dict"),
    ],
    ids=str,
)
def test_sizes_that_mean_nothing_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        size_dict(size, "crop_size")


# --- the processor ------------------------------------------------------------------------------------


@pytest.fixture
def processor() -> DeiTImageProcessor:
    return DeiTImageProcessor(size=20, crop_size=16)


def test_a_plain_colour_gives_the_numbers_worked_out_by_hand():
    processor = DeiTImageProcessor(size=4, crop_size=2, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.2, 0.1])
    pixels = processor(Image.new("RGB", (9, 5), (255, 51, 0)), return_tensors="np").pixel_values
    expected = np.array([(1.0 - 0.5) / 0.5, (0.2 - 0.4) / 0.2, (0.0 - 0.3) / 0.1]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, (1, 3, 2, 2)), atol=1e-6)


def test_padding_is_black_before_normalizing():
    processor = DeiTImageProcessor(do_resize=False, crop_size=3)
    pixels = processor(Image.new("RGB", (1, 1), WHITE), return_tensors="np").pixel_values
    assert pixels[0, 0].tolist() == [[-1, -1, -1], [-1, 1, -1], [-1, -1, -1]]


def test_channels_can_come_last(processor):
    first = processor(noise(), return_tensors="np").pixel_values
    last = processor(noise(), return_tensors="np", data_format="channels_last").pixel_values
    assert np.array_equal(np.moveaxis(first, 1, -1), last)


def test_lists_may_be_nested(processor):
    flat = processor([noise(), noise(20, 20), noise(9, 9)], return_tensors="np").pixel_values
    nested = processor([[noise()], [noise(20, 20), noise(9, 9)]], return_tensors="np").pixel_values
    assert np.array_equal(flat, nested)


def test_an_override_of_none_keeps_the_setting(processor):
    """transformers 5 refuses it for the mean and the size; before, it kept the setting as here."""
    assert np.array_equal(
        processor(noise(), image_mean=None, size=None, return_tensors="np").pixel_values,
        processor(noise(), return_tensors="np").pixel_values,
    )


def test_an_override_leaves_the_processor_as_it_was(processor):
    before = processor.to_dict()
    processor(noise(), size=30, do_normalize=False)
    assert processor.to_dict() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_tensors": "list"}, "return_tensors must be None, 'np', 'pt', 'tf', 'jax' or 'mlx'. Received: 'list'"),
        ({"resample": 9}, r"resample must be one of 0 \(nearest\), .*Received: 9"),
        ({"image_std": 0}, "image_std must not hold 0"),
        ({"image_std": [1.0, 0.0, 1.0]}, "image_std must not hold 0"),
        ({"image_mean": []}, "image_mean must hold a number for each channel"),
        ({"image_mean": float("nan")}, "image_mean must be finite"),
        ({"rescale_factor": float("inf")}, "rescale_factor must be finite"),
        ({"do_pad": True, "pad_size": 9}, r"pad_size \(9, 9\) is smaller than an image of \(16, 16\)"),
        ({"input_data_format": "HWC"}, "input_data_format must be 'channels_first' or 'channels_last'"),
        ({"device": "cuda"}, "DeiTImageProcessor works on the CPU. For cuda: DeiTImageProcessorFast"),
        ({"data_format": "channels_middle"}, "data_format must be 'channels_first' or 'channels_last'"),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size needs 'height' and 'width'"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers and the image has 3 channels"),
        ({"image_std": [1.0] * 4}, "image_std has 4 numbers and the image has 3 channels"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_used_is_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(noise(), **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "No images were given"),
        (np.zeros(20, np.uint8), "An image needs 3 dimensions"),
        (np.zeros((20, 20, 2), np.uint8), "Cannot tell the channels of an image of shape"),
        (3, "Images must be PIL images, paths, bytes, numpy arrays or tensors. Received: int"),
        ("https://example.org/a.png", "is a web address. Images are not downloaded"),
        (b"no image", "the given bytes is not an image"),
        (np.full((20, 20, 3), np.nan), "pixels that are NaN or infinite"),
        (np.where(np.eye(20)[..., None] > 0, np.inf, np.zeros((20, 20, 3), np.float32)), "NaN or infinite"),
        (np.full((3, 20, 20), "a"), "Pixels must be numbers. Received an array of <U1"),
        (np.zeros((3, 0, 20), np.uint8), "The image has no pixels"),
        (np.full((20, 20, 4), 2.5), r"Transparency needs values in \[0, 1\] or integers"),
        (np.full((20, 20, 3), 300), r"Whole numbers must lie in \[0, 255\]. Received: 300 to 300"),
        (np.full((20, 20, 3), 1.5), "cannot be resized"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_images_that_cannot_be_used_are_refused(processor, images, message):
    with pytest.raises(ValueError, match=message):
        processor(images)


def test_images_of_different_sizes_cannot_be_stacked(processor):
    with pytest.raises(ValueError, match="Images of different sizes cannot be stacked"):
        processor([noise(9, 9), noise()], do_resize=False, do_center_crop=False, return_tensors="np")


@pytest.mark.parametrize("call", [True, False])
def test_an_unknown_option_is_refused(processor, call):
    with pytest.raises(TypeError, match="Unknown option colour"):
        processor(noise(), colour=1) if call else DeiTImageProcessor.from_dict({}, colour=1)


def test_a_setting_that_is_switched_on_must_have_a_value(processor):
    processor.rescale_factor = None
    with pytest.raises(ValueError, match="rescale_factor is None although do_rescale is on"):
        processor(noise())
    assert processor(noise(), do_rescale=False, return_tensors="np").pixel_values.max() > 100


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"shortest_edge": 30, "longest_edge": 50}, "resample": 2, "do_center_crop": False},
        {"image_mean": (0.1, 0.2, 0.3), "image_std": 0.5, "rescale_factor": 0.1, "crop_size": (3, 4)},
        {"do_resize": False, "do_rescale": False, "do_normalize": False},
    ],
    ids=str,
)
def test_settings_survive_saving_and_loading(options, tmp_path):
    processor = DeiTImageProcessor(**options)
    processor.save_pretrained(tmp_path / "new")
    for path in (tmp_path / "new", tmp_path / "new" / "preprocessor_config.json"):
        assert DeiTImageProcessor.from_pretrained(path).to_dict() == processor.to_dict()
    values = json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())
    assert values == processor.to_dict()
    assert values["image_processor_type"] == "DeiTImageProcessor"


def test_files_of_older_and_newer_writers_are_read():
    old = {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "resample": 3}
    assert DeiTImageProcessor.from_dict(old).to_dict() == DeiTImageProcessor().to_dict()
    new = {"image_processor_type": "DeiTImageProcessorFast", "do_pad": None, "size": None, "device": None}
    assert DeiTImageProcessor.from_dict(new).to_dict() == DeiTImageProcessor().to_dict()


def test_overrides_at_loading_win(tmp_path):
    DeiTImageProcessor(resample=2).save_pretrained(tmp_path)
    assert DeiTImageProcessor.from_pretrained(tmp_path, resample=0, size=9).resample == 0


def test_missing_or_broken_settings_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No preprocessor_config\.json at"):
        DeiTImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged or is not"):
        DeiTImageProcessor.from_pretrained(tmp_path)


def test_the_output_is_a_dict_with_attributes():
    output = BatchFeature({"pixel_values": np.ones(2)})
    assert output["pixel_values"] is output.pixel_values
    assert dict(**output).keys() == {"pixel_values"}
    with pytest.raises(AttributeError, match="labels"):
        _ = output.labels


def test_the_output_moves_its_tensors():
    torch = pytest.importorskip("torch")
    output = BatchFeature({"pixel_values": torch.ones(2), "name": "a"}).to(torch.float64)
    assert output.pixel_values.dtype == torch.float64
    assert output.name == "a"


def test_only_floats_take_another_type_and_the_output_itself_is_changed():
    torch = pytest.importorskip("torch")
    output = BatchFeature({"pixels": torch.ones(2), "mask": torch.ones(2, dtype=torch.uint8), "list": [torch.ones(1)]})
    assert output.to("cpu", dtype=torch.float16) is output
    assert [output.pixels.dtype, output.mask.dtype, output.list[0].dtype] == [torch.float16, torch.uint8, torch.float16]
    assert pickle.loads(pickle.dumps(output)).pixels.tolist() == [1.0, 1.0]


def test_the_papers_evaluation_resizes_the_shorter_side_and_crops_the_center():
    processor = evaluation_processor((224, 224), crop_ratio=0.875, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (processor.size, processor.crop_size) == ({"shortest_edge": 256}, {"height": 224, "width": 224})
    assert processor.do_center_crop
    assert (processor.channel_mean, processor.channel_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert processor.output_size == (224, 224)


def test_a_crop_ratio_of_one_keeps_the_proportions_and_cuts_the_center():
    processor = evaluation_processor((32, 48), crop_ratio=1.0, mean=[0.5] * 3, std=[0.5] * 3)
    assert processor.size == {"shortest_edge": 48}
    assert processor.do_center_crop
    assert processor.output_size == (32, 48)
    assert processor(noise(), return_tensors="np").pixel_values.shape == (1, 3, 32, 48)


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.1])
def test_a_crop_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"crop_ratio must lie in \(0, 1\]"):
        evaluation_processor((32, 32), crop_ratio=ratio, mean=[0.5] * 3, std=[0.5] * 3)


def test_the_size_of_the_result_is_open_when_proportions_are_kept_without_a_crop():
    with pytest.raises(ValueError, match="leaves the size of the result open"):
        _ = DeiTImageProcessor(size={"shortest_edge": 9}, do_center_crop=False).output_size
    assert DeiTImageProcessor(image_mean=0.3).channel_mean == (0.3, 0.3, 0.3)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("do_resize", "yes", "do_resize must be True or False. Received: 'yes'"),
        ("do_normalize", 1, "do_normalize must be True or False. Received: 1"),
        ("do_convert_rgb", [], "do_convert_rgb must be True or False"),
        ("image_mean", "0.5", "image_mean must be a number. Received: '0.5'"),
        ("image_std", [0.5, "a", 0.5], "image_std must be a number. Received: 'a'"),
        ("rescale_factor", "1/255", "rescale_factor must be a number. Received: '1/255'"),
        ("rescale_factor", True, "rescale_factor must be a number. Received: True"),
        ("resample", "bicubic", "resample must be a number or PIL.Image.Resampling. Received: 'bicubic'"),
        ("device", 1.5, "device must be the name of a device"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_wherever_it_is_given(option, value, message, processor, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({option: value}))
    attempts = [
        lambda: DeiTImageProcessor(**{option: value}),
        lambda: processor(noise(), **{option: value}),
        lambda: setattr(processor, option, value),
    ]
    if option != "device":  # of the machine that wrote the file
        attempts.append(lambda: DeiTImageProcessor.from_pretrained(tmp_path))
    for attempt in attempts:
        with pytest.raises(TypeError, match=message):
            attempt()


def test_an_unknown_option_suggests_the_nearest(processor):
    for attempt in (lambda: DeiTImageProcessor(do_resise=True), lambda: processor(noise(), do_resise=True)):
        with pytest.raises(TypeError, match=r"Unknown option do_resise\. Did you mean do_resize\? Known: "):
            attempt()


def test_a_setting_is_changed_by_its_attribute(processor):
    processor.size = 30
    processor.crop_size["height"] = 18
    processor.image_mean = np.array([0.1, 0.2, 0.3])
    assert processor.size == {"height": 30, "width": 30}
    assert processor(noise(), return_tensors="np").pixel_values.shape == (1, 3, 18, 16)
    assert processor.image_mean == [0.1, 0.2, 0.3]
    assert "shortest_edge" not in processor.size
    processor.default_to_square = False
    processor.size = 40
    assert processor.size == {"shortest_edge": 40}
    with pytest.raises(AttributeError, match="A size has no side 'depth'"):
        _ = processor.size.depth
    with pytest.raises(KeyError):
        _ = processor.size["depth"]


def test_keys_of_a_file_that_mean_nothing_are_kept_as_data_and_never_as_attributes_of_the_class(tmp_path):
    values = {"colour": "red", "preprocess": 3, "nothing": None, "image_processor_type": "DeiTImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    processor = DeiTImageProcessor.from_pretrained(tmp_path)
    assert processor.colour == "red"
    assert callable(processor.preprocess)
    assert {k: v for k, v in processor.to_dict().items() if k in values} == {
        "colour": "red", "preprocess": 3, "image_processor_type": "DeiTImageProcessor",
    }  # fmt: skip
    with pytest.raises(AttributeError, match="'DeiTImageProcessor' has no attribute 'nothing'"):
        _ = processor.nothing
    for copied in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert copied == processor
        assert copied.colour == "red"


def test_the_device_in_a_file_is_that_of_its_writer():
    processor = DeiTImageProcessor.from_dict({"device": "cuda:3"})
    assert processor.device is None
    assert processor(noise(), return_tensors="np", device="cpu").pixel_values.shape == (1, 3, 224, 224)


def test_a_file_names_itself_in_an_error(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 3}}')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: size must have exactly the keys"):
        DeiTImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"holds a list, not a JSON object"):
        DeiTImageProcessor.from_pretrained(tmp_path)


def test_processors_are_equal_when_class_and_settings_are(processor, tmp_path):
    assert processor == DeiTImageProcessor(size=20, crop_size=16)
    assert processor != DeiTImageProcessor(size=20, crop_size=17)
    assert processor != ViTImageProcessor(size=20, crop_size=16)
    assert processor.save_pretrained(tmp_path) == [str(tmp_path / "preprocessor_config.json")]
    processor.to_json_file(tmp_path / "other.json")
    assert DeiTImageProcessor.from_json_file(tmp_path / "other.json") == processor
    assert repr(processor) == f"DeiTImageProcessor {processor.to_json_string()}"


def test_the_name_of_transformers_4_warns_and_names_the_new_one(tmp_path):
    with pytest.warns(FutureWarning, match="DeiTFeatureExtractor is deprecated. Use DeiTImageProcessor"):
        old = DeiTFeatureExtractor(size=20, crop_size=16)
    assert old.to_dict() == DeiTImageProcessor(size=20, crop_size=16).to_dict()
    assert np.array_equal(
        old(noise(), return_tensors="np").pixel_values,
        DeiTImageProcessor(size=20, crop_size=16)(noise(), return_tensors="np").pixel_values,
    )


@pytest.mark.parametrize("name", ["tf", "jax", "mlx"])
def test_a_package_that_is_missing_is_named(name, processor, monkeypatch):
    package = {"tf": "tensorflow", "jax": "jax", "mlx": "mlx"}[name]
    for module in (package, f"{package}.numpy", f"{package}.core"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=f"return_tensors='{name}' needs the '{package}' package.*pip install {package}"
    ):
        processor(noise(), return_tensors=name)


@pytest.mark.parametrize(
    ("name", "module", "function"), [("tf", "tensorflow", "constant"), ("jax", "jax.numpy", "asarray")]
)
def test_tensors_of_other_packages_are_made_by_their_own_function(name, module, function, processor, monkeypatch):
    stub = types.ModuleType(module)
    setattr(stub, function, lambda batch: ("made", batch))
    monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType(module.split(".")[0]))
    monkeypatch.setitem(sys.modules, module, stub)
    made, batch = processor([noise(), noise()], return_tensors=name).pixel_values
    assert made == "made"
    assert np.array_equal(batch, processor([noise(), noise()], return_tensors="np").pixel_values)


# --- images of every kind -----------------------------------------------------------------------------


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def test_files_are_read_by_the_one_conversion(processor, tmp_path):
    """Upright, first frame, 16 bits scaled, transparency on white."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [noise(), noise().rotate(180)]
    sources = {
        "rotated": encoded(noise(), "JPEG", exif=exif),
        "animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "transparent": encoded(noise().convert("RGBA").rotate(45)),
        "palette": encoded(noise().convert("P")),
        "print": encoded(noise().convert("CMYK"), "TIFF"),
        "grey": encoded(noise().convert("L")),
        "grey of 16 bits": encoded(Image.fromarray(np.asarray(noise().convert("L")).astype(np.uint16) * 257)),
        "black and white": encoded(noise().convert("1")),
    }
    for name, data in sources.items():
        (tmp_path / name).write_bytes(data)
        expected = processor(load_image(data), return_tensors="np").pixel_values
        text = base64.b64encode(data).decode()
        for given in (data, tmp_path / name, str(tmp_path / name), text, f"data:image/png;base64,{text}"):
            assert np.array_equal(processor(given, return_tensors="np").pixel_values, expected), name


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "I", "F", "I;16"])
def test_pil_images_of_every_mode_give_the_pixels_of_their_conversion(mode, processor):
    grey = np.asarray(noise().convert("L"))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(grey.astype(np.int32) * 257)
    elif mode in ("La", "RGBa", "PA"):
        image = noise().convert({"La": "LA", "RGBa": "RGBA", "PA": "LA"}[mode]).convert(mode)
    else:
        image = noise().convert(mode)
    assert image.mode == mode
    if mode in ("I", "F"):  # nothing says what their values mean
        with pytest.raises(ImageError, match="are unknown"):
            processor(image, return_tensors="np")
        processor.value_range = (0, 65535) if mode == "I" else (0, 255)
    expected = processor(load_image(image, value_range=processor.value_range), return_tensors="np").pixel_values
    assert np.array_equal(processor(image, return_tensors="np").pixel_values, expected)
    if mode in ("L", "I", "I;16"):
        colour = processor(Image.fromarray(np.stack([grey] * 3, -1)), return_tensors="np").pixel_values
        assert np.array_equal(expected, colour)


def test_a_grey_image_stays_grey_when_the_model_has_one_channel():
    processor = DeiTImageProcessor(size=20, crop_size=16, image_mean=[0.4], image_std=[0.3])
    grey = noise().convert("L")
    expected = processor(np.asarray(grey)[None], return_tensors="np").pixel_values
    assert expected.shape == (1, 1, 16, 16)
    for given in (grey, encoded(grey), grey.convert("LA"), Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)):
        assert np.array_equal(processor(given, return_tensors="np").pixel_values, expected)
    with pytest.raises(ValueError, match="image_mean has 1 numbers and the image has 3 channels"):
        processor(noise())


def test_arrays_of_one_or_four_channels_become_rgb_when_the_model_has_three(processor):
    grey = np.asarray(noise().convert("L"))
    colour = processor(np.stack([grey] * 3, -1), return_tensors="np").pixel_values
    assert np.array_equal(processor(grey[None], return_tensors="np").pixel_values, colour)
    opaque = np.concatenate([np.asarray(noise()), np.full((40, 60, 1), 255, np.uint8)], axis=-1)
    expected = processor(noise(), return_tensors="np").pixel_values
    assert np.array_equal(processor(opaque, return_tensors="np").pixel_values, expected)
    opaque[..., 3] = 0
    white = processor(Image.new("RGB", (60, 40), WHITE), return_tensors="np").pixel_values
    assert np.array_equal(processor(opaque, return_tensors="np").pixel_values, white)


def test_a_pil_image_is_not_turned_by_its_exif_tag_as_in_transformers_and_a_file_is(processor):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(), exif=exif)
    in_memory = Image.open(io.BytesIO(data))
    lying = processor(noise(), return_tensors="np").pixel_values
    assert np.array_equal(processor(in_memory, return_tensors="np").pixel_values, lying)
    upright = processor(noise().transpose(Image.Transpose.ROTATE_270), return_tensors="np").pixel_values
    assert np.array_equal(processor(data, return_tensors="np").pixel_values, upright)


def test_an_image_that_claims_too_many_pixels_is_refused_by_the_processor(processor, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="more pixels than are safe to decode"):
        processor(encoded(noise()))


def test_the_papers_evaluation_is_a_named_alternative():
    processor = DeiTImageProcessor.paper_evaluation()
    assert (processor.size, processor.crop_size) == ({"shortest_edge": 256}, {"height": 224, "width": 224})
    assert (processor.resample, processor.image_mean) == (3, [0.485, 0.456, 0.406])
    larger = DeiTImageProcessor.paper_evaluation(384, 1.0, image_mean=[0.1] * 3, image_std=[0.2] * 3)
    assert (larger.size, larger.do_center_crop) == ({"shortest_edge": 384}, True)
    assert (larger.image_mean, larger.image_std) == ([0.1] * 3, [0.2] * 3)
    assert type(ViTImageProcessor.paper_evaluation()) is ViTImageProcessor


def test_a_folder_is_opened_with_the_defaults_of_the_class_that_it_names(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"image_processor_type": "ViTImageProcessorFast"}')
    assert open_image_processor(tmp_path) == ViTImageProcessor()
    file.write_text('{"feature_extractor_type": "DeiTFeatureExtractor"}')
    assert open_image_processor(tmp_path, size=9) == DeiTImageProcessor(size=9)
    file.write_text("{}")
    assert open_image_processor(file) == DeiTImageProcessor()
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert open_image_processor(tmp_path) == ViTImageProcessor()
    file.write_text('{"image_processor_type": "SwinImageProcessor"}')
    with pytest.raises(ValueError, match=r"of the type 'SwinImageProcessor'. Known: DeiTImageProcessor"):
        open_image_processor(tmp_path)


@pytest.mark.parametrize("option", ["size", "crop_size", "pad_size"])
@pytest.mark.parametrize("size", [(40_000, 40_000), (16_385, 8), (8192, 8192), 10**9])
def test_sizes_that_would_fill_the_memory_are_refused(option, size):
    with pytest.raises(ValueError, match=rf"{option} may be at most 16384 on a side and 16777216 pixels"):
        DeiTImageProcessor(**{option: size})
