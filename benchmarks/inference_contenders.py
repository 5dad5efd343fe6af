"""The models of `inference.py`: ours and those of other libraries, all with the same weights, as functions to call."""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from inference_models import Size, contract_of, of_timm, of_transformers
from openvino import opset15
from torch import nn

import deit
from deit.inference.graph.classifier_graph import classifier_graph
from deit.inference.graph.onnx_model import to_onnx
from deit.inference.graph.openvino_model import to_openvino

Call = Callable[[], Any]
PATIENCE = 120.0  # seconds for the choice of an engine
PRODUCT_SIDE = 2048
PRODUCT_WORK = 2 * PRODUCT_SIDE**3
TOLERANCE = {"fp32": 1e-3, "bf16": 0.2, "int8": 2.0}
CALIBRATION_IMAGES = 32  # for int8: noise, which is enough for a speed


def contenders(size: Size, folder: Path, batch: int, precision: str, options: argparse.Namespace) -> dict[str, Call]:
    """Returns functions to time, by name; ours begin with "deit". None where the CPU lacks the precision."""
    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return {}
    generator = np.random.default_rng(0)
    pixels = generator.standard_normal((batch, 3, size.side, size.side), dtype=np.float32)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    shape = list(pixels.shape)
    ours = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    contract, peers = contract_of(size), {"transformers": of_transformers(folder), "timm": of_timm(size, folder)}
    graph = classifier_graph(ours, contract)
    lean = to_openvino(graph, contract, batch_size=batch, fast_here=precision == "fp32")
    stock = {
        name: openvino.convert_model(peer, example_input=torch.zeros(shape), input=[shape])
        for name, peer in peers.items()
    }
    functions: dict[str, Call] = {}
    if precision != "int8":
        functions |= _of_pytorch(ours, peers, pixels, precision, options)
        functions["deit default"] = _default(folder, pixels)
    else:
        lean, stock = _int8(lean, shape), {name: _int8(model, shape) for name, model in stock.items()}
    functions["deit OpenVINO"] = in_openvino(lean, pixels, precision, options.threads)
    for name, model in stock.items():
        functions[f"OpenVINO {name}"] = in_openvino(model, pixels, precision, options.threads)
    if precision == "fp32":
        functions["deit ONNX Runtime"] = in_onnxruntime(
            to_onnx(graph, contract, opset=23).SerializeToString(), pixels, options.threads
        )
        functions["ONNX Runtime timm"] = in_onnxruntime(
            _exported(peers["timm"], shape, folder), pixels, options.threads
        )
    with torch.inference_mode():
        expected = ours(torch.from_numpy(pixels)).logits.numpy()
    for name, function in functions.items():
        difference = np.abs(np.asarray(function(), np.float32) - expected).max()
        allowed = TOLERANCE["bf16" if name == "deit default" else precision]
        assert difference < allowed * np.abs(expected).max(), (name, difference)
    return functions


def _of_pytorch(
    ours: Any, peers: dict[str, nn.Module], pixels: Any, precision: str, options: argparse.Namespace
) -> dict[str, Call]:
    import copy

    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    tensor = torch.from_numpy(pixels).to(kind)
    models = {"deit PyTorch": copy.deepcopy(ours).to(kind).pack_weights()}
    models |= {name: copy.deepcopy(peer).to(kind) for name, peer in peers.items()}
    if len(pixels) in options.compile_batches:
        import torch._inductor.config as inductor

        inductor.freezing = True
        torch._dynamo.reset()
        models["timm compiled"] = torch.compile(copy.deepcopy(peers["timm"]).to(kind), dynamic=False)

    def call(model: Any) -> Any:
        with torch.inference_mode():
            output = model(tensor)
        return getattr(output, "logits", output).float().numpy()

    return {name: functools.partial(call, model) for name, model in models.items()}


def _default(folder: Path, pixels: Any) -> Call:
    """What a user gets who names no engine and no precision, after its measurements."""
    engine: Any = deit.Predictor.open(folder).engine
    last = time.monotonic() + PATIENCE
    while not getattr(engine, "is_decided", True) and time.monotonic() < last:
        engine(pixels[:8])
    return lambda: engine(pixels)["both"]


def in_openvino(model: Any, pixels: Any, precision: str, threads: int, **properties: Any) -> Call:
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
        **properties,
    }
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([pixels], share_inputs=True)[0]


def in_onnxruntime(model: bytes | str, pixels: Any, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: pixels})[0]


def _exported(model: nn.Module, shape: list[int], folder: Path) -> str:
    """Returns the file that PyTorch's exporter makes of a model, for batches of any size."""
    path = folder / "peer.onnx"
    if not path.exists():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, *shape[1:]),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(str(path))
    return str(path)


def _int8(model: Any, shape: list[int]) -> Any:
    """Quantizes by NNCF with its settings for transformers, the same for all."""
    import nncf

    generator = np.random.default_rng(1)
    images = [generator.standard_normal(shape, dtype=np.float32) for _ in range(max(CALIBRATION_IMAGES // shape[0], 1))]
    data = nncf.Dataset(images)
    return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))


def products(precision: str, threads: int) -> dict[str, Call]:
    """Returns large matrix products: the best rate of this machine."""
    if precision == "int8":
        return {}
    side = PRODUCT_SIDE
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = np.random.default_rng(0)
    x, weight = (generator.standard_normal((side, side), dtype=np.float32) for _ in range(2))
    tensors = [torch.from_numpy(a).to(kind) for a in (x, weight)]
    rows = opset15.parameter([side, side], openvino.Type.f32)
    product = opset15.matmul(rows, opset15.constant(weight), False, True)
    model = openvino.Model([opset15.result(product)], [rows], "product")
    return {
        "product PyTorch": lambda: nn.functional.linear(*tensors),
        "product OpenVINO": in_openvino(model, x, precision, threads),
    }
