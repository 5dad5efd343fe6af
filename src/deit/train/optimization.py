"""The optimizer and its parameter groups, the learning rate of a step, and the running average of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from deit.core.errors import UserError
from deit.core.printable import counted
from deit.core.weights.names import UNDECAYED_TENSORS
from deit.runtime.library_order import make_order_safe
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Optimizer
from deit.train.sharding.fully_sharded import own_parts

_BLOCK = re.compile(r"(?P<trunk>(?:.*\.)?)blocks\.(?P<index>\d+)\.")
_EMBEDDINGS = UNDECAYED_TENSORS | {"patch_embed", "norm_pre"}  # what comes before the first block


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that a training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def parameter_groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Divides the trainable parameters by weight decay and by learning rate.

    Without weight decay are norms, biases, tokens, position embeddings, and what a model of timm names in
    `no_weight_decay()`. The paper's code decays the distillation token too, by a slip that
    `settings.decay_distillation_token` brings back.

    With `settings.layer_decay` d below 1 and L blocks, the learning rate is multiplied by d ** (L - i) in block i (from
    0), by d ** (L + 1) in the embeddings and tokens before the first block, and by 1 after the last block: heads and
    final norm. (timm counts the final norm with the last block.) Models of timm without a plain row of `blocks` are
    divided as timm does it.

    Args:
        model: Any module.
        settings: Weight decay, layer decay and the distillation token.

    Returns:
        Groups with "params", "weight_decay", "lr_scale" and "lr"; the learning rate of a step times "lr_scale" is the
        group's "lr". Without layer decay: those with weight decay, then those without.

    Raises:
        ValueError: Nothing is trainable, or layer decay was asked of a model whose layers have no order.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise UserError("The model has no trainable parameter. Set requires_grad on what shall be trained.")
    scale = _layer_scales(model, settings.layer_decay)
    plain_names = set(UNDECAYED_TENSORS)
    of_timm: Any = getattr(model, "no_weight_decay", set)
    plain_names |= of_timm()
    if settings.decay_distillation_token:
        plain_names.discard("dist_token")
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    for name, parameter in named:
        is_plain = parameter.ndim <= 1 or name in plain_names or name.rpartition(".")[2] in plain_names
        by_muon = settings.name == "muon" and not is_plain and parameter.ndim == 2 and _BLOCK.match(name) is not None
        key = (scale(name), is_plain, by_muon)
        if key not in groups:
            decay = 0.0 if is_plain else settings.weight_decay
            groups[key] = {"params": [], "weight_decay": decay, "lr_scale": key[0], "lr": settings.lr * key[0]}
            if by_muon:
                groups[key]["by_muon"] = True
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _layer_scales(model: nn.Module, decay: float) -> Callable[[str], float]:
    """Returns the function from a parameter's name to the factor of its learning rate."""
    if decay == 1.0:
        return lambda name: 1.0
    names = [name for name, _ in model.named_parameters()]
    matches = [match for match in map(_BLOCK.match, names) if match]
    trunks = {match["trunk"] for match in matches}
    if len(trunks) == 1:
        trunk, depth = trunks.pop(), 1 + max(int(match["index"]) for match in matches)

        def distance(name: str) -> int:
            block = _BLOCK.match(name)
            if block:
                return depth - int(block["index"])
            is_embedding = name.startswith(trunk) and name.removeprefix(trunk).split(".")[0] in _EMBEDDINGS
            return depth + 1 if is_embedding else 0

        return lambda name: decay ** distance(name)
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is not None:
        make_order_safe()
        from timm.models import group_parameters

        layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
        last = max(layers.values())
        return lambda name: decay ** (last - layers.get(name, last))
    raise UserError(
        f"optimizer.layer_decay needs a model with one row of blocks. Received: {type(model).__name__}, layer_decay "
        f"{decay}. Set optimizer.layer_decay=1."
    )


