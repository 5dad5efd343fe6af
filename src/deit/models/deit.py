"""The public DeiT models, and the parts that they share with the ViT models of `vit.py`, one class for each task.

Names, arguments, outputs and numbers are those of Hugging Face transformers (>= 5.9).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.core.config.config import DeiTConfig
from deit.core.config.field_checks import require_equal_stride
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError, WrongTypeError
from deit.core.outputs import ModelOutput
from deit.models.heads import initialize_decoder, linear_classifier, pixel_decoder, reconstruct
from deit.models.losses import classification_loss, distillation_loss
from deit.models.merging.switch import TRUNK_FORWARDS, build_trunk
from deit.models.outputs import (
    BaseModelOutputWithPooling,
    DeiTForImageClassificationWithTeacherOutput,
    ImageClassifierOutput,
)
from deit.models.pretrained import DeiTPreTrainedModel, PreTrainedModel
from deit.models.trunk.activations import find_activation
from deit.models.trunk.aliases import Alias, Aliased, embeddings_of, encoder_of
from deit.models.trunk.construction import construct
from deit.models.trunk.cpu_kernels import Forwards, are_untouched, linear

# --- one class for each task --------------------------------------------------------------------------


class Pooler(nn.Module):
    """Maps the class token to the pooled output."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.pooler_output_size)
        self.activation = find_activation(config.pooler_act)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to (B, pooler_output_size)."""
        return self.activation(self.dense(tokens[:, 0]))


class BareModel(Aliased, PreTrainedModel):
    """A trunk with a pooler, such as `DeiTModel` and `ViTModel`.

    Args:
        config: Sizes and rates.
        add_pooling_layer: Whether to have a pooler.
        use_mask_token: Whether to have a mask token, so that `bool_masked_pos` can be passed.
    """

    layers, layernorm = Alias("trunk.blocks"), Alias("trunk.norm")  # transformers' names, of versions 4 and 5
    embeddings = property(lambda self: embeddings_of(self.trunk))
    encoder = property(lambda self: encoder_of(self.trunk))

    def __init__(
        self, config: VisionTransformerConfig, add_pooling_layer: bool = True, use_mask_token: bool = False
    ) -> None:
        super().__init__(config)
        config = self.config
        self.trunk = construct(lambda: build_trunk(config, use_mask_token=use_mask_token))
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
        config = self.config
        result = self.trunk(
            _checked_pixels(pixel_values, interpolate_pos_encoding),
            bool_masked_pos,
            interpolate=bool(interpolate_pos_encoding),
            attention_mask=attention_mask,
            head_mask=head_mask,
            need_hidden_states=bool(_decide(output_hidden_states, config.output_hidden_states)),
            need_attentions=_decide(output_attentions, config.output_attentions),
            prefix_only=prefix_only,
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=result.tokens,
            pooler_output=None if self.pooler is None else self.pooler(result.tokens),
            hidden_states=_chosen(result.hidden_states, output_hidden_states),
            attentions=result.attentions,
        )
        return _as_asked(output, return_dict, config)


class ModelWithHeads(PreTrainedModel):
    """A bare model with something on top.

    Attributes:
        base_class: Class of the bare model.
    """

    base_class: ClassVar[type[BareModel]]

    def _add_base_model(self, use_mask_token: bool = False) -> None:
        base_model = self.base_class(self.config, add_pooling_layer=False, use_mask_token=use_mask_token)
        setattr(self, self.base_model_prefix, base_model)

    def _encode(self, pixel_values: Tensor | None, *inputs: Any, prefix_suffices: bool = False) -> Any:
        """Calls the bare model; it leaves out the patch tokens only if no hook, subclass or replaced method needs them.

        Args:
            pixel_values: (B, C, H, W).
            *inputs: The further arguments of `BareModel.forward` until `output_hidden_states`, in their order.
            prefix_suffices: Whether the head needs no patch tokens.
        """
        base_model = getattr(self, self.base_model_prefix)
        forwards: Forwards = {self.base_class: _BARE_FORWARD, **TRUNK_FORWARDS}
        if prefix_suffices and are_untouched((base_model, getattr(base_model, "trunk", None)), forwards):
            return base_model(pixel_values, *inputs, return_dict=True, prefix_only=True)
        return base_model(pixel_values, *inputs, return_dict=True)


class ImageClassifier(ModelWithHeads):
    """A bare model with one linear classifier on the class token.

    Args:
        config: `num_labels` is the number of classes; 0 leaves the classifier out.
    """

    accepts_loss_kwargs = True  # tells transformers.Trainer to pass num_items_in_batch

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__(config)
        self.num_labels = self.config.num_labels
        self._add_base_model()
        self.classifier = linear_classifier(self.config)
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

        Raises:
            ValueError: The labels do not suit the model.
        """
        further = (interpolate_pos_encoding, attention_mask, head_mask, output_attentions, output_hidden_states)
        encoded = self._encode(pixel_values, None, *further, prefix_suffices=True)
        logits = linear(self.classifier, encoded.last_hidden_state[:, 0])
        loss = None
        if labels is not None:
            if self.config.num_labels == 0:
                raise UserError(
                    "This model has no classifier (num_labels is 0), so labels give no loss. Leave them out."
                )
            options = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(labels, logits, self.config, **options)
        output = ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return _as_asked(output, return_dict, self.config)


