"""Defines `pipeline` and its classes: named scores or features of images, in the form of transformers."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from deit.core.config.config_file import read_config
from deit.core.errors import UserError
from deit.core.hub import HubOptions, local_path
from deit.core.labels import names_in_order
from deit.core.processing.settings import ImageProcessor
from deit.core.scores.calibration_file import Calibration
from deit.core.scores.functions import FUNCTIONS, function_name
from deit.core.scores.metrics import SINGLE_LABEL
from deit.inference.contract import Contract
from deit.inference.engines.auto_engine import AutoEngine
from deit.inference.engines.opening import chosen_engine
from deit.inference.engines.torch_engine import TorchEngine
from deit.inference.image_pipeline import ImagePipeline, Parameters, at_least_one
from deit.inference.judgement import has_calibration, open_calibration
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
from deit.models.classifier import head_names
from deit.models.weights.from_pretrained import OWN_MEMORY
from deit.runtime.devices import AUTO, accelerator, resolve

if TYPE_CHECKING:
    from deit.core.processing.image_processor import DeiTImageProcessor

logger = logging.getLogger(__name__)


class ImageClassificationPipeline(ImagePipeline):
    """Classifies images.

    Returns for one image a list of {"label", "score"} in descending order of the scores. The other arguments are
    those of `ImagePipeline`. With a calibration, logits are divided by its temperature, and each entry also holds
    "calibrated": True. The engine "auto" answers for a float32 classifier that `pipeline` opened on the CPU by its
    path or name, until `model` is asked for or a step is replaced.

    Args:
        model: A classifier.
        image_processor: Its preprocessing.

    Attributes:
        calibration: The calibration in use, or None. `pipeline` sets that of the model directory.

    Other Parameters:
        top_k (int): Classes to name, first the best; at most as many as there are (5).
        function_to_apply (str | None): "softmax", "sigmoid" or "none", from logits to scores; None (or
            "default") follows the configuration: none for a regression, sigmoid for one label or a multi-label problem,
            else softmax. A function that is given is applied to the raw logits, without the calibration.
        timeout (float | None): Accepted for callers of transformers; nothing is fetched from the web.

    Raises:
        ValueError: There is no such device or function, a number is smaller than 1, or the model is no classifier.
    """

    task = "image-classification"
    calibration: Calibration | None = None
    _other_models = (*names_of(FEATURES), *names_of(MASKED_IMAGE))

    def _sanitize_parameters(
        self, top_k: int | None = None, function_to_apply: str | None = None, timeout: float | None = None
    ) -> Parameters:
        finish: dict[str, Any] = {}
        if top_k is not None:
            finish["top_k"] = at_least_one("top_k", top_k)
        if (function := _check_function(function_to_apply)) is not None:
            finish["function_to_apply"] = function
        return {}, {}, finish

    def postprocess(self, model_outputs: Any, function_to_apply: str | None = None, top_k: int = 5) -> Any:
        """Returns the classes with the highest scores for one image.

        Args:
            model_outputs: What `forward` returned for one image: `logits`, (1, K).
            function_to_apply: See the class.
            top_k: See the class.

        Returns:
            A list of {"label", "score"} in descending order of the scores.
        """
        config = self._model.config
        logits = model_outputs["logits"][0].detach().float().numpy()
        given, calibration = _check_function(function_to_apply), self.calibration
        if given is not None:
            calibration = None
        function = given or function_name(config.problem_type, config.num_labels)
        if calibration is not None:
            logits = logits / np.float32(next(iter(calibration.heads.values())).temperature)
        scores = FUNCTIONS[function](logits)
        more = {} if calibration is None else {"calibrated": True}
        best = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [{"label": config.id2label[i], "score": float(scores[i]), **more} for i in best]


class ImageFeatureExtractionPipeline(ImagePipeline):
    """Turns images into features.

    Returns for one image nested lists or a tensor, with a leading 1. The other arguments are those of
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
            raise UserError(f"{type(self._model).__name__} has no pooled output. Leave pool=True out.")
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
    """Opens a model with its preprocessing as a function from images to answers.

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
        model_kwargs: Further arguments of `from_pretrained`; without `low_cpu_mem_usage`, weights are read into memory.
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
    given, folder = feature_extractor if image_processor is None else image_processor, None
    if isinstance(model, (str, os.PathLike)):
        given = model if given is None else given
        chosen = {"dtype": dtype if torch_dtype is None else torch_dtype}
        arguments = OWN_MEMORY | chosen | hub | dict(model_kwargs or {})
        arguments.update({k: v for k, v in (("config", config), ("device_map", device_map)) if v is not None})
        model, folder = auto.from_pretrained(model, **arguments), _folder_of(model, hub)
        device = _device_of(model, device, device_map)
    if isinstance(given, (str, os.PathLike)):
        given = AutoImageProcessor.from_pretrained(given, use_fast=use_fast, **hub)
    return _with_folder((pipeline_class or kind)(model, given, device=device, **options), folder)


def _device_of(model: Any, device: Any, device_map: Any) -> Any:
    """Returns the device of a model that was opened here. Packs the weights for the CPU, as `Predictor` does."""
    device = accelerator() if device is None and device_map is None else device
    place = model.device if device is None else resolve(device).device
    if place.type == "cpu" and hasattr(model, "pack_weights"):
        model.pack_weights()
    return device


def _folder_of(model: str | os.PathLike[str], hub: Mapping[str, Any]) -> Path:
    """Returns the model directory that was opened."""
    options = replace(
        HubOptions.take_from(dict(hub)), local_files_only=True, force_download=False
    )  # it is in the cache by now
    place = local_path(model, need="config", options=options)
    return place if place.is_dir() else place.parent


def _with_folder(opened: Any, folder: Path | None) -> Any:
    """Gives a pipeline of classes what the model directory that it was opened from allows: calibration and engine."""
    if isinstance(opened, ImageClassificationPipeline) and folder is not None:
        contract = _contract(folder, opened)
        opened.calibration = _calibration(contract)
        if type(opened) is ImageClassificationPipeline:
            opened._engine = _engine(opened, contract)
    return opened


def _contract(folder: Path, opened: ImageClassificationPipeline) -> Contract:
    model = opened._model
    heads = head_names(model)
    return Contract(
        processor=cast("DeiTImageProcessor", opened.image_processor),  # of any class with these settings
        label_names=names_in_order(model.config.id2label),
        head_names=heads,
        problem_type=model.config.problem_type or SINGLE_LABEL,
        image_size=model.config.grid_image_size,
        num_channels=model.config.num_channels,
        folder=folder,
        head_average=model.config.head_average if len(heads) > 1 else None,
    )


def _calibration(contract: Contract) -> Calibration | None:
    """Returns the calibration of a model directory, unless it was made for something else, which the log says."""
    if not has_calibration(contract):
        return None
    if not isinstance(contract.processor, ImageProcessor):
        logger.warning("The calibration of %s is not used: the image processor is another one.", contract.folder)
        return None
    found, reason = open_calibration(contract, contract.processor)
    if found is None:
        logger.warning("%s", reason)
        return None
    return found if found.heads else None


def _engine(opened: ImageClassificationPipeline, contract: Contract) -> AutoEngine | None:
    """Returns what may answer faster than the model, in the precision of its weights."""
    if chosen_engine(None) != AUTO or opened.device.type != "cpu" or opened.dtype != torch.float32:
        return None
    return AutoEngine(TorchEngine(opened._model, contract), "fp32")


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


def _check_function(name: Any) -> str | None:
    plain = getattr(name, "value", name)
    if plain is None or str(plain).lower() == "default":
        return None
    if str(plain).lower() not in FUNCTIONS:
        raise UserError(f"function_to_apply must be one of {', '.join(FUNCTIONS)}. Received: {name!r}.")
    return str(plain).lower()