def build_optimizer(model: nn.Module, settings: Optimizer, device: torch.device) -> torch.optim.Optimizer:
    """Returns the optimizer over the trainable parameters.

    * "adamw": PyTorch's, as one fused kernel where the device has it.
    * "lamb": timm's, which computes what apex's FusedLAMB computes, the optimizer of DeiT III: bias correction, decay
      inside the update, a trust ratio for parameters with weight decay alone. Both clip the global norm of the gradient
      to 1 by themselves; here `settings.clip_grad` alone decides, so the recipes of DeiT III set it to 1.
    * "sgd": PyTorch's with Nesterov's momentum, which is what timm and the paper's code mean by "sgd"; weight decay is
      added to the gradient.
    * "muon": PyTorch's Muon for the weight matrices of the blocks, AdamW for all else (heads, patches, tokens,
      positions, norms, biases). Both have the same learning rate: Muon's updates get the usual size of AdamW's, 0.2 x
      sqrt(max(rows, columns)) x the orthogonalized momentum (arXiv 2502.16982), so that `lr` and `weight_decay` mean
      what they mean for AdamW. Query, key and value are one matrix, as they are stored.

    All state is tensors in `state_dict()["state"]`.

    Args:
        model: Whose parameters; see `parameter_groups`.
        settings: Of the recipe.
        device: Where the model is.

    Raises:
        ValueError: See `parameter_groups`; or Muon finds no weight matrix in a block.
    """
    groups = parameter_groups(model, settings)
    if settings.name == "muon":
        if not any("by_muon" in group for group in groups):
            raise UserError(
                f"optimizer.name=muon needs a model with blocks of weight matrices, such as a transformer. Received: "
                f"{type(model).__name__}. Take adamw."
            )
        return _MuonAndAdamW(groups, settings, device)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    if settings.name == "lamb":
        make_order_safe()
        from timm.optim.lamb import Lamb

        lamb = Lamb(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, max_grad_norm=None)
        lamb.register_state_dict_post_hook(_step_into_state)
        lamb.register_load_state_dict_pre_hook(_step_out_of_state)
        return lamb
    return _adamw(groups, settings, device)


def _adamw(groups: list[dict[str, Any]], settings: Optimizer, device: torch.device) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=device.type in ("cpu", "cuda")
    )


