"""Writes the answer to a v2 request: which tensors were asked for, in JSON or as bytes behind it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import shown
from deit.serve.routes.v2.bodies import refuse
from deit.serve.routes.v2.tensors import BYTES, FP32, parameters_of

SCORES, LOGITS, LABELS = OUTPUTS = "scores", "logits", "labels"

Values = npt.NDArray[np.float32] | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An output that a request asks for.

    Attributes:
        name: Its name.
        binary: Whether it comes as bytes.
        best: Of the classification extension: this many classes as texts "value:number:name"; 0 for the tensor itself.
    """

    name: str
    binary: bool = False
    best: int = 0


def output_kinds(num_classes: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the outputs of a model as its metadata name them."""
    known = {
        SCORES: {"name": SCORES, "datatype": FP32, "shape": [-1, num_classes]},
        LOGITS: {"name": LOGITS, "datatype": FP32, "shape": [-1, num_classes]},
        LABELS: {"name": LABELS, "datatype": BYTES, "shape": [-1]},
    }
    return [known[name] for name in names]


def wanted_outputs(header: Mapping[str, Any], names: Sequence[str]) -> list[Wanted]:
    """Returns what a request asks for: everything, unless it names outputs.

    Args:
        header: The JSON of the request.
        names: Outputs of the model.

    Raises:
        Refusal: It asks for something else.
    """
    binary = _flag(parameters_of(header, "the request"), "binary_data_output", False)
    outputs = header.get("outputs")
    if outputs is None or outputs == []:
        return [Wanted(name=name, binary=binary) for name in names]
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        refuse("bad_outputs", f"outputs must be a list of objects. Received: {shown(outputs)}.")
    wanted = [_wanted(output, names, binary) for output in outputs]
    if len({one.name for one in wanted}) < len(wanted):
        refuse("bad_outputs", "The request names an output twice.")
    return wanted


def _wanted(output: Mapping[str, Any], names: Sequence[str], binary: bool) -> Wanted:
    name = output.get("name")
    if not isinstance(name, str) or name not in names:
        refuse("unknown_output", f"The outputs of the model are {', '.join(names)}. Received: {shown(name)}.")
    parameters = parameters_of(output, name)
    best = parameters.get("classification", 0)
    if type(best) is not int or best < 0 or (best and name == LABELS):
        refuse(
            "bad_outputs",
            f"classification must be a number of classes, of {SCORES} or {LOGITS}. Received: {shown(best)} of {name}.",
        )
    return Wanted(name=name, binary=_flag(parameters, "binary_data", binary), best=best)


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        refuse("bad_parameters", f"{name} must be true or false. Received: {shown(value)}.")
    return value


def written(
    head: Mapping[str, Any], wanted: Sequence[Wanted], values: Mapping[str, Values], class_names: Sequence[str]
) -> tuple[bytes, int | None]:
    """Returns the body of an answer, and how many bytes of it are JSON if others follow.

    Args:
        head: Model, version and number of the request.
        wanted: Outputs in their order.
        values: Of each: (B, K) numbers, or B names of classes.
        class_names: The K names.
    """
    outputs, tail = [], []
    for one in wanted:
        tensor: Values | npt.NDArray[np.object_] = values[one.name]
        if one.best:
            tensor = best_classes(np.asarray(tensor, np.float32), class_names, one.best)
        texts = not isinstance(tensor, np.ndarray) or tensor.dtype.kind != "f"
        array = np.asarray(tensor, object if texts else np.dtype("<f4"))
        output: dict[str, Any] = {"name": one.name, "datatype": BYTES if texts else FP32, "shape": list(array.shape)}
        flat = array.ravel().tolist()
        if one.binary:
            content = b"".join(map(_with_length, flat)) if texts else array.tobytes()
            output["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        else:
            output["data"] = flat
        outputs.append(output)
    header = json.dumps({**head, "outputs": outputs}, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([header, *tail]), len(header) if tail else None


def best_classes(values: npt.NDArray[np.float32], class_names: Sequence[str], best: int) -> npt.NDArray[np.object_]:
    """Returns the classes with the highest values as the classification extension writes them, (B, best)."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :best]
    rows = [[f"{row[k]:f}:{k}:{class_names[k]}" for k in ks] for row, ks in zip(values, order, strict=True)]
    return np.array(rows, object)


def _with_length(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<I", len(content)) + content
