"""Base of all Keras models: inputs, Keras's configuration, loading and saving."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError, WrongTypeError
from deit.core.hub import upload_folder
from deit.core.model_directory import published_files
from deit.keras.adapters import enable_adapters, load_adapters, save_adapters, without_adapters
from deit.keras.files import (
    is_keras_file,
    open_keras_file,
    open_tensors,
    push_model,
    save_model,
    torch_class_name,
)
from deit.keras.fitting import FittedModel
from deit.keras.inputs import DATA_FORMATS, check_backend, check_inputs, name_arguments
from deit.keras.layer_states import layer_states, restore_layer_states
from deit.keras.pruning import prune
from deit.keras.targets import main_output

# Arguments of transformers that are accepted and ignored.
_WITHOUT_EFFECT = ("trust_remote_code", "from_pt", "low_cpu_mem_usage", "device_map", "attn_implementation")


class KerasPreTrainedModel(FittedModel):
    """Base of all Keras models: a configuration, loading and saving. The constructor creates all weights.

    Args:
        config: Sizes, rates and labels.
        data_format: Order of axes of the pixels: "channels_first" (B, C, H, W), as in transformers, whatever Keras
            is set to; or "channels_last" (B, H, W, C).
        **options: Options of `keras.Model`: `name`, `dtype` (a policy such as "mixed_bfloat16"), `trainable`.

    Raises:
        TypeError: `config` is not an instance of `config_class`.
        ValueError: The data format is unknown.
        RuntimeError: KERAS_BACKEND names another backend than the one that runs in this process.
    """

    config_class: ClassVar[type[VisionTransformerConfig]]
    base_model_prefix: ClassVar[str]
    main_input_name = "pixel_values"
    # Tensor arguments of `call` besides pixel_values.
    tensor_arguments: ClassVar[tuple[str, ...]] = ("bool_masked_pos", "head_mask", "labels", "teacher_logits")

    def __init__(self, config: VisionTransformerConfig, *, data_format: str = "channels_first", **options: Any) -> None:
        check_backend()
        if not isinstance(config, self.config_class):
            raise WrongTypeError(
                f"{type(self).__name__} needs a {self.config_class.__name__}. Received: {type(config).__name__}."
            )
        if data_format not in DATA_FORMATS:
            raise UserError(f"data_format must be 'channels_first' or 'channels_last'. Received: {data_format!r}.")
        config.validate()
        if config.token_merging:
            raise UserError(
                "The Keras models merge no tokens, so their answers would differ. Pass token_merging={} for the whole "
                f"network with these weights, or use PyTorch. Received: {config.token_merging}."
            )
        options["name"] = options.get("name") or _new_name(type(self).__name__)
        # Keras does not cast inputs: the layers do.
        super().__init__(**{"autocast": False, **options})
        self.config = config
        self.data_format = data_format

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model; see `call`. Checks inputs before Keras converts them."""
        args, kwargs = name_arguments(self.call, args, kwargs, self.tensor_arguments)
        args, kwargs = check_inputs(self, args, kwargs)
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the constructor builds the model."""
        self.built = True

    def network_parts(self) -> dict[str, Any]:
        """Returns the model's parts by their names in the network."""
        raise NotImplementedError

    def __dir__(self) -> Iterable[str]:
        # Keras's files name a layer by the first attribute that leads to it. Hides the second one.
        return [name for name in super().__dir__() if name != "base_model"]

    # --- properties ----------------------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """Number of classes K."""
        return self.config.num_labels

    @property
    def base_model(self) -> Any:
        """The bare model inside a model with heads; for a bare model, itself."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def dummy_inputs(self) -> dict[str, np.ndarray]:
        """Valid pixels: one image of zeros."""
        return {"pixel_values": np.zeros((1, *self.pixel_shape), np.float32)}

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Shape of one image of the trained size, in the model's order of axes."""
        size, channels = self.config.grid_image_size, self.config.num_channels
        return (channels, *size) if self.data_format == "channels_first" else (*size, channels)

    def get_input_embeddings(self) -> Any:
        """Returns the patch embedding."""
        return self.base_model.trunk.patch_embed

    def get_output_embeddings(self) -> None:
        """Returns None: the models predict no tokens."""

    def can_generate(self) -> bool:
        """Returns False: the models generate nothing."""
        return False

    def output_model(self, output: str | None = None) -> keras.Model:
        """Returns a functional Keras model from pixels to one output, which shares this model's weights.

        For tools that expect one tensor, such as `keras.distillation.Distiller` and `keras.Sequential`.

        Args:
            output: Name such as "logits" (the default of a classifier), "pooler_output" or "last_hidden_state".

        Raises:
            ValueError: The model has no such output.
        """
        pixels = keras.Input(self.pixel_shape, dtype="float32", name="pixel_values")
        outputs = self(pixels)
        name = main_output(outputs) if output is None else output
        if name not in outputs:
            raise UserError(f"The model has no output {name!r}. Known: {', '.join(outputs)}.")
        return keras.Model(pixels, outputs[name], name=f"{self.name}_{name}")

    # --- changes of the network ----------------------------------------------------------------------

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Removes attention heads permanently, and records them in the configuration.

        Args:
            heads_to_prune: Block index -> head indices, as in the unpruned model.

        Raises:
            ValueError: A block or head does not exist, no head would remain, a layer is quantized or has adapters, or
                the optimizer already has state of the weights.
        """
        if getattr(getattr(self, "optimizer", None), "built", False):
            raise UserError("The optimizer has state of weights that would be pruned. Prune before the training.")
        table = prune(self.base_model.trunk, heads_to_prune)
        for part in (self, self.base_model, self.base_model.trunk):
            part.config.update({"pruned_heads": table})
        self.train_function = self.test_function = self.predict_function = None  # they use the old weights

    def enable_lora(
        self, rank: int, target_layer_names: Iterable[str] = ("qkv",), *, lora_alpha: float | None = None
    ) -> None:
        """Adds low-rank adapters to linear layers and freezes everything else except the heads.

        `.keras` and `.weights.h5` files keep matrices and adapters separate; `save_pretrained` writes their sum. Call
        `compile` afterwards.

        Args:
            rank: Rank of the adapters.
            target_layer_names: Names of the layers: "qkv" (query, key and value), "proj", "fc1", "fc2", ...
            lora_alpha: The factor of the adapters is lora_alpha / rank; None takes the rank.

        Raises:
            ValueError: The rank is below 1, no layer has the name, or a layer already has adapters.
        """
        enable_adapters(self, rank, target_layer_names, alpha=lora_alpha, trunk=[self.base_model])

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Returns the number of parameters.

        Args:
            only_trainable: Whether to leave out frozen parameters.
        """
        variables = self.trainable_variables if only_trainable else self.variables
        return sum(int(np.prod(v.shape)) for v in variables if "seed_generator" not in v.path)

    # --- Keras's own configuration -------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`, which Keras writes into `.keras` files, pickles and clones.

        Raises:
            ValueError: A value, such as an activation given as a function, cannot be written as JSON.
        """
        self.config.to_json_string()
        return {
            "config": self.config.to_dict(),
            "data_format": self.data_format,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "layer_states": layer_states(self),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any] | VisionTransformerConfig, custom_objects: Any = None) -> Any:
        """Builds the model of a `get_config`, with its frozen, cast and quantized layers.

        As in transformers, a `DeiTConfig` or `ViTConfig` gives a new model.
        """
        if isinstance(config, VisionTransformerConfig):
            return cls(config)
        values = dict(config)
        states = values.pop("layer_states", {})  # files of earlier versions have none
        values["dtype"] = keras.dtype_policies.deserialize(values["dtype"])
        model = cls(cls.config_class.from_dict(values.pop("config")), **values)
        restore_layer_states(model, states)
        return model

    def get_build_config(self) -> None:
        """Returns None: the constructor builds the model from its configuration."""

    def save_own_variables(self, store: Any) -> None:
        """Writes the adapters into Keras's own files. Keras writes the layers."""
        super().save_own_variables(store)
        save_adapters(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote."""
        super().load_own_variables(without_adapters(store))
        load_adapters(self, store)

    def export(self, filepath: Any, format: str = "tf_saved_model", **options: Any) -> None:
        """Exports for serving, as `keras.Model.export`, also before the first call.

        Args:
            filepath: Path of the export.
            format: See Keras.
            **options: See Keras; `input_signature` is by default any number of images of the trained size.
        """
        if options.get("input_signature") is None:
            options["input_signature"] = [keras.InputSpec(shape=(None, *self.pixel_shape), dtype="float32")]
        super().export(filepath, format=format, **options)

    # --- files ---------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        saved_model: bool = False,
        version: int = 1,
        push_to_hub: bool = False,
        *,
        max_shard_size: int | str = "5GB",
        variant: str | None = None,
        safe_serialization: bool = True,
        **upload: Any,
    ) -> None:
        """Writes `config.json` and the weights into a folder: the same files as the PyTorch class of the same name.

        PyTorch, transformers and Keras can open the folder. Readers see the old files or the new files, never partial
        ones. Removes weight files of earlier calls. Adds adapters to their matrices.

        Args:
            save_directory: Folder, created if missing.
            saved_model: Also write a SavedModel to `saved_model/VERSION`, from pixels to logits; needs the TensorFlow
                backend. See `deit.keras.export` for one that takes images.
            version: Version of the SavedModel.
            push_to_hub: Whether to upload the files of the model.
            max_shard_size: Largest size of a file, such as "5GB" or a number of bytes; larger weights are split.
            variant: Writes `model.VARIANT.safetensors`.
            safe_serialization: Must be True: only PyTorch writes pickles.
            **upload: Arguments of `push_to_hub`; `repo_id` defaults to the name of the folder.

        Raises:
            NotADirectoryError: `save_directory` is a file.
            ValueError: `safe_serialization` is False, or `saved_model` is True on another backend than TensorFlow.
            TypeError: An argument is unknown.
        """
        if not safe_serialization:
            raise UserError("safe_serialization=False would write a PyTorch pickle. Leave it out: safetensors.")
        if upload and not push_to_hub:
            raise WrongTypeError(f"save_pretrained does not know the argument {next(iter(upload))!r}.")
        folder = Path(save_directory)
        save_model(
            self, folder, max_shard_size=max_shard_size, variant=variant, saved_model=saved_model, version=version
        )
        if push_to_hub:
            upload_folder(folder, upload.pop("repo_id", folder.name), files=published_files(folder)[0], **upload)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model",
        commit_description: str = "",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **saving: Any,
    ) -> str:
        """Uploads configuration and weights to the model hub; see `deit.models.pretrained.PreTrainedModel.push_to_hub`.

        Args:
            repo_id: Name on the hub, such as "me/my-deit"; created if missing.
            commit_message: Title of the commit.
            commit_description: Description of the commit.
            private: Whether a new repository is private; None takes the owner's default.
            token: Access token; None takes the one stored by `hf auth login`.
            revision: Existing branch to upload to.
            create_pr: Whether to open a pull request instead of committing.
            **saving: `max_shard_size` and `variant` of `save_pretrained`.

        Returns:
            The URL of the commit.
        """
        return push_model(
            self,
            repo_id,
            saving,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: VisionTransformerConfig | str | os.PathLike[str] | None = None,
        dtype: Any = None,
        data_format: str | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        allow_code: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Opens a model directory, a weight file or a model on the hub, in every dialect that PyTorch's class reads.

        Only `.bin` and `.pth` files need PyTorch. Initializes heads that the file lacks, with a warning that names
        them; any other missing tensor is an error.

        Args:
            pretrained_model_name_or_path: Model directory, as `save_pretrained`, transformers or timm writes it; a
                `.safetensors`, `.bin` or `.pth` file; a name on the hub; a short name of `deit.list_models()`; weights
                that Keras saved (`.weights.h5`, with `config`), or a whole Keras file (`.keras`, see `allow_code`).
            config: Replaces the configuration of the directory or file.
            dtype: Keras dtype policy, such as "mixed_bfloat16"; None takes `keras.config.dtype_policy()`, or the policy
                of a `.keras` file; "auto" takes the dtype of the file.
            data_format: See the class; None takes that of a `.keras` file, else "channels_first".
            ignore_mismatched_sizes: Whether to initialize tensors of another shape (a new number of classes), and to
                resize a position embedding of another image size.
            output_loading_info: Whether to also return a dict of what did not match.
            allow_code: Whether to open a `.keras` file. Such a file describes how Keras builds the model, and can name
                code to run: open only files that you wrote. Keras's safe mode stays on.
            **kwargs: Fields of the configuration that override it; `subfolder`, `variant`, `use_safetensors`;
                `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` (see
                `deit.core.hub.HubOptions`); others go to the constructor.

        Returns:
            The model, or (model, loading info).

        Raises:
            OSError: The folder or a file of it is missing, or the hub cannot be reached.
            TypeError: An argument is unknown.
            ValueError: A file is damaged, may hold code or belongs to another architecture, or shapes differ.
            ModuleNotFoundError: A `.bin` or `.pth` file, and PyTorch is not installed.
        """
        for name in _WITHOUT_EFFECT:
            kwargs.pop(name, None)
        dtype = kwargs.pop("torch_dtype", dtype)
        asked = {
            "config": config,
            "dtype": dtype,
            "data_format": data_format,
            "ignore_mismatched_sizes": ignore_mismatched_sizes,
            "options": kwargs,
        }
        if is_keras_file(pretrained_model_name_or_path):
            model, info = open_keras_file(cls, pretrained_model_name_or_path, allow_code=allow_code, **asked)
        else:
            model, info = open_tensors(cls, pretrained_model_name_or_path, **asked)
        return (model, vars(info)) if output_loading_info else model


def _new_name(class_name: str) -> str:
    """Returns a unique name in Keras's style: `deit_model`, `deit_model_1`."""
    words = torch_class_name(class_name).replace("DeiT", "Deit").replace("ViT", "Vit")
    name = re.sub(r"(?<=.)([A-Z])", r"_\1", words).lower()
    count = keras.backend.get_uid(name)
    return name if count == 1 else f"{name}_{count - 1}"


class TFDeiTPreTrainedModel(KerasPreTrainedModel):
    """Base of all DeiT models in Keras; see `KerasPreTrainedModel`."""

    config_class = DeiTConfig
    base_model_prefix = "deit"


class TFViTPreTrainedModel(KerasPreTrainedModel):
    """Base of all ViT models in Keras; see `KerasPreTrainedModel`."""

    config_class = ViTConfig
    base_model_prefix = "vit"


KerasDeiTPreTrainedModel = TFDeiTPreTrainedModel
KerasViTPreTrainedModel = TFViTPreTrainedModel