class _MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers that look like one: their groups and their state are in one list and one table."""

    def __init__(self, groups: list[dict[str, Any]], settings: Optimizer, device: torch.device) -> None:
        of_muon = [group for group in groups if "by_muon" in group]
        self._muon = torch.optim.Muon(
            of_muon,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = _adamw([group for group in groups if "by_muon" not in group], settings, device)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        count = len(self._muon.param_groups)
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:count], self.param_groups[count:]
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        self._muon.step()
        self._adamw.step()


# timm's Lamb counts its steps in the group, where settings are. A training state keeps tensors of parameters alone, so
# the count travels with them. To be removed when timm counts in the state, as PyTorch does.


def _step_into_state(optimizer: torch.optim.Optimizer, whole: dict[str, Any]) -> None:
    states = whole["state"]
    for group in whole["param_groups"]:
        if "step" in group:
            step = torch.as_tensor(group.pop("step"), dtype=torch.float32)
            for index in group["params"]:
                if index in states:
                    states[index] = {**states[index], "step": step.clone()}


def _step_out_of_state(optimizer: torch.optim.Optimizer, whole: dict[str, Any]) -> dict[str, Any]:
    states = {index: dict(state) for index, state in whole["state"].items()}
    groups = [dict(group) for group in whole["param_groups"]]
    for group in groups:
        steps = [states[index].pop("step") for index in group["params"] if "step" in states.get(index, {})]
        if steps:
            group["step"] = steps[0]
    return {"state": states, "param_groups": groups}


def learning_rate(step: int, *, steps_per_epoch: int, recipe: Recipe) -> float:
    """Returns the learning rate of a step.

    A closed form: nothing is carried from step to step, so a resumed run cannot drift. Warm-up is linear to the peak;
    the cosine runs over the whole training and is not shifted by the warm-up, as in the paper's code. Start, peak and
    end are those of `Recipe.learning_rates`. `schedule.updates` says when the value changes:

    * "step": after each step.
    * "epoch": after each epoch, which trains with the value of its first step.
    * "original": after each epoch, which trains with the value of the epoch before it. The paper's code steps its
      schedule late, so epochs 0 and 1 both train at `warmup_lr`.

    Args:
        step: From 0.
        steps_per_epoch: Steps in an epoch.
        recipe: Its schedule, batch size and optimizer.
    """
    schedule, rates = recipe.schedule, recipe.learning_rates()
    epoch = step / steps_per_epoch
    if schedule.updates != "step":
        epoch = step // steps_per_epoch
    if schedule.updates == "original":
        epoch = max(epoch - 1, 0)
    if epoch < schedule.warmup_epochs:
        return rates.start + (rates.peak - rates.start) * epoch / schedule.warmup_epochs
    return rates.end + (rates.peak - rates.end) * 0.5 * (1.0 + math.cos(math.pi * epoch / schedule.epochs))


def planned_rates(recipe: Recipe, *, steps_per_epoch: int) -> dict[str, float]:
    """Returns the learning rates that a training really has: of its first step, its highest one, of its last step.

    Args:
        recipe: See `learning_rate`.
        steps_per_epoch: Steps in an epoch.
    """
    schedule, last = recipe.schedule, recipe.schedule.last_epoch * steps_per_epoch - 1
    # The rate rises in the warm-up and falls after it, so its highest value is at one of the steps around its end.
    around = math.ceil(schedule.warmup_epochs) * steps_per_epoch
    turn = math.ceil(schedule.warmup_epochs * steps_per_epoch)
    steps = {0, turn - 1, turn, around - 1, around, around + steps_per_epoch, last}
    rates = {
        step: learning_rate(step, steps_per_epoch=steps_per_epoch, recipe=recipe) for step in steps if 0 <= step <= last
    }
    return {"first": rates[0], "highest": max(rates.values()), "last": rates[last]}


def describe_rates(recipe: Recipe, *, steps_per_epoch: int) -> list[str]:
    """Returns, in sentences, what the learning rate of a training will do; the first one is its plan.

    Args:
        recipe: See `learning_rate`.
        steps_per_epoch: Steps in an epoch.
    """
    schedule, rates = recipe.schedule, recipe.learning_rates()
    warmup = f"from {rates.start:.3g} to {rates.peak:.3g} in {counted(schedule.warmup_epochs, 'epoch')}, then "
    course = f"a cosine to {rates.end:.3g}" if rates.end < rates.peak else "constant"
    rest = f"{course} until epoch {schedule.epochs}"
    if schedule.last_epoch != schedule.epochs:
        rest += f"; the run ends after epoch {schedule.last_epoch} (schedule.stop_epoch)"
    lines = [f"Learning rate: {warmup if schedule.warmup_epochs else f'{rates.peak:.3g}, '}{rest}."]
    for name, value, used, what in (
        ("warmup_lr", schedule.warmup_lr, rates.start, "warm-up begins"),
        ("min_lr", schedule.min_lr, rates.end, "cosine ends"),
    ):
        if used != value and (name == "min_lr" or schedule.warmup_epochs):
            lines.append(
                f"schedule.{name}={value:g} is not below the peak of batches of {recipe.batch_size}, so the {what} at "
                f"{used:.3g}, its share of optimizer.lr."
            )
    highest = planned_rates(recipe, steps_per_epoch=steps_per_epoch)["highest"]
    if highest < 0.9 * rates.peak:
        lines.append(
            f"The highest learning rate will be {highest:.3g}: {counted(schedule.epochs, 'epoch')} with a warm-up of "
            f"{schedule.warmup_epochs:g} and schedule.updates={schedule.updates} never reach the peak."
        )
    return lines


def build_average(model: nn.Module, decay: float) -> AveragedModel:
    """Returns the running average (EMA) of a model's weights and buffers.

    The decay of update n is min(decay, (1 + n) / (10 + n)).

    Args:
        model: Whose weights are averaged.
        decay: Between 0 and 1.
    """

    @torch.no_grad()
    def average(averaged: Any, current: Any, count: Tensor | int) -> None:
        averaged, current = own_parts(averaged), own_parts(current)
        n = float(count)
        share = 1.0 - min(decay, (1.0 + n) / (10.0 + n))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, share)
        else:  # counters of batch norm
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def gradient_norm(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Returns the norm of all gradients together, (), before they are clipped; not finite if one of them is not.

    Of gradients that are divided among processes it is a divided tensor, which `Processes.whole` puts together.

    Args:
        parameters: With gradients; those without are passed over.
        most: Norm to which larger gradients are clipped; 0 for no limit.
    """
    if most:
        return nn.utils.clip_grad_norm_(parameters, most)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number is infinite or NaN, of divided tensors in this process's part."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in own_parts(tensors):
        if tensor.is_floating_point() and tensor.numel():
            by_device.setdefault(tensor.device, []).append(tensor.detach())
    # The largest number of each: a sum of squares overflows by itself.
    largest = [torch.stack([n.float() for n in torch._foreach_norm(each, math.inf)]) for each in by_device.values()]
    return all(bool(torch.isfinite(each).all()) for each in largest)
