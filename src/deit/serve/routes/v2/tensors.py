"""Reads the input tensor of a v2 request, from JSON or from bytes, and trusts none of its numbers."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import shown
from deit.serve.refusals import Refusal
from deit.serve.routes.v2.bodies import Body, refuse

BYTES, UINT8, FP32 = "BYTES", "UINT8", "FP32"

_LARGEST = 2**31 - 1  # of a dimension
_LARGEST_PIXEL = 1e4  # preprocessing makes -3 to 3, or up to 255; from 65504 on, half precision overflows
_NUMPY: dict[str, Any] = {UINT8: np.uint8, FP32: np.dtype("<f4")}

Images = list[bytes] | npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class InputKind:
    """A tensor that a model takes.

    Attributes:
        name: Its name.
        datatype: Of the protocol.
        shape: With -1 for what the client chooses; the first number is that of the images.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry in the metadata."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may hold at most.

    Attributes:
        images: Number of images.
        pixels: Pixels of one image.
        image_bytes: Bytes of one image file.
    """

    images: int
    pixels: int
    image_bytes: int


def input_kinds(image_size: tuple[int, int] | None, channels: int) -> tuple[InputKind, ...]:
    """Returns the tensors that a model takes, of which a request holds one.

    Args:
        image_size: (height, width) of its pixels; None for any.
        channels: Channels of its pixels.
    """
    return (
        InputKind(name="image", datatype=BYTES, shape=(-1,)),
        InputKind(name="array", datatype=UINT8, shape=(-1, -1, -1, 3)),
        InputKind(name="pixels", datatype=FP32, shape=(-1, channels, *(image_size or (-1, -1)))),
    )


def read_images(body: Body, kinds: Sequence[InputKind], limits: Limits) -> tuple[InputKind, Images]:
    """Returns the images of a request, and which of the tensors they are.

    Returns:
        Image files; or arrays (B, H, W, 3), uint8; or pixels (B, C, H, W), float32, all finite.

    Raises:
        Refusal: They are not what the metadata says, or exceed a limit.
    """
    inputs = body.header.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(one, dict) for one in inputs):
        refuse("bad_inputs", f"inputs must be a list of tensors. Received: {shown(inputs)}.")
    takes = " or ".join(f"{kind.name!r} ({kind.datatype})" for kind in kinds)
    if len(inputs) != 1:
        refuse("bad_inputs", f"A request holds one input: {takes}. Received: {len(inputs)}.")
    (tensor,) = inputs
    kind = next((kind for kind in kinds if kind.name == tensor.get("name")), None)
    if kind is None:
        refuse("unknown_input", f"The model takes the input {takes}. Received: {shown(tensor.get('name'))}.")
    if tensor.get("datatype") != kind.datatype:
        received = shown(tensor.get("datatype"))
        refuse("wrong_datatype", f"The input {kind.name!r} has the datatype {kind.datatype}. Received: {received}.")
    shape = _shape(tensor.get("shape"), kind, limits)
    binary_size = _binary_size(parameters_of(tensor, kind.name), tensor, kind.name)
    if (binary_size or 0) != len(body.binary):
        expected = "no bytes" if binary_size is None else f"{binary_size} bytes"
        refuse("wrong_size", f"The JSON announces {expected} of tensors, but {len(body.binary)} follow it.")
    if kind.datatype == BYTES:
        return kind, _files(tensor, body.binary if binary_size is not None else None, shape, limits)
    return kind, _numbers(tensor, body.binary if binary_size is not None else None, shape, kind)


def parameters_of(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns the parameters of a tensor or request.

    Raises:
        Refusal: They are no object, or ask for shared memory.
    """
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        refuse("bad_parameters", f"The parameters of {name!r} must be an object. Received: {shown(parameters)}.")
    if any(key.startswith("shared_memory") for key in parameters):
        refuse("unsupported", f"{name!r} lies in shared memory, which this server does not read. Send its data.")
    return parameters


def _shape(shape: Any, kind: InputKind, limits: Limits) -> tuple[int, ...]:
    if not isinstance(shape, list) or not 1 <= len(shape) <= 8:
        refuse("wrong_shape", f"The shape of {kind.name!r} must be a list of numbers. Received: {shown(shape)}.")
    if not all(type(size) is int and 1 <= size <= _LARGEST for size in shape):
        refuse("wrong_shape", f"The shape of {kind.name!r} must hold whole numbers above 0. Received: {shown(shape)}.")
    found = tuple(shape)
    if kind.datatype == BYTES and len(found) == 2 and found[1] == 1:  # batches of Triton have a second dimension
        found = found[:1]
    fits = len(found) == len(kind.shape) and all(want in (-1, has) for want, has in zip(kind.shape, found, strict=True))
    if not fits:
        refuse("wrong_shape", f"The shape of {kind.name!r} must be {list(kind.shape)}. Received: {shown(shape)}.")
    if found[0] > limits.images:
        raise Refusal(413, "too_many_images", f"A request holds at most {limits.images} images. Received: {found[0]}.")
    if kind.datatype != BYTES:
        height, width = found[1:3] if kind.datatype == UINT8 else found[2:4]
        if height * width > limits.pixels:
            raise Refusal(
                413, "too_many_pixels", f"An image has at most {limits.pixels} pixels. Received: {shown(shape)}."
            )
    return found


