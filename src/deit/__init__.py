"""DeiT: small, fast image classifiers, from a folder of images to a model you can trust.

Importing this package loads no framework; each public name is imported when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "deit.core.configuration": ("DeiTConfig", "ViTConfig"),
    "deit.core.image_processor": (
        "DeiTFeatureExtractor",
        "DeiTImageProcessor",
        "DeiTImageProcessorPil",
        "ViTImageProcessor",
        "ViTImageProcessorPil",
    ),
    "deit.core.images": ("load_image",),
    "deit.core.processor_settings": ("BatchFeature",),
    "deit.core.variants": ("VARIANTS", "list_models", "variant_config"),
    "deit.models.auto": (
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
        "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING",
        "AutoConfig",
        "AutoImageProcessor",
        "AutoModel",
        "AutoModelForImageClassification",
        "AutoModelForMaskedImageModeling",
    ),
    "deit.models.deit": (
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "DeiTForMaskedImageModeling",
        "DeiTModel",
    ),
    "deit.models.fast_image_processor": ("DeiTImageProcessorFast", "ViTImageProcessorFast"),
    "deit.models.outputs": ("DeiTForImageClassificationWithTeacherOutput",),
    "deit.models.pipelines": ("ImageClassificationPipeline", "ImageFeatureExtractionPipeline", "pipeline"),
    "deit.models.pretrained": ("DeiTPreTrainedModel", "ViTPreTrainedModel"),
    "deit.models.vit": ("ViTForImageClassification", "ViTForMaskedImageModeling", "ViTModel"),
    "deit.data.sources": ("ArraySource", "Data", "ImageFolder", "open_data"),
    "deit.train.loop": ("fit",),
    "deit.train.recipe": ("Recipe",),
    "deit.train.tasks": ("ClassificationTask", "DistillationTask"),
    "deit.train.teacher": ("Teacher", "open_teacher"),
    "deit.deploy.predictor": ("Predictor",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]

# Which extra brings the third-party modules that a part of the package needs.
_EXTRAS = {"deit.models": "torch", "deit.data": "train", "deit.train": "train", "deit.deploy": "torch"}

if TYPE_CHECKING:
    from deit.core.configuration import DeiTConfig as DeiTConfig
    from deit.core.configuration import ViTConfig as ViTConfig
    from deit.core.image_processor import DeiTFeatureExtractor as DeiTFeatureExtractor
    from deit.core.image_processor import DeiTImageProcessor as DeiTImageProcessor
    from deit.core.image_processor import DeiTImageProcessorPil as DeiTImageProcessorPil
    from deit.core.image_processor import ViTImageProcessor as ViTImageProcessor
    from deit.core.image_processor import ViTImageProcessorPil as ViTImageProcessorPil
    from deit.core.images import load_image as load_image
    from deit.core.processor_settings import BatchFeature as BatchFeature
    from deit.core.variants import VARIANTS as VARIANTS
    from deit.core.variants import list_models as list_models
    from deit.core.variants import variant_config as variant_config
    from deit.data.sources import ArraySource as ArraySource
    from deit.data.sources import Data as Data
    from deit.data.sources import ImageFolder as ImageFolder
    from deit.data.sources import open_data as open_data
    from deit.deploy.predictor import Predictor as Predictor
    from deit.models.auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    from deit.models.auto import MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING as MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING
    from deit.models.auto import AutoConfig as AutoConfig
    from deit.models.auto import AutoImageProcessor as AutoImageProcessor
    from deit.models.auto import AutoModel as AutoModel
    from deit.models.auto import AutoModelForImageClassification as AutoModelForImageClassification
    from deit.models.auto import AutoModelForMaskedImageModeling as AutoModelForMaskedImageModeling
    from deit.models.deit import DeiTForImageClassification as DeiTForImageClassification
    from deit.models.deit import DeiTForImageClassificationWithTeacher as DeiTForImageClassificationWithTeacher
    from deit.models.deit import DeiTForMaskedImageModeling as DeiTForMaskedImageModeling
    from deit.models.deit import DeiTModel as DeiTModel
    from deit.models.fast_image_processor import DeiTImageProcessorFast as DeiTImageProcessorFast
    from deit.models.fast_image_processor import ViTImageProcessorFast as ViTImageProcessorFast
    from deit.models.outputs import (
        DeiTForImageClassificationWithTeacherOutput as DeiTForImageClassificationWithTeacherOutput,
    )
    from deit.models.pipelines import ImageClassificationPipeline as ImageClassificationPipeline
    from deit.models.pipelines import ImageFeatureExtractionPipeline as ImageFeatureExtractionPipeline
    from deit.models.pipelines import pipeline as pipeline
    from deit.models.pretrained import DeiTPreTrainedModel as DeiTPreTrainedModel
    from deit.models.pretrained import ViTPreTrainedModel as ViTPreTrainedModel
    from deit.models.vit import ViTForImageClassification as ViTForImageClassification
    from deit.models.vit import ViTForMaskedImageModeling as ViTForMaskedImageModeling
    from deit.models.vit import ViTModel as ViTModel
    from deit.train.loop import fit as fit
    from deit.train.recipe import Recipe as Recipe
    from deit.train.tasks import ClassificationTask as ClassificationTask
    from deit.train.tasks import DistillationTask as DistillationTask
    from deit.train.teacher import Teacher as Teacher
    from deit.train.teacher import open_teacher as open_teacher


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deit' has no attribute {name!r}")
    module = _HOME[name]
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "deit":
            raise
        extra = _EXTRAS.get(".".join(module.split(".")[:2]))
        package = "deit" if extra is None else f"deit[{extra}]"
        raise ModuleNotFoundError(
            f'deit.{name} needs the {error.name!r} package. Install it with: pip install "{package}"',
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return __all__
