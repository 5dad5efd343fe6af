"""The public DeiT models: names, arguments, outputs and numbers of Hugging Face transformers (>= 5.9)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deit.core.configuration import DeiTConfig
from deit.models.losses import classification_loss, distillation_loss, infer_problem_type, problem_loss
from deit.models.outputs import (
    BaseModelOutputWithPooling,
    DeiTForImageClassificationWithTeacherOutput,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    ModelOutput,
)
from deit.models.pretrained import DeiTPreTrainedModel
from deit.models.vision_transformer import VisionTransformer, find_activation


class DeiTPooler(nn.Module):
    """Maps the class token to the pooled output."""

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.pooler_output_size)
        self.activation = find_activation(config.pooler_act)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to (B, pooler_output_size)."""
        return self.activation(self.dense(tokens[:, 0]))


class DeiTModel(DeiTPreTrainedModel):
    """The bare DeiT: pixels to tokens, with a pooled output on top.

    Args:
        config: Sizes and rates.
        add_pooling_layer: Whether to have a pooler.
        use_mask_token: Whether to have a mask token, so that `bool_masked_pos` can be passed.

    Example:
        >>> model = DeiTModel(DeiTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)).eval()
        >>> model(torch.zeros(1, 3, 224, 224)).last_hidden_state.shape
        torch.Size([1, 198, 32])
    """

    def __init__(self, config: DeiTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config)
        self.trunk = VisionTransformer(config, use_mask_token=use_mask_token)
        self.pooler = DeiTPooler(config) if add_pooling_layer else None
        self.initialize()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the patch embedding."""
        return self.trunk.patch_embed

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        attention_mask: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Runs the network.

        Args:
            pixel_values: (B, C, H, W).
            bool_masked_pos: (B, patches), 1 where a patch is replaced by the mask token.
            interpolate_pos_encoding: Accept another image size by resizing the position embedding.
            attention_mask: (B, N) with 0 for tokens that nobody may look at, or (B, 1 or H, N, N), boolean or added
                to the scores. N counts class and distillation token.
            head_mask: (H,) or (depth, H); attention probabilities of a head are multiplied by its number.
            output_attentions: Return attention maps; the configuration decides when None. Works with every attention
                implementation: blocks take the eager path for it.
            output_hidden_states: Return every block's output; the configuration decides when None.
            return_dict: False returns a tuple; the configuration decides when None.

        Raises:
            ValueError: No pixels, or an input of the wrong shape.
        """
        if pixel_values is None:
            raise ValueError("pixel_values is missing: pass a tensor of the shape (batch, channels, height, width).")
        config = self.config
        result = self.trunk(
            pixel_values,
            bool_masked_pos,
            interpolate=interpolate_pos_encoding,
            bias=_attention_bias(attention_mask, self.trunk.pos_embed.dtype),
            head_mask=head_mask,
            need_hidden_states=_decide(output_hidden_states, config.output_hidden_states),
            need_attentions=_decide(output_attentions, config.output_attentions),
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=result.tokens,
            pooler_output=None if self.pooler is None else self.pooler(result.tokens),
            hidden_states=result.hidden_states,
            attentions=result.attentions,
        )
        return _as_asked(output, return_dict, config)


