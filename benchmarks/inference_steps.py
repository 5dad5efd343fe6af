"""Each step of the rewriting alone, for `inference.py --steps`: our graph in OpenVINO with that one step taken back.

Where a step leaves work out, the work is put back with numbers that change the answers: only its time matters. Also the
profile of our graph, for `--profile`.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import openvino
import torch
from harness import compare, take_turns
from inference_contenders import in_openvino
from inference_models import Size, contract_of, write_model
from torch import Tensor

import deit
from deit.inference.graph.classifier_graph import classifier_graph
from deit.inference.graph.lean_classifier import LeanBlock, LeanClassifier
from deit.inference.graph.openvino_model import _OpenVINOOperations, to_openvino
from deit.inference.graph.operations import Mlp

Operations = _OpenVINOOperations


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class AffineNorms(Operations):
    """With weight and bias after each norm."""

    def normalize(self, x: Any, width: int, epsilon: float) -> Any:
        normed = super().normalize(x, width, epsilon)
        scaled = self.opset.multiply(normed, self._constant(numbers(1, 1, width))).output(0)
        return self.add(scaled, numbers(1, 1, width))


class AllBiases(Operations):
    """With the biases of keys and values."""

    def linear(self, x: Any, weight: Tensor, bias: Tensor | None) -> Any:
        return super().linear(x, weight, numbers(weight.shape[0]) if bias is None else bias)


class ScaledScores(Operations):
    """With a scale of the scores."""

    def attend(self, query: Any, key: Any, value: Any, heads: int) -> Any:
        query = self.opset.multiply(query, self._constant(torch.tensor(0.125))).output(0)
        return super().attend(query, key, value, heads)


class TokensApart(Operations):
    """Tokens and positions joined and added one after the other."""

    def put_in_front(self, x: Any, count: int) -> Any:
        width = x.get_partial_shape()[2].get_length()
        batch = self.opset.gather(self.opset.shape_of(x), self._whole(0), self._whole_number(0))
        shape = self.opset.concat([batch, self._whole(1, width)], 0)
        tokens = [self.opset.broadcast(self._constant(numbers(1, 1, width)), shape) for _ in range(count)]
        joined = self.opset.concat([*tokens, self.add(x, numbers(1, 1, width))], 1).output(0)
        return joined


class KeysAndValues(Operations):
    """The last block with keys and values of all tokens."""

    def attend_of_few(self, query: Any, x: Any, key_weight: Tensor, value_weight: Tensor) -> Any:
        heads, inner, _ = key_weight.shape
        key, value = (self.linear(x, weight.flatten(0, 1), None) for weight in (key_weight, value_weight))
        parts = []
        for part in (query, key, value):
            tokens = part.get_partial_shape()[1].get_length()
            parts.append(self._swap(self._shaped(part, 0, tokens, heads, inner), 0, 2, 1, 3))
        no_mask, scale = (self._constant(torch.tensor(number)) for number in (0.0, 1.0))
        mixed = self.opset.scaled_dot_product_attention(*parts, no_mask, scale)
        tokens = query.get_partial_shape()[1].get_length()
        return self._shaped(self._swap(mixed, 0, 2, 1, 3), 0, tokens, heads * inner)


class Convolution(Operations):
    """Patches by a convolution."""

    def cut_in_patches(self, pixels: Any, weight: Tensor, grid: tuple[int, int]) -> Any:
        size, width = list(weight.shape[2:]), weight.shape[0]
        node = self.opset.convolution(pixels, self._constant(weight), size, [0, 0], [0, 0], [1, 1])
        return self._swap(self._shaped(node.output(0), 0, width, grid[0] * grid[1]), 0, 2, 1)


class JoinedGelu(Operations):
    """GELU joined to the product before it, as OpenVINO does."""

    def feed_forward(self, x: Any, layers: Mlp) -> Any:
        self.separates_gelu = False
        return super().feed_forward(x, layers)


class HeadsApart(Operations):
    """A product for each head."""

    def linear_heads(self, x: Any, weight: Tensor, bias: Tensor) -> Any:
        parts = []
        for i in range(len(weight)):
            token = self.opset.gather(x, self._whole_number(i), self._whole_number(1)).output(0)
            product = self.add(self._product(token, self._constant(weight[i])), bias[i])
            parts.append(self.opset.unsqueeze(product, self._whole(0)).output(0))
        return self.opset.concat(parts, 0).output(0)


class LayerScales(Operations):
    """With a scale after each residual branch, as in DeiT III."""

    def add(self, x: Any, y: Any) -> Any:
        if not isinstance(y, Tensor) and y.get_partial_shape().rank.get_length() == 3:
            y = self.opset.multiply(y, self._constant(numbers(1, 1, y.get_partial_shape()[2].get_length()))).output(0)
        return super().add(x, y)


STEPS: dict[str, type[Operations]] = {
    "weights of norms folded": AffineNorms,
    "biases of keys and values folded": AllBiases,
    "scale of scores folded": ScaledScores,
    "layer scale folded (DeiT III)": LayerScales,
    "tokens and positions added once": TokensApart,
    "last block without keys and values": KeysAndValues,
    "heads in one product": HeadsApart,
    "patches by a product": Convolution,
    "GELU apart (without AVX-512)": JoinedGelu,
}


_run = LeanBlock.run


def run_for_all_tokens(block: LeanBlock, ops: Any, x: Any, count: int | None) -> Any:
    """Computes the last block for all tokens, and leaves the rest out after it."""
    whole = _run(block, ops, x, None)
    return whole if count is None else ops.first(whole, count)


def graphs_without_steps(graph: LeanClassifier, contract: Any, batch: int) -> dict[str, Any]:
    """Returns OpenVINO models: the whole rewriting, and for each step one without it."""
    convert = partial(to_openvino, graph, contract, batch_size=batch, fast_here=True)
    models = {"deit": convert()}
    for name, operations in STEPS.items():
        with mock.patch("deit.inference.graph.openvino_model._OpenVINOOperations", operations):
            models[name] = convert()
    with mock.patch.object(LeanBlock, "run", run_for_all_tokens):
        models["last block for prefix tokens"] = convert()
    return models


def measure_steps(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Returns for each step how many times as long our graph takes without it."""
    size = Size.named(options.models[0])
    write_model(size, folder)
    contract, model = contract_of(size), deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    graph = classifier_graph(model, contract)
    assert isinstance(graph, LeanClassifier)
    rows = []
    for batch in options.batches:
        pixels = np.random.default_rng(0).standard_normal((batch, 3, size.side, size.side), dtype=np.float32)
        models = graphs_without_steps(graph, contract, batch)
        functions = {name: in_openvino(model, pixels, "fp32", options.threads) for name, model in models.items()}
        functions["normalizing folded"] = _normalizing(models["deit"], pixels, options.threads)
        spent = sum(seconds[0] for seconds in take_turns(functions, rounds=1, warm_up=1).values())
        seconds = take_turns(functions, rounds=min(max(int(options.seconds / spent), 3), 30), warm_up=0)
        ratios = {name.removesuffix(" / deit"): value for name, value in compare(seconds).items() if "/" in name}
        rows.append({"model": size.name, "batch": batch, **ratios})
    return rows


