"""What all Keras models share: inputs, loading and saving of model directories, and losses under `fit`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from deit.core.configuration import DeiTConfig, VisionTransformerConfig, ViTConfig
from deit.core.files import replace_folder_content
from deit.core.hub import HubOptions, local_path
from deit.core.loading_plan import LoadingInfo, resolve_config
from deit.core.weight_files import find_weights, is_weight_file_name, number_of_bytes
from deit.models.keras_inputs import DATA_FORMATS, check_backend, check_inputs, labels_to_weight, name_arguments
from deit.models.keras_layer_states import layer_states, restore_layer_states
from deit.models.keras_optimizers import leave_undecayed, undecayed
from deit.models.keras_outputs import KerasModelOutput
from deit.models.keras_vision_transformer import without_initial_values
from deit.models.keras_weights import ArraySource, load_arrays, published_arrays, write_arrays

_KERAS_SUFFIXES = (".keras", ".h5")
# Arguments that are accepted because callers of transformers pass them; they change nothing.
_WITHOUT_EFFECT = ("trust_remote_code", "from_pt", "low_cpu_mem_usage", "device_map", "attn_implementation")


class KerasPreTrainedModel(keras.Model):
    """What all Keras models share: a configuration, loading and saving.

    `TFDeiTPreTrainedModel` and `TFViTPreTrainedModel` are its kinds. All weights exist as soon as it is built.

    Args:
        config: Sizes, rates and labels.
        data_format: Order of the pixels' axes: "channels_first" (B, C, H, W), as in transformers, whatever Keras's own
            setting is; or "channels_last" (B, H, W, C).
        **options: Of `keras.Model`: `name`, `dtype` (a policy such as "mixed_bfloat16"), `trainable`.

    Raises:
        TypeError: `config` is not of the model's class of configuration.
        ValueError: The data format is unknown.
        RuntimeError: KERAS_BACKEND names another backend than the one that runs in this process.
    """

    config_class: ClassVar[type[VisionTransformerConfig]]
    base_model_prefix: ClassVar[str]
    main_input_name = "pixel_values"
    # The arguments of `call` that are tensors, besides pixel_values.
    tensor_arguments: ClassVar[tuple[str, ...]] = ("bool_masked_pos", "head_mask", "labels", "teacher_logits")

    def __init__(self, config: VisionTransformerConfig, *, data_format: str = "channels_first", **options: Any) -> None:
        check_backend()
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} needs a {self.config_class.__name__}. Received: {type(config).__name__}."
            )
        if data_format not in DATA_FORMATS:
            raise ValueError(f"data_format must be 'channels_first' or 'channels_last'. Received: {data_format!r}.")
        config.validate()
        options["name"] = options.get("name") or _new_name(type(self).__name__)
        # Labels and pixels reach the model as they are; its layers convert what they take.
        super().__init__(**{"autocast": False, **options})
        self.config = config
        self.data_format = data_format

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model; see `call`. Wrong inputs are refused here, before Keras converts them."""
        args, kwargs = name_arguments(self.call, args, kwargs)
        args, kwargs = check_inputs(self, args, kwargs)
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the model is built by its constructor."""
        self.built = True

    def network_parts(self) -> dict[str, Any]:
        """Returns the model's parts by their names in the network."""
        raise NotImplementedError

    @property
    def num_labels(self) -> int:
        """Number of classes K."""
        return self.config.num_labels

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Returns the number of parameters.

        Args:
            only_trainable: Leave out those that are frozen.
        """
        variables = self.trainable_variables if only_trainable else self.variables
        return sum(int(np.prod(v.shape)) for v in variables if "seed_generator" not in v.path)

    # --- Keras's own configuration -------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs, as Keras writes it into `.keras` files, pickles and clones.

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
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Builds the model that `get_config` described, with what was frozen, cast or quantized since it was built."""
        values = dict(config)
        states = values.pop("layer_states", {})  # files of earlier versions have none
        values["dtype"] = keras.dtype_policies.deserialize(values["dtype"])
        model = cls(cls.config_class.from_dict(values.pop("config")), **values)
        restore_layer_states(model, states)
        return model

    def get_compile_config(self) -> dict[str, Any]:
        """Returns what the model was compiled with, and what its optimizer does not decay."""
        config = super().get_compile_config()
        plain = undecayed(self) if config else []
        return {**config, "undecayed": plain} if plain else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as `get_compile_config` described."""
        values = dict(config)
        plain = values.pop("undecayed", None)
        if not plain or type(self).compile is not keras.Model.compile:
            super().compile_from_config(values)
            return
        self.compile(**keras.saving.deserialize_keras_object(values))
        leave_undecayed(self, plain)
        self.optimizer.build(self.trainable_variables)

    # --- training ------------------------------------------------------------------------------------

    def fit(self, x: Any = None, y: Any = None, *args: Any, **options: Any) -> Any:
        """Trains as `keras.Model.fit`; weights of samples and classes also act on labels that are in the inputs.

        Raises:
            ValueError: There are weights and no labels.
        """
        weights = {name: options.get(name) for name in ("sample_weight", "class_weight")}
        y = labels_to_weight(x, y, **weights)
        validation = options.get("validation_data")
        if isinstance(validation, (tuple, list)) and len(validation) == 3:
            inputs, labels, weight = validation
            labels = labels_to_weight(inputs, labels, sample_weight=weight, class_weight=None)
            options["validation_data"] = (inputs, labels, weight)
        return super().fit(x, y, *args, **options)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **options: Any) -> Any:
        """Scores as `keras.Model.evaluate`; weights and errors as in `fit`."""
        y = labels_to_weight(x, y, sample_weight=options.get("sample_weight"), class_weight=None)
        return super().evaluate(x, y, *args, **options)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Takes one step as `keras.Model.train_on_batch`; weights and errors as in `fit`."""
        y = labels_to_weight(x, y, sample_weight=sample_weight, class_weight=class_weight)
        return super().train_on_batch(x, y, sample_weight, class_weight, return_dict)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the loss of `fit` and `evaluate`.

        A loss given to `compile` compares `y` with the logits. Without one the model's own is taken: the one that it
        returns when the inputs hold labels (or, to reconstruct, a mask), else the one of its problem type. Weights of
        samples (and of classes, which Keras turns into them) multiply the losses of images before their mean.

        Raises:
            ValueError: There are no labels, or the weights are not one for each image.
        """
        if self._compile_loss is not None or not isinstance(y_pred, KerasModelOutput):
            return super().compute_loss(x, y, _main_output(y, y_pred), sample_weight, training)
        own = y_pred.get("loss")
        if own is None and y is None:
            raise ValueError("There is nothing to learn from. Pass y, or labels beside pixel_values in the inputs.")
        if own is None:
            own = self.loss_of_labels(y_pred, y, sample_weight=sample_weight)
        elif sample_weight is not None:
            own = self.loss_of_inputs(y_pred, x, sample_weight)
        return own + ops.sum(ops.stack([ops.sum(loss) for loss in self.losses])) if self.losses else own

    def loss_of_labels(self, output: KerasModelOutput, labels: Any, *, sample_weight: Any = None) -> Any:
        """Returns the loss of an output by labels, each image with its weight (B,).

        Raises:
            TypeError: The model has no such loss.
        """
        raise TypeError(f"{type(self).__name__} has no loss of its own. Pass loss= to compile.")

    def loss_of_inputs(self, output: KerasModelOutput, inputs: Mapping[str, Any], sample_weight: Any) -> Any:
        """Returns the loss of an output by what is in the inputs beside the pixels, each image with its weight (B,)."""
        return self.loss_of_labels(output, inputs["labels"], sample_weight=sample_weight)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Returns the metrics of `fit` and `evaluate`, which compare `y` with the logits."""
        if y is None and isinstance(x, Mapping):
            y = x.get("labels")
        if y is None and isinstance(y_pred, KerasModelOutput):
            return self.get_metrics_result()
        return super().compute_metrics(x, y, _main_output(y, y_pred), sample_weight)

    def predict_step(self, *args: Any) -> Any:
        """Returns the outputs of one batch without its loss, which `predict` could not join to those of others."""
        result = super().predict_step(*args)
        if isinstance(result, KerasModelOutput):
            return _without_loss(result)
        outputs, *state = result if isinstance(result, tuple) else (result,)
        return (_without_loss(outputs), *state) if state else outputs

    def export(self, filepath: Any, format: str = "tf_saved_model", **options: Any) -> None:
        """Exports for serving, as `keras.Model.export`; the model needs not have been called before.

        Args:
            filepath: Where to write.
            format: See Keras.
            **options: See Keras; `input_signature` is any number of images of the trained size when it is not given.
        """
        config = self.config
        channels, size = (config.num_channels,), config.grid_image_size
        shape = (*channels, *size) if self.data_format == "channels_first" else (*size, *channels)
        if options.get("input_signature") is None:
            options["input_signature"] = [keras.InputSpec(shape=(None, *shape), dtype="float32")]
        super().export(filepath, format=format, **options)

    # --- files ---------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        max_shard_size: int | str = "5GB",
        variant: str | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Writes `config.json` and the weights into a folder, the files that the PyTorch class of the same name writes.

        PyTorch, transformers and Keras can all open it. A reader sees the old files or the new ones, never a part of
        one. Weight files that an earlier call left in the folder are removed.

        Args:
            save_directory: Folder, made if missing.
            max_shard_size: Largest size of a file, such as "5GB" or a number of bytes; more goes to several files.
            variant: Writes `model.VARIANT.safetensors`.
            safe_serialization: Must be True: pickles are written by PyTorch alone.

        Raises:
            NotADirectoryError: There is a file of that name.
            ValueError: `safe_serialization` is False.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a PyTorch pickle. Leave it out: safetensors.")
        folder = Path(save_directory)
        if folder.is_file():
            raise NotADirectoryError(f"{folder} is a file. Pass a folder to save into.")
        config = type(self.config).from_dict(self.config.to_dict())
        config.architectures = [torch_class_name(type(self).__name__)]
        config.dtype = self.variable_dtype
        with replace_folder_content(folder) as temporary:
            config.save_pretrained(temporary)
            most_bytes = number_of_bytes(max_shard_size)
            files = write_arrays(published_arrays(self), temporary, most_bytes=most_bytes, variant=variant)
        for file in folder.iterdir():
            if is_weight_file_name(file.name, variant) and file.name not in files:
                file.unlink()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: VisionTransformerConfig | str | os.PathLike[str] | None = None,
        dtype: Any = None,
        data_format: str = "channels_first",
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        allow_code: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Opens a model directory, a weight file or a model on the hub, in every dialect that PyTorch's class reads.

        PyTorch is not needed, but for `.bin` and `.pth` files. Heads that the file does not hold start anew and are
        named in a warning; any other missing tensor is an error.

        Args:
            pretrained_model_name_or_path: Model directory, as `save_pretrained`, transformers or timm writes it; a
                `.safetensors`, `.bin` or `.pth` file; a name on the hub; a short name of `deit.list_models()`; weights
                that Keras saved (`.weights.h5`, with `config`), or a whole Keras file (`.keras`, see `allow_code`).
            config: Replaces the directory's configuration.
            dtype: Keras's policy, such as "mixed_bfloat16"; None takes `keras.config.dtype_policy()`, "auto" the type
                of the file.
            data_format: See the class.
            ignore_mismatched_sizes: Let tensors of another shape (a new number of classes) start anew, and a position
                embedding of another image size be resized.
            output_loading_info: Also return what did not match, as a dict.
            allow_code: Whether a `.keras` file may be opened. It is a description that Keras follows when it builds the
                model, which can name code to run: open only what you wrote yourself. Keras's safe mode stays on.
            **kwargs: Fields of the configuration that override it; `subfolder`, `variant`, `use_safetensors`;
                `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` (see
                `deit.core.hub.HubOptions`); others are passed to the constructor.

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
        if str(pretrained_model_name_or_path).endswith(_KERAS_SUFFIXES):
            return cls._from_keras_file(
                Path(pretrained_model_name_or_path), config, allow_code, dtype=dtype, data_format=data_format, **kwargs
            )
        model, info = cls._from_tensors(
            pretrained_model_name_or_path, config, dtype, data_format, ignore_mismatched_sizes, kwargs
        )
        return (model, vars(info)) if output_loading_info else model

    @classmethod
    def _from_tensors(
        cls,
        name_or_path: str | os.PathLike[str],
        config: Any,
        dtype: Any,
        data_format: str,
        ignore_mismatched_sizes: bool,
        kwargs: dict[str, Any],
    ) -> tuple[Any, LoadingInfo]:
        files = {name: kwargs.pop(name) for name in ("variant", "use_safetensors") if name in kwargs}
        subfolder, hub = kwargs.pop("subfolder", None) or "", HubOptions.take_from(kwargs)
        path = local_path(name_or_path, options=hub, subfolder=subfolder, **files)
        weights = find_weights(path, **files)
        tensors = ArraySource(weights)
        config, kwargs = resolve_config(
            cls.config_class, config, kwargs, path=path, shapes=tensors.shapes, source=weights.main
        )
        dtype = tensors.main_dtype() if dtype == "auto" else dtype
        with without_initial_values():
            model = cls._build(config, dtype=dtype, data_format=data_format, **kwargs)
        info = load_arrays(model, tensors, ignore_mismatched_sizes=ignore_mismatched_sizes, source=weights.main)
        return model, info

    @classmethod
    def _build(cls, config: Any, **kwargs: Any) -> Any:
        try:
            return cls(config, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__} does not know an argument: {error}.") from error
        except ValueError as error:
            if "keyword arguments" in str(error):  # Keras's word for it
                raise TypeError(f"{cls.__name__} does not know an argument: {error}.") from error
            raise

    @classmethod
    def _from_keras_file(cls, file: Path, config: Any, allow_code: bool, **kwargs: Any) -> Any:
        if not file.is_file():
            raise FileNotFoundError(f"No Keras file at {file}.")
        if file.name.endswith(".weights.h5"):
            if config is None:
                raise ValueError(f"{file.name} holds weights alone. Pass config=, or save with save_pretrained.")
            if isinstance(config, (str, os.PathLike)):
                config = cls.config_class.from_pretrained(config)
            model = cls._build(config, **kwargs)
            model.load_weights(file)
            return model
        if file.suffix == ".h5":
            raise ValueError(f"{file.name} is not read: it may hold code. Save weights as .weights.h5 or safetensors.")
        if not allow_code:
            raise ValueError(
                f"{file.name} is a whole Keras file, which can carry code. Pass allow_code=True if you wrote it "
                "yourself, or use a model directory (save_pretrained) or weights (.weights.h5)."
            )
        model = keras.saving.load_model(file, safe_mode=True)
        if not isinstance(model, cls):
            raise ValueError(f"{file.name} holds a {type(model).__name__}, not a {cls.__name__}.")
        return model


