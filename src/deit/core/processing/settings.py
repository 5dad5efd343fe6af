"""Defines the abstract image processor: its options, files and calls."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from PIL import Image

from deit.core.errors import UserError, WrongTypeError
from deit.core.file_names import PREPROCESSOR_NAME
from deit.core.files import write_text_atomically
from deit.core.hub import HubOptions, upload_folder
from deit.core.processing import operations as px
from deit.core.processing.batch_feature import BatchFeature
from deit.core.processing.options import OPTIONS, checked_option, refuse_unknown_options, require_settings, size_dict
from deit.core.processing.parts import (
    PARTS,
    arguments_of,
    class_defaults,
    is_replaced,
    refuse_replaced,
    refuse_what_is_not_called,
)
from deit.core.processing.settings_file import preprocessor_file, read_preprocessor_config, settings_json


class ImageProcessor(ABC):
    """Holds options, files and checks. A subclass turns images into pixels.

    Each option is set by the constructor, by an attribute, or for one call; a subclass sets defaults as attributes of
    the class. A step (see `deit.core.processing.parts`) may be replaced, in a subclass or on an instance: it is called
    with the arguments of transformers.

    Args:
        do_resize: Whether to resize.
        size: {"height", "width"} squashes to that size; {"shortest_edge"} (with an optional "longest_edge" as a
            limit) and {"max_height", "max_width"} keep the proportions. A number or a pair means height and width.
        resample: A Pillow filter or its number; 3 is bicubic.
        do_center_crop: Whether to crop the center; images that are smaller are padded with zeros.
        crop_size: {"height", "width"}, a number or a pair, in pixels.
        do_rescale: Whether to multiply by `rescale_factor`.
        rescale_factor: 1/255 brings 8-bit values to [0, 1].
        do_normalize: Whether to subtract `image_mean` and divide by `image_std`.
        image_mean: One number, or one for each channel.
        image_std: One number, or one for each channel.
        do_convert_rgb: Convert every image to RGB. Else only images without the channels of mean and std are.
        do_pad: Whether to pad with zeros below and to the right, at the end.
        pad_size: {"height", "width"} to pad to; the largest image when None.
        default_to_square: Whether a number given as `size` is a square; else it is the shorter edge.
        return_tensors: Default of `preprocess`.
        data_format: "channels_first" or "channels_last": the order of the output.
        input_data_format: The same for arrays given; inferred when None.
        device: Where to work. `DeiTImageProcessor` works on the CPU only.
        disable_grouping: Treat images one by one, even where some have the same size.
        value_range: Values that become black and white in gray images of more than 8 bits, see `load_image`: those of
            the training data. transformers ignores it.

    Raises:
        TypeError: An option is unknown or has the wrong type.
        ValueError: A value is not allowed.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    defaults: ClassVar[dict[str, Any]] = {
        "do_resize": True,
        "size": {"height": 256, "width": 256},
        "resample": Image.Resampling.BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "default_to_square": True,
        "data_format": "channels_first",
    }
    backend: ClassVar[str]
    is_fast: ClassVar[bool]
    _own_parts: ClassVar[dict[str, Any]]  # as this package has them

    do_resize: bool
    size: Any
    resample: Any
    do_center_crop: bool
    crop_size: Any
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: Any
    image_std: Any
    do_convert_rgb: bool | None
    do_pad: bool | None
    pad_size: Any
    default_to_square: bool
    return_tensors: str | None
    data_format: str
    input_data_format: str | None
    device: Any
    disable_grouping: bool | None
    value_range: Any

    def __init__(
        self,
        do_resize: bool | None = None,
        size: Any = None,
        resample: Any = None,
        do_center_crop: bool | None = None,
        crop_size: Any = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        given = {**{name: value for name, value in locals().items() if name in OPTIONS}, **options}
        refuse_unknown_options(given)
        self._inert: dict[str, Any] = {}
        defaults = copy.deepcopy({**self.defaults, **class_defaults(type(self), OPTIONS)})
        self._set({name: given[name] if given.get(name) is not None else defaults.get(name) for name in OPTIONS})

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_what_is_not_called(cls)

    def _set(self, values: Mapping[str, Any]) -> None:
        if values.get("default_to_square") is not None:  # first: it says what a number given as size means
            self.default_to_square = values["default_to_square"]
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "size" and value is not None:
            value = size_dict(value, name, default_to_square=self.default_to_square)
        elif name in OPTIONS:
            value = checked_option(name, value)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        inert = vars(self).get("_inert", {})  # data of the file that has no meaning here
        if name in inert:
            return inert[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __call__(self, images: px.ImageLike, *args: Any, **options: Any) -> BatchFeature:
        """Does the same as `preprocess`."""
        return self.preprocess(images, *args, **options)

    def preprocess(  # noqa: D417  (the class explains the others)
        self,
        images: px.ImageLike,
        do_resize: bool | None = None,
        size: Any = None,
        resample: Any = None,
        do_center_crop: bool | None = None,
        crop_size: Any = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        return_tensors: str | None = None,
        data_format: str | None = None,
        input_data_format: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Processes one image or a list of them. An option of None takes the processor's value.

        Args:
            images: PIL images; paths, bytes or base64 text of files; open files; arrays or tensors of 3 dimensions, or
                of 2 for gray; or (nested) lists of these. 4 dimensions are a batch. `load_image` says how files are
                read; PIL images are not turned by their EXIF tag.
            do_resize: This one and the others that are not explained here: see the class.
            return_tensors: None (a list), "np", "pt" (PyTorch), "tf" (TensorFlow), "jax" or "mlx".
            **options: The other options of the class.

        Returns:
            `pixel_values`, (B, C, H, W) or a list of (C, H, W).

        Raises:
            ImportError: The package of `return_tensors` is missing.
            TypeError: An option is unknown or has the wrong type.
            ValueError: An image or an option cannot be used.
        """
        named = {name: value for name, value in locals().items() if name in OPTIONS}
        settings = self._with({**named, **options})
        single = px.flatten(images)
        if not is_replaced(self):
            return BatchFeature({"pixel_values": settings._pixels(single)})
        values = {name: getattr(settings, name) for name in OPTIONS}
        return self._preprocess([self.process_image(image, **values) for image in single], **values)

    def _with(self, options: Mapping[str, Any]) -> Self:
        """Returns a copy with other options; None keeps the value."""
        refuse_unknown_options(options)
        settings = copy.copy(self)
        settings._set({k: v for k, v in options.items() if v is not None})
        require_settings(settings)
        return settings

    @abstractmethod
    def _pixels(self, images: list[Any]) -> Any:
        """Returns the `pixel_values` of single images, with all steps in one pass."""

    @abstractmethod
    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: str | None = None, **options: Any
    ) -> Any:
        """Converts an image of any kind to the array (C, H, W) that the other steps take.

        Args:
            image: See `preprocess`.
            do_convert_rgb: See the class.
            input_data_format: See the class.
            **options: The other options of the class.
        """

    @abstractmethod
    def _preprocess(self, images: list[Any], **options: Any) -> BatchFeature:
        """Runs the steps one by one, replaced ones included, on images (C, H, W)."""

    def _warn_of_rescaled(self, images: Sequence[Any]) -> None:
        if self.do_rescale and any(px.is_in_unit_range(image) for image in images):
            warnings.warn(
                "Images with values in [0, 1] are rescaled once more. Pass do_rescale=False if that is not wanted.",
                stacklevel=5,
            )

    @property
    def _channels(self) -> int | None:
        return px.channels_needed(self.do_normalize, self.image_mean, self.image_std)

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """`image_mean` of each of three channels."""
        return _three(self.image_mean)

    @property
    def channel_std(self) -> tuple[float, ...]:
        """`image_std` of each of three channels."""
        return _three(self.image_std)

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the result, in pixels.

        Raises:
            ValueError: The settings do not fix it.
        """
        size = self.crop_size if self.do_center_crop else self.size
        if "height" not in size:
            raise UserError(f"Without a center crop, size {dict(size)} leaves the size of the result open.")
        return size["height"], size["width"]

    # --- JSON ----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as in `preprocessor_config.json`, unknown keys of the file included."""
        values = {name: copy.deepcopy(getattr(self, name)) for name in OPTIONS if name != "device"}
        kept = {k: v for k, v in values.items() if v is not None}
        for name in ("default_to_square", "data_format"):
            if kept.get(name) == self.defaults[name]:
                del kept[name]
        for name in ("size", "crop_size", "pad_size"):
            if name in kept:
                kept[name] = dict(kept[name])
        for name in ("image_mean", "image_std"):
            if isinstance(kept.get(name), list):
                kept[name] = [float(v) for v in kept[name]]
        if "resample" in kept:
            kept["resample"] = int(kept["resample"])
        # Aliases are saved as what they stand for.
        name = type(self).__name__.removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
        added = {k: v for k, v in vars(self).items() if k not in (*OPTIONS, *PARTS) and not k.startswith("_")}
        return {**copy.deepcopy({**self._inert, **added}), **kept, "image_processor_type": name}

    def to_json_string(self) -> str:
        """Returns the settings as JSON: sorted keys, indented by two, with a trailing newline."""
        return settings_json(self.to_dict())

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Writes the settings to a JSON file, whole or not at all.

        Raises:
            TypeError: A step was replaced on this instance, which no file can hold, or an attribute is no JSON.
        """
        refuse_replaced(self)
        write_text_atomically(Path(json_file_path), self.to_json_string())

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **hub_options: Any
    ) -> list[str]:
        """Writes `preprocessor_config.json` into a folder. Creates the folder if it does not exist.

        Args:
            save_directory: The folder.
            push_to_hub: Also upload it.
            **hub_options: The arguments of `push_to_hub`; `repo_id` is the name of the folder when it is not given.

        Returns:
            The path of the file, in a list.

        Raises:
            TypeError: See `to_json_file`; or hub options are given without `push_to_hub`.
        """
        if hub_options and not push_to_hub:
            raise WrongTypeError(f"{', '.join(hub_options)} needs push_to_hub=True.")
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        file = Path(save_directory) / PREPROCESSOR_NAME
        self.to_json_file(file)
        if push_to_hub:
            self.push_to_hub(hub_options.pop("repo_id", None) or Path(save_directory).resolve().name, **hub_options)
        return [str(file)]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload image processor",
        commit_description: str = "",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Uploads `preprocessor_config.json`; arguments, result and errors as in `deit.core.hub.upload_folder`."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(
                Path(folder),
                repo_id,
                files=[PREPROCESSOR_NAME],
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """Builds a processor from settings of any generation of files; keywords override them.

        Keys of `values` that have no meaning here are kept as data and written back; nulls are passed over.

        Args:
            values: What `to_dict` or a JSON file gave.
            return_unused_kwargs: Also return the keywords that are no option, in place of an error.
            **overrides: Options.

        Returns:
            The processor, or (processor, unused keywords).

        Raises:
            TypeError: An option is unknown or has the wrong type.
            ValueError: A value is not allowed.
        """
        own = arguments_of(cls, OPTIONS)
        known = {*OPTIONS, *own}
        unused = {k: v for k, v in overrides.items() if k not in known} if return_unused_kwargs else {}
        refuse_unknown_options(set(overrides) - set(unused) - own)
        given = {k: v for k, v in values.items() if v is not None and k != "device"}  # the device of the writer
        options = {k: v for k, v in given.items() if k in known}
        processor = cls(**{**options, **{k: v for k, v in overrides.items() if k not in unused}})
        known |= {"image_processor_type", "feature_extractor_type"}
        processor._inert = {k: copy.deepcopy(v) for k, v in given.items() if k not in known}
        return (processor, unused) if return_unused_kwargs else processor

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        """Reads a processor from a JSON file."""
        return cls.from_pretrained(json_file)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, subfolder: str = "", **kwargs: Any
    ) -> Any:
        """Reads `preprocessor_config.json` from a model directory, the file itself, or a model on the hub.

        Args:
            pretrained_model_name_or_path: Folder, file, or name on the hub.
            subfolder: Folder inside the model's.
            **kwargs: Options that override the file's; `return_unused_kwargs`; the fields of `HubOptions`.

        Returns:
            The processor, or (processor, unused keywords).

        Raises:
            FileNotFoundError: There is no such file.
            TypeError: An option is unknown or has the wrong type.
            ValueError: The file is not JSON, or holds a value that is not allowed.
        """
        values, overrides = cls.get_image_processor_dict(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        if not overrides.get("return_unused_kwargs"):
            refuse_unknown_options(set(overrides) - {"return_unused_kwargs"} - arguments_of(cls, OPTIONS))
        try:
            return cls.from_dict(values, **overrides)
        except UserError as error:
            raise type(error)(f"{preprocessor_file(pretrained_model_name_or_path, subfolder)}: {error}") from error

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, subfolder: str = "", **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads the arguments of `from_dict` from a file.

        Args:
            pretrained_model_name_or_path: See `from_pretrained`.
            subfolder: Folder inside the model's.
            **kwargs: The fields of `HubOptions`, and any others.

        Returns:
            The settings in the file, and those others.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not JSON.
        """
        options = HubOptions.take_from(kwargs)
        return read_preprocessor_config(pretrained_model_name_or_path, subfolder=subfolder, options=options)[0], kwargs

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


VIT_DEFAULTS: dict[str, Any] = {
    **ImageProcessor.defaults,
    "size": {"height": 224, "width": 224},
    "resample": Image.Resampling.BILINEAR,
    "do_center_crop": False,
    "crop_size": None,
}


def _three(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * 3
