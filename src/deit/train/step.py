"""Runs one optimizer step on one or several processes: mixing, teacher, forward, backward, update, average."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deit.core.errors import UserError
from deit.data.augment import BatchMixer
from deit.data.loader import Batch
from deit.runtime.devices import resolve
from deit.runtime.processes import Processes
from deit.runtime.random_state import random_state_kept, set_random_state
from deit.train.numerics.anomaly import AnomalyWatch
from deit.train.optimization import (
    all_finite,
    build_average,
    build_optimizer,
    gradient_norm,
    learning_rate,
    trained_parameters,
)
from deit.train.recipes.recipe import Recipe
from deit.train.run.state import optimizer_tensors, restore_optimizer
from deit.train.sharding.fully_sharded import NONE, FullySharded, Layout, check_sharding, divided, is_divided
from deit.train.students.checkpointing import checkpoint_activations
from deit.train.students.freezing import freeze
from deit.train.tasks.pseudo_labels import PseudoLabeller
from deit.train.tasks.task import Task
from deit.train.teachers.cache import BatchPlace
from deit.train.whole_step import ShareOfStep

logger = logging.getLogger(__name__)

_MODEL_KEY = 2  # views take 0, mixing 1


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of a step.

    Attributes:
        losses: Mean of each loss over this process's share of the batch, detached, on the device.
        lr: Learning rate before the factor of each parameter group.
        taken: (), False if the step was skipped, on the device; the same in all processes.
    """

    losses: dict[str, Tensor]
    lr: float
    taken: Tensor


