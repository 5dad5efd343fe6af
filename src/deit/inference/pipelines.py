"""`pipeline`: images in, named scores or features out, in the form of transformers."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from deit.core.config.config_file import read_config
from deit.core.errors import UserError
from deit.core.hub import HubOptions, local_path, upload_folder
from deit.core.images.image_inputs import image_of, is_one_image, is_whole, items_of
from deit.core.model_directory import published_files
from deit.core.processing.batch_feature import BatchFeature
from deit.inference.pipeline_inputs import apart, first_tensor, moved, opened, together
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
from deit.models.weights.finiteness import refuse_non_finite_answers, refuse_non_finite_model
from deit.runtime.devices import Placement, accelerator, resolve

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}
Parameters = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


class ImagePipeline(ABC):
    """What the pipelines share: inputs of every kind, batches, the device.

    A call takes each image through `preprocess`, batches of them through `forward`, and each answer through
    `postprocess`. Each can be called by itself, and a subclass may replace it: `pipeline(pipeline_class=...)`.

    Args:
        model: A model of this package (or one that is called in the same way).
        image_processor: Its preprocessing.
        feature_extractor: The old name of `image_processor`.
        device: "cpu", "cuda:1", a number (-1 is the CPU) or a `torch.device`; None leaves the model where it is.
        batch_size: Images that go through the model together.
        num_workers: Without effect: images are read when their batch is due.
        **parameters: Those of a call, which a call can override.

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
        self.model = _moved_model(model, self.device).eval()
        self.image_processor = image_processor
        self.batch_size = _at_least_one("batch_size", batch_size)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's parameters, which pixels are converted to."""
        dtype: torch.dtype = self.model.dtype
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
        value_range = process.get("value_range", getattr(self.image_processor, "value_range", None))
        read = [opened(image_of(image), value_range) for image in images]
        pixels = self.image_processor(read, **process)["pixel_values"]
        return [BatchFeature({"pixel_values": torch.as_tensor(p)[None]}).to(self.dtype) for p in pixels]

    def _prepared(self, images: list[Any], process: dict[str, Any]) -> list[Any]:
        """Prepares the images of a batch: one at a time, unless the result of one depends on the others."""
        pads = process.get("do_pad", getattr(self.image_processor, "do_pad", None))
        if pads and type(self).preprocess is ImagePipeline.preprocess and "preprocess" not in vars(self):
            return self._pixels(images, {k: v for k, v in process.items() if k != "timeout"})
        return [self.preprocess(image, **process) for image in images]

    def _forward(self, model_inputs: Any) -> Any:
        """Asks the model."""
        return self.model(**model_inputs, return_dict=True)

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
        size = self.batch_size if batch_size is None else _at_least_one("batch_size", batch_size)
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
        remaining = iter(items)
        while chunk := list(islice(remaining, size)):
            for batch, count in together(self._prepared([image_of(item) for item in chunk], process)):
                for output in apart(self.forward(batch, **ask), count):
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
        self.model.save_pretrained(save_directory, safe_serialization=safe_serialization, **saving)
        self.image_processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload pipeline", **upload: Any) -> str:
        """Uploads what `save_pretrained` writes to the hub; further arguments and errors as in `hub.upload_folder`."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            return upload_folder(
                folder, repo_id, files=published_files(folder)[0], commit_message=commit_message, **upload
            )


class ImageClassificationPipeline(ImagePipeline):
    """Names what is in images.

    For one image it returns a list of {"label", "score"}, first the best. The other arguments are
    those of `ImagePipeline`.

    Args:
        model: A classifier.
        image_processor: Its preprocessing.

    Other Parameters:
        top_k (int): Classes to name, first the best; at most as many as there are (5).
        function_to_apply (str | None): "softmax", "sigmoid" or "none", from logits to scores; None (or
            "default") follows the configuration: none for a regression, sigmoid for one label or a multi-label problem,
            else softmax.
        timeout (float | None): Accepted for callers of transformers; nothing is fetched from the web.

    Raises:
        ValueError: There is no such device or function, a number is smaller than 1, or the model is no classifier.
    """

    task = "image-classification"
    _other_models = (*names_of(FEATURES), *names_of(MASKED_IMAGE))

    def _sanitize_parameters(
        self, top_k: int | None = None, function_to_apply: str | None = None, timeout: float | None = None
    ) -> Parameters:
        finish: dict[str, Any] = {}
        if top_k is not None:
            finish["top_k"] = _at_least_one("top_k", top_k)
        if (function := _check_function(function_to_apply)) is not None:
            finish["function_to_apply"] = function
        return {}, {}, finish

    def postprocess(self, model_outputs: Any, function_to_apply: str | None = None, top_k: int = 5) -> Any:
        """Names the best classes of one image.

        Args:
            model_outputs: What `forward` returned for one image: `logits`, (1, K).
            function_to_apply: See the class.
            top_k: See the class.

        Returns:
            A list of {"label", "score"}, first the best.
        """
        config, function = self.model.config, _check_function(function_to_apply)
        if function is None:
            if config.problem_type == "regression":
                function = "none"
            elif config.problem_type == "multi_label_classification" or config.num_labels == 1:
                function = "sigmoid"
            else:
                function = "softmax"
        values = _FUNCTIONS[function](model_outputs["logits"][0].float()).tolist()
        scores = [{"label": config.id2label[i], "score": score} for i, score in enumerate(values)]
        return sorted(scores, key=lambda entry: entry["score"], reverse=True)[:top_k]


class ImageFeatureExtractionPipeline(ImagePipeline):
    """Turns images into features.

    For one image it returns nested lists or a tensor, with a leading 1. The other arguments are those of
    `ImagePipeline`.

    Args:
        model: Any model; its first output is taken: for `DeiTModel` the tokens, (1, N, D).
        image_processor: Its preprocessing.

    Other Parameters:
        pool (bool): Take the pooled output, (1, D), in place of the tokens.
        return_tensors (bool): Return PyTorch tensors in place of nested lists.
        image_processor_kwargs (dict): Options of the processor.
        timeout (float | None): Accepted for callers of transformers; nothing is fetched from the web.

    Raises:
        ValueError: There is no such device, the batch size is smaller than 1, or there is no pooled output.
    """

    task = "image-feature-extraction"

    def _sanitize_parameters(
        self,
        image_processor_kwargs: Mapping[str, Any] | None = None,
        return_tensors: bool | None = None,
        pool: bool | None = None,
        timeout: float | None = None,
    ) -> Parameters:
        given = {"pool": pool, "return_tensors": return_tensors}
        return dict(image_processor_kwargs or {}), {}, {k: v for k, v in given.items() if v is not None}

    def postprocess(self, model_outputs: Any, pool: bool | None = None, return_tensors: bool = False) -> Any:
        """Takes the features out of one output.

        Args:
            model_outputs: What `forward` returned for one image.
            pool: See the class.
            return_tensors: See the class.

        Returns:
            Nested lists or a tensor, with a leading 1.

        Raises:
            ValueError: There is no pooled output.
        """
        if pool and model_outputs.get("pooler_output") is None:
            raise UserError(f"{type(self.model).__name__} has no pooled output. Leave pool=True out.")
        features = model_outputs["pooler_output"] if pool else model_outputs[0]
        return features if return_tensors else features.tolist()


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
    pipeline_class: type[Any] | None = None,
    trust_remote_code: bool | None = None,
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
        pipeline_class: A subclass of the task's class, which is built in place of it.
        trust_remote_code: Without effect: no code is ever fetched.
        framework: "pt" or None.
        **options: The fields of `HubOptions`; all others are those of the pipeline's class.

    Raises:
        FileNotFoundError: There is no such model, or it has no preprocessing.
        TypeError: An option is unknown.
        ValueError: The task is unknown, or the model cannot do it.
    """
    _check_choices(model, framework, pipeline_class)
    hub = {name: options.pop(name) for name in HUB_ARGUMENTS if name in options}
    if task is None:
        task = _task_of(model, hub) if pipeline_class is None else pipeline_class.task
    if task not in _PIPELINES:
        raise UserError(f"Unknown task {task!r}. Known: {', '.join(_PIPELINES)}.")
    kind, auto = _PIPELINES[task]
    given = feature_extractor if image_processor is None else image_processor
    if isinstance(model, (str, os.PathLike)):
        given = model if given is None else given
        arguments = {"dtype": dtype if torch_dtype is None else torch_dtype, **hub, **(model_kwargs or {})}
        arguments.update({k: v for k, v in (("config", config), ("device_map", device_map)) if v is not None})
        model = auto.from_pretrained(model, **arguments)
        device = accelerator() if device is None and device_map is None else device
    if isinstance(given, (str, os.PathLike)):
        given = AutoImageProcessor.from_pretrained(given, use_fast=use_fast, **hub)
    return (pipeline_class or kind)(model, given, device=device, **options)


def _check_choices(model: Any, framework: str | None, pipeline_class: type[Any] | None) -> None:
    if pipeline_class is not None and not issubclass(pipeline_class, ImagePipeline):
        raise UserError(f"pipeline_class must be a subclass of one of deit's. Received: {pipeline_class.__name__}.")
    if framework not in (None, "pt"):
        raise UserError(f"framework must be 'pt'. Received: {framework!r}.")
    if model is None:
        raise UserError("No model was named. Pass model=: a model directory, a name on the hub, or a model.")


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
    raise UserError(f"The model does not say what it is for ({sorted(names)}). Pass task=: {', '.join(_PIPELINES)}.")


# --- arguments ----------------------------------------------------------------------------------------


def _at_least_one(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1. Received: {value!r}.")
    return value


def _check_function(name: Any) -> str | None:
    plain = getattr(name, "value", name)
    if plain is None or str(plain).lower() == "default":
        return None
    if str(plain).lower() not in _FUNCTIONS:
        raise UserError(f"function_to_apply must be one of {', '.join(_FUNCTIONS)}. Received: {name!r}.")
    return str(plain).lower()


def _moved_model(model: Any, device: torch.device) -> Any:
    if model.device == device:
        return model
    return Placement(device).move(model)
