"""Defines the steps that all pipelines share, in the form of transformers."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from deit.core.errors import UserError
from deit.core.hub import upload_folder
from deit.core.images.image_inputs import image_of, is_one_image, is_whole, items_of
from deit.core.model_directory import published_files
from deit.core.processing.batch_feature import BatchFeature
from deit.core.processing.batches import prepared_batches
from deit.core.processing.parts import is_replaced
from deit.core.processing.reduced_reading import ReducedReader, wants_exact_decoding
from deit.core.processing.settings import ImageProcessor
from deit.inference.answers import answers
from deit.inference.contract import Array
from deit.inference.engines.auto_engine import held
from deit.inference.engines.engine import Engine
from deit.inference.pipeline_inputs import apart, first_tensor, moved, together
from deit.models.weights.finiteness import refuse_non_finite_answers, refuse_non_finite_model
from deit.runtime.devices import Placement, resolve

Parameters = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


class ImagePipeline(ABC):
    """Takes images through `preprocess`, batches of them through `forward`, and each answer through `postprocess`.

    Each step can be called by itself, and a subclass may replace it: `pipeline(pipeline_class=...)`. Images go through
    the loop of `Predictor`, whose threads read and preprocess files and arrays of a list ahead of the model, unless
    `preprocess` or a step of the processor is replaced, or pixels of different sizes are wanted.

    Args:
        model: A model of this package (or one that is called in the same way).
        image_processor: Its preprocessing.
        feature_extractor: The old name of `image_processor`.
        device: "cpu", "cuda:1", a number (-1 is the CPU) or a `torch.device`; None leaves the model where it is.
        batch_size: Images that go through the model together.
        num_workers: Without effect: threads read the images.
        **parameters: Those of a call, which a call can override.

    Attributes:
        model: The model.
        exact_decoding: Decode large JPEG files whole, see `ReducedReader`; false unless `DEIT_EXACT_DECODING` is set.

    Raises:
        ValueError: There is no such device, the batch size is smaller than 1, or the model is of another kind.
    """

    task: ClassVar[str]
    _other_models: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: Any,
        image_processor: Any = None,
        *,
        feature_extractor: Any = None,
        device: int | str | torch.device | None = None,
        batch_size: int = 1,
        num_workers: int | None = None,
        **parameters: Any,
    ) -> None:
        names = {c.__name__ for c in type(model).__mro__}
        if names & set(self._other_models):
            raise UserError(f"{type(model).__name__} cannot do {self.task!r}.")
        image_processor = feature_extractor if image_processor is None else image_processor
        if image_processor is None:
            raise UserError("The preprocessing is missing: pass image_processor=, or a model directory in place of it.")
        self._parameters: Parameters = self._sanitize_parameters(**parameters)
        self.device = model.device if device is None else resolve(device).device
        refuse_non_finite_model(model, "The model")
        self._model = (model if model.device == self.device else Placement(self.device).move(model)).eval()
        self._engine: Engine | None = None  # answers in place of the model, see `model`
        self.image_processor = image_processor
        self.batch_size = at_least_one("batch_size", batch_size)
        self.exact_decoding = wants_exact_decoding()

    @property
    def model(self) -> Any:
        """The model. Whoever asks for it may change it, so that no faster engine answers in its place from then on."""
        self._engine = None
        return self._model

    @model.setter
    def model(self, model: Any) -> None:
        self._engine, self._model = None, model

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's parameters, which pixels are converted to."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    # --- the steps -----------------------------------------------------------------------------------

    @abstractmethod
    def _sanitize_parameters(self, *nothing: Any, **parameters: Any) -> Parameters:
        """Returns the parameters of a call for each of the steps: only those that were given."""

    def preprocess(self, image: Any, timeout: float | None = None, **process: Any) -> Any:
        """Reads an image and prepares it for the model.

        Args:
            image: See a call.
            timeout: Accepted for callers of transformers; nothing is fetched from the web.
            **process: Options of the processor.

        Returns:
            A dict with `pixel_values`, (1, C, H, W), in the type of the model.

        Raises:
            FileNotFoundError: A path does not exist.
            ValueError: The image cannot be read, or an option cannot be used.
        """
        return self._pixels([image], process)[0]

    def _pixels(self, images: list[Any], process: Mapping[str, Any]) -> list[BatchFeature]:
        processor, options = self.image_processor, dict(process)
        if isinstance(processor, ImageProcessor):  # of others, and with steps that were replaced, it reads whole images
            processor, options = processor._with(options), {}
        reader = ReducedReader(processor, exact=self.exact_decoding)
        pixels = processor([reader(image) for image in images], **options)["pixel_values"]
        return [BatchFeature({"pixel_values": torch.as_tensor(p)[None]}).to(self.dtype) for p in pixels]

    def _forward(self, model_inputs: Any) -> Any:
        """Asks the model."""
        return self._model(**model_inputs, return_dict=True)

    def forward(self, model_inputs: Any, **parameters: Any) -> Any:
        """Asks the model without gradients, on its device.

        Args:
            model_inputs: What `preprocess` returned, or several of them as one.
            **parameters: Arguments of `_forward`, which a subclass may have.

        Returns:
            The model's output, on the CPU.

        Raises:
            NonFiniteError: It is NaN or infinite.
        """
        with torch.no_grad():
            output = self._forward(moved(model_inputs, self.device), **parameters)
        first = first_tensor(output)
        if first is not None:
            refuse_non_finite_answers(first, "The model")
        return moved(output, torch.device("cpu"))

    @abstractmethod
    def postprocess(self, model_outputs: Any) -> Any:
        """Returns what a call returns for one image, from what `forward` gave for it."""

    # --- the call ------------------------------------------------------------------------------------

    def __call__(
        self,
        inputs: Any = None,
        *,
        images: Any = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **parameters: Any,
    ) -> Any:
        """Answers for one image, or for several.

        Args:
            inputs: A path, bytes, base64 text, an open file, a PIL image, an array or a tensor; a list of these; an
                iterator or a data set of them (or of dicts with an "image"). Everything but arrays is read by
                `load_image`.
            images: The name of `inputs` in transformers 4.
            batch_size: See the class.
            num_workers: See the class.
            **parameters: See the class.

        Returns:
            One result, a list of them, or an iterator over them, as the inputs are.

        Raises:
            FileNotFoundError: A path does not exist.
            TypeError: A parameter is unknown.
            ValueError: An image cannot be read, or a parameter cannot be used.
        """
        size = self.batch_size if batch_size is None else at_least_one("batch_size", batch_size)
        inputs = images if inputs is None else inputs
        if inputs is None:
            raise UserError("No image was given.")
        given = self._sanitize_parameters(**parameters)
        steps = tuple({**first, **second} for first, second in zip(self._parameters, given, strict=True))
        if is_one_image(inputs):
            return next(self._results([inputs], 1, *steps))
        results = self._results(items_of(inputs), size, *steps)
        return list(results) if is_whole(inputs) else results

    def predict(self, inputs: Any) -> Any:
        """Same as a call: the name in scikit-learn."""
        return self(inputs)

    def transform(self, inputs: Any) -> Any:
        """Same as a call: the name in scikit-learn."""
        return self(inputs)

    def _results(
        self, items: Iterable[Any], size: int, process: dict[str, Any], ask: dict[str, Any], finish: dict[str, Any]
    ) -> Iterator[Any]:
        options = {k: v for k, v in process.items() if k != "timeout"}
        processor = _of_one_size(self.image_processor, options) if self._preprocess_is_own else None
        if processor is None:
            yield from self._step_by_step(items, size, process, ask, finish)
            return

        engine = self._engine_in_use()

        def model(pixels: Array) -> Any:
            if engine is not None:
                logits = torch.from_numpy(next(iter(engine(pixels).values())))
                refuse_non_finite_answers(logits, "The model")
                return {"logits": logits}
            inputs = BatchFeature({"pixel_values": torch.from_numpy(pixels)}).to(self.dtype)
            return self.forward(inputs, **ask)

        reader = ReducedReader(processor, exact=self.exact_decoding)
        for told in answers(model, processor, items, size, read=reader, strict=True):
            for output in apart(told.outputs, len(told.batch.items)):
                yield self.postprocess(output, **finish)

    def _engine_in_use(self) -> Engine | None:
        """Returns what answers a call in place of the model: one engine, since its results are compared."""
        replaced = any(step in vars(self) for step in ("_forward", "forward", "postprocess"))
        return None if self._engine is None or replaced else held(self._engine)

    @property
    def _preprocess_is_own(self) -> bool:
        """Whether `preprocess` is that of this class, which nothing replaced."""
        return type(self).preprocess is ImagePipeline.preprocess and "preprocess" not in vars(self)

    def _step_by_step(
        self, items: Iterable[Any], size: int, process: dict[str, Any], ask: dict[str, Any], finish: dict[str, Any]
    ) -> Iterator[Any]:
        """Does the same in this thread, with steps that were replaced and images whose pixels differ in size."""
        pads = self._preprocess_is_own and process.get("do_pad", getattr(self.image_processor, "do_pad", None))
        options = {k: v for k, v in process.items() if k != "timeout"}

        def prepare(item: Any) -> Any:
            image = image_of(item)
            return image if pads else self.preprocess(image, **process)

        for batch in prepared_batches(items, prepare, size, threads=0):
            prepared = [result() for _, result in batch]
            # The padding of an image depends on the others.
            for inputs, count in together(self._pixels(prepared, options) if pads else prepared):
                for output in apart(self.forward(inputs, **ask), count):
                    yield self.postprocess(output, **finish)

    # --- files ---------------------------------------------------------------------------------------

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], safe_serialization: bool = True, **saving: Any
    ) -> None:
        """Writes a model directory that `pipeline` opens: configuration, weights and preprocessing.

        Args:
            save_directory: Folder, made if missing.
            safe_serialization: See `DeiTPreTrainedModel.save_pretrained`.
            **saving: Its other arguments.

        Raises:
            NotADirectoryError: There is a file of that name.
            TypeError: An argument is unknown, or a step of the processor was replaced on this instance.
        """
        self._model.save_pretrained(save_directory, safe_serialization=safe_serialization, **saving)
        self.image_processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload pipeline", **upload: Any) -> str:
        """Uploads what `save_pretrained` writes to the hub; further arguments and errors as in `hub.upload_folder`."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            return upload_folder(
                folder, repo_id, files=published_files(folder)[0], commit_message=commit_message, **upload
            )


def at_least_one(name: str, value: int) -> int:
    """Returns a whole number of at least 1.

    Raises:
        UserError: It is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1. Received: {value!r}.")
    return value


def _of_one_size(processor: Any, options: Mapping[str, Any]) -> Any:
    """Returns the processor with the options of a call, if the loop of `answers` can use it; else None."""
    if not isinstance(processor, ImageProcessor) or is_replaced(processor):
        return None
    settings = processor._with(options)
    if settings.device is not None or settings.do_pad:
        return None
    size = settings.crop_size if settings.do_center_crop else settings.size if settings.do_resize else {}
    return settings if "height" in size else None
