"""DeiT: small, fast image classifiers, from a folder of images to a model you can trust.

Importing this package loads no framework; each public name is imported when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "deit.core.batch_feature": ("BatchFeature",),
    "deit.core.configuration": ("DeiTConfig", "ViTConfig"),
    "deit.core.image_processor": (
        "DeiTFeatureExtractor",
        "DeiTImageProcessor",
        "DeiTImageProcessorPil",
        "ViTImageProcessor",
        "ViTImageProcessorPil",
    ),
    "deit.core.images": ("load_image",),
    "deit.core.variants": ("VARIANTS", "list_models", "variant_config"),
    "deit.models.auto": (
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
        "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING",
        "AutoModel",
        "AutoModelForImageClassification",
        "AutoModelForMaskedImageModeling",
    ),
    "deit.models.auto_openers": ("AutoConfig", "AutoImageProcessor", "AutoProcessor"),
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
    "deit.data.few_labels": ("with_fewer_labels",),
    "deit.data.opening": ("open_data", "open_labelled", "open_unlabelled"),
    "deit.data.image_folders": ("ImageFolder",),
    "deit.data.sources": ("ArraySource", "Data"),
    "deit.train.loop": ("fit",),
    "deit.train.masked_images": ("MaskedImageTask",),
    "deit.train.recipe": ("Recipe",),
    "deit.train.recipes": ("list_recipes", "named_recipe", "open_recipe"),
    "deit.train.students": ("build_masked_student", "build_student"),
    "deit.train.tasks": ("ClassificationTask", "DistillationTask"),
    "deit.train.teacher": ("Teacher", "TeacherEnsemble", "match_teacher", "open_teacher", "open_teachers"),
    "deit.deploy.predictor": ("Predictor",),
}
# Keras classes. They are left out of `from deit import *`, which would start TensorFlow.
_KERAS_EXPORTS = {
    "deit.models.keras_deit": (
        "KerasDeiTForImageClassification",
        "KerasDeiTForImageClassificationWithTeacher",
        "KerasDeiTForMaskedImageModeling",
        "KerasDeiTModel",
        "TFDeiTForImageClassification",
        "TFDeiTForImageClassificationWithTeacher",
        "TFDeiTForMaskedImageModeling",
        "TFDeiTModel",
    ),
    "deit.models.keras_pretrained": ("TFDeiTPreTrainedModel", "TFViTPreTrainedModel"),
    "deit.models.keras_vit": (
        "KerasViTForImageClassification",
        "KerasViTForMaskedImageModeling",
        "KerasViTModel",
        "TFViTForImageClassification",
        "TFViTForMaskedImageModeling",
        "TFViTModel",
    ),
    "deit.train.keras_fit": ("KerasDistillation",),
    "deit.train.keras_teacher": ("KerasTeacher",),
}
# What needs transformers. It is left out of `from deit import *`, too.
_TRANSFORMERS_EXPORTS = {"deit.train.transformers_trainer": ("Trainer",)}
_WITH_PYTORCH = {m for m in _EXPORTS | _TRANSFORMERS_EXPORTS if not m.startswith("deit.core.")} - {
    "deit.models.auto_openers"
}
_HOME = {
    name: module for module, names in (_EXPORTS | _KERAS_EXPORTS | _TRANSFORMERS_EXPORTS).items() for name in names
}

__all__ = ["__version__", *sorted(name for names in _EXPORTS.values() for name in names)]

# Which extra brings the third-party modules that a part of the package needs.
_EXTRAS = {"deit.models": "torch", "deit.data": "train", "deit.train": "train", "deit.deploy": "torch"}
_EXTRAS_OF_MODULES = {"deit.train.transformers_trainer": "transformers"}

if TYPE_CHECKING:
    from deit.core.batch_feature import BatchFeature as BatchFeature
    from deit.core.configuration import DeiTConfig as DeiTConfig
    from deit.core.configuration import ViTConfig as ViTConfig
    from deit.core.image_processor import DeiTFeatureExtractor as DeiTFeatureExtractor
    from deit.core.image_processor import DeiTImageProcessor as DeiTImageProcessor
    from deit.core.image_processor import DeiTImageProcessorPil as DeiTImageProcessorPil
    from deit.core.image_processor import ViTImageProcessor as ViTImageProcessor
    from deit.core.image_processor import ViTImageProcessorPil as ViTImageProcessorPil
    from deit.core.images import load_image as load_image
    from deit.core.variants import VARIANTS as VARIANTS
    from deit.core.variants import list_models as list_models
    from deit.core.variants import variant_config as variant_config
    from deit.data.few_labels import with_fewer_labels as with_fewer_labels
    from deit.data.image_folders import ImageFolder as ImageFolder
    from deit.data.opening import open_data as open_data
    from deit.data.opening import open_labelled as open_labelled
    from deit.data.opening import open_unlabelled as open_unlabelled
    from deit.data.sources import ArraySource as ArraySource
    from deit.data.sources import Data as Data
    from deit.deploy.predictor import Predictor as Predictor
    from deit.models.auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    from deit.models.auto import MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING as MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING
    from deit.models.auto import AutoModel as AutoModel
    from deit.models.auto import AutoModelForImageClassification as AutoModelForImageClassification
    from deit.models.auto import AutoModelForMaskedImageModeling as AutoModelForMaskedImageModeling
    from deit.models.auto_openers import AutoConfig as AutoConfig
    from deit.models.auto_openers import AutoImageProcessor as AutoImageProcessor
    from deit.models.auto_openers import AutoProcessor as AutoProcessor
    from deit.models.deit import DeiTForImageClassification as DeiTForImageClassification
    from deit.models.deit import DeiTForImageClassificationWithTeacher as DeiTForImageClassificationWithTeacher
    from deit.models.deit import DeiTForMaskedImageModeling as DeiTForMaskedImageModeling
    from deit.models.deit import DeiTModel as DeiTModel
    from deit.models.fast_image_processor import DeiTImageProcessorFast as DeiTImageProcessorFast
    from deit.models.fast_image_processor import ViTImageProcessorFast as ViTImageProcessorFast
    from deit.models.keras_deit import KerasDeiTForImageClassification as KerasDeiTForImageClassification
    from deit.models.keras_deit import (
        KerasDeiTForImageClassificationWithTeacher as KerasDeiTForImageClassificationWithTeacher,
    )
    from deit.models.keras_deit import KerasDeiTForMaskedImageModeling as KerasDeiTForMaskedImageModeling
    from deit.models.keras_deit import KerasDeiTModel as KerasDeiTModel
    from deit.models.keras_deit import TFDeiTForImageClassification as TFDeiTForImageClassification
    from deit.models.keras_deit import (
        TFDeiTForImageClassificationWithTeacher as TFDeiTForImageClassificationWithTeacher,
    )
    from deit.models.keras_deit import TFDeiTForMaskedImageModeling as TFDeiTForMaskedImageModeling
    from deit.models.keras_deit import TFDeiTModel as TFDeiTModel
    from deit.models.keras_pretrained import TFDeiTPreTrainedModel as TFDeiTPreTrainedModel
    from deit.models.keras_pretrained import TFViTPreTrainedModel as TFViTPreTrainedModel
    from deit.models.keras_vit import KerasViTForImageClassification as KerasViTForImageClassification
    from deit.models.keras_vit import KerasViTForMaskedImageModeling as KerasViTForMaskedImageModeling
    from deit.models.keras_vit import KerasViTModel as KerasViTModel
    from deit.models.keras_vit import TFViTForImageClassification as TFViTForImageClassification
    from deit.models.keras_vit import TFViTForMaskedImageModeling as TFViTForMaskedImageModeling
    from deit.models.keras_vit import TFViTModel as TFViTModel
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
    from deit.train.keras_fit import KerasDistillation as KerasDistillation
    from deit.train.keras_teacher import KerasTeacher as KerasTeacher
    from deit.train.loop import fit as fit
    from deit.train.masked_images import MaskedImageTask as MaskedImageTask
    from deit.train.recipe import Recipe as Recipe
    from deit.train.recipes import list_recipes as list_recipes
    from deit.train.recipes import named_recipe as named_recipe
    from deit.train.recipes import open_recipe as open_recipe
    from deit.train.students import build_masked_student as build_masked_student
    from deit.train.students import build_student as build_student
    from deit.train.tasks import ClassificationTask as ClassificationTask
    from deit.train.tasks import DistillationTask as DistillationTask
    from deit.train.teacher import Teacher as Teacher
    from deit.train.teacher import TeacherEnsemble as TeacherEnsemble
    from deit.train.teacher import match_teacher as match_teacher
    from deit.train.teacher import open_teacher as open_teacher
    from deit.train.teacher import open_teachers as open_teachers
    from deit.train.transformers_trainer import Trainer as Trainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deit' has no attribute {name!r}")
    module = _HOME[name]
    if module in _WITH_PYTORCH:
        from deit.core.library_order import make_order_safe

        make_order_safe()  # a model of PyTorch is there to be trained, and making its optimizer loads triton
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "deit":
            raise
        if ".keras_" in module:
            raise _without_keras(name, error) from error
        extra = _EXTRAS_OF_MODULES.get(module) or _EXTRAS.get(".".join(module.split(".")[:2]))
        package = "deit" if extra is None else f"deit[{extra}]"
        raise ModuleNotFoundError(
            f'deit.{name} needs the {error.name!r} package. Install it with: pip install "{package}"',
            name=error.name,
        ) from error


def _without_keras(name: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    missing = str(error.name).split(".")[0]
    if missing in ("tensorflow", "jax", "torch"):
        chosen = f"KERAS_BACKEND={missing}" if "KERAS_BACKEND" in os.environ else f"the backend {missing!r} by default"
        text = (
            f"deit.{name} runs on Keras, which takes {chosen}, and {missing!r} is not installed. Install it with: "
            f'pip install "deit[{missing}]", or set KERAS_BACKEND to tensorflow, jax or torch, whichever is installed.'
        )
    else:
        text = (
            f'deit.{name} needs the {missing!r} package. Install it with: pip install "deit[tensorflow]" or '
            '"deit[jax]"; with PyTorch, "deit[keras,torch]" and KERAS_BACKEND=torch.'
        )
    return ModuleNotFoundError(text, name=error.name)


def __dir__() -> list[str]:
    return ["__version__", *sorted(_HOME)]