class MaskedImageModel(ModelWithHeads):
    """A bare model that reconstructs the pixels of masked patches (SimMIM).

    Args:
        config: `encoder_stride` must equal the patch size for a loss, so that the reconstruction has the size of the
            image.
    """

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__(config)
        self._add_base_model(use_mask_token=True)
        self.decoder = pixel_decoder(self.config)
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
        further = (interpolate_pos_encoding, attention_mask, head_mask, output_attentions, output_hidden_states)
        encoded = self._encode(pixel_values, bool_masked_pos, *further)
        assert pixel_values is not None  # the bare model has checked it
        output = reconstruct(self.config, self.decoder, encoded, pixel_values, bool_masked_pos)
        return _as_asked(output, return_dict, self.config)


_BARE_FORWARD = BareModel.forward


def _checked_pixels(pixel_values: Tensor | None, interpolate_pos_encoding: Any) -> Tensor:
    if pixel_values is None:
        raise UserError("pixel_values is missing: pass a tensor of the shape (batch, channels, height, width).")
    # A tracer passes a default of False as a boolean tensor without dimensions.
    if isinstance(interpolate_pos_encoding, Tensor) and (
        interpolate_pos_encoding.ndim or interpolate_pos_encoding.dtype != torch.bool
    ):
        raise WrongTypeError(
            "interpolate_pos_encoding must be True or False. Received a tensor: name it (labels=, head_mask=)."
        )
    return pixel_values


def _decide(per_call: Any, configured: bool) -> Any:
    """Returns what the call says, or the configuration where it says nothing."""
    return configured if per_call is None else per_call


def _chosen(states: tuple[Tensor, ...] | None, wanted: Any) -> Any:
    """Leaves None in the place of hidden states that were not asked for by their numbers, as transformers."""
    if states is None or not isinstance(wanted, (list, tuple)):
        return states
    kept = {range(len(states))[number] for number in wanted}  # negative ones count from the end
    return tuple(state if number in kept else None for number, state in enumerate(states))


def _as_asked(output: ModelOutput, return_dict: bool | None, config: VisionTransformerConfig) -> Any:
    """Returns the output itself, or a tuple where the call or the configuration asks for one."""
    return output if _decide(return_dict, config.return_dict) else output.to_tuple()


# --- DeiT ---------------------------------------------------------------------------------------------


class DeiTModel(BareModel, DeiTPreTrainedModel):
    """The bare DeiT: pixels to tokens, with a pooled output on top; arguments as in `BareModel`.

    Examples:
        >>> model = DeiTModel(DeiTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)).eval()
        >>> model(torch.zeros(1, 3, 224, 224)).last_hidden_state.shape
        torch.Size([1, 198, 32])
    """


class DeiTForImageClassification(ImageClassifier, DeiTPreTrainedModel):
    """DeiT with one linear classifier on the class token.

    Args:
        config: `num_labels` is the number of classes; 0 leaves the classifier out.
    """

    base_class = DeiTModel


class DeiTForMaskedImageModeling(MaskedImageModel, DeiTPreTrainedModel):
    """DeiT that reconstructs the pixels of masked patches (SimMIM).

    Args:
        config: See `MaskedImageModel`.
    """

    base_class = DeiTModel


class DeiTForImageClassificationWithTeacher(ModelWithHeads, DeiTPreTrainedModel):
    """DeiT with a class head and a distillation head; at inference their logits are averaged.

    Unlike transformers' class of this name it can be trained: see `labels` and `teacher_logits`.

    Args:
        config: `distillation_kind`, `distillation_temperature` and `distillation_weight` set the loss.
    """

    base_class = DeiTModel

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        self.num_labels = self.config.num_labels
        self._add_base_model()
        self.cls_classifier = linear_classifier(self.config)
        self.distillation_classifier = linear_classifier(self.config)
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
        further = (interpolate_pos_encoding, attention_mask, head_mask, output_attentions, output_hidden_states)
        encoded = self._encode(pixel_values, None, *further, prefix_suffices=True)
        tokens, heads = encoded.last_hidden_state, (self.cls_classifier, self.distillation_classifier)
        cls_logits, distillation_logits = linear(heads[0], tokens[:, 0]), linear(heads[1], tokens[:, 1])
        output = DeiTForImageClassificationWithTeacherOutput(
            loss=self._loss(cls_logits, distillation_logits, labels, teacher_logits),
            logits=average_heads(cls_logits, distillation_logits, self.config),
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return _as_asked(output, return_dict, self.config)

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


def average_heads(first: Tensor, second: Tensor, config: VisionTransformerConfig) -> Tensor:
    """Returns the logits (B, K) of two heads together, by `config.head_average`.

    Args:
        first: Logits (B, K) of the class head.
        second: Logits (B, K) of the distillation head.
        config: For several labels, "probabilities" averages the outputs of the sigmoid; for regression both are one.

    Returns:
        The mean of the logits; or logits whose softmax (sigmoid) is the mean of the heads' softmax (sigmoid) outputs.
    """
    kind = average_of_heads(config)
    if kind == "logits":
        return (first + second) / 2
    if kind == "sigmoid":
        yes = torch.logaddexp(F.logsigmoid(first), F.logsigmoid(second))
        return yes - torch.logaddexp(F.logsigmoid(-first), F.logsigmoid(-second))
    return torch.logaddexp(F.log_softmax(first, dim=-1), F.log_softmax(second, dim=-1)) - math.log(2)


def average_of_heads(config: VisionTransformerConfig) -> str:
    """Returns what `average_heads` averages: "logits", or the heads' outputs after "softmax" or "sigmoid"."""
    if config.head_average == "logits" or config.problem_type == "regression":
        return "logits"
    if config.problem_type is None and config.num_labels == 1:  # a regression, as its first loss will say
        return "logits"
    return "sigmoid" if config.problem_type == "multi_label_classification" else "softmax"
