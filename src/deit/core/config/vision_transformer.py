"""Holds the configuration of a vision transformer: checks it, reads it, and writes JSON that transformers can read."""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from deit.core.config.config_file import check_model_type, config_json, find_config, read_config
from deit.core.config.field_checks import check_agreement, check_fields, check_label_count, height_and_width
from deit.core.config.field_values import (
    OPTIONAL_FIELDS,
    label_tables,
    parse_assignments,
    with_int_keys,
    with_lists,
    with_overrides,
)
from deit.core.errors import UserError, WrongTypeError, shown
from deit.core.file_names import CONFIG_NAME
from deit.core.files import write_text_atomically
from deit.core.hub import upload_folder

QKV_NAMES = ("q_proj", "k_proj", "v_proj")

# Fields that are kept elsewhere than under their name and can be set.
_PROPERTIES = ("num_labels", "dtype", "torch_dtype", "name_or_path")


class VisionTransformerConfig:
    """Describes a vision transformer: the trunk, its heads and the labels. See `DeiTConfig` and `ViTConfig`.

    Names and defaults are those of Hugging Face transformers, so the values are DeiT-base. Keys that
    this class does not know are kept as plain attributes and written back, never interpreted.

    Args:
        hidden_size: Embedding dimension D, the width of every token.
        num_hidden_layers: Depth, the number of transformer blocks.
        num_attention_heads: Attention heads per block; must divide `hidden_size`.
        intermediate_size: Hidden width of the MLP; 4 x D in the paper.
        hidden_act: Activation of the MLP, by its name in transformers or as a function (which no file can hold).
            "gelu" is the exact (erf) form.
        hidden_dropout_prob: Dropout after the embeddings and after each residual branch; 0 in the paper.
        attention_probs_dropout_prob: Dropout on the attention probabilities; 0 in the paper.
        initializer_range: Standard deviation of the truncated normal that starts linear layers, tokens and
            position embeddings (0.02, as in the paper's code).
        layer_norm_eps: Added to the variance in LayerNorm. 1e-12 is transformers' default; the paper's code uses 1e-6.
        image_size: Pixels, one number for squares or (height, width).
        patch_size: Pixels, one number for squares or (height, width).
        num_channels: Channels of the input image.
        qkv_bias: Whether query, key and value have a bias.
        encoder_stride: Upsampling factor of the masked-image decoder; equal to the patch size.
        pooler_output_size: Width of the pooled output; `hidden_size` when None.
        pooler_act: Activation of the pooler, as `hidden_act`.
        num_labels: Number of classes K (default 2). Sets `id2label` to LABEL_0, LABEL_1, ...
        id2label: Class names by number; JSON's string keys are accepted.
        label2id: Class numbers by name; derived from `id2label` when None.
        problem_type: "regression", "single_label_classification" or "multi_label_classification"; inferred
            from the labels at the first loss when None.
        attn_implementation: "sdpa" (fused, the default), "eager", "flash_attention_2", "flash_attention_3" or
            "flex_attention". A matter of the machine, so it is never written.
        fused_qkv: Whether query, key and value are one layer, the faster way; False makes them three, which LoRA
            finds by their names (PyTorch only). A matter of the program, so it is never written: files are the same.
        qkv_names: Names of the three layers, by default those of transformers >= 5.9; earlier ones: query, key, value.
        pruned_heads: Number of a block -> numbers of its attention heads that were removed.
        drop_path_rate: Drop path of the last block; it rises linearly from 0 with depth (paper: 0.1). Training only.
        distillation_kind: "hard" or "soft": the loss of `DeiTForImageClassificationWithTeacher` given teacher logits.
        distillation_temperature: Temperature T of soft distillation (the paper uses 3 for soft).
        distillation_weight: Share of the distillation loss (0.5 for hard, 0.1 for soft in the paper).
        layer_scale_init: Initial value of layer scale, the learned factor of each channel on each branch (DeiT III:
            1e-4); 0 builds no layer scale.
        head_average: What two heads answer with together: "logits", the mean of their logits, as the paper's code and
            transformers (the default); or "probabilities", the mean of their softmax outputs, as the paper's text says
            (section 4), given as its logarithm. transformers does not know the field and averages logits.
        decoder_init: What the decoder of masked images starts with: "normal", as in transformers, normal values of
            `initializer_range` and zeros as bias; or "simmim", as SimMIM's code, PyTorch's own for a convolution.
        pos_embed_prefix: Whether class and distillation token have position embeddings of their own (DeiT III: False).
        token_merging: {"r": R}: each block merges R patch tokens, or a list of numbers for all blocks but the last; {}
            merges none. PyTorch only; transformers does not know the field. See `deit.merge_tokens`.
        **kwargs: Further keys of the transformers base configuration, or any other inert data.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range or contradicts another.
    """

    model_type: ClassVar[str]
    num_prefix_tokens: ClassVar[int]

    sub_configs: ClassVar[dict[str, Any]] = {}  # as code for transformers asks; there are none
    attribute_map: ClassVar[dict[str, str]] = {}  # likewise

    architectures: list[str] | None
    chunk_size_feed_forward: int
    decoder_init: str
    distillation_kind: str
    distillation_temperature: float
    distillation_weight: float
    drop_path_rate: float
    head_average: str
    id2label: dict[int, str]
    is_encoder_decoder: bool
    label2id: dict[str, int]
    layer_scale_init: float
    output_attentions: bool
    output_hidden_states: bool
    pos_embed_prefix: bool
    problem_type: str | None
    pruned_heads: dict[int, list[int]]
    return_dict: bool
    token_merging: dict[str, Any]

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str | Callable[..., Any] = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        num_channels: int = 3,
        qkv_bias: bool = True,
        encoder_stride: int = 16,
        pooler_output_size: int | None = None,
        pooler_act: str | Callable[..., Any] = "tanh",
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.qkv_bias = qkv_bias
        self.encoder_stride = encoder_stride
        self.pooler_output_size = hidden_size if pooler_output_size is None else pooler_output_size
        self.pooler_act = pooler_act
        self._set_common(kwargs)
        self.id2label, self.label2id = label_tables(
            kwargs.pop("num_labels", None), kwargs.pop("id2label", None), kwargs.pop("label2id", None)
        )
        for key, value in kwargs.items():  # inert data, see the class docstring
            if hasattr(type(self), key):
                raise UserError(
                    f"A configuration cannot hold a key named {shown(key)}. Remove it from the file or call."
                )
            setattr(self, key, value)
        check_fields(self)
        check_label_count(self)

    # --- labels ------------------------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """Number of classes; setting it names them LABEL_0, LABEL_1, ..."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        self.id2label, self.label2id = label_tables(count)

    # --- what every model shares ---------------------------------------------------------------------

    def _set_common(self, kwargs: dict[str, Any]) -> None:
        if "torch_dtype" in kwargs:  # the name until transformers 4.55
            dtype = kwargs.pop("torch_dtype")
            kwargs.setdefault("dtype", dtype)
        kwargs.pop("model_type", None)
        self.name_or_path = kwargs.pop("name_or_path", "")
        self._attn_implementation = kwargs.pop("attn_implementation", None) or "sdpa"
        self._fused_qkv = kwargs.pop("fused_qkv", True)
        self._qkv_names = tuple(kwargs.pop("qkv_names", QKV_NAMES))
        for key in [name for name in kwargs if name.startswith("_")]:
            kwargs.pop(key)  # a file must never set private state
        for key, default in OPTIONAL_FIELDS.items():
            setattr(self, key, kwargs.pop(key, copy.copy(default)))
        if isinstance(self.pruned_heads, Mapping):
            pruned = with_int_keys("pruned_heads", self.pruned_heads)
            self.pruned_heads = {i: sorted(heads) if isinstance(heads, set) else heads for i, heads in pruned.items()}
        if isinstance(self.architectures, tuple):
            self.architectures = list(self.architectures)

    @property
    def dtype(self) -> Any:
        """Type of the weights: a torch type if torch is imported, else its name; None if unknown.

        A model keeps it true.
        """
        torch = sys.modules.get("torch")
        return self._dtype if self._dtype is None or torch is None else getattr(torch, self._dtype, self._dtype)

    @dtype.setter
    def dtype(self, value: Any) -> None:
        if value is not None and not isinstance(value, str) and not str(value).startswith("torch."):
            raise WrongTypeError(f"dtype must be a torch type or its name. Received: {shown(value)}.")
        self._dtype = None if value is None else str(value).removeprefix("torch.")

    @property
    def torch_dtype(self) -> Any:
        """The older name of `dtype`."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: Any) -> None:
        self.dtype = value

    @property
    def name_or_path(self) -> str:
        """Name or path that the model was read from; empty for a new one. Never written."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: str | os.PathLike[str]) -> None:
        self._name_or_path = str(value)

    @property
    def attn_implementation(self) -> str:
        """How attention is computed; one of `ATTENTION_IMPLEMENTATIONS`."""
        return self._attn_implementation

    @property
    def fused_qkv(self) -> bool:
        """Whether a model that is built has one layer for query, key and value."""
        return self._fused_qkv

    @property
    def qkv_names(self) -> tuple[str, str, str]:
        """Names of the layers for query, key and value where they are apart."""
        return self._qkv_names

    @property
    def use_return_dict(self) -> bool:
        """Whether `forward` returns an output object when not told otherwise."""
        return bool(self.return_dict)

    def validate(self) -> None:
        """Checks the fields and their consistency. Called when a model is built.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A value is out of range or contradicts another.
        """
        check_fields(self)
        check_agreement(self)

    # --- geometry ------------------------------------------------------------------------------------

    @property
    def grid_image_size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return height_and_width(self.image_size, "image_size")

    @property
    def grid_patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return height_and_width(self.patch_size, "patch_size")

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches per column and per row."""
        (height, width), (patch_height, patch_width) = self.grid_image_size, self.grid_patch_size
        return height // patch_height, width // patch_width

    # --- JSON ----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain Python values, unknown ones included."""
        values = {k: copy.deepcopy(v) for k, v in vars(self).items() if not k.startswith("_")}
        return {**values, "dtype": self._dtype, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns the content of `config.json`: all fields, without optional ones at their default."""
        values = self.to_dict()
        for key, default in OPTIONAL_FIELDS.items():
            if values[key] == default:
                del values[key]
        if values["id2label"] == {0: "LABEL_0", 1: "LABEL_1"}:
            del values["id2label"], values["label2id"]
        return values

    def to_json_string(self, use_diff: bool = True) -> str:
        """Returns the configuration as JSON: sorted keys, indented by two, with a trailing newline.

        Raises:
            ValueError: A value, such as an activation given as a function, cannot be written as JSON.
        """
        return config_json(self.to_diff_dict() if use_diff else self.to_dict())

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Writes the configuration to a JSON file, whole or not at all."""
        write_text_atomically(Path(json_file_path), self.to_json_string(use_diff))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `config.json` into a folder. Creates the folder if it does not exist."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.to_json_file(Path(save_directory) / CONFIG_NAME)

    def push_to_hub(
        self, repo_id: str, *, commit_message: str = "Upload config", token: str | bool | None = None
    ) -> str:
        """Uploads `config.json` alone to the model hub.

        Args:
            repo_id: Name on the hub, such as "me/my-deit"; made if it is missing.
            commit_message: Says what the upload is.
            token: Access token; None takes the one stored by `hf auth login`.

        Returns:
            The address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(Path(folder), repo_id, files=[CONFIG_NAME], commit_message=commit_message, token=token)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], *, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Builds a configuration from a dict; keywords that name a field override it.

        Args:
            config_dict: What `to_dict` or a JSON file gave.
            return_unused_kwargs: Also return the keywords that name no field.
            **kwargs: Overrides.

        Returns:
            The configuration, or (configuration, unused keywords).
        """
        known = cls.field_names() | set(config_dict)
        overrides = {k: v for k, v in kwargs.items() if k in known}
        config = cls(**with_overrides(config_dict, overrides))
        unused = {k: v for k, v in kwargs.items() if k not in known}
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Reads `config.json` of a model directory or of a model on the hub, or the file itself; keywords override it.

        Args:
            pretrained_model_name_or_path: Folder, file, or name on the hub.
            return_unused_kwargs: Also return the keywords that name no field.
            **kwargs: Fields; `subfolder`; and how to ask the hub, see `deit.core.hub.HubOptions`.

        Raises:
            OSError: There is no such folder or file, or the hub cannot be reached.
            ValueError: The file is not JSON, or describes another kind of model.
        """
        values, rest = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_model_type(values, cls.model_type, cls.__name__, os.fspath(pretrained_model_name_or_path))
        return cls.from_dict(values, return_unused_kwargs=return_unused_kwargs, **rest)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads `config.json` as a dict, without checks of its fields.

        Args:
            pretrained_model_name_or_path: As in `from_pretrained`.
            **kwargs: `subfolder`, and how to ask the hub; others are returned.

        Returns:
            (what the file holds, the keywords that were not used).

        Raises:
            OSError: There is no such folder or file, it is not JSON, or the hub cannot be reached.
        """
        return find_config(pretrained_model_name_or_path, kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        """Reads a configuration from a JSON file."""
        return cls.from_dict(read_config(json_file))

    @classmethod
    def field_names(cls) -> set[str]:
        """Returns the names of all fields that this package uses."""
        own = set(VisionTransformerConfig.__init__.__annotations__) - {"kwargs", "return"}
        elsewhere = {*_PROPERTIES, "id2label", "label2id", "attn_implementation", "fused_qkv", "qkv_names"}
        return own | set(OPTIONAL_FIELDS) | elsewhere

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Sets several fields, all or none. A model checks their consistency when it is built.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A value is out of range, or a key is the name of a method.
        """
        changed = copy.copy(self)
        for key, value in config_dict.items():
            if key in ("attn_implementation", "fused_qkv", "qkv_names"):
                key = f"_{key}"
            elif key == "id2label":
                value = with_int_keys(key, value)
            elif hasattr(type(self), key) and key not in _PROPERTIES:
                raise UserError(f"A configuration cannot hold a key named {shown(key)}.")
            setattr(changed, key, value)
        check_fields(changed)
        vars(self).update(vars(changed))

    def update_from_string(self, update_str: str) -> None:
        """Sets fields from a text such as "hidden_size=96,qkv_bias=false"; a field keeps its type.

        Raises:
            ValueError: An unknown field, a value that is not of the field's type, or one out of range.
            TypeError: The field is neither a number, a truth value nor a text.
        """
        fields = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        fields.update({name: getattr(self, name) for name in _PROPERTIES})
        self.update(parse_assignments(fields, update_str, type(self).__name__))

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:
        """Returns the configuration itself, as transformers for a model without a part of its own for text.

        Args:
            decoder: Changes nothing.
            encoder: Changes nothing.
        """
        return self

    def __iter__(self) -> Iterator[str]:
        """Yields the names of the fields, unknown ones included."""
        return iter(self.to_dict())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VisionTransformerConfig):
            return False
        return with_lists(self.to_dict()) == with_lists(other.to_dict())

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        fields = {key: str(value) if callable(value) else value for key, value in self.to_diff_dict().items()}
        return f"{type(self).__name__} {json.dumps(fields, indent=2, sort_keys=True, default=repr)}\n"
