"""The public ViT models: the trunk of DeiT without distillation token, as published for DeiT without a teacher.

Names, arguments, outputs and numbers are those of Hugging Face transformers (>= 5.9).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deit.core.config.config import ViTConfig
from deit.models.heads import (
    Pooler,
    as_asked,
    classify,
    encode,
    initialize_decoder,
    linear_classifier,
    pixel_decoder,
    prefix_alone,
    reconstruct,
    require_equal_stride,
)
from deit.models.pretrained import ViTPreTrainedModel
from deit.models.trunk.construction import construct
from deit.models.trunk.vision_transformer import VisionTransformer


class ViTModel(ViTPreTrainedModel):
    """The bare ViT: pixels to tokens, with a pooled output on top.

    Args:
        config: Sizes and rates.
        add_pooling_layer: Whether to have a pooler.
        use_mask_token: Whether to have a mask token, so that `bool_masked_pos` can be passed.

    Examples:
        >>> model = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)).eval()
        >>> model(torch.zeros(1, 3, 224, 224)).last_hidden_state.shape
        torch.Size([1, 197, 32])
    """

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config)
        config = self.config
        self.trunk = construct(lambda: VisionTransformer(config, use_mask_token=use_mask_token))
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        prefix_only: bool = False,
    ) -> Any:
        """Runs the network; arguments as in `DeiTModel.forward`, with one token less."""
        output = encode(
            self.trunk,
            self.pooler,
            pixel_values,
            bool_masked_pos,
            interpolate_pos_encoding,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            prefix_only=prefix_only,
        )
        return as_asked(output, return_dict, self.config)


class ViTForImageClassification(ViTPreTrainedModel):
    """ViT with a linear classifier on the class token.

    Args:
        config: `num_labels` is the number of classes; 0 leaves the classifier out.
    """

    accepts_loss_kwargs = True  # tells transformers.Trainer to pass num_items_in_batch

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        config = self.config
        self.num_labels = config.num_labels
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.classifier = linear_classifier(config)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Classifies; arguments as in `DeiTForImageClassification.forward`."""
        outputs = self.vit(
            pixel_values,
            None,
            interpolate_pos_encoding,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **prefix_alone(self.vit, ViTModel),
        )
        output = classify(self.config, self.classifier, outputs, labels, num_items_in_batch, self.loss_function)
        return as_asked(output, return_dict, self.config)


class ViTForMaskedImageModeling(ViTPreTrainedModel):
    """ViT that reconstructs the pixels of masked patches (SimMIM).

    Args:
        config: `encoder_stride` must equal the patch size for a loss, so that the reconstruction has the size of the
            image.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        config = self.config
        self.vit = ViTModel(config, add_pooling_layer=False, use_mask_token=True)
        self.decoder = pixel_decoder(config)
        self.initialize()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize_decoder(module, self.decoder, self.config)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Reconstructs; arguments and errors as in `DeiTForMaskedImageModeling.forward`."""
        if bool_masked_pos is not None:
            require_equal_stride(self.config)
        outputs = self.vit(
            pixel_values,
            bool_masked_pos,
            interpolate_pos_encoding,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        assert pixel_values is not None  # the trunk has checked it
        output = reconstruct(self.config, self.decoder, outputs, pixel_values, bool_masked_pos)
        return as_asked(output, return_dict, self.config)
