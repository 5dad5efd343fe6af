"""The public ViT models: the trunk of DeiT without distillation token, as published for DeiT without a teacher.

Names, arguments, outputs and numbers are those of Hugging Face transformers (>= 5.9).
"""

from __future__ import annotations

from deit.models.deit import BareModel, ImageClassifier, MaskedImageModel
from deit.models.pretrained import ViTPreTrainedModel


class ViTModel(BareModel, ViTPreTrainedModel):
    """The bare ViT: pixels to tokens, with a pooled output on top; arguments as in `BareModel`.

    Examples:
        >>> model = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)).eval()
        >>> model(torch.zeros(1, 3, 224, 224)).last_hidden_state.shape
        torch.Size([1, 197, 32])
    """


class ViTForImageClassification(ImageClassifier, ViTPreTrainedModel):
    """ViT with a linear classifier on the class token.

    Args:
        config: `num_labels` is the number of classes; 0 leaves the classifier out.
    """

    base_class = ViTModel


class ViTForMaskedImageModeling(MaskedImageModel, ViTPreTrainedModel):
    """ViT that reconstructs the pixels of masked patches (SimMIM).

    Args:
        config: See `MaskedImageModel`.
    """

    base_class = ViTModel