def _binary_size(parameters: Mapping[str, Any], tensor: Mapping[str, Any], name: str) -> int | None:
    """Returns how many bytes after the JSON are the tensor, or None if its data are in the JSON."""
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        refuse("wrong_size", f"binary_data_size of {name!r} must be a number of bytes. Received: {shown(size)}.")
    if tensor.get("data") is not None:
        refuse("wrong_size", f"The input {name!r} has both data and binary_data_size. Send one of them.")
    return size


def _numbers(
    tensor: Mapping[str, Any], binary: memoryview | None, shape: tuple[int, ...], kind: InputKind
) -> npt.NDArray[Any]:
    count = math.prod(shape)
    if binary is None:
        values = _from_json(tensor.get("data"), shape, kind)
    else:
        wanted = count * np.dtype(_NUMPY[kind.datatype]).itemsize
        if len(binary) != wanted:
            refuse("wrong_size", f"{kind.datatype} of shape {list(shape)} has {wanted} bytes. Received: {len(binary)}.")
        values = np.frombuffer(binary, _NUMPY[kind.datatype]).reshape(shape)
    if kind.datatype == FP32 and not np.isfinite(values).all():
        refuse("bad_data", f"The input {kind.name!r} holds NaN or infinity.")
    if kind.datatype == FP32 and np.abs(values).max() > _LARGEST_PIXEL:
        text = "which no preprocessing makes. Send image files, or pixels as the model's own preprocessing makes them."
        refuse("bad_data", f"The input {kind.name!r} holds numbers beyond {_LARGEST_PIXEL:g}, {text}")
    return values.astype(np.float32 if kind.datatype == FP32 else np.uint8, copy=False)


def _from_json(data: Any, shape: tuple[int, ...], kind: InputKind) -> npt.NDArray[Any]:
    """Returns the numbers of nested or flat lists. NumPy sees them only once every one is known to be a number."""
    numbers = _flat(data, shape, kind)
    if kind.datatype == UINT8:
        if set(map(type, numbers)) != {int} or min(numbers) < 0 or max(numbers) > 255:
            refuse(
                "bad_data", f"The data of {kind.name!r} must be whole numbers from 0 to 255. Received: {shown(data)}."
            )
        return np.array(numbers, np.uint8).reshape(shape)
    if not set(map(type, numbers)) <= {int, float}:
        refuse("bad_data", f"The data of {kind.name!r} are not numbers. Received: {shown(data)}.")
    try:
        with np.errstate(over="ignore"):  # infinity is refused later
            return np.array(numbers, np.float64).astype(np.float32).reshape(shape)
    except OverflowError:
        refuse("bad_data", f"The data of {kind.name!r} hold a number that is too large.")


def _flat(data: Any, shape: tuple[int, ...], kind: InputKind) -> list[Any]:
    if not isinstance(data, list):
        refuse("bad_data", f"The data of {kind.name!r} must be a list. Received: {shown(data)}.")
    values, sizes = data, [len(data)]
    while values and len(sizes) < len(shape) and set(map(type, values)) == {list}:
        lengths = set(map(len, values))
        if len(lengths) > 1:
            refuse("bad_data", f"The data of {kind.name!r} are lists of different lengths.")
        sizes.append(lengths.pop())
        values = list(chain.from_iterable(values))
    if len(values) != math.prod(shape) or (len(sizes) > 1 and sizes != list(shape)):
        refuse("wrong_size", f"The shape {list(shape)} has {math.prod(shape)} numbers. Received a list of {sizes}.")
    return values


def _files(tensor: Mapping[str, Any], binary: memoryview | None, shape: tuple[int, ...], limits: Limits) -> list[bytes]:
    files = list(_from_base64(tensor.get("data"), shape) if binary is None else _from_lengths(binary, shape))
    largest = max(map(len, files))
    if largest > limits.image_bytes:
        raise Refusal(413, "image_too_large", f"An image has at most {limits.image_bytes} bytes. Received: {largest}.")
    return files


def _from_lengths(binary: memoryview, shape: tuple[int, ...]) -> Iterator[bytes]:
    """Yields the elements of a BYTES tensor: each has its length before it, 4 bytes, the lowest first."""
    place = 0
    for number in range(shape[0]):
        if place + 4 > len(binary):
            refuse("wrong_size", f"The BYTES tensor ends before element {number} of {shape[0]}.")
        (length,) = struct.unpack_from("<I", binary, place)
        place += 4
        if place + length > len(binary):
            left = len(binary) - place
            refuse("wrong_size", f"Element {number} of the BYTES tensor has {length} bytes, but {left} are left.")
        yield bytes(binary[place : place + length])
        place += length
    if place != len(binary):
        refuse("wrong_size", f"{len(binary) - place} bytes follow the {shape[0]} elements of the BYTES tensor.")


def _from_base64(data: Any, shape: tuple[int, ...]) -> Iterator[bytes]:
    if isinstance(data, list) and all(isinstance(one, list) and len(one) == 1 for one in data):
        data = [one for (one,) in data]
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        refuse("bad_data", f"BYTES in JSON are a list of texts: image files in base64. Received: {shown(data)}.")
    if len(data) != shape[0]:
        refuse("wrong_size", f"The shape {list(shape)} has {shape[0]} elements. Received: {len(data)}.")
    for number, text in enumerate(data):
        try:
            yield base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            refuse("bad_data", f"Element {number} is not base64. Send image files in base64, or as binary tensors.")
