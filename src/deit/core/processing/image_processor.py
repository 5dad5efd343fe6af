"""Turns images into pixels with Pillow and numpy: the image processors of DeiT and ViT."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from deit.core.config.config_file import read_config
from deit.core.errors import UserError, shown
from deit.core.file_names import CONFIG_NAME
from deit.core.images.image_inputs import is_file_object
from deit.core.processing import operations as px
from deit.core.processing.batch_feature import BatchFeature
from deit.core.processing.options import CHANNELS_FIRST, CHANNELS_LAST, checked_option, resized_size, size_dict
from deit.core.processing.parts import parts_of
from deit.core.processing.settings import VIT_DEFAULTS, ImageProcessor
from deit.core.processing.settings_file import read_preprocessor_config
from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD, paper_preprocessing

Processor = TypeVar("Processor", bound="DeiTImageProcessor")


class DeiTImageProcessor(ImageProcessor):
    """Turns images into `pixel_values`: resize, center crop, rescale, normalize, channels first.

    Names and defaults are those of transformers, and so are the values, bit for bit (its Pillow processor).
    Published DeiT weights bring their own settings in `preprocessor_config.json`; the defaults here are only
    what transformers uses when a file says nothing. Options and errors: see `ImageProcessor`.

    Examples:
        >>> from PIL import Image
        >>> processor = DeiTImageProcessor(size=256, crop_size=224)
        >>> processor(Image.new("RGB", (640, 480)), return_tensors="np").pixel_values.shape
        (1, 3, 224, 224)
    """

    backend = "pil"
    is_fast = False

    @classmethod
    def paper_evaluation(
        cls: type[Processor],
        image_size: int | tuple[int, int] = 224,
        crop_ratio: float = 0.875,
        *,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> Processor:
        """Returns the paper's evaluation: shorter side to size / crop ratio (bicubic), then the center crop.

        Published weights in the Hugging Face format are scored with the settings of their file, which squash the
        image instead; a checkpoint's own file always decides. This is for weights that come without one (the
        original release) and for new trainings.

        Args:
            image_size: Pixels of the model's input, one number or (height, width).
            crop_ratio: Crop size over resize size: 0.875 for DeiT (256, then 224), 1 for DeiT III (224, then 224).
            image_mean: Of each channel, for values in [0, 1].
            image_std: Likewise.

        Raises:
            ValueError: The ratio is not in (0, 1].

        Examples:
            >>> processor = DeiTImageProcessor.paper_evaluation()
            >>> processor.size, processor.crop_size
            ({'shortest_edge': 256}, {'height': 224, 'width': 224})
        """
        side = size_dict(image_size, "image_size")
        return cls(**paper_preprocessing((side["height"], side["width"]), crop_ratio, image_mean, image_std))

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: str | None = None, **options: Any
    ) -> px.Array:
        """Same as `ImageProcessor.process_image`; returns a numpy array (C, H, W)."""
        given = {"do_convert_rgb": do_convert_rgb, "input_data_format": input_data_format, **options}
        settings = self._with(given)
        image = _opened(image, settings)
        if settings.do_convert_rgb:
            image = self.convert_to_rgb(image, input_data_format=settings.input_data_format)
        image = px.in_colors(image, settings._channels, False, settings.value_range)
        return _writable(px.to_channels_first(image, settings.input_data_format, settings._channels, False))

    def convert_to_rgb(self, image: Any, input_data_format: str | None = None) -> Any:
        """Returns a PIL image as RGB, or an array of one or four channels with three, in its layout.

        Transparency is laid on white.

        Args:
            image: PIL image, array or tensor.
            input_data_format: Of an array; inferred when None.
        """
        if isinstance(image, Image.Image):
            return px.in_colors(image, 3, True, self.value_range)
        return _in_planes(
            lambda planes: px.to_channels_first(planes, CHANNELS_FIRST, 3, True), image, input_data_format
        )

    def resize(
        self,
        image: px.Array,
        size: Any,
        resample: Any = None,
        data_format: str | None = None,
        input_data_format: str | None = None,
    ) -> px.Array:
        """Resizes an array through Pillow's 8-bit filters.

        Args:
            image: (C, H, W) or (H, W, C): whole numbers in [0, 255], or in [0, 1].
            size: See the class.
            resample: A Pillow filter; bilinear when None, as in transformers.
            data_format: Layout of the result, "channels_first" or "channels_last"; that of the image when None.
            input_data_format: Layout of the image; inferred when None.

        Raises:
            ImageError: The result would be too large.
            ValueError: The values are others, the layout cannot be told, or an option means nothing.
        """
        wanted = size_dict(size, "size", default_to_square=self.default_to_square)
        number = Image.Resampling.BILINEAR if resample is None else checked_option("resample", resample)

        def work(planes: px.Array) -> px.Array:
            return px.resize(planes, resized_size(wanted, *planes.shape[1:]), number)

        return _in_planes(work, image, input_data_format, data_format)

    def center_crop(
        self, image: px.Array, size: Any, data_format: str | None = None, input_data_format: str | None = None
    ) -> px.Array:
        """Cuts the center out of an array; a side that is too short is padded with zeros.

        Args:
            image: (C, H, W) or (H, W, C).
            size: {"height", "width"}, a number or a pair, in pixels.
            data_format: See `resize`.
            input_data_format: See `resize`.

        Raises:
            ValueError: The layout cannot be told, or the size means nothing.
        """
        wanted = checked_option("crop_size", size)
        return _in_planes(
            lambda planes: px.center_crop(planes, wanted["height"], wanted["width"]),
            image,
            input_data_format,
            data_format,
        )

    def rescale(
        self, image: px.Array, scale: float, data_format: str | None = None, input_data_format: str | None = None
    ) -> px.Array:
        """Multiplies an array by a number; returns float32.

        Args:
            image: Of any shape; (C, H, W) or (H, W, C) where a layout is asked for.
            scale: The number.
            data_format: See `resize`.
            input_data_format: See `resize`.
        """
        scaled = px.rescale_and_normalize(image, scale, None, None) if image.ndim == 3 else _scaled(image, scale)
        return scaled if data_format is None else _in_planes(lambda p: p, scaled, input_data_format, data_format)

    def normalize(
        self,
        image: px.Array,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        data_format: str | None = None,
        input_data_format: str | None = None,
    ) -> px.Array:
        """Subtracts the mean from an array and divides it by the standard deviation; whole numbers become float32.

        Args:
            image: (C, H, W) or (H, W, C).
            mean: One number, or one for each channel.
            std: One number, or one for each channel; not 0.
            data_format: See `resize`.
            input_data_format: See `resize`.

        Raises:
            ValueError: There are more or fewer numbers than channels, or the layout cannot be told.
        """
        mean, std = checked_option("image_mean", mean), checked_option("image_std", std)
        return _in_planes(
            lambda planes: px.rescale_and_normalize(planes, None, mean, std), image, input_data_format, data_format
        )

    def pad(
        self,
        images: Sequence[px.Array],
        pad_size: Any = None,
        fill_value: float = 0,
        padding_mode: Any = "constant",
        return_mask: bool = False,
    ) -> Any:
        """Pads arrays below and to the right, so that all have one size.

        Args:
            images: Of (C, H, W).
            pad_size: {"height", "width"}, a number or a pair; the largest height and width among them when None.
            fill_value: What is added.
            padding_mode: "constant", or another mode of `numpy.pad`.
            return_mask: Also return where the images are, (H, W) of int64, 1 inside.

        Raises:
            ValueError: An image is larger than `pad_size`.
        """
        wanted = checked_option("pad_size", pad_size)
        given = None if wanted is None else (wanted["height"], wanted["width"])
        size = px.padded_size([image.shape[1:] for image in images], given)
        padded = [px.pad(image, size, fill_value, padding_mode) for image in images]
        if not return_mask:
            return padded
        return padded, [px.pad(np.ones((1, *image.shape[1:]), np.int64), size)[0] for image in images]

    def _preprocess(self, images: list[Any], **options: Any) -> BatchFeature:
        settings = self._with(options)
        settings._refuse_other_devices()
        settings._warn_of_rescaled(images)
        processed = []
        for image in images:
            if settings.do_resize:
                image = self.resize(image=image, size=settings.size, resample=settings.resample)
            if settings.do_center_crop:
                image = self.center_crop(image, settings.crop_size)
            if settings.do_rescale:
                image = self.rescale(image, settings.rescale_factor)
            if settings.do_normalize:
                image = self.normalize(image, settings.image_mean, settings.image_std)
            processed.append(image)
        if settings.do_pad:
            processed = self.pad(processed, pad_size=settings.pad_size)
        if settings.data_format == CHANNELS_LAST:
            processed = [np.moveaxis(p, 0, -1) for p in processed]
        return BatchFeature({"pixel_values": px.stack(processed, settings.return_tensors)})

    def _refuse_other_devices(self) -> None:
        if str(self.device or "cpu").partition(":")[0] != "cpu":
            raise UserError(f"{type(self).__name__} works on the CPU. For {self.device}: DeiTImageProcessorFast.")

    def _pixels(self, images: list[Any]) -> Any:
        self._refuse_other_devices()
        channels, to_rgb = self._channels, bool(self.do_convert_rgb)
        opened = [px.in_colors(image, channels, to_rgb, self.value_range) for image in images]
        arrays = [
            image
            if self.do_resize and px.is_resized_by_pillow(image)
            else px.to_channels_first(image, self.input_data_format, channels, to_rgb)
            for image in opened
        ]
        del opened
        self._warn_of_rescaled([array for array in arrays if not isinstance(array, Image.Image)])
        pixels = [self._process(array, three=to_rgb or channels == 3) for array in arrays]
        if self.do_pad:
            wanted = None if self.pad_size is None else (self.pad_size["height"], self.pad_size["width"])
            size = px.padded_size([p.shape[1:] for p in pixels], wanted)
            pixels = [px.pad(p, size) for p in pixels]
        if self.data_format == CHANNELS_LAST:
            pixels = [np.moveaxis(p, 0, -1) for p in pixels]
        return px.stack(pixels, self.return_tensors)

    def _process(self, image: px.Array | Image.Image, *, three: bool) -> px.Array:
        if self.do_resize:
            height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[1:]
            crop = (self.crop_size["height"], self.crop_size["width"]) if self.do_center_crop else None
            image = px.resize(image, resized_size(self.size, height, width), self.resample, crop)
            if three and len(image) == 1:
                image = np.repeat(image, 3, axis=0)
        assert not isinstance(image, Image.Image)
        if self.do_center_crop:
            image = px.center_crop(image, self.crop_size["height"], self.crop_size["width"])
        mean, std = (self.image_mean, self.image_std) if self.do_normalize else (None, None)
        return px.rescale_and_normalize(image, self.rescale_factor if self.do_rescale else None, mean, std)


DeiTImageProcessor._own_parts = parts_of(DeiTImageProcessor)


def _opened(image: Any, settings: DeiTImageProcessor) -> Any:
    """Reads image files; returns other inputs unchanged."""
    if not (isinstance(image, (str, bytes, os.PathLike)) or is_file_object(image)):
        return image
    return px.in_colors(image, settings._channels, bool(settings.do_convert_rgb), settings.value_range)


def _in_planes(
    work: Callable[[px.Array], px.Array],
    image: px.Array,
    input_data_format: str | None,
    data_format: str | None = None,
) -> px.Array:
    """Applies work on (C, H, W) to an array of either layout; see `DeiTImageProcessor.resize`."""
    image = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    layout = px.layout_of(image.shape, checked_option("input_data_format", input_data_format))
    result = _writable(work(np.moveaxis(image, -1, 0) if layout == CHANNELS_LAST else image))
    wanted = layout if data_format is None else checked_option("data_format", data_format)
    return np.moveaxis(result, 0, -1) if wanted == CHANNELS_LAST else result


def _writable(array: px.Array) -> px.Array:
    """Returns a writable array: a replaced step may change it in place, and arrays of Pillow are read-only."""
    return array if array.flags.writeable else array.copy()


def _scaled(image: px.Array, scale: float) -> px.Array:
    return (np.asarray(image).astype(np.float64) * scale).astype(np.float32)


class ViTImageProcessor(DeiTImageProcessor):
    """`DeiTImageProcessor` with the defaults of ViT: squashed to 224 x 224 pixels, bilinear, no crop.

    Examples:
        >>> from PIL import Image
        >>> ViTImageProcessor()(Image.new("RGB", (640, 480)), return_tensors="np").pixel_values.shape
        (1, 3, 224, 224)
    """

    defaults = VIT_DEFAULTS


class DeiTImageProcessorPil(DeiTImageProcessor):
    """The name of `DeiTImageProcessor` in transformers 5."""


class ViTImageProcessorPil(ViTImageProcessor):
    """The name of `ViTImageProcessor` in transformers 5."""


class DeiTFeatureExtractor(DeiTImageProcessor):
    """The name of `DeiTImageProcessor` until transformers 4.25; deprecated."""

    def __init__(self, *args: Any, **options: Any) -> None:
        warnings.warn("DeiTFeatureExtractor is deprecated. Use DeiTImageProcessor.", FutureWarning, stacklevel=2)
        super().__init__(*args, **options)


def evaluation_processor(
    image_size: tuple[int, int], *, crop_ratio: float, mean: Sequence[float], std: Sequence[float]
) -> DeiTImageProcessor:
    """Does the same as `DeiTImageProcessor.paper_evaluation`, without defaults."""
    return DeiTImageProcessor.paper_evaluation(image_size, crop_ratio, image_mean=mean, image_std=std)


_FAMILIES: dict[str, type[DeiTImageProcessor]] = {"deit": DeiTImageProcessor, "vit": ViTImageProcessor}
_NAMES = {
    prefix + suffix: family
    for family, prefix in (("deit", "DeiT"), ("vit", "ViT"))
    for suffix in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
}


def processor_family(values: Mapping[str, Any], model_type: str | None, source: object) -> str:
    """Returns the family whose defaults a settings file uses: "deit" or "vit".

    Args:
        values: Content of `preprocessor_config.json`.
        model_type: Of the model's configuration, which decides when the file names no type.
        source: Named in the message.

    Raises:
        ValueError: Neither; the message names the types that are known.
    """
    name = values.get("image_processor_type") or values.get("feature_extractor_type")
    if name is None and model_type in _FAMILIES:
        return str(model_type)
    if not isinstance(name, str) or name not in _NAMES:
        what = f"of the type {shown(name)}" if name else f"of no type, for a model of type {model_type!r}"
        raise UserError(f"The image processor in {source} is {what}. Known: {', '.join(_NAMES)}.")
    return _NAMES[name]


def open_image_processor(path: str | os.PathLike[str], **overrides: Any) -> DeiTImageProcessor:
    """Opens the processor of a local folder or file with the class that the file names.

    A file that names none, in a folder whose configuration names none either, is read with the defaults of DeiT.

    Args:
        path: Model directory or `preprocessor_config.json`.
        **overrides: Options.

    Raises:
        FileNotFoundError: There is none: guessing would silently cost accuracy.
        ValueError: It is of another type.
    """
    values, file = read_preprocessor_config(path)
    config = read_config(file.parent) if (file.parent / CONFIG_NAME).is_file() else {}
    family = processor_family(values, config.get("model_type", "deit"), file)
    processor: DeiTImageProcessor = _FAMILIES[family].from_pretrained(file, **overrides)
    return processor
