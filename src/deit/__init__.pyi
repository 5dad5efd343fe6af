"""The public names of deit, each written once: `__init__.py` reads this file when the package is imported."""

from .client.async_client import AsyncClient as AsyncClient
from .client.client import Client as Client
from .core.config.config import DeiTConfig as DeiTConfig, ViTConfig as ViTConfig
from .core.images.reading import load_image as load_image
from .core.processing.batch_feature import BatchFeature as BatchFeature
from .core.processing.image_processor import (
    DeiTFeatureExtractor as DeiTFeatureExtractor,
    DeiTImageProcessor as DeiTImageProcessor,
    DeiTImageProcessorPil as DeiTImageProcessorPil,
    ViTImageProcessor as ViTImageProcessor,
    ViTImageProcessorPil as ViTImageProcessorPil,
)
from .core.published import VARIANTS as VARIANTS, list_models as list_models
from .core.scores.calibration_file import Calibration as Calibration
from .core.scores.conformal import Coverage as Coverage
from .core.variants import variant_config as variant_config
from .data.few_labels import with_fewer_labels as with_fewer_labels
from .data.open_data import open_data as open_data, open_labelled as open_labelled, open_unlabelled as open_unlabelled
from .data.readers.image_folder import ImageFolder as ImageFolder
from .data.sources import ArraySource as ArraySource, Data as Data
from .evaluate.calibrating import calibrate as calibrate
from .explain.explainer import Explainer as Explainer
from .export.exporting import export_model as export_model
from .export.quantization.quantizing import quantize as quantize
from .inference.measuring.benchmark import benchmark as benchmark
from .inference.pipelines import (
    ImageClassificationPipeline as ImageClassificationPipeline,
    ImageFeatureExtractionPipeline as ImageFeatureExtractionPipeline,
    pipeline as pipeline,
)
from .inference.predictor import Predictor as Predictor
from .keras.deit import (
    KerasDeiTForImageClassification as KerasDeiTForImageClassification,
    KerasDeiTForImageClassificationWithTeacher as KerasDeiTForImageClassificationWithTeacher,
    KerasDeiTForMaskedImageModeling as KerasDeiTForMaskedImageModeling,
    KerasDeiTModel as KerasDeiTModel,
    TFDeiTForImageClassification as TFDeiTForImageClassification,
    TFDeiTForImageClassificationWithTeacher as TFDeiTForImageClassificationWithTeacher,
    TFDeiTForMaskedImageModeling as TFDeiTForMaskedImageModeling,
    TFDeiTModel as TFDeiTModel,
)
from .keras.distillation import KerasDistillation as KerasDistillation
from .keras.pretrained import (
    TFDeiTPreTrainedModel as TFDeiTPreTrainedModel,
    TFViTPreTrainedModel as TFViTPreTrainedModel,
)
from .keras.teacher import KerasTeacher as KerasTeacher
from .keras.vit import (
    KerasViTForImageClassification as KerasViTForImageClassification,
    KerasViTForMaskedImageModeling as KerasViTForMaskedImageModeling,
    KerasViTModel as KerasViTModel,
    TFViTForImageClassification as TFViTForImageClassification,
    TFViTForMaskedImageModeling as TFViTForMaskedImageModeling,
    TFViTModel as TFViTModel,
)
from .models.auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING as MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING,
    AutoModel as AutoModel,
    AutoModelForImageClassification as AutoModelForImageClassification,
    AutoModelForMaskedImageModeling as AutoModelForMaskedImageModeling,
)
from .models.auto_openers import (
    AutoConfig as AutoConfig,
    AutoImageProcessor as AutoImageProcessor,
    AutoProcessor as AutoProcessor,
)
from .models.deit import (
    DeiTForImageClassification as DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher as DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling as DeiTForMaskedImageModeling,
    DeiTModel as DeiTModel,
)
from .models.fast_image_processor import (
    DeiTImageProcessorFast as DeiTImageProcessorFast,
    ViTImageProcessorFast as ViTImageProcessorFast,
)
from .models.merging.switch import merge_tokens as merge_tokens
from .models.outputs import DeiTForImageClassificationWithTeacherOutput as DeiTForImageClassificationWithTeacherOutput
from .models.pretrained import DeiTPreTrainedModel as DeiTPreTrainedModel, ViTPreTrainedModel as ViTPreTrainedModel
from .models.vit import (
    ViTForImageClassification as ViTForImageClassification,
    ViTForMaskedImageModeling as ViTForMaskedImageModeling,
    ViTModel as ViTModel,
)
from .planning.carry_out import fit_plan as fit_plan
from .planning.make_plan import plan as plan
from .planning.plan import Plan as Plan
from .train.build_task import build_task as build_task
from .train.folds.fit_folds import fit_folds as fit_folds
from .train.loggers.training_log import TrainingLog as TrainingLog
from .train.loop import fit as fit
from .train.recipes.catalog import (
    list_recipes as list_recipes,
    named_recipe as named_recipe,
    open_recipe as open_recipe,
)
from .train.recipes.recipe import Recipe as Recipe
from .train.students.deit import build_masked_student as build_masked_student, build_student as build_student
from .train.tasks.classification import ClassificationTask as ClassificationTask
from .train.tasks.distillation import DistillationTask as DistillationTask
from .train.tasks.masked_images import MaskedImageTask as MaskedImageTask
from .train.teachers.teacher import (
    Teacher as Teacher,
    TeacherEnsemble as TeacherEnsemble,
    match_teacher as match_teacher,
    open_teacher as open_teacher,
    open_teachers as open_teachers,
)
from .train.transformers_trainer import Trainer as Trainer

__version__: str
