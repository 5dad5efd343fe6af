"""The models of `inference.py`: ours and those of other libraries, all with the same weights, as functions to call."""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import timm
import torch
import transformers
from openvino import opset15
from torch import nn

import deit
from deit.inference.contract import Contract
from deit.inference.graph.classifier_graph import classifier_graph
from deit.inference.graph.onnx_model import to_onnx
from deit.inference.graph.openvino_model import to_openvino

Call = Callable[[], Any]
PATIENCE = 120.0  # seconds for the choice of an engine
PRODUCT_SIDE = 2048
PRODUCT_WORK = 2 * PRODUCT_SIDE**3
TOLERANCE = {"fp32": 1e-3, "bf16": 0.2, "int8": 2.0}
CALIBRATION_IMAGES = 32  # for int8: noise, which is enough for a speed


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a distilled model.

    Attributes:
        name: As in the published models' names.
        width: Embedding dimension D.
        heads: Attention heads of a block.
        depth: Blocks.
        side: Pixels of an image's side.
        patch: Pixels of a patch's side.
        classes: Number of classes.
    """

    name: str
    width: int
    heads: int
    depth: int = 12
    side: int = 224
    patch: int = 16
    classes: int = 1000

    @staticmethod
    def named(name: str) -> Size:
        """Returns the size of a published model; "test" is one for tests."""
        if name == "test":
            return Size(name=name, width=32, heads=2, depth=2, side=32, patch=8, classes=5)
        width, heads = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}[name]
        return Size(name=name, width=width, heads=heads)


def useful_work(size: Size) -> float:
    """Returns the multiplications and additions that our graph does for an image."""
    patches, width = (size.side // size.patch) ** 2, size.width
    tokens = patches + 2
    whole = 24 * tokens * width**2 + 4 * tokens**2 * width
    last = 2 * (24 * width**2 + 4 * size.heads * tokens * width)  # two tokens, no keys and values
    return 2 * patches * width * 3 * size.patch**2 + (size.depth - 1) * whole + last + 4 * width * size.classes


def write_model(size: Size, folder: Path) -> None:
    """Writes a model directory with random weights that are far from degenerate."""
    torch.manual_seed(0)
    config = deit.DeiTConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        image_size=size.side,
        patch_size=size.patch,
        num_labels=size.classes,
        layer_norm_eps=1e-6,
    )
    model = deit.DeiTForImageClassificationWithTeacher(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.save_pretrained(folder)
    deit.DeiTImageProcessor(size=size.side, crop_size=size.side).save_pretrained(folder)


class Logits(nn.Module):
    """A model of transformers as a function from pixels to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels).logits


def of_transformers(folder: Path) -> nn.Module:
    return Logits(transformers.DeiTForImageClassificationWithTeacher.from_pretrained(folder).eval())


def of_timm(size: Size, folder: Path) -> nn.Module:
    model = timm.create_model(
        "deit_base_distilled_patch16_224",
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        img_size=size.side,
        patch_size=size.patch,
        num_classes=size.classes,
    )
    ours = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder).state_dict()
    names = {"cls_classifier": "head", "distillation_classifier": "head_dist"}
    state = {}
    for name, tensor in ours.items():
        part, _, rest = name.partition(".")
        state[f"{names[part]}.{rest}" if part in names else name.removeprefix("deit.trunk.")] = tensor
    model.load_state_dict(state)
    return model.eval()


def contract_of(size: Size) -> Contract:
    return Contract(
        processor=deit.DeiTImageProcessor(size=size.side, crop_size=size.side),
        label_names=[str(i) for i in range(size.classes)],
        head_names=("both", "class", "distillation"),
        image_size=(size.side, size.side),
    )


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
