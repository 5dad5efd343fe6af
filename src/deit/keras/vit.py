"""The ViT models in Keras: transformers' `TFViT*` classes, on every backend of Keras 3.

The published DeiT weights without distillation are ViTs. `KerasViT*` are other names of the same classes. transformers
has no masked-image model of ViT in TensorFlow; `TFViTForMaskedImageModeling` matches its PyTorch class.
"""

from __future__ import annotations

import keras

from deit.keras.pretrained import TFViTPreTrainedModel
from deit.keras.task_models import BareModel, ImageClassifier, MaskedImageModel, in_order

# transformers' order of arguments, which differs from that of DeiT.
_OPTIONS = ("head_mask", "output_attentions", "output_hidden_states", "interpolate_pos_encoding", "return_dict")


@keras.saving.register_keras_serializable(package="deit")
class TFViTModel(BareModel, TFViTPreTrainedModel):
    """The bare ViT in Keras; see `BareModel`."""

    call = in_order(BareModel.call, "pixel_values", *_OPTIONS, "training", "bool_masked_pos")


@keras.saving.register_keras_serializable(package="deit")
class TFViTForImageClassification(ImageClassifier, TFViTPreTrainedModel):
    """ViT in Keras with one classifier on the class token; see `ImageClassifier`."""

    bare_class = TFViTModel
    call = in_order(ImageClassifier.call, "pixel_values", *_OPTIONS, "labels", "training")


@keras.saving.register_keras_serializable(package="deit")
class TFViTForMaskedImageModeling(MaskedImageModel, TFViTPreTrainedModel):
    """ViT in Keras that reconstructs masked patches; see `MaskedImageModel`."""

    bare_class = TFViTModel


KerasViTModel = TFViTModel
KerasViTForMaskedImageModeling = TFViTForMaskedImageModeling
KerasViTForImageClassification = TFViTForImageClassification
