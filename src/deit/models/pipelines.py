"""`pipeline`: images in, named scores or features out, in the form of transformers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deit.core.configuration import read_config
from deit.core.hub import HubOptions, local_path
from deit.core.images import load_image
from deit.models.auto import (
    CLASSIFICATION,
    FEATURES,
    HUB_ARGUMENTS,
    MASKED_IMAGE,
    AutoModel,
    AutoModelForImageClassification,
    names_of,
)
from deit.models.auto_openers import AutoImageProcessor
from deit.models.finiteness import refuse_non_finite_answers, refuse_non_finite_model

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}


class ImagePipeline(ABC):
    """What the pipelines share: inputs of every kind, batches, the device.

    Args:
        model: A model of this package (or one that is called in the same way).
        image_processor: Its preprocessing.
        device: "cpu", "cuda:1", a number (-1 is the CPU) or a `torch.device`; None leaves the model where it is.
        batch_size: Images that go through the model together.

    Raises:
        ValueError: There is no such device, the batch size is smaller than 1, or the model is of another kind.
    """

    task: ClassVar[str]
    _other_models: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        *,
        device: int | str | torch.device | None = None,
        batch_size: int = 1,
    ) -> None:
        names = {c.__name__ for c in type(model).__mro__}
        if names & set(self._other_models):
            raise ValueError(f"{type(model).__name__} cannot do {self.task!r}.")
        if image_processor is None:
            raise ValueError(
                "The preprocessing is missing: pass image_processor=, or a model directory in place of it."
            )
        self.device = model.device if device is None else _resolve_device(device)
        refuse_non_finite_model(model, "The model")
        self.model = _moved(model, self.device).eval()
        self.image_processor = image_processor
        self.batch_size = _at_least_one("batch_size", batch_size)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's parameters, which pixels are converted to."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def _run(
        self, inputs: Any, batch_size: int | None, process: Mapping[str, Any], finish: Callable[[Any], list[Any]]
    ) -> Any:
        """Returns one result, a list of them, or an iterator over them, as the inputs are."""
        size = self.batch_size if batch_size is None else _at_least_one("batch_size", batch_size)
        if inputs is None:
            raise ValueError("No image was given.")
        if _is_one_image(inputs):
            return next(self._results([inputs], 1, process, finish))
        results = self._results(_items(inputs), size, process, finish)
        return list(results) if _is_whole(inputs) else results

    def _results(
        self, items: Iterable[Any], size: int, process: Mapping[str, Any], finish: Callable[[Any], list[Any]]
    ) -> Iterator[Any]:
        remaining = iter(items)
        while chunk := list(islice(remaining, size)):
            pixels = [torch.as_tensor(p) for p in self._pixels(list(map(_image_of, chunk)), process)]
            together = len({p.shape for p in pixels}) == 1
            for batch in [torch.stack(pixels)] if together else [p[None] for p in pixels]:
                yield from finish(self._forward(batch))

    def _pixels(self, images: list[Any], process: Mapping[str, Any]) -> Iterator[Any]:
        """Prepares images, one decoded at a time where the result of none depends on another."""
        alone = not process.get("do_pad", getattr(self.image_processor, "do_pad", None))
        value_range = process.get("value_range", getattr(self.image_processor, "value_range", None))
        for some in [[image] for image in images] if alone else [images]:
            opened = [item if _is_array(item) else load_image(item, value_range=value_range) for item in some]
            yield from self.image_processor(opened, **process)["pixel_values"]

    def _forward(self, pixels: Tensor) -> Any:
        if pixels.is_floating_point():
            pixels = pixels.to(self.dtype)
        with torch.no_grad():
            output = self.model(pixel_values=pixels.to(self.device), return_dict=True)
        refuse_non_finite_answers(output[0], "The model")
        return output

    @abstractmethod
    def __call__(self, inputs: Any) -> Any:
        """Answers for one image, or for several."""


class ImageClassificationPipeline(ImagePipeline):
    """Names what is in images.

    Args:
        model: A classifier.
        image_processor: Its preprocessing.
        device: See `ImagePipeline`.
        batch_size: See `ImagePipeline`.
        top_k: Classes to name, first the best; at most as many as there are.
        function_to_apply: "softmax", "sigmoid" or "none", from logits to scores; None (or "default") follows the
            configuration: none for a regression, sigmoid for one label or a multi-label problem, else softmax.

    Raises:
        ValueError: There is no such device or function, a number is smaller than 1, or the model is no classifier.
    """

    task = "image-classification"
    _other_models = (*names_of(FEATURES), *names_of(MASKED_IMAGE))

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        *,
        device: int | str | torch.device | None = None,
        batch_size: int = 1,
        top_k: int | None = None,
        function_to_apply: str | None = None,
    ) -> None:
        super().__init__(model, image_processor, device=device, batch_size=batch_size)
        self.top_k = 5 if top_k is None else _at_least_one("top_k", top_k)
        self.function_to_apply = _check_function(function_to_apply)

    def __call__(
        self,
        inputs: Any = None,
        *,
        images: Any = None,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Classifies.

        Args:
            inputs: A path, bytes, base64 text, a PIL image, an array or a tensor; a list of these; an iterator or a
                data set of them (or of dicts with an "image"). Everything but arrays is read by `load_image`.
            images: The name of `inputs` in transformers 4.
            top_k: See the class.
            function_to_apply: See the class.
            batch_size: See the class.
            num_workers: Without effect: images are read when their batch is due.
            timeout: Accepted for callers of transformers; nothing is fetched from the web.

        Returns:
            For one image a list of {"label", "score"}, first the best; for a list a list of these; for an iterator or
            a data set an iterator over these.

        Raises:
            FileNotFoundError: A path does not exist.
            ValueError: An image cannot be read, or an argument cannot be used.
        """
        count = self.top_k if top_k is None else _at_least_one("top_k", top_k)
        function = _check_function(function_to_apply) or self.function_to_apply
        return self._run(
            images if inputs is None else inputs, batch_size, {}, lambda output: self._name(output, count, function)
        )

    def _name(self, output: Any, count: int, function: str | None) -> list[list[dict[str, Any]]]:
        config = self.model.config
        if function is None:
            if config.problem_type == "regression":
                function = "none"
            elif config.problem_type == "multi_label_classification" or config.num_labels == 1:
                function = "sigmoid"
            else:
                function = "softmax"
        named = []
        for row in _FUNCTIONS[function](output["logits"].float().cpu()).tolist():
            scores = [{"label": config.id2label[i], "score": score} for i, score in enumerate(row)]
            named.append(sorted(scores, key=lambda entry: entry["score"], reverse=True)[:count])
        return named


