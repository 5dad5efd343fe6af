"""Reads and writes the weights of a Keras model as named tensors of the network.

Keras stores the matrix of a linear layer transposed relative to the files; only this module transposes it. The table in
`deit.core.weights.names` translates names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
from keras import ops
from safetensors.numpy import save_file

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.core.file_names import WEIGHTS_NAME
from deit.core.weights.files import TensorEntry, WeightFiles, read_header, write_in_files
from deit.core.weights.names import Part, detect_dialect, layout
from deit.core.weights.plan import LoadingInfo, plan_loading, refuse_missing_trunk
from deit.keras.layers import FileConvolution
from deit.keras.pickled_weights import read_pickles
from deit.keras.position_embedding import resize_position_embedding

logger = logging.getLogger(__name__)

_NUMPY_TYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
    "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
}  # fmt: skip
_FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


# --- the tensors of a model ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A tensor of the network and the Keras variable that holds it.

    Attributes:
        variable: The variable.
        shape: Shape in files.
        transposed: Whether the variable is a matrix (inputs, outputs), in files (outputs, inputs, ...).
        layer: The linear layer of the matrix, if it is quantized or has adapters: the effective matrix then differs
            from the variable.
    """

    variable: Any
    shape: tuple[int, ...]
    transposed: bool = False
    layer: keras.layers.Dense | None = None

    def value(self) -> np.ndarray:
        """Returns the tensor in the layout of files: the effective matrix, with adapters, dequantized."""
        value = ops.convert_to_numpy(self.variable.value) if self.layer is None else _matrix(self.layer)
        value = np.asarray(value)
        return np.ascontiguousarray(value.T if self.transposed else value).reshape(self.shape)

    def assign(self, tensor: np.ndarray) -> None:
        """Sets the variable to a tensor in the layout of files.

        Raises:
            ValueError: The variable holds the integers of a quantized layer.
        """
        if "int" in keras.backend.standardize_dtype(self.variable.dtype):
            raise UserError(
                "A quantized layer cannot take weights of a file. Open the model in floating point, then call "
                "model.quantize(...)."
            )
        if self.transposed:
            tensor = tensor.reshape(tensor.shape[0], -1).T
        kind = keras.backend.standardize_dtype(self.variable.dtype)
        kind = ml_dtypes.bfloat16 if kind == "bfloat16" else kind
        self.variable.assign(np.ascontiguousarray(tensor, dtype=kind).reshape(tuple(self.variable.shape)))

    def draw(self, std: float) -> None:
        """Initializes the variable: normal values for matrices, zeros otherwise."""
        start = keras.initializers.RandomNormal(stddev=std) if self.transposed else keras.initializers.Zeros()
        self.variable.assign(start(tuple(self.variable.shape), dtype=self.variable.dtype))


def network_slots(layer: Any, prefix: str = "") -> dict[str, Slot]:
    """Returns every tensor of a layer by its name in the network, such as `trunk.blocks.0.attn.qkv.weight`.

    Args:
        layer: A model or layer of this package, which lists its parts in `network_parts`; or a layer of Keras.
        prefix: Prefix of the names.
    """
    if layer is None:
        return {}
    if isinstance(layer, FileConvolution):
        return _convolution_slots(layer, prefix)
    if isinstance(layer, keras.layers.Dense):
        weight = _matrix_slot(layer, (layer.units, layer.input_spec.axes[-1]))
        return {f"{prefix}weight": weight, **({} if layer.bias is None else {f"{prefix}bias": _plain(layer.bias)})}
    if isinstance(layer, keras.layers.LayerNormalization):
        return {f"{prefix}weight": _plain(layer.gamma), f"{prefix}bias": _plain(layer.beta)}
    if isinstance(layer, keras.Variable):
        return {prefix.rstrip("."): _plain(layer)}
    slots = {}
    for name, part in layer.network_parts().items():
        slots.update(network_slots(part, f"{prefix}{name}."))
    return slots


