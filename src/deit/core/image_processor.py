"""Images into pixels with Pillow and numpy: the processors of DeiT and ViT."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from deit.core import pixels as px
from deit.core.configuration import CONFIG_NAME, read_config
from deit.core.processor_options import CHANNELS_LAST, resized_size, size_dict
from deit.core.processor_settings import VIT_DEFAULTS, ImageProcessor, read_preprocessor_config
from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD, paper_preprocessing

Processor = TypeVar("Processor", bound="DeiTImageProcessor")


class DeiTImageProcessor(ImageProcessor):
    """Turns images into `pixel_values`: resize, center crop, rescale, normalize, channels first.

    Names and defaults are those of transformers, and so are the values, bit for bit (its Pillow processor).
    Published DeiT weights bring their own settings in `preprocessor_config.json`; the defaults here are only
    what transformers uses when a file says nothing. Options and errors: see `ImageProcessor`.

    Example:
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

        Example:
            >>> processor = DeiTImageProcessor.paper_evaluation()
            >>> processor.size, processor.crop_size
            ({'shortest_edge': 256}, {'height': 224, 'width': 224})
        """
        side = size_dict(image_size, "image_size")
        return cls(**paper_preprocessing((side["height"], side["width"]), crop_ratio, image_mean, image_std))

    def _pixels(self, images: list[Any]) -> Any:
        if str(self.device or "cpu").partition(":")[0] != "cpu":
            raise ValueError(f"{type(self).__name__} works on the CPU. For {self.device}: DeiTImageProcessorFast.")
        channels, to_rgb = self._channels, bool(self.do_convert_rgb)
        opened = [px.in_colours(image, channels, to_rgb, self.value_range) for image in images]
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


class ViTImageProcessor(DeiTImageProcessor):
    """`DeiTImageProcessor` with the defaults of ViT: squashed to 224 x 224 pixels, bilinear, no crop.

    Example:
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
    """Same as `DeiTImageProcessor.paper_evaluation`, with everything said."""
    return DeiTImageProcessor.paper_evaluation(image_size, crop_ratio, image_mean=mean, image_std=std)


_FAMILIES: dict[str, type[DeiTImageProcessor]] = {"deit": DeiTImageProcessor, "vit": ViTImageProcessor}
_NAMES = {
    prefix + suffix: family
    for family, prefix in (("deit", "DeiT"), ("vit", "ViT"))
    for suffix in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
}


def processor_family(values: Mapping[str, Any], model_type: str | None, source: object) -> str:
    """Returns whose defaults a file of settings means: "deit" or "vit".

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
    if name not in _NAMES:
        what = f"of the type {name!r}" if name else f"of no type, for a model of type {model_type!r}"
        raise ValueError(f"The image processor in {source} is {what}. Known: {', '.join(_NAMES)}.")
    return _NAMES[name]


def open_image_processor(path: str | os.PathLike[str], **overrides: Any) -> DeiTImageProcessor:
    """Opens the processor of a folder or file on this machine with the class that its file names.

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
