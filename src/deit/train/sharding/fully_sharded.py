"""Divides weights, gradients, optimizer and average of a student among processes: FSDP2 (arXiv 2304.11277)."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deit.core.errors import UserError
from deit.runtime.library_order import make_order_safe
from deit.runtime.processes import Processes
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.values import require_one_of

NONE, FSDP = "none", "fsdp"
SHARDINGS = (NONE, FSDP)

Layout = Mapping[str, Tensor]  # name of a tensor of a state -> a divided tensor that is laid out like it

_BLOCK = re.compile(r"(?:.*\.)?blocks\.\d+")


def check_sharding(sharding: str, recipe: Recipe, processes: Processes, *, detect_anomaly: bool) -> None:
    """Checks that a training can be sharded.

    Args:
        sharding: "none", or "fsdp" for `FullySharded`.
        recipe: Of the training.
        processes: Of the training.
        detect_anomaly: Whether modules are watched.

    Raises:
        ValueError: It cannot, or the name is unknown.
    """
    require_one_of("sharding", sharding, SHARDINGS)
    if sharding == NONE:
        return
    if processes.world_size == 1:
        raise UserError(
            "sharding=fsdp divides the weights among processes, and there is one. Start several (deit --processes N, "
            "or torchrun), or pass sharding=none."
        )
    reasons = {
        "compile=true: what is compiled holds whole weights": recipe.compile,
        "pseudo_labels.weight: the average of the weights answers in each step": recipe.pseudo_labels.weight,
        "optimizer.name=muon: it needs whole matrices": recipe.optimizer.name == "muon",
        "detect_anomaly: whole gradients are watched": detect_anomaly,
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise UserError(f"sharding=fsdp does not go with {reason}. Leave that out, or pass sharding=none.")


class FullySharded:
    """Divides the parameters of a student and of its average among all processes, each by its first dimension.

    A block gets its weights from all processes when it computes and gives them back afterwards; its gradients are
    summed and divided as soon as they are there, in each accumulated part. What is outside of the blocks (tokens,
    embeddings, norm, heads) is one more unit, which stays whole from the forward to the end of the backward pass. A
    student without `blocks` is one unit, so only its optimizer, its gradients and its average take less memory.

    In bf16 and fp16 the linear layers of the blocks get their weights in that type, half the bytes, as autocast would
    give it to them; the weights that are stored and the sums of gradients are fp32. All else stays fp32.

    Buffers are whole in every process.

    Args:
        student: On the device. Its class changes, and its parameters become DTensors.
        average: The average's module, likewise; None for none.
        processes: More than one.
        device: Of the training.
        dtype: Type of matrix products; None for fp32.
    """

    def __init__(
        self,
        student: nn.Module,
        average: nn.Module | None,
        processes: Processes,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        make_order_safe()
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # Of outputs that are views; blocks change none in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        self._processes = processes
        self._skeleton = _without_weights(student)
        mesh = init_device_mesh(device.type, (processes.world_size,))
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for module in (student, average):
            if module is not None:
                for name, block in list(module.named_modules()):
                    if _BLOCK.fullmatch(name):
                        products = [child for child in block.children() if _is_product(child)] if dtype else []
                        if products:
                            fully_shard(products, mesh=mesh, mp_policy=policy)
                        elif not dtype:
                            fully_shard(block, mesh=mesh)
                fully_shard(module, mesh=mesh)

    def whole(self, module: nn.Module) -> nn.Module:
        """Returns a plain copy of the student or of its average with all weights; every process must call it.

        It takes the memory of the weights in each process until it is let go of. A plain module is returned itself.
        """
        if not any(is_divided(parameter) for parameter in module.parameters()):
            return module
        memo: dict[int, object] = {}
        for empty, divided in zip(self._skeleton.parameters(), module.parameters(), strict=True):
            whole = self._processes.whole(divided.detach())
            memo[id(empty)] = nn.Parameter(whole, requires_grad=divided.requires_grad)
        plain = copy.deepcopy(self._skeleton, memo)
        for buffer, current in zip(plain.buffers(), module.buffers(), strict=True):
            buffer.copy_(current)
        return plain.train(module.training)


def _is_product(module: nn.Module) -> bool:
    """Whether all parameters of a module belong to linear layers or convolutions, which autocast runs in few bits."""
    owners = [each for each in module.modules() if next(each.parameters(recurse=False), None) is not None]
    return bool(owners) and all(isinstance(each, (nn.Linear, nn.Conv2d)) for each in owners)


def _without_weights(module: nn.Module) -> nn.Module:
    """Returns a copy of a module with its buffers, and parameters that take no memory."""
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, memo)


def is_divided(tensor: Tensor) -> bool:
    """Whether each process holds a part of a tensor."""
    return hasattr(tensor, "to_local")  # of a DTensor, whose import takes seconds


def own_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns this process's part of each tensor that is divided, and the others as they are."""
    return [tensor.to_local() if is_divided(tensor) else tensor for tensor in tensors]  # type: ignore[attr-defined]


def divided(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Returns the tensors of a state, those that the layout names as this process's part.

    Args:
        tensors: Whole ones, the same in all processes; those that are divided already stay.
        layout: Of the run; empty without sharding.
    """
    if not layout:
        return dict(tensors)
    from torch.distributed.tensor import distribute_tensor

    parts = {}
    for name, tensor in tensors.items():
        like: Any = layout_of(name, layout)
        if like is not None and like.shape == tensor.shape and not is_divided(tensor):
            whole = tensor.to(like.device)
            tensor = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
        parts[name] = tensor
    return parts


def layout_of(name: str, layout: Layout) -> Tensor | None:
    """Returns a tensor laid out like one of a state: itself, or the parameter of a tensor of the optimizer."""
    found = layout.get(name, layout.get(name.rpartition(".")[0]))
    return found if found is not None and is_divided(found) else None