def torch_class_name(name: str) -> str:
    """Returns the name of the PyTorch class that a Keras class stands for: `TFDeiTModel` -> `DeiTModel`."""
    return name.removeprefix("TF").removeprefix("Keras")


def _new_name(class_name: str) -> str:
    """Returns a name as Keras gives it to layers, one for each model: `deit_model`, `deit_model_1`."""
    words = torch_class_name(class_name).replace("DeiT", "Deit").replace("ViT", "Vit")
    name = re.sub(r"(?<=.)([A-Z])", r"_\1", words).lower()
    count = keras.backend.get_uid(name)
    return name if count == 1 else f"{name}_{count - 1}"


def _main_output(y: Any, y_pred: Any) -> Any:
    """Returns what a loss compares with `y`: the logits, unless `y` names the outputs it is for."""
    if not isinstance(y_pred, KerasModelOutput) or isinstance(y, Mapping):
        return y_pred
    for name in ("logits", "reconstruction", "pooler_output", "last_hidden_state"):
        if name in y_pred:
            return y_pred[name]
    return y_pred


def _without_loss(output: Any) -> Any:
    if not isinstance(output, KerasModelOutput) or "loss" not in output:
        return output
    return type(output)(**{name: value for name, value in output.items() if name != "loss"})


class TFDeiTPreTrainedModel(KerasPreTrainedModel):
    """What all DeiT models in Keras share; see `KerasPreTrainedModel`."""

    config_class = DeiTConfig
    base_model_prefix = "deit"


class TFViTPreTrainedModel(KerasPreTrainedModel):
    """What all ViT models in Keras share; see `KerasPreTrainedModel`."""

    config_class = ViTConfig
    base_model_prefix = "vit"


KerasDeiTPreTrainedModel = TFDeiTPreTrainedModel
KerasViTPreTrainedModel = TFViTPreTrainedModel