class ImageFeatureExtractionPipeline(ImagePipeline):
    """Turns images into features.

    Args:
        model: Any model; its first output is taken: for `DeiTModel` the tokens, (1, N, D).
        image_processor: Its preprocessing.
        device: See `ImagePipeline`.
        batch_size: See `ImagePipeline`.
        pool: Take the pooled output, (1, D), in place of the tokens.
        return_tensors: Return PyTorch tensors in place of nested lists.
        image_processor_kwargs: Options of the processor.

    Raises:
        ValueError: There is no such device, or the batch size is smaller than 1.
    """

    task = "image-feature-extraction"

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        *,
        device: int | str | torch.device | None = None,
        batch_size: int = 1,
        pool: bool = False,
        return_tensors: bool = False,
        image_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, image_processor, device=device, batch_size=batch_size)
        self.pool = pool
        self.return_tensors = return_tensors
        self.image_processor_kwargs = dict(image_processor_kwargs or {})

    def __call__(
        self,
        inputs: Any = None,
        *,
        images: Any = None,
        pool: bool | None = None,
        return_tensors: bool | None = None,
        image_processor_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Computes features.

        Args:
            inputs: See `ImageClassificationPipeline`.
            images: See `ImageClassificationPipeline`.
            pool: See the class.
            return_tensors: See the class.
            image_processor_kwargs: See the class.
            batch_size: See the class.
            num_workers: Without effect: images are read when their batch is due.
            timeout: See `ImageClassificationPipeline`.

        Returns:
            For one image nested lists or a tensor with a leading 1; for a list a list of these; for an iterator or a
            data set an iterator over these.

        Raises:
            FileNotFoundError: A path does not exist.
            ValueError: An image cannot be read, or there is no pooled output.
        """
        pooled = self.pool if pool is None else pool
        as_tensors = self.return_tensors if return_tensors is None else return_tensors

        def finish(output: Any) -> list[Any]:
            if pooled and output.get("pooler_output") is None:
                raise ValueError(f"{type(self.model).__name__} has no pooled output. Leave pool=True out.")
            features = (output["pooler_output"] if pooled else output[0]).cpu()
            return [row if as_tensors else row.tolist() for row in features.split(1)]

        process = {**self.image_processor_kwargs, **(image_processor_kwargs or {})}
        return self._run(images if inputs is None else inputs, batch_size, process, finish)


_PIPELINES: dict[str, tuple[type[ImagePipeline], Any]] = {
    ImageClassificationPipeline.task: (ImageClassificationPipeline, AutoModelForImageClassification),
    ImageFeatureExtractionPipeline.task: (ImageFeatureExtractionPipeline, AutoModel),
}


def pipeline(
    task: str | None = None,
    model: Any = None,
    config: Any = None,
    *,
    image_processor: Any = None,
    feature_extractor: Any = None,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    dtype: torch.dtype | str | None = "auto",
    torch_dtype: torch.dtype | str | None = None,
    use_fast: bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    trust_remote_code: bool | None = None,
    num_workers: int | None = None,
    framework: str | None = None,
    **options: Any,
) -> Any:
    """Puts a model, its preprocessing and its answers together.

    Args:
        task: "image-classification" or "image-feature-extraction"; None takes what the model was made for.
        model: Model directory, name on the hub, or a model.
        config: Replaces the directory's configuration.
        image_processor: A processor, or where its file is; None takes the model directory's.
        feature_extractor: The old name of `image_processor`.
        device: See `ImagePipeline`. When None, a model that is opened here goes to the accelerator, if there is one.
        device_map: As in `from_pretrained`.
        dtype: As in `from_pretrained`.
        torch_dtype: The old name of `dtype`.
        use_fast: See `AutoImageProcessor`.
        model_kwargs: Further arguments of `from_pretrained`.
        trust_remote_code: Without effect: no code is ever fetched.
        num_workers: Without effect: images are read when their batch is due.
        framework: "pt" or None.
        **options: The fields of `HubOptions`; all others are those of the pipeline's class.

    Raises:
        FileNotFoundError: There is no such model, or it has no preprocessing.
        TypeError: An option is unknown.
        ValueError: The task is unknown, or the model cannot do it.
    """
    _check_choices(model, framework)
    hub = {name: options.pop(name) for name in HUB_ARGUMENTS if name in options}
    task = _task_of(model, hub) if task is None else task
    if task not in _PIPELINES:
        raise ValueError(f"Unknown task {task!r}. Known: {', '.join(_PIPELINES)}.")
    kind, auto = _PIPELINES[task]
    given = feature_extractor if image_processor is None else image_processor
    if isinstance(model, (str, os.PathLike)):
        given = model if given is None else given
        arguments = {"dtype": dtype if torch_dtype is None else torch_dtype, **hub, **(model_kwargs or {})}
        arguments.update({k: v for k, v in (("config", config), ("device_map", device_map)) if v is not None})
        model = auto.from_pretrained(model, **arguments)
        device = _accelerator() if device is None and device_map is None else device
    if isinstance(given, (str, os.PathLike)):
        given = AutoImageProcessor.from_pretrained(given, use_fast=use_fast, **hub)
    return kind(model, given, device=device, **options)


def _check_choices(model: Any, framework: str | None) -> None:
    if framework not in (None, "pt"):
        raise ValueError(f"framework must be 'pt'. Received: {framework!r}.")
    if model is None:
        raise ValueError("No model was named. Pass model=: a model directory, a name on the hub, or a model.")


def _task_of(model: Any, hub: Mapping[str, Any]) -> str:
    """Returns the task that a model was made for."""
    if isinstance(model, (str, os.PathLike)):
        place = local_path(model, need="config", options=HubOptions.take_from(dict(hub)))
        names = set(read_config(place).get("architectures") or ())
    else:
        names = {c.__name__ for c in type(model).__mro__}
    if names & set(names_of(CLASSIFICATION)):
        return ImageClassificationPipeline.task
    if names & set(names_of(FEATURES)):
        return ImageFeatureExtractionPipeline.task
    raise ValueError(f"The model does not say what it is for ({sorted(names)}). Pass task=: {', '.join(_PIPELINES)}.")


# --- inputs -------------------------------------------------------------------------------------------


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, Tensor))


def _is_one_image(inputs: Any) -> bool:
    if _is_array(inputs):
        return bool(inputs.ndim != 4)
    return isinstance(inputs, (str, bytes, os.PathLike, Image.Image, Mapping))


def _is_whole(inputs: Any) -> bool:
    """Whether all images are there already, so that all results are returned at once."""
    return isinstance(inputs, (list, tuple)) or _is_array(inputs)


def _items(inputs: Any) -> Iterable[Any]:
    if isinstance(inputs, Iterable):
        return inputs
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        return (inputs[i] for i in range(len(inputs)))
    raise ValueError(f"Pass an image, a list of images, an iterator or a data set. Received: {type(inputs).__name__}.")


def _image_of(item: Any) -> Any:
    if isinstance(item, Mapping):
        if "image" not in item:
            raise ValueError(f"A dict needs the key 'image'. Received the keys: {sorted(map(str, item))}.")
        item = item["image"]
    if not (_is_array(item) or isinstance(item, (str, bytes, os.PathLike, Image.Image))):
        raise ValueError(
            "An image must be a path, bytes, base64 text, a PIL image, an array or a tensor. "
            f"Received: {type(item).__name__}."
        )
    return item


# --- arguments ----------------------------------------------------------------------------------------


def _at_least_one(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1. Received: {value!r}.")
    return value


def _check_function(name: Any) -> str | None:
    plain = getattr(name, "value", name)
    if plain is None or str(plain).lower() == "default":
        return None
    if str(plain).lower() not in _FUNCTIONS:
        raise ValueError(f"function_to_apply must be one of {', '.join(_FUNCTIONS)}. Received: {name!r}.")
    return str(plain).lower()


def _accelerator() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def _resolve_device(device: int | str | torch.device) -> torch.device:
    if isinstance(device, int):
        if device < 0:
            return torch.device("cpu")
        found = _accelerator()
        if found.type == "cpu":
            raise ValueError(f"There is no accelerator number {device} here. Pass device='cpu'.")
        return torch.device(found.type, device)
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {device!r}. Pass 'cpu' or 'cuda:0'.") from error


def _moved(model: Any, device: torch.device) -> Any:
    if model.device == device:
        return model
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises for missing drivers
        raise ValueError(f"The device {str(device)!r} cannot be used ({error}). Pass device='cpu'.") from error
