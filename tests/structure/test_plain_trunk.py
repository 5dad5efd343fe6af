"""The network reads as the paper draws it: short forwards, and few jumps from file to file."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest

pytest.importorskip("torch")

from deit.models.trunk import cpu_kernels
from deit.models.trunk.vision_transformer import Attention, Block, DropPath, LayerScale, Mlp
from tests.structure.moves_between_files import visited_places

MODELS = (
    "DeiTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "ViTModel",
    "ViTForImageClassification",
)
# Words of speed, which belong to `cpu_kernels`.
MACHINERY = {"device", "hook", "pack", "is_grad_enabled", "is_compiling", "untouched", "dtype"}


@pytest.mark.parametrize("kind", [Attention, Mlp, Block, LayerScale])
def test_forward_is_as_short_as_the_drawing_of_the_paper(kind) -> None:
    assert len(inspect.getsource(kind.forward).splitlines()) <= 8


@pytest.mark.parametrize("kind", [Attention, Mlp, Block, LayerScale, DropPath])
def test_forward_asks_for_no_device_hook_or_packed_weight(kind) -> None:
    names = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))):
        names |= {getattr(node, "attr", ""), getattr(node, "id", "")}
    allowed = {"dtype"} if kind is Block else set()  # a branch takes the type of its input
    assert not {name for name in names for word in MACHINERY - allowed if word in name}


@pytest.mark.parametrize("operation", ["attend", "linear_activation", "first_tokens", "run_block", "linear"])
def test_each_operation_has_one_dispatch_function(operation) -> None:
    assert inspect.getmodule(getattr(cpu_kernels, operation)) is cpu_kernels


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_a_forward_pass_moves_at_most_15_times_from_file_to_file(name, packed) -> None:
    places = visited_places(name, packed=packed)
    assert len(places) - 1 <= 15, places
