"""The base of every model: its configuration, initial values, and the methods that scripts for transformers call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from deit.core.config.config import as_config
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError, WrongTypeError
from deit.models.losses import configured_loss
from deit.models.trunk.attention import require_implementation
from deit.models.trunk.checkpointing import Checkpointing
from deit.models.trunk.construction import mark_as_initialized, modules_to_initialize, waits_for_values
from deit.models.trunk.cpu_kernels import pack
from deit.models.trunk.pruning import prune
from deit.models.trunk.split_qkv import split_model
from deit.models.trunk.vision_transformer import VisionTransformer, initialize_layer


class ConfiguredModel(nn.Module):
    """A module with a configuration. Draws initial values and answers to the names that scripts for transformers use.

    `deit.models.pretrained.PreTrainedModel` adds loading and saving.

    Args:
        config: Sizes, rates and labels.

    Attributes:
        name_or_path: What the weights were read from; empty for new ones.
        model_tags: Words that the model is found by on the hub; see `add_model_tags`.

    Raises:
        TypeError: `config` is not of the model's class of configuration.
        ImportError: The configured attention implementation is not installed.
    """

    config_class: ClassVar[type[VisionTransformerConfig]]
    base_model_prefix: ClassVar[str]
    main_input_name = "pixel_values"
    name_or_path: str = ""
    model_tags: list[str] | None = None
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # tells transformers.Trainer which arguments `forward` has

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        config = as_config(config, self.config_class, type(self).__name__)
        config.validate()
        require_implementation(config.attn_implementation)
        self.config = config
        self.name_or_path = config.name_or_path

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "config" and not isinstance(value, VisionTransformerConfig):
            kind = f"{type(value).__module__}.{type(value).__name__}"
            raise WrongTypeError(
                f"{type(self).__name__}.config must be a {self.config_class.__name__} of deit. Received: {kind}. "
                "A model of transformers that takes an encoder (VisionEncoderDecoderModel, VisionTextDualEncoderModel) "
                "shares its configuration with it, and opens its files with transformers' own layers: save this one "
                "with save_pretrained(folder) and pass transformers.AutoModel.from_pretrained(folder)."
            )
        super().__setattr__(name, value)

    # --- initial values ------------------------------------------------------------------------------

    def initialize(self) -> None:
        """Draws new values for every parameter."""
        for module in modules_to_initialize(self):
            self._init_weights(module)
            if isinstance(module, VisionTransformer):
                module.initialize()
        mark_as_initialized(self)
        if getattr(self.config, "gradient_checkpointing", False):  # how scripts for older transformers ask for it
            self.gradient_checkpointing_enable()
            del self.config.gradient_checkpointing  # type: ignore[attr-defined]
        self._keep_dtype_true()
        if not self.config.fused_qkv and not waits_for_values():
            split_model(self, self.config.qkv_names)

    def _keep_dtype_true(self) -> None:
        """Lets a configuration that names a type of weights name the model's."""
        if self.config.dtype is not None:
            self.config.dtype = self.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._keep_dtype_true()
        return self

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Self:
        """Builds a model with new weights; what the auto classes of transformers call.

        Args:
            config: Of the model; its `dtype` is followed.
            **kwargs: `dtype` (or `torch_dtype`), `attn_implementation`; others go to the constructor.
        """
        config = copy.deepcopy(as_config(config, cls.config_class, cls.__name__))
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        if dtype in (None, "auto"):
            dtype = config.dtype
        attention = kwargs.pop("attn_implementation", None)
        if attention is not None:
            config.update({"attn_implementation": attention})
        model = cls(config, **kwargs)
        return model if dtype is None else model.to(getattr(torch, str(dtype).removeprefix("torch.")))

    def post_init(self) -> None:
        """Draws new values for every parameter; the name under which subclasses written for transformers call it."""
        self.initialize()

    def init_weights(self) -> None:
        """Draws new values for every parameter, as `initialize`."""
        self.initialize()

    def _init_weights(self, module: nn.Module) -> None:
        """Draws new values for one layer; subclasses may replace it, as in transformers."""
        initialize_layer(module, self.config.initializer_range)

    # --- loss ----------------------------------------------------------------------------------------

    @property
    def loss_function(self) -> Callable[..., Tensor]:
        """Computes the loss from (labels, logits, config, num_items_in_batch=...); can be replaced.

        Raises:
            TypeError: On setting it, the model has no single-label, multi-label or regression loss to replace.
        """
        return self.__dict__.get("_loss_function") or self._modules.get("loss_function") or configured_loss

    @loss_function.setter
    def loss_function(self, function: Callable[..., Tensor]) -> None:
        if not self.accepts_loss_kwargs:
            raise WrongTypeError(
                f"{type(self).__name__} does not use a loss_function. Compute the loss from its output."
            )
        self._loss_function = function

    # --- what the model is ---------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def base_model(self) -> nn.Module:
        """The bare model inside a model with heads; a bare model itself."""
        return getattr(self, self.base_model_prefix, self)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Returns the number of parameters.

        Args:
            only_trainable: Leave out those that are frozen.
            exclude_embeddings: Leave out tables of embeddings (`torch.nn.Embedding`). As in transformers this concerns
                only what a subclass adds: a patch embedding is a convolution.
        """
        excluded = {
            id(parameter)
            for module in self.modules()
            if exclude_embeddings and isinstance(module, nn.Embedding)
            for parameter in module.parameters()
        }
        return sum(
            p.numel() for p in self.parameters() if (p.requires_grad or not only_trainable) and id(p) not in excluded
        )

    def get_input_embeddings(self) -> nn.Module:
        """Returns the patch embedding."""
        return self._trunks()[0].patch_embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the patch embedding.

        Args:
            value: Maps pixels (B, C, H, W) to patches (B, P, D); its attribute `patch_size` is (height, width).
        """
        self._trunks()[0].patch_embed = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> None:
        """Returns None: there are no tokens to predict."""

    @classmethod
    def can_generate(cls) -> bool:
        """Returns False: the models generate nothing."""
        return False

    def add_model_tags(self, tags: Sequence[str] | str) -> None:
        """Adds words that the model is found by to the card that `push_to_hub` uploads.

        Args:
            tags: One or several; those that are there already are not repeated.
        """
        self.model_tags = self._with_tags(tags)

    def _with_tags(self, tags: Sequence[str] | str | None) -> list[str]:
        given = [tags] if isinstance(tags, str) else tags or ()
        return list(dict.fromkeys([*(self.model_tags or ()), *given]))

    def tie_weights(self) -> None:
        """Does nothing: no two modules share their weights."""

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Returns the bytes of the parameters.

        Args:
            return_buffers: Also count buffers, which a subclass may have.
        """
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nbytes for tensor in tensors)

    def enable_input_require_grads(self) -> None:
        """Lets the output of the patch embedding require gradients, for adapters in frozen, checkpointed blocks."""
        self.disable_input_require_grads()
        self._input_hook = self.get_input_embeddings().register_forward_hook(
            lambda module, given, patches: patches.requires_grad_()
        )

    def disable_input_require_grads(self) -> None:
        """Ends `enable_input_require_grads`."""
        hook = self.__dict__.pop("_input_hook", None)
        if hook is not None:
            hook.remove()

    @property
    def _qkv_names(self) -> tuple[str, str, str]:
        return self.config.qkv_names

    def _trunks(self) -> list[VisionTransformer]:
        return [module for module in self.modules() if isinstance(module, VisionTransformer)]

    # --- attention -----------------------------------------------------------------------------------

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Chooses how attention is computed from now on.

        Args:
            attn_implementation: "sdpa", "eager", "flash_attention_2", "flash_attention_3" or "flex_attention".

        Raises:
            ValueError: The name is unknown.
            ImportError: The implementation is not installed.
        """
        require_implementation(attn_implementation)
        self.config.update({"attn_implementation": attn_implementation})
        for trunk in self._trunks():
            trunk.config.update({"attn_implementation": attn_implementation})

    def pack_weights(self) -> Self:
        """Prepares for answering on the CPU: linear layers keep a copy of their weights in the processor's layout.

        Calls without gradients are then faster (`benchmarks/models.py`), for as much memory again. Numbers differ
        by rounding alone. Without AVX-512, MKL is faster with plain float32 weights, which then stay so. Training mode
        gives the copies up. Weights that are changed behind PyTorch's back (`weight.data[...] = ...`) need another
        call.

        Returns:
            The model.
        """
        for module in self.modules():
            if type(module) is nn.Linear:
                pack(module)
        return self

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Removes attention heads for good; the configuration remembers them, so the model can be saved and opened.

        Args:
            heads_to_prune: Number of a block -> numbers of heads, counted as in the whole model.

        Raises:
            ValueError: A block or head does not exist, or a block would have no head left.
        """
        pruned = {int(block): set(heads) for block, heads in self.config.pruned_heads.items()}
        for block, heads in heads_to_prune.items():
            pruned[block] = pruned.get(block, set()) | set(heads)
        table = {block: sorted(heads) for block, heads in pruned.items()}
        changed = copy.copy(self.config)
        changed.update({"pruned_heads": table})
        changed.validate()
        self.config.update({"pruned_heads": table})
        for trunk in self._trunks():
            trunk.config.update({"pruned_heads": table})
            for block, heads in heads_to_prune.items():
                prune(trunk.blocks[block].attn, heads)  # type: ignore[arg-type]

    # --- gradient checkpointing ----------------------------------------------------------------------

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether blocks compute what is inside them again in the backward pass, to save memory."""
        return any(trunk.checkpointing is not None for trunk in self._trunks())

    @property
    def is_activation_checkpointing(self) -> bool:
        """The newer name of `is_gradient_checkpointing`."""
        return self.is_gradient_checkpointing

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Lets blocks compute what is inside them again in the backward pass, to save memory; in training only.

        Args:
            gradient_checkpointing_kwargs: Options of `torch.utils.checkpoint.checkpoint`; `use_reentrant` is False
                when it is not given.
            every_n_layers: Every how many blocks.
            offload: Whether the inputs of such blocks wait in the memory of the CPU.

        Raises:
            ValueError: `every_n_layers` is smaller than 1.
        """
        if every_n_layers < 1:
            raise UserError(f"every_n_layers must be at least 1. Received: {every_n_layers}.")
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        for trunk in self._trunks():
            trunk.checkpointing = Checkpointing(options=options, every=every_n_layers, offload=offload)

    def gradient_checkpointing_disable(self) -> None:
        """Ends gradient checkpointing."""
        for trunk in self._trunks():
            trunk.checkpointing = None

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The newer name of `gradient_checkpointing_enable`; arguments as there."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def activation_checkpointing_disable(self) -> None:
        """The newer name of `gradient_checkpointing_disable`."""
        self.gradient_checkpointing_disable()