class DeiTForImageClassification(DeiTPreTrainedModel):
    """DeiT with one linear classifier on the class token.

    Args:
        config: `num_labels` is the number of classes; 0 leaves the classifier out.
    """

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.deit = DeiTModel(config, add_pooling_layer=False)
        self.classifier = _head(config)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        attention_mask: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Classifies; further arguments as in `DeiTModel.forward`.

        Args:
            pixel_values: (B, C, H, W).
            labels: (B,) class numbers; (B, K) zeros and ones for many labels; numbers for a regression. The kind is
                `config.problem_type`, or inferred at the first loss and kept there.
            interpolate_pos_encoding: See `DeiTModel.forward`.
            attention_mask: See `DeiTModel.forward`.
            head_mask: See `DeiTModel.forward`.
            output_attentions: See `DeiTModel.forward`.
            output_hidden_states: See `DeiTModel.forward`.
            return_dict: See `DeiTModel.forward`.
        """
        outputs = self.deit(
            pixel_values,
            None,
            interpolate_pos_encoding,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = None
        if labels is not None:
            if self.config.problem_type is None:
                self.config.problem_type = infer_problem_type(labels, self.num_labels)
            loss = problem_loss(logits, labels.to(logits.device), self.config.problem_type)
        output = ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return _as_asked(output, return_dict, self.config)


class DeiTForImageClassificationWithTeacher(DeiTPreTrainedModel):
    """DeiT with a class head and a distillation head; at inference their logits are averaged.

    Unlike transformers' class of this name it can be trained: see `labels` and `teacher_logits`.

    Args:
        config: `distillation_kind`, `distillation_temperature` and `distillation_weight` set the loss.
    """

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.deit = DeiTModel(config, add_pooling_layer=False)
        self.cls_classifier = _head(config)
        self.distillation_classifier = _head(config)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        attention_mask: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Classifies with both heads; further arguments as in `DeiTModel.forward`.

        The loss, with weight w, is (1 - w) x cross-entropy(class head, labels) + w x distillation(distillation
        head, teacher). Without teacher logits the distillation head learns the labels as well, so that both heads
        are trained and can be averaged.

        Args:
            pixel_values: (B, C, H, W).
            labels: (B,) class numbers (-100: no label), or (B, K) class probabilities.
            teacher_logits: (B, K), what the teacher says of the same pixels.
            interpolate_pos_encoding: See `DeiTModel.forward`.
            attention_mask: See `DeiTModel.forward`.
            head_mask: See `DeiTModel.forward`.
            output_attentions: See `DeiTModel.forward`.
            output_hidden_states: See `DeiTModel.forward`.
            return_dict: See `DeiTModel.forward`.

        Raises:
            ValueError: Teacher logits without labels, or for another number of classes.
        """
        outputs = self.deit(
            pixel_values,
            None,
            interpolate_pos_encoding,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        cls_logits = self.cls_classifier(outputs.last_hidden_state[:, 0])
        distillation_logits = self.distillation_classifier(outputs.last_hidden_state[:, 1])
        output = DeiTForImageClassificationWithTeacherOutput(
            loss=self._loss(cls_logits, distillation_logits, labels, teacher_logits),
            logits=(cls_logits + distillation_logits) / 2,
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return _as_asked(output, return_dict, self.config)

    def _loss(
        self, cls_logits: Tensor, distillation_logits: Tensor, labels: Tensor | None, teacher_logits: Tensor | None
    ) -> Tensor | None:
        if labels is None:
            if teacher_logits is not None:
                raise ValueError("teacher_logits need labels. For images without labels pass labels of -100.")
            return None
        labels = labels.to(cls_logits.device)
        weight = self.config.distillation_weight
        from_labels = classification_loss(cls_logits, labels)
        if teacher_logits is None:
            from_teacher = classification_loss(distillation_logits, labels)
        else:
            from_teacher = distillation_loss(
                distillation_logits,
                teacher_logits.to(distillation_logits),
                kind=self.config.distillation_kind,
                temperature=self.config.distillation_temperature,
            )
        return (1 - weight) * from_labels + weight * from_teacher


class DeiTForMaskedImageModeling(DeiTPreTrainedModel):
    """DeiT that reconstructs the pixels of masked patches (SimMIM).

    Args:
        config: `encoder_stride` must equal the patch size for a loss, so that the reconstruction has the size of the
            image.
    """

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        self.deit = DeiTModel(config, add_pooling_layer=False, use_mask_token=True)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.hidden_size, config.encoder_stride**2 * config.num_channels, kernel_size=1),
            nn.PixelShuffle(config.encoder_stride),
        )
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        attention_mask: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Reconstructs; arguments as in `DeiTModel.forward`.

        The loss, when a mask is given, is the mean absolute error of the masked pixels.

        Raises:
            ValueError: A mask is given and the encoder stride is not the patch size.
        """
        if bool_masked_pos is not None and self.config.grid_patch_size != (self.config.encoder_stride,) * 2:
            raise ValueError(
                f"encoder_stride {self.config.encoder_stride} must equal patch_size {self.config.patch_size}: the "
                "reconstruction must have the size of the image."
            )
        outputs = self.deit(
            pixel_values,
            bool_masked_pos,
            interpolate_pos_encoding,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        assert pixel_values is not None  # DeiTModel has checked it
        patch_height, patch_width = self.config.grid_patch_size
        grid = (pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width)
        patches = outputs.last_hidden_state[:, self.deit.trunk.num_prefix_tokens :]
        reconstruction = self.decoder(patches.transpose(1, 2).unflatten(2, grid))
        loss = None
        if bool_masked_pos is not None:
            mask = bool_masked_pos.unflatten(1, grid).repeat_interleave(patch_height, 1)
            mask = mask.repeat_interleave(patch_width, 2)
            error = (pixel_values[..., : mask.shape[-2], : mask.shape[-1]] - reconstruction).abs()
            error = error.to(torch.promote_types(error.dtype, torch.float32))  # float16 cannot count to 65 536 pixels
            mask = mask.unsqueeze(1).to(error.dtype)  # (B, 1, H, W)
            loss = (error * mask).sum() / (mask.sum() + 1e-5) / self.config.num_channels
        output = MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return _as_asked(output, return_dict, self.config)


def _head(config: DeiTConfig) -> nn.Module:
    return nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()


def _decide(per_call: bool | None, configured: bool) -> bool:
    return configured if per_call is None else per_call


def _as_asked(output: ModelOutput, return_dict: bool | None, config: DeiTConfig) -> Any:
    return output if _decide(return_dict, config.return_dict) else output.to_tuple()


def _attention_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Returns what is added to the attention scores, or None."""
    if mask is None:
        return None
    if mask.ndim == 2:
        mask = mask[:, None, None, :].bool()
    if mask.ndim != 4:
        raise ValueError(f"attention_mask must have 2 or 4 dimensions. Received the shape {tuple(mask.shape)}.")
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    return mask.to(dtype)