def _convolution_slots(part: FileConvolution, prefix: str) -> dict[str, Slot]:
    layer, (height, width) = part.layer, part.kernel_size
    shape = (layer.units, layer.input_spec.axes[-1] // (height * width), height, width)
    return {f"{prefix}weight": _matrix_slot(layer, shape), f"{prefix}bias": _plain(layer.bias)}


def _matrix_slot(layer: keras.layers.Dense, shape: tuple[int, ...]) -> Slot:
    # With adapters or packed integers, `layer.kernel` is not the variable.
    changed = layer.quantization_mode is not None or layer.lora_enabled
    return Slot(variable=layer._kernel, shape=shape, transposed=True, layer=layer if changed else None)


def _matrix(layer: keras.layers.Dense) -> np.ndarray:
    """Returns the effective matrix of a quantized or adapted linear layer, (inputs, outputs)."""
    inputs = layer.input_spec.axes[-1]
    if layer.quantization_mode in (None, "float8"):  # the matrix is stored in full precision
        matrix = np.asarray(ops.convert_to_numpy(layer._kernel.value))
        if layer.lora_enabled:
            low, high = (np.asarray(ops.convert_to_numpy(v.value)) for v in (layer.lora_kernel_a, layer.lora_kernel_b))
            matrix = matrix + (layer.lora_alpha / layer.lora_rank) * (low @ high)
    else:  # rows of the unit matrix lose nothing when they are quantized, so the answers are the matrix
        rows = [ops.zeros((1, inputs), layer.compute_dtype), ops.eye(inputs, dtype=layer.compute_dtype)]
        bias, matrix = (np.asarray(ops.convert_to_numpy(layer(x, training=False)), dtype=np.float64) for x in rows)
        matrix = matrix - bias
    kind = layer.variable_dtype
    return matrix.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)


def _plain(variable: Any) -> Slot:
    return Slot(variable=variable, shape=tuple(variable.shape))


# --- reading ------------------------------------------------------------------------------------------


class ArraySource:
    """Tensors of weight files as NumPy arrays. Safetensors files are memory-mapped and read on access.

    Args:
        weights: The files. Pickles (`.bin`, `.pth`) need PyTorch, which reads them as data.

    Raises:
        ValueError: A file is truncated or damaged, holds code, or lacks a tensor of the index.
        ModuleNotFoundError: The files are pickles and PyTorch is not installed.
    """

    def __init__(self, weights: WeightFiles) -> None:
        self._entries: dict[str, TensorEntry] = {}
        self._arrays: dict[str, np.ndarray] = {}
        if weights.pickled:
            self._arrays = read_pickles(weights)
            self.shapes = {name: tuple(array.shape) for name, array in self._arrays.items()}
            return
        for file in weights.files:
            self._entries.update(read_header(file))
        if weights.index is not None:
            lost = [name for name, file in weights.index.items() if self._entries.get(name, _NOWHERE).file != file]
            if lost:
                raise UserError(f"{weights.main} says that {lost[0]!r} is in a file that does not hold it.")
            self._entries = {name: self._entries[name] for name in weights.index}
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor.

        Raises:
            ValueError: NumPy has no such dtype.
        """
        if name in self._arrays:
            return self._arrays[name]
        entry = self._entries[name]
        if entry.dtype not in _NUMPY_TYPES:
            raise UserError(f"{entry.file} holds {name!r} as {entry.dtype}, which cannot be read. Convert it.")
        kind = np.dtype(_NUMPY_TYPES[entry.dtype])
        if not entry.size:
            return np.zeros(entry.shape, dtype=kind)
        return np.memmap(entry.file, dtype=kind, mode="r", offset=entry.offset, shape=entry.shape or (1,)).reshape(
            entry.shape
        )

    def main_dtype(self) -> str:
        """Returns the floating dtype of most numbers."""
        counts: dict[str, int] = {}
        for entry in self._entries.values():
            if entry.dtype in _FLOATING:
                counts[entry.dtype] = counts.get(entry.dtype, 0) + entry.size
        for array in self._arrays.values():
            kind = {"float64": "F64", "float16": "F16", "bfloat16": "BF16"}.get(array.dtype.name, "F32")
            counts[kind] = counts.get(kind, 0) + array.nbytes
        return _FLOATING[max(counts, key=lambda kind: counts[kind])] if counts else "float32"


_NOWHERE = TensorEntry(file=Path(), dtype="", shape=(), offset=0, size=0)


@dataclass(frozen=True)
class ArraysInMemory:
    """Tensors in memory, with the methods of `ArraySource`.

    Attributes:
        arrays: Name -> tensor.
    """

    arrays: Mapping[str, np.ndarray]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: tuple(array.shape) for name, array in self.arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor."""
        return self.arrays[name]


