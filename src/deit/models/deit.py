"""The public DeiT models: names, arguments, outputs and numbers of Hugging Face transformers (>= 5.9)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deit.core.config.config import DeiTConfig
from deit.core.errors import UserError, WrongTypeError
from deit.models.head_average import average_heads
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
from deit.models.losses import classification_loss, distillation_loss
from deit.models.outputs import DeiTForImageClassificationWithTeacherOutput
from deit.models.pretrained import DeiTPreTrainedModel
from deit.models.trunk.construction import construct
from deit.models.trunk.cpu_kernels import linear
from deit.models.trunk.vision_transformer import VisionTransformer


class DeiTModel(DeiTPreTrainedModel):
    """The bare DeiT: pixels to tokens, with a pooled output on top.

    Args:
        config: Sizes and rates.
        add_pooling_layer: Whether to have a pooler.
        use_mask_token: Whether to have a mask token, so that `bool_masked_pos` can be passed.

    Examples:
        >>> model = DeiTModel(DeiTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)).eval()
        >>> model(torch.zeros(1, 3, 224, 224)).last_hidden_state.shape
        torch.Size([1, 198, 32])
    """

    def __init__(self, config: DeiTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
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
        """Runs the network.

        Args:
            pixel_values: (B, C, H, W).
            bool_masked_pos: (B, patches), 1 where a patch is replaced by the mask token.
            interpolate_pos_encoding: Accept another image size by resizing the position embedding.
            attention_mask: (B, N) with 0 for tokens that nobody may look at, or (B, 1 or H, N, N), boolean or added
                to the scores. N counts class and distillation token.
            head_mask: (H,) or (depth, H); attention probabilities of a head are multiplied by its number. Also
                (depth, B or 1, H or 1, N or 1, N or 1).
            output_attentions: Return attention maps; the configuration decides when None. Works with every attention
                implementation: such a call is computed eagerly, which the log says once.
            output_hidden_states: Return every block's output; the configuration decides when None.
            return_dict: False returns a tuple; the configuration decides when None.
            prefix_only: Make `last_hidden_state` the class token and, in a DeiT, the distillation token alone, which is
                faster without gradients. Classifiers need no more.

        Raises:
            ValueError: No pixels, or an input of the wrong shape.
        """
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


class DeiTForImageClassification(DeiTPreTrainedModel):
    """DeiT with one linear classifier on the class token.

    Args:
        config: `num_labels` is the number of classes; 0 leaves the classifier out.
    """

    accepts_loss_kwargs = True  # tells transformers.Trainer to pass num_items_in_batch

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        config = self.config
        self.num_labels = config.num_labels
        self.deit = DeiTModel(config, add_pooling_layer=False)
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
            num_items_in_batch: See `problem_loss`.
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
            **prefix_alone(self.deit, DeiTModel),
        )
        output = classify(self.config, self.classifier, outputs, labels, num_items_in_batch, self.loss_function)
        return as_asked(output, return_dict, self.config)


class DeiTForImageClassificationWithTeacher(DeiTPreTrainedModel):
    """DeiT with a class head and a distillation head; at inference their logits are averaged.

    Unlike transformers' class of this name it can be trained: see `labels` and `teacher_logits`.

    Args:
        config: `distillation_kind`, `distillation_temperature` and `distillation_weight` set the loss.
    """

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        config = self.config
        self.num_labels = config.num_labels
        self.deit = DeiTModel(config, add_pooling_layer=False)
        self.cls_classifier = linear_classifier(config)
        self.distillation_classifier = linear_classifier(config)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        attention_mask: Tensor | None = None,
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
            **prefix_alone(self.deit, DeiTModel),
        )
        cls_logits = linear(self.cls_classifier, outputs.last_hidden_state[:, 0])
        distillation_logits = linear(self.distillation_classifier, outputs.last_hidden_state[:, 1])
        output = DeiTForImageClassificationWithTeacherOutput(
            loss=self._loss(cls_logits, distillation_logits, labels, teacher_logits),
            logits=average_heads(cls_logits, distillation_logits, self.config),
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return as_asked(output, return_dict, self.config)

    def _loss(
        self, cls_logits: Tensor, distillation_logits: Tensor, labels: Tensor | None, teacher_logits: Tensor | None
    ) -> Tensor | None:
        if labels is None:
            if teacher_logits is not None:
                raise UserError("teacher_logits need labels. For images without labels pass labels of -100.")
            return None
        if not isinstance(labels, Tensor):
            raise WrongTypeError(f"labels must be a tensor. Received: {labels!r}. Pass other options by name.")
        if self.num_labels == 0:
            raise UserError("This model has no classifiers (num_labels is 0), so labels give no loss. Leave them out.")
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
        config = self.config
        self.deit = DeiTModel(config, add_pooling_layer=False, use_mask_token=True)
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
        """Reconstructs; arguments as in `DeiTModel.forward`.

        The loss, when a mask is given, is the mean absolute error of the masked pixels.

        Raises:
            ValueError: A mask is given and the encoder stride is not the patch size.
        """
        if bool_masked_pos is not None:
            require_equal_stride(self.config)
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
        assert pixel_values is not None  # the trunk has checked it
        output = reconstruct(self.config, self.decoder, outputs, pixel_values, bool_masked_pos)
        return as_asked(output, return_dict, self.config)
