"""The steps of a processor, called by themselves and replaced, against those of transformers."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch

import deit
from deit import DeiTImageProcessor, DeiTImageProcessorFast
from tests.parity.processor_cases import CASES, IMAGENET, PLAIN, SMALL, first, grey, mode, photo, rgb, unit

transformers = pytest.importorskip("transformers")
PAIRS = {
    "pil": (DeiTImageProcessor, transformers.DeiTImageProcessorPil),
    "torchvision": (DeiTImageProcessorFast, transformers.DeiTImageProcessor),
    "ViT, pil": (deit.ViTImageProcessor, transformers.ViTImageProcessorPil),
    "ViT, torchvision": (deit.ViTImageProcessorFast, transformers.ViTImageProcessor),
}
IMAGES = [rgb(37, 51), photo(30, 41), rgb(37, 51)]


def pixels(processor: Any, images: Any = None, **call: Any) -> np.ndarray:
    return processor(IMAGES if images is None else images, return_tensors="np", **call)["pixel_values"]


def assert_same(ours: Any, theirs: Any) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs), f"largest difference {np.abs(ours.astype(float) - theirs).max()}"


# --- replaced -----------------------------------------------------------------------------------------


def changed(name: str, original: Any, calls: list[str]) -> Any:
    """A step that does what the original does, and then something that the result shows."""

    def step(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        result = original(*args, **kwargs)
        if name == "_preprocess":
            result["pixel_values"] = [2 * image for image in result["pixel_values"]]
            return result.convert_to_tensors("np")
        if name == "pad":
            return [image + 1 for image in result]
        return result + 1 if name != "convert_to_rgb" else 255 - result

    return step


STEPS = ("process_image", "convert_to_rgb", "resize", "center_crop", "rescale", "normalize", "pad", "_preprocess")
ALL_ON = {**SMALL, **IMAGENET, "do_center_crop": True, "do_pad": True, "pad_size": 20, "do_convert_rgb": True}


@pytest.mark.parametrize("where", ["subclass", "instance", "class"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_step_that_is_replaced_changes_the_pixels_as_in_transformers(pair, step, where, monkeypatch):
    results = []
    for kind in PAIRS[pair]:
        calls: list[str] = []
        own = getattr(kind, step)

        def method(self: Any, *args: Any, own: Any = own, calls: list[str] = calls, **kwargs: Any) -> Any:
            return changed(step, types.MethodType(own, self), calls)(*args, **kwargs)

        if where == "subclass":
            processor = type("Mine", (kind,), {step: method})(**ALL_ON)
        elif where == "class":
            monkeypatch.setattr(kind, step, method)
            processor = kind(**ALL_ON)
        else:
            processor = kind(**ALL_ON)
            setattr(processor, step, types.MethodType(method, processor))
        # transformers' torchvision processor converts PIL images without this step
        images = [photo(37, 51), photo(30, 41, 4)] if step == "convert_to_rgb" else None
        results.append((pixels(processor, images), bool(calls)))
    (ours, called), (theirs, called_there) = results
    assert called
    if called_there:
        assert_same(ours, theirs)
    else:  # its torchvision processor folds the factor into mean and std, and passes the replaced step over
        assert (step, "torchvision" in pair) == ("rescale", True)
        assert not np.array_equal(ours, theirs)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_step_sees_the_arguments_of_transformers(pair):
    seen = []
    for kind in PAIRS[pair]:
        given: list[Any] = []
        seen.append(given)

        class Mine(kind):  # type: ignore[misc, valid-type]
            given = seen[-1]

            def resize(self, image, size, resample=None, **kwargs):
                self.given.append((tuple(image.shape), size.height, size["width"], int(resample)))
                return super().resize(image, size, resample=resample, **kwargs)

            def center_crop(self, image, size, **kwargs):
                self.given.append((tuple(image.shape), size.height, size["width"]))
                return super().center_crop(image, size, **kwargs)

            def normalize(self, image, mean, std, **kwargs):
                self.given.append((tuple(image.shape), str(image.dtype), np.asarray(mean, np.float32).tolist()))
                return super().normalize(image, mean, std, **kwargs)

        Mine(**SMALL, **IMAGENET, do_center_crop=True)(IMAGES, crop_size=12)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("size of one pixel",)])
def test_the_steps_one_by_one_give_the_pixels_of_all_together(case):
    images, options, call = CASES[case]
    for kind in (DeiTImageProcessor, DeiTImageProcessorFast):
        if kind is DeiTImageProcessorFast and case in ("box", "hamming"):
            continue
        one_by_one = type("Mine", (kind,), {"center_crop": lambda self, *a, kind=kind: kind.center_crop(self, *a)})
        assert_same(pixels(one_by_one(**options), images, **call), pixels(kind(**options), images, **call))


def test_what_a_step_notes_on_its_processor_stays_there():
    class Counting(DeiTImageProcessor):
        count = 0

        def resize(self, *args, **kwargs):
            self.count += 1
            return super().resize(*args, **kwargs)

    processor = Counting(**SMALL)
    processor(IMAGES)
    assert processor.count == 3


@pytest.mark.parametrize("name", ["_preprocess_image_like_inputs", "fetch_images", "valid_kwargs"])
def test_an_override_of_what_is_never_called_is_refused_where_it_is_written(name):
    with pytest.raises(
        TypeError, match=f"{name} would never be called: .* Override preprocess, or one of process_image"
    ):
        type("Mine", (DeiTImageProcessorFast,), {name: lambda self: None})


@pytest.mark.parametrize("pair", PAIRS)
def test_a_subclass_sets_its_defaults_as_attributes_of_the_class(pair):
    results = []
    for kind in PAIRS[pair]:
        own = {
            "size": {"height": 30, "width": 31},
            "do_center_crop": False,
            "image_mean": [0.1, 0.2, 0.3],
            "resample": 2,
        }
        processor = type("Mine", (kind,), own)()
        results.append((pixels(processor), pixels(processor, size={"height": 20, "width": 21})))
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs)


def test_an_argument_of_a_subclass_is_saved_and_read_as_in_transformers(tmp_path):
    opened = []
    for i, kind in enumerate((DeiTImageProcessor, transformers.DeiTImageProcessorPil)):

        class Tinted(kind):  # type: ignore[misc, valid-type]
            def __init__(self, tint=1.0, **options):
                super().__init__(**options)
                self.tint = tint

            def normalize(self, image, mean, std, **kwargs):
                return super().normalize(image, mean, std, **kwargs) * self.tint

        Tinted(tint=0.5, **SMALL).save_pretrained(tmp_path / str(i))
        opened.append(Tinted.from_pretrained(tmp_path / str(i)))
    assert [processor.tint for processor in opened] == [0.5, 0.5]
    assert_same(pixels(opened[0]), pixels(opened[1]))


def test_a_step_replaced_on_an_instance_is_not_lost_in_a_file_without_a_word(tmp_path):
    ours, theirs = DeiTImageProcessor(**SMALL), transformers.DeiTImageProcessorPil(**SMALL)
    for processor in (ours, theirs):
        processor.resize = lambda image, **_: image
    with pytest.raises(TypeError):
        theirs.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="resize was replaced on this DeiTImageProcessor, and a file holds settings"):
        ours.save_pretrained(tmp_path)
    assert "size" in repr(ours)


# --- called by themselves -----------------------------------------------------------------------------

ARRAYS = {
    "uint8": first(photo(30, 41)),
    "float32 in [0, 1]": first(unit(photo(30, 41))),
    "float64": first(photo(30, 41)).astype(np.float64),
    "one channel": first(photo(30, 41, 1)),
    "four channels": first(photo(30, 41, 4)),
}
SIZES = [{"height": 20, "width": 25}, {"shortest_edge": 24}, {"shortest_edge": 20, "longest_edge": 26}]
SIZES += [{"max_height": 22, "max_width": 24}]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("pair", ["pil", "torchvision"])
def test_each_step_gives_what_it_gives_in_transformers(pair, name):
    ours, theirs = (kind() for kind in PAIRS[pair])
    image = ARRAYS[name] if pair == "pil" else torch.from_numpy(ARRAYS[name])
    their_size = transformers.image_utils.SizeDict
    for size in SIZES:
        for resample in (None, 0, 1, 2, 3):
            expected = theirs.resize(image, their_size(**size), resample=resample)
            assert_same(ours.resize(image, size, resample=resample), expected)
            assert_same(ours.resize(image, their_size(**size), resample), expected)
    for crop in ({"height": 16, "width": 17}, {"height": 35, "width": 20}, {"height": 33, "width": 50}):
        assert_same(ours.center_crop(image, crop), theirs.center_crop(image, their_size(**crop)))
    assert_same(ours.rescale(image, 1 / 255), theirs.rescale(image, 1 / 255))
    for mean, std in (([0.1, 0.2, 0.3, 0.4][: len(image)], [0.5] * len(image)), (0.4, 0.2)):
        given = image if pair == "pil" else image.float()
        per_channel = [mean] * len(image) if isinstance(mean, float) else mean
        stds = [std] * len(image) if isinstance(std, float) else std
        assert_same(ours.normalize(given, mean, std), theirs.normalize(given, per_channel, stds))


@pytest.mark.parametrize("pair", ["pil", "torchvision"])
def test_padding_and_its_masks_are_those_of_transformers(pair):
    ours, theirs = (kind() for kind in PAIRS[pair])
    images = [first(photo(20, 24)), first(photo(30, 9))]
    images = images if pair == "pil" else [torch.from_numpy(image) for image in images]
    size = transformers.image_utils.SizeDict(height=32, width=33)
    for call in ({}, {"pad_size": size}, {"pad_size": size, "fill_value": 7}, {"pad_size": size, "return_mask": True}):
        expected, result = theirs.pad(list(images), **call), ours.pad(list(images), **call)
        parts = zip(result, expected, strict=True) if "return_mask" in call else [(result, expected)]
        for our_list, their_list in parts:
            for our, their in zip(our_list, their_list, strict=True):
                assert_same(our, their)


@pytest.mark.parametrize("pair", ["pil", "torchvision"])
@pytest.mark.parametrize(
    "image", [rgb(30, 41), grey(30, 41), mode("RGBA"), photo(30, 41)], ids=["RGB", "L", "RGBA", "array"]
)
def test_an_image_becomes_the_array_that_the_steps_take(pair, image):
    ours, theirs = (kind() for kind in PAIRS[pair])
    result, expected = (p.process_image(image, do_convert_rgb=True) for p in (ours, theirs))
    assert type(result) is type(expected)
    assert_same(result, expected)


def test_channels_last_stay_last_as_in_transformers_4():
    processor = DeiTImageProcessor()
    last = photo(30, 41)
    for ours, planes in (
        (processor.resize(last, {"height": 20, "width": 21}), processor.resize(first(last), (20, 21))),
        (processor.center_crop(last, (10, 11)), processor.center_crop(first(last), (10, 11))),
        (processor.normalize(last, 0.5, 0.25), processor.normalize(first(last), 0.5, 0.25)),
    ):
        assert_same(np.moveaxis(ours, -1, 0), planes)
    resized = processor.resize(last, (20, 21), 2, "channels_first", input_data_format="channels_last")
    assert resized.shape == (3, 20, 21)


def test_the_torchvision_processor_refuses_to_normalize_whole_numbers_as_transformers_does():
    for kind in PAIRS["torchvision"]:
        with pytest.raises(TypeError):
            kind().normalize(torch.zeros(3, 4, 4, dtype=torch.uint8), [0.5] * 3, [0.5] * 3)


# --- settings and results -----------------------------------------------------------------------------


def test_the_settings_of_a_file_are_read_as_in_transformers(tmp_path):
    DeiTImageProcessor(**SMALL).save_pretrained(tmp_path)
    ours, rest = DeiTImageProcessor.get_image_processor_dict(tmp_path, token=None, do_resize=False, other=1)
    theirs, their_rest = transformers.DeiTImageProcessorPil.get_image_processor_dict(
        tmp_path, token=None, do_resize=False, other=1
    )
    assert (ours, rest) == (theirs, their_rest)
    assert DeiTImageProcessor.from_dict(ours) == DeiTImageProcessor(**SMALL)


def test_settings_that_a_subclass_reads_in_its_own_way_are_used(tmp_path):
    DeiTImageProcessor(**SMALL).save_pretrained(tmp_path)

    class Mine(DeiTImageProcessor):
        @classmethod
        def get_image_processor_dict(cls, path, **kwargs):
            values, rest = super().get_image_processor_dict(path, **kwargs)
            return {**values, "image_mean": [0.1] * 3}, rest

    assert Mine.from_pretrained(tmp_path).image_mean == [0.1] * 3


def test_a_processor_inside_the_file_of_several_is_found_as_in_transformers(tmp_path):
    processor = transformers.DeiTImageProcessor(**SMALL, **IMAGENET)
    values = {"image_processor": processor.to_dict(), "processor_class": "Any"}
    import json

    (tmp_path / "processor_config.json").write_text(json.dumps(values, default=dict))
    expected = pixels(transformers.DeiTImageProcessorPil.from_pretrained(tmp_path))
    for opened in (DeiTImageProcessor, deit.AutoImageProcessor):
        found = opened.from_pretrained(tmp_path, **({"use_fast": False} if opened is deit.AutoImageProcessor else {}))
        assert_same(pixels(found), expected)


VALUES: dict[str, Any] = {
    "arrays": [np.ones((2, 3)), np.zeros((2, 3))],
    "tensors": [torch.ones(2), torch.zeros(2)],
    "numbers": [[1, 2], [3, 4]],
    "floats": [0.5, 1.5],
    "one number": 3,
    "flags": [True, False],
    "text": ["a", "b"],
    "one text": "a",
    "dict": {"a": 1},
    "nested": [[np.ones(2), np.zeros(2)]],
    "None": None,
}


@pytest.mark.parametrize("kind", ["pt", "np", None])
@pytest.mark.parametrize("name", VALUES)
def test_values_become_tensors_as_in_transformers(name, kind):
    their_class = transformers.image_processing_utils.BatchFeature
    for make in (lambda c: c({"x": VALUES[name]}).convert_to_tensors(kind), lambda c: c({"x": VALUES[name]}, kind)):
        ours, theirs = make(deit.BatchFeature)["x"], make(their_class)["x"]
        assert type(ours) is type(theirs)
        if hasattr(theirs, "dtype"):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        elif not isinstance(theirs, list):
            assert ours == theirs


def test_values_named_are_left_alone_and_parts_of_different_sizes_are_refused():
    output = deit.BatchFeature({"a": [1], "b": [1]}, tensor_type="pt", skip_tensor_conversion=["a"])
    assert isinstance(output["a"], list)
    assert isinstance(output.b, torch.Tensor)
    for parts in ([np.ones(2), np.ones(3)], [torch.ones(2), torch.ones(3)]):
        with pytest.raises(ValueError, match="a cannot become one tensor: its parts have different sizes"):
            deit.BatchFeature({"a": parts}).convert_to_tensors("pt")
    with pytest.raises(ValueError, match="must be None, 'np', 'pt'"):
        deit.BatchFeature({"a": [1]}).convert_to_tensors("torch")
    with pytest.raises(KeyError):
        output[0]


def test_a_processor_is_saved_with_the_words_of_transformers(tmp_path):
    DeiTImageProcessor(**PLAIN).save_pretrained(tmp_path, push_to_hub=False)
    with pytest.raises(TypeError, match="token needs push_to_hub=True"):
        DeiTImageProcessor().save_pretrained(tmp_path, token="a")


@pytest.mark.parametrize("pair", ["pil", "torchvision"])
def test_grey_arrays_of_two_dimensions_are_taken_which_transformers_refuses(pair):
    ours, theirs = (kind(**SMALL, image_mean=[0.4], image_std=[0.3]) for kind in PAIRS[pair])
    for image in (photo(30, 41, 1)[..., 0], torch.from_numpy(photo(30, 41, 1)[..., 0])):
        with pytest.raises(ValueError, match="flat list"):
            theirs(image)
        for given in (image, [image]):
            assert_same(pixels(ours, given), pixels(theirs, image[None]))