def load_arrays(
    model: Any,
    tensors: ArraySource | ArraysInMemory,
    *,
    ignore_mismatched_sizes: bool = False,
    source: object = "the checkpoint",
) -> LoadingInfo:
    """Copies tensors of any dialect into a model.

    Args:
        model: Receives the values.
        tensors: Source of the values.
        ignore_mismatched_sizes: See `from_pretrained`.
        source: Name of the source in messages.

    Raises:
        ValueError: A tensor other than a head is missing, or shapes differ.
    """
    slots = network_slots(model)
    dialect = detect_dialect(tensors.shapes)
    plan = plan_loading(tensors.shapes, slots, base_prefix=f"{model.base_model_prefix}.", dialect=dialect)
    refuse_missing_trunk(plan.missing, type(model).__name__, source)
    mismatched = _mismatched(plan.found, slots, tensors.shapes)
    if mismatched and not ignore_mismatched_sizes:
        shown = "; ".join(f"{n}: {a} in the file, {b} in the model" for n, a, b in mismatched[:3])
        raise UserError(
            f"{len(mismatched)} tensors of {source} have another shape than the model's ({shown}). Pass "
            "ignore_mismatched_sizes=True to resize the position embedding and start the others anew."
        )
    anew = [part.name for part in plan.missing.values()]
    for name, _, _ in list(mismatched):
        part = plan.found.pop(name)
        resized = _resized_positions(model.config, tensors, name, part)
        if resized is None:
            anew.append(part.name)
        else:
            slots[part.name].assign(resized)
            mismatched = [row for row in mismatched if row[0] != name]
            logger.warning("%s: the position embedding of %s is resized.", type(model).__name__, source)
    for name in dict.fromkeys(anew):
        slots[name].draw(model.config.initializer_range)
    _fill(slots, plan.found, tensors)
    missing = list(plan.missing)
    for text, keys in (("start anew", missing + [m[0] for m in mismatched]), ("are not used", plan.unexpected)):
        if keys:
            logger.warning("%s: of %s, these tensors %s: %s", type(model).__name__, source, text, ", ".join(keys))
    return LoadingInfo(missing_keys=missing, unexpected_keys=plan.unexpected, mismatched_keys=mismatched)


def _fill(slots: Mapping[str, Slot], found: Mapping[str, Part], tensors: ArraySource | ArraysInMemory) -> None:
    pieces: dict[str, dict[int, str]] = {}
    for name, part in found.items():
        pieces.setdefault(part.name, {})[part.index] = name
    for own, names in pieces.items():
        arrays = [tensors.read(names[index]) for index in sorted(names)]
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        if np.issubdtype(whole.dtype, np.floating) and not np.isfinite(whole).all():
            logger.warning("The weights hold NaN or infinity in %r: outputs of the model will be NaN.", own)
        slots[own].assign(whole)


def _mismatched(
    found: Mapping[str, Part], slots: Mapping[str, Slot], shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    rows = []
    for name, part in found.items():
        whole = slots[part.name].shape
        expected = (whole[0] // part.count, *whole[1:]) if part.count > 1 else whole
        if tuple(shapes[name]) != expected:
            rows.append((name, tuple(shapes[name]), expected))
    return rows


def _resized_positions(
    config: VisionTransformerConfig, tensors: ArraySource | ArraysInMemory, name: str, part: Part
) -> np.ndarray | None:
    """Returns the position embedding resized to the model's grid, or None if it cannot be resized."""
    if not part.name.endswith("trunk.pos_embed"):
        return None
    prefix = config.num_prefix_tokens if config.pos_embed_prefix else 0
    _, count, width = tensors.shapes[name]
    side = round(max(count - prefix, 0) ** 0.5)
    if side < 1 or side**2 != count - prefix or width != config.hidden_size:
        return None
    positions = np.asarray(tensors.read(name), dtype=np.float32)
    resized = resize_position_embedding(
        ops.convert_to_tensor(positions), (side, side), config.grid_size, num_prefix_positions=prefix
    )
    return np.asarray(ops.convert_to_numpy(resized))


# --- writing ------------------------------------------------------------------------------------------


def published_arrays(model: Any) -> dict[str, np.ndarray]:
    """Returns the weights of a model by their published names, with separate query, key and value."""
    slots = network_slots(model)
    values = {name: slot.value() for name, slot in slots.items()}
    arrays = {}
    for name, part in layout(values).items():
        whole = values[part.name]
        arrays[name] = np.split(whole, part.count)[part.index] if part.count > 1 else whole
    return arrays


def write_arrays(
    tensors: Mapping[str, np.ndarray], folder: Path, *, most_bytes: int, variant: str | None = None
) -> list[str]:
    """Writes weights as safetensors; see `write_in_files`."""
    return write_in_files(tensors, folder, _write, name=WEIGHTS_NAME, most_bytes=most_bytes, variant=variant)


def _write(tensors: dict[str, np.ndarray], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})