class TrainStep:
    """Trains a student, one step per call.

    The processes share the `recipe.batch_size` images of a step equally. Each process computes its share in
    `recipe.accumulate` equal parts. Mixing, dropout and drop path draw for the whole step, and batch norm takes
    statistics over all processes, so both numbers change only the memory needed. A warning at the start names the
    exceptions, such as batch norm with `accumulate`; see `deit.train.whole_step`.

    A step whose loss or gradient is not finite, in any process or part, is skipped: weights, buffers, optimizer (with
    its own count of steps) and average (with its count) stay as they were, bit for bit. Its number, its images and its
    learning rate are used up. In fp16 the scale of the loss follows its own rule. Gradients whose squares sum to more
    than fp32 holds count as infinite, as the squares are what AdamW keeps.

    Args:
        task: Student and losses, on the device.
        recipe: All hyper-parameters.
        device: Device of the computation.
        steps_per_epoch: Steps in each epoch of the run.
        num_classes: Number of classes K of the data.
        processes: Processes of the run.
        detect_anomaly: True watches all modules, see `AnomalyWatch`; the student is then not compiled.
        sharding: "none", or "fsdp" to divide weights, gradients, optimizer and average among the processes, see
            `FullySharded`. Then use `whole` to get a module that can be called or written.
        gradient_checkpointing: True saves memory, see `checkpoint_activations`.

    Attributes:
        anomaly: Watches the modules; None unless `detect_anomaly`.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        device: torch.device,
        *,
        steps_per_epoch: int,
        num_classes: int,
        processes: Processes,
        detect_anomaly: bool = False,
        sharding: str = NONE,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.task, self.recipe, self.device, self.processes = task, recipe, device, processes
        self.steps_per_epoch = steps_per_epoch
        check_division(recipe, processes)
        check_sharding(sharding, recipe, processes, detect_anomaly=detect_anomaly)
        if gradient_checkpointing:
            checkpoint_activations(task.student)
        self._share = ShareOfStep(task.student, processes, recipe.accumulate)
        if processes.is_first:
            for note in self._share.notes:
                logger.warning(note)
        self._frozen = freeze(task.student, recipe.freeze)
        self._placement = resolve(device, recipe.precision)
        self.average = build_average(task.student, recipe.ema_decay) if recipe.ema_decay else None
        self._shards: FullySharded | None = None
        if sharding != NONE:
            average = None if self.average is None else self.average.module
            self._shards = FullySharded(task.student, average, processes, device, self._placement.dtype)
        self.optimizer = build_optimizer(task.student, recipe.optimizer, device)
        self.trained = trained_parameters(task.student)
        self.mixer = (
            BatchMixer(recipe.augment, num_classes, recipe.label_smoothing, recipe.seed)
            if recipe.augment.mixes
            else None
        )
        self.pseudo_labels: PseudoLabeller | None = None
        if recipe.pseudo_labels.weight:
            assert self.average is not None
            self.pseudo_labels = PseudoLabeller(self.average.module, recipe, num_classes, processes)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self._placement.dtype is torch.float16)
        self._buffers = list(task.student.buffers())  # statistics of batch norm, which the forward pass changes
        # A GPU need not be waited for, to know whether to skip, if its kernel of the update skips by itself.
        by_kernel = self.average is None and self._shards is None
        self._kernel_skips = by_kernel and getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self.anomaly = AnomalyWatch(task.student) if detect_anomaly else None
        module: nn.Module = task
        if recipe.compile and not detect_anomaly:
            module = torch.compile(task)  # type: ignore[assignment]
        if processes.world_size > 1 and self._shards is None:
            module = DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)
        self._module = module

    def __call__(self, batch: Batch, step: int) -> StepResult:
        """Does one step.

        Args:
            batch: This process's share of the batch.
            step: Number of the step, from 0.
        """
        lr = learning_rate(step, steps_per_epoch=self.steps_per_epoch, recipe=self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.task.train(self.recipe.student_mode == "train")
        for module in self._frozen:
            module.eval()
        buffers = [buffer.clone() for buffer in self._buffers]
        with random_state_kept():
            self._seed(step)
            losses = self._backward(batch, self._place(batch, step))
        taken = self._update()
        for buffer, before in zip(self._buffers, buffers, strict=True):
            buffer.copy_(torch.where(taken, buffer, before))
        return StepResult(losses=losses, lr=lr, taken=taken)

    def _seed(self, step: int) -> None:
        """Sets the random state of a step, the same in all processes if layers draw for the whole step."""
        key = (self.recipe.seed, _MODEL_KEY, step, 0 if self._share.draws_whole else self.processes.rank)
        set_random_state(*key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(hash(key) & 0x7FFFFFFF)

    def _place(self, batch: Batch, step: int) -> BatchPlace:
        processes = self.processes
        return BatchPlace(step=step, part=processes.rank, checksums=batch.checksums, parts=processes.world_size)

    def _backward(self, batch: Batch, place: BatchPlace) -> dict[str, Tensor]:
        pixels = batch.pixels.to(self.device, non_blocking=True)
        targets = batch.targets.to(self.device, non_blocking=True)
        weights: list[Tensor] = []
        if self.pseudo_labels is not None:
            assert batch.weak is not None
            with self._placement.autocast():
                pixels, targets, *weights = self.pseudo_labels(pixels, targets, batch.weak, place.step)
        elif self.mixer is not None:
            pixels, targets = self.mixer(pixels, targets, place.step, self.processes)
        with self._placement.autocast():
            prepared = (*self.task.prepare(pixels, targets, place), *weights)
        if self.anomaly is not None:
            self.anomaly.begin(prepared[0])
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.recipe.accumulate
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(zip(*(tensor.chunk(parts) for tensor in prepared), strict=True)):
            # Processes exchange gradients once per step, in its last part.
            waits = number + 1 < parts and isinstance(self._module, DistributedDataParallel)
            if self._share.draws_whole:
                self._seed(place.step)
            exchange = self._module.no_sync() if waits else contextlib.nullcontext()  # type: ignore[operator]
            # At hand in the backward pass too, in which gradient checkpointing computes blocks again.
            with exchange, self._share.at_hand(number, len(part[0]), self.device):
                with self._placement.autocast():
                    losses = self._module(*part)
                scaled = self.scaler.scale(losses["loss"] / parts)
                # The 1 from which gradients begin is NaN for a loss that is not finite. So they all are, and when the
                # processes sum them, each learns of it.
                scaled.backward(scaled.detach() * 0 + 1)
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() / parts if name in sums else loss.detach() / parts
        return sums

    def _update(self) -> Tensor:
        """Updates weights and average unless a gradient is not finite; returns whether it did."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.trained, self.recipe.optimizer.clip_grad)
        taken = torch.isfinite(self.processes.whole(norm))
        if self._kernel_skips:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~taken).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif taken:
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.task.student)
        if self.scaler.is_enabled():
            self.scaler.update()
        return taken

    def is_finite(self) -> bool:
        """Returns True if weights, buffers, optimizer and average are finite in all processes."""
        (is_bad,) = self.processes.any(not all_finite(self.tensors().values()))
        return not is_bad

    def whole(self, module: nn.Module) -> nn.Module:
        """Returns the student or its average as a plain module; see `FullySharded.whole`."""
        return module if self._shards is None else self._shards.whole(module)

    # --- state ----------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Returns the state that resuming needs, by name."""
        tensors = {f"student.{k}": v for k, v in self.task.student.state_dict().items()}
        tensors.update(optimizer_tensors(self.optimizer))
        if self.average is not None:
            tensors.update({f"average.{k}": v for k, v in self.average.state_dict().items()})
        if self.scaler.is_enabled():
            values = self.scaler.state_dict()
            tensors["scaler.scale"] = torch.tensor(float(values["scale"]), dtype=torch.float64)
            tensors["scaler.growth_tracker"] = torch.tensor(int(values["_growth_tracker"]))
        return tensors

    def state_bytes(self) -> int:
        """Returns about how many bytes a state takes: weights, average, and two numbers of the optimizer for each."""
        trained = sum(weight.numel() * weight.element_size() for weight in self.trained)
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values()) + 2 * trained

    def layout(self) -> Layout:
        """Returns the tensors of the state that are divided among the processes; none without sharding."""
        if self._shards is None:
            return {}
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        of_optimizer = {f"optimizer.{index}": parameter for index, parameter in enumerate(parameters)}
        return {name: each for name, each in (self.tensors() | of_optimizer).items() if is_divided(each)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restores a state that `tensors` returned.

        Raises:
            RuntimeError: The state belongs to another student.
        """
        tensors = divided(tensors, self.layout())
        self.task.student.load_state_dict(_below(tensors, "student."))
        restore_optimizer(self.optimizer, tensors)
        if self.average is not None:
            self.average.load_state_dict(_below(tensors, "average."))
        if self.scaler.is_enabled():
            values = self.scaler.state_dict()
            values["scale"] = float(tensors["scaler.scale"])
            values["_growth_tracker"] = int(tensors["scaler.growth_tracker"])
            self.scaler.load_state_dict(values)


def check_division(recipe: Recipe, processes: Processes) -> None:
    """Checks that all processes and parts of a step get equally many images.

    Raises:
        ValueError: The batch size cannot be divided.
    """
    if recipe.batch_size % (processes.world_size * recipe.accumulate):
        shares = recipe.batch_multiple(processes.world_size)
        near = max(recipe.batch_size // shares, 1) * shares
        numbers = range(1, 2 * processes.world_size + 1)
        able = [str(number) for number in numbers if recipe.batch_size % (number * recipe.accumulate) == 0]
        start = f" A run that goes on keeps its batch: start {', '.join(able)} process(es)." if able else ""
        raise UserError(
            f"The batch of {recipe.batch_size} images cannot be shared by {processes.world_size} process(es) with "
            f"accumulate={recipe.accumulate}. Pass batch_size={near} or {near + shares}.{start}"
        )


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