def _normalizing(model: Any, pixels: Any, threads: int) -> Callable[[], Any]:
    """Normalizes integers in a step of its own, by numpy, as the image processor does."""
    call, images = in_openvino(model, pixels, "fp32", threads), (np.abs(pixels) * 60).astype(np.uint8)

    def normalized() -> Any:
        np.copyto(pixels, (images * np.float32(1 / 255) - np.float32(0.5)) / np.float32(0.5))
        return call()

    return normalized


def profile(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Returns the milliseconds that OpenVINO spends in each kind of operation of our graph, in the fastest call."""
    size = Size.named(options.models[0])
    write_model(size, folder)
    contract, model = contract_of(size), deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    rows = []
    for batch in options.batches:
        converted = to_openvino(classifier_graph(model, contract), contract, batch_size=batch, fast_here=True)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": options.threads, "PERF_COUNT": True}
        request = openvino.compile_model(converted, "CPU", settings).create_infer_request()
        best: dict[str, float] = {}
        for _ in range(10 if batch < 8 else 3):
            request.infer([np.zeros((batch, 3, size.side, size.side), np.float32)])
            spent: dict[str, float] = defaultdict(float)
            for node in request.profiling_info:
                if node.real_time.total_seconds():
                    spent[f"{node.node_type} {node.exec_type}"] += 1e3 * node.real_time.total_seconds()
            best = dict(spent) if not best or sum(spent.values()) < sum(best.values()) else best
        rows.append({"model": size.name, "batch": batch, **dict(Counter(best).most_common())})
    return rows
