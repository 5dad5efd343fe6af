"""The one training loop: `fit(task, data, recipe, out=...)`.

Everything random is a function of the seed and the step, so a run that was stopped goes on exactly where it was.
Started by `torchrun`, every process calls `fit` alike: they share each batch, and the first one writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deit.core.images import ImageError
from deit.core.model_directory import STATE_NAME
from deit.data.augment import build_transform
from deit.data.distributed import current_processes
from deit.data.few_labels import count_unlabelled, labelled_again
from deit.data.loader import Batch, StepOrder, training_batches
from deit.data.sources import Data, former_fingerprint
from deit.models.pretrained import PreTrainedModel
from deit.models.vision_transformer import set_drop_path
from deit.train.history import History
from deit.train.optimization import describe_rates, planned_rates
from deit.train.recipe import Recipe
from deit.train.run_folder import hardware_and_versions, open_run_folder, write_model
from deit.train.run_images import keep_run_images
from deit.train.state import State, load_state, save_state
from deit.train.step import NonFiniteLossError, StepResult, TrainStep
from deit.train.tasks import DistillationTask, Task
from deit.train.teacher_cache import open_cache

logger = logging.getLogger(__name__)

_LEFT_OUT = "images left out"  # in a state
_LOSSES = "losses."  # before the names of summed losses in a state
_IMAGES = {"training images": "train", "validation images": "val"}  # in an identity -> in the data
_GPU_EVENT_STEPS = 10  # a GPU runs ahead of Python; asking it after every step would make it wait


class TrainingInterrupted(Exception):  # noqa: N818  # not an error: the user asked for it
    """The run was asked to stop, saved its state and can go on."""


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """Progress of a run, after a step.

    Attributes:
        step: Steps done.
        total_steps: Steps in all.
        epoch: Epochs begun.
        loss: Of this step, over this process's share of the batch.
        lr: Learning rate of this step.
        images_per_second: Since the run was started or resumed, evaluation included, over all processes.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    lr: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run gave.

    Attributes:
        out: The model directory.
        scores: On the validation images, by head; of the weights that were saved.
        history: One row of metrics for each evaluated epoch.
        steps: Steps done in all.
        seconds: Of this call.
    """

    out: Path
    scores: dict[str, Any]
    history: list[dict[str, Any]]
    steps: int
    seconds: float


def fit(
    task: Task,
    data: Data,
    recipe: Recipe,
    *,
    out: str | Path,
    device: str | torch.device | None = None,
    resume: bool = False,
    teacher_cache: str | Path | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> FitResult:
    """Trains a student and writes it as a model directory.

    The folder gets `recipe.yaml`, `metrics.jsonl`, `metrics.csv` and `curves.png` on the way, a training state after
    each evaluation, and at the end the model with its preprocessing, labels, `training.json` and a model card
    (`README.md`). An interrupt (Ctrl-C, SIGTERM) saves the state after the step at hand. An image that can no longer be
    read is left out, see `data.max_bad_images` of the recipe; more of them than that save the state and stop.

    Args:
        task: Student and losses.
        data: Images to learn from and to measure on.
        recipe: All hyper-parameters; `drop_path_rate` and its shape are set on any DeiT or ViT student.
        out: Folder of the run; new or empty, unless `resume`.
        device: "cpu", "cuda", ...; the GPU if there is one when None (each process its own).
        resume: Go on from the newest state in `out`.
        teacher_cache: Folder in which the teacher's answers are recorded, and from which they are read.
        on_step: Called after every step, on a GPU after every tenth.
        on_epoch: Called with the metrics after every evaluation.

    Returns:
        The scores and where the model is.

    Raises:
        FileExistsError: `out` holds a run or other files, and `resume` is off.
        ValueError: The recipe of a resumed run is another one, the cache is of another training, or recipe and data
            do not fit together.
        ImageError: Too many images can no longer be read; the state is saved.
        NonFiniteLossError: The loss became infinite or NaN.
        OSError: The state or the model cannot be written; the last complete state is kept.
        TrainingInterrupted: An interrupt; the state is saved.
    """
    run = _Run(task, data, recipe, Path(out), _resolve_device(device), resume, teacher_cache)
    logger.info(" ".join(describe_rates(recipe, steps_per_epoch=run.steps_per_epoch)))
    with _interrupts() as interrupted:
        run.train(interrupted, on_step, on_epoch)
    return run.finish()


class _Run:
    """One training in progress: what `fit` needs from step to step."""

    def __init__(
        self,
        task: Task,
        data: Data,
        recipe: Recipe,
        out: Path,
        device: torch.device,
        resume: bool,
        teacher_cache: str | Path | None,
    ) -> None:
        self.started = time.monotonic()
        self.processes = current_processes()
        self.task, self.data, self.recipe, self.out, self.device = task, data, recipe, out, device
        self._set_up_task()
        order = self._order(0, 0)
        self.steps_per_epoch = order.steps_per_epoch
        self.total_steps = order.steps_per_epoch * recipe.schedule.epochs
        # What must be the same for a run to go on, beside the recipe. Worked out once: the hash visits every image.
        teacher = task.teacher
        self.identity: dict[str, Any] = {
            "teacher": teacher and teacher.name,
            "teacher_fingerprint": teacher and teacher.fingerprint(),
            **{name: getattr(data, part).fingerprint() for name, part in _IMAGES.items()},
            "student": _plain(task.student.config) if isinstance(task.student, PreTrainedModel) else None,
            "preprocessing": _plain(task.processor),
        }
        task.to(device)
        if teacher is not None:
            teacher.to(device)
        self.take_step = TrainStep(
            task,
            recipe,
            device,
            steps_per_epoch=self.steps_per_epoch,
            num_classes=len(data.train.classes),
            processes=self.processes,
        )
        if teacher_cache is not None:
            self._open_cache(Path(teacher_cache))
        self.processes.on_first(lambda: open_run_folder(out, recipe, resume=resume))
        self.images_record = self.processes.on_first(lambda: keep_run_images(task, data, out, teacher_cache))
        self.step = 0
        self.loss_sums: dict[str, Tensor] = {}  # since the last evaluation
        self.left_out: dict[int, str] = {}  # training images that could not be read at some time of the run, and why
        self.unreadable: set[int] = set()  # since it was started or resumed: others may have been mended
        if resume:
            self._restore()
        self.first_step = self.step
        self.history = History(out, until_step=self.step, writes=self.processes.is_first)
        self.scores: dict[str, Any] = {}
        processor = task.processor
        self.batches = training_batches(
            data.train,
            build_transform(recipe.augment, processor.output_size, processor.channel_mean, processor.channel_std),
            self._order(self.step, self.total_steps),
            num_workers=recipe.num_workers,
            pin_memory=device.type == "cuda",
        )

    def _set_up_task(self) -> None:
        task, recipe = self.task, self.recipe
        if recipe.data.range is not None:  # what the images were read with is saved with the model
            task.processor.value_range = recipe.data.range
        task.check(self.data, recipe)
        if isinstance(task.student, PreTrainedModel):
            set_drop_path(task.student, recipe.drop_path_rate, shape=recipe.drop_path_shape)

    def _order(self, first_step: int, last_step: int) -> StepOrder:
        return StepOrder(
            len(self.data.train.labels),
            self.recipe.batch_size,
            self.recipe.seed,
            first_step,
            last_step,
            num_repeats=self.recipe.augment.num_repeats,
            again=labelled_again(self.data.train, self.recipe.data.labelled_share),
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )

    def _open_cache(self, folder: Path) -> None:
        task = self.task
        if not isinstance(task, DistillationTask):
            raise ValueError(f"A teacher cache needs a teacher to cache. Received: {folder}, and labels alone.")
        for turn in (True, False):  # the first process writes the header; then the others find it
            if self.processes.is_first == turn:
                task.cache = open_cache(
                    folder,
                    teacher=task.teacher,
                    processor=task.processor,
                    recipe=self.recipe,
                    data_fingerprint=self.identity["training images"] or "",
                    former_data_fingerprint=former_fingerprint(self.data.train),
                    num_images=len(self.data.train.labels),
                    num_classes=len(self.data.train.classes),
                    processes=self.processes,
                )
            self.processes.barrier()
        assert task.cache is not None
        self.identity |= {name: task.cache.header[name] for name in ("teacher", "teacher_fingerprint")}

    # --- training --------------------------------------------------------------------------------------

    def train(
        self,
        interrupted: threading.Event,
        on_step: Callable[[StepEvent], None] | None,
        on_epoch: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        """Does all steps that are left, with an evaluation after every `eval_epochs` epochs."""
        for batch in self._batches():
            self._note_left_out(batch)
            result = self.take_step(batch, self.step)
            self.step += 1
            self._draw_if_due()
            for name, loss in result.losses.items():
                self.loss_sums[name] = self.loss_sums[name] + loss if name in self.loss_sums else loss
            due = self._evaluation_is_due()
            stop = False
            if due or self.device.type != "cuda" or self.step % _GPU_EVENT_STEPS == 0:
                if on_step is not None:
                    on_step(self._event(result))
                stop = self._look(result, interrupted)
            if due:
                row = self._evaluate(self._mean_losses(), result.lr)
                self.loss_sums = {}
                self._save_state()
                if on_epoch is not None:
                    on_epoch(row)
            if stop and self.step < self.total_steps:
                self._save_state()
                raise TrainingInterrupted(f"Stopped after step {self.step} of {self.total_steps}; its state is saved.")

    def _batches(self) -> Iterator[Any]:
        try:
            yield from self.batches
        except ImageError as error:
            if self.processes.world_size > 1:  # this one alone knows, and the state is not its own to save
                raise ImageError(f"{str(error).rstrip('.')}. {self._newest_state()}") from error
            raise self._stopped_by_images(str(error)) from error

    def _note_left_out(self, batch: Batch) -> None:
        """Tells of images that could not be read, each once, and stops where there are too many of them."""
        for number, reason in batch.left_out:
            self.unreadable.add(number)
            if number not in self.left_out:
                self.left_out[number] = reason
                logger.warning("Left out of training from step %d on: %s", self.step + 1, reason)
        if self.processes.world_size == 1 and self._too_many_left_out():
            raise self._stopped_by_images()

    def _share_left_out(self) -> None:
        """Lets every process know of the images that another one could not read."""
        if self.processes.world_size == 1:
            return
        marks = np.zeros(len(self.data.train.labels))
        marks[list(self.unreadable)] = 1
        for number in np.flatnonzero(self.processes.sum(marks)).tolist():
            self.left_out.setdefault(number, f"Image {number}, as another process said.")
            self.unreadable.add(number)

    def _too_many_left_out(self) -> bool:
        options = self.recipe.data
        return len(self.unreadable) > (0 if options.strict else options.max_bad_images)

    def _stopped_by_images(self, reason: str = "") -> ImageError:
        """Saves the state and returns the error that says why the run stops."""
        self._save_state()
        reason = reason or next(reversed(self.left_out.values()), "another process says which")
        count = len(self.unreadable)
        several = f" {count} images cannot be read any more, data.max_bad_images={self.recipe.data.max_bad_images}."
        return ImageError(
            f"{reason.rstrip('.')}.{several if count > 1 else ''} The state after step {self.step} is saved: mend the "
            "image and pass --resume, or begin anew without it."
        )

    def _look(self, result: StepResult, interrupted: threading.Event) -> bool:
        """Checks the losses since the last evaluation, and returns whether a process was asked to stop."""
        scaled = self.take_step.scaler.is_enabled()  # which passes over a step whose gradients overflow
        finite = scaled or bool(torch.isfinite(self.loss_sums["loss"]))
        broken, stop, unreadable = self.processes.any(not finite, interrupted.is_set(), self._too_many_left_out())
        if broken:
            raise self._non_finite("The loss", result.lr)
        if unreadable:  # of another process or of this one: all of them stop after the same step
            raise self._stopped_by_images()
        return stop

    def _non_finite(self, what: str, lr: float) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"{what} became infinite or NaN at step {self.step} (learning rate {lr:.1e}). {self._newest_state()} "
            "Try a lower optimizer.lr, a longer warm-up or optimizer.clip_grad=1, in a new folder."
        )

    def _newest_state(self) -> str:
        states = sorted((self.out / STATE_NAME).glob("step-*"))
        return f"The last good state is {states[-1]}." if states else "No state was saved before."

    def _event(self, result: StepResult) -> StepEvent:
        images = (self.step - self.first_step) * self.recipe.batch_size
        return StepEvent(
            step=self.step,
            total_steps=self.total_steps,
            epoch=(self.step - 1) // self.steps_per_epoch + 1,
            loss=float(result.losses["loss"]),
            lr=result.lr,
            images_per_second=images / (time.monotonic() - self.started),
        )

    def _mean_losses(self) -> dict[str, float]:
        names = list(self.loss_sums)
        totals = torch.stack([self.loss_sums[name] for name in names]).double().cpu().numpy()
        steps = self.step % self._steps_per_evaluation or self._steps_per_evaluation
        means = self.processes.sum(totals) / (steps * self.processes.world_size)
        return {f"train_{name}": float(mean) for name, mean in zip(names, means, strict=True)}

    # --- evaluation ------------------------------------------------------------------------------------

    def _evaluation_is_due(self) -> bool:
        if self.step == self.total_steps:
            return True
        return self.step % self._steps_per_evaluation == 0

    @property
    def _steps_per_evaluation(self) -> int:
        return self.steps_per_epoch * self.recipe.eval_epochs

    def _evaluate(self, losses: dict[str, float], lr: float) -> dict[str, Any]:
        if not self.take_step.is_finite():
            raise self._non_finite("A weight", lr)
        row: dict[str, Any] = {"epoch": self.step // self.steps_per_epoch, "step": self.step, "lr": lr, **losses}
        try:
            self.scores = self._score(self.task.student)
        except ImageError as error:
            raise self._stopped_by_images(str(error)) from error
        self._share_left_out()
        if self.task.left_out:
            reason = next(iter(self.task.left_out.values()))
            logger.warning("Left out of the scores: %d image(s), such as: %s", len(self.task.left_out), reason)
        row.update(_flat_scores(self.scores, "val"))
        if self._saves_average:
            self.scores = self._score(self._result())
            row.update(_flat_scores(self.scores, "ema"))
        row["seconds"] = round(time.monotonic() - self.started, 2)
        self.history.add(row)
        self.history.draw()
        return row

    @property
    def _saves_average(self) -> bool:
        return self.take_step.average is not None and self.recipe.ema_use == "save"

    def _result(self) -> nn.Module:
        if self._saves_average:
            assert self.take_step.average is not None
            return self.take_step.average.module
        return self.task.student

    def _score(self, student: nn.Module) -> dict[str, Any]:
        size = max(self.recipe.batch_size // self.processes.world_size, 32)
        return self.task.score(student, self.data, self.device, batch_size=size, processes=self.processes)

    def _draw_if_due(self) -> None:
        every = self.task.picture_steps
        if every and self.step % every == 0 and self.processes.is_first:
            self._draw(self.step)

    def _draw(self, step: int | None = None) -> None:
        self.task.draw(self._result(), self.data.val, self.device, self.out, step)

    # --- going on --------------------------------------------------------------------------------------

    def _save_state(self) -> None:
        if not self.take_step.is_finite():
            raise self._non_finite("A weight", self.take_step.optimizer.param_groups[0]["lr"])
        if self.task.cache is not None:
            self.task.cache.sync()
        if not self.processes.is_first:
            return
        sums = {f"{_LOSSES}{name}": value for name, value in self.loss_sums.items()}
        state = State(
            step=self.step,
            tensors=self.take_step.tensors() | sums,
            meta={**self.identity, _LEFT_OUT: list(self.left_out.items())},
        )
        try:
            save_state(self.out / STATE_NAME, state)
        except OSError as error:
            kept = sorted((self.out / STATE_NAME).glob("step-*"))
            last = f"The newest complete one is {kept[-1].name}" if kept else "There is none before it"
            raise OSError(
                f"The state after step {self.step} cannot be written to {self.out / STATE_NAME} "
                f"({error.strerror or error}). {last}. Make room and pass --resume."
            ) from error

    def _restore(self) -> None:
        state = load_state(self.out / STATE_NAME)
        if state is None:
            return
        for name, value in self.identity.items():
            if not self._is_same(state.meta, name):
                what, (found, received) = name.replace("_", " "), _differing(state.meta.get(name), value)
                why = " Images were added, left out or swapped for others." if name in _IMAGES else ""
                raise ValueError(f"The run in {self.out} has another {what}: {found}. Received: {received}.{why}")
        try:
            self.take_step.restore(state.tensors)
        except RuntimeError as error:
            raise ValueError(f"The run in {self.out} has another student. Resume it with the same one.") from error
        self.step = state.step
        self.left_out = {int(number): str(reason) for number, reason in state.meta.get(_LEFT_OUT, ())}
        # Those of the first process, which stand for its share on the others as well.
        self.loss_sums = {
            name.removeprefix(_LOSSES): value.to(self.device)
            for name, value in state.tensors.items()
            if name.startswith(_LOSSES)
        }

    def _is_same(self, meta: dict[str, Any], name: str) -> bool:
        """Whether a state is of this run in one respect; those of older versions know images by another rule."""
        if name in _IMAGES and name not in meta:
            return name == "validation images"
        if meta.get(name) == self.identity[name]:
            return True
        return name in _IMAGES and meta[name] == former_fingerprint(getattr(self.data, _IMAGES[name]))

    # --- the result ------------------------------------------------------------------------------------

    def finish(self) -> FitResult:
        """Writes the model directory and returns the scores."""
        student = self._result()
        if not self.scores:  # resumed after the last step
            self.scores = self._score(student)
        seconds = time.monotonic() - self.started
        record = self._record(seconds)
        self.processes.on_first(self._draw)
        self.processes.on_first(
            lambda: write_model(self.out, student, self.data.train.classes, self.task.processor, record)
        )
        return FitResult(
            out=self.out, scores=self.scores, history=self.history.epochs, steps=self.step, seconds=seconds
        )

    def _unreadable(self) -> dict[str, Any]:
        """What became unreadable during the run."""
        counted = max((scores.images for scores in self.scores.values()), default=0)
        found = {
            "train_images_left_out": sorted(self.left_out.values()),
            "val_images_left_out": len(self.data.val.labels) - counted,
        }
        return {name: value for name, value in found.items() if value}

    def _record(self, seconds: float) -> dict[str, Any]:
        images, unlabelled = len(self.data.train.labels), count_unlabelled(self.data.train)
        return {
            "task": type(self.task).__name__,
            "teacher": self.identity["teacher"],
            "teacher_fingerprint": self.identity["teacher_fingerprint"],
            "recipe": self.recipe.to_dict(),
            "learning_rate": {
                **dataclasses.asdict(self.recipe.learning_rates()),
                **planned_rates(self.recipe, steps_per_epoch=self.steps_per_epoch),
            },
            "scores": {head: {"images": s.images, **s.as_dict()} for head, s in self.scores.items()},
            "weights": "average" if self._saves_average else "last",
            "data": {
                "train_images": images,
                **({"train_labels": images - unlabelled} if unlabelled else {}),
                "val_images": len(self.data.val.labels),
                "skipped_files": len(self.data.skipped),
                **self._unreadable(),
                "train_fingerprint": self.identity["training images"],
                "val_fingerprint": self.identity["validation images"],
            },
            "images": self.images_record,
            "steps": self.step,
            "seconds": round(seconds, 1),
            **hardware_and_versions(self.device, self.processes.world_size),
        }


def _plain(settings: Any) -> dict[str, Any]:
    """Returns the settings of a model or a processor as they are after a file of JSON."""
    values: dict[str, Any] = json.loads(json.dumps(settings.to_dict(), default=str))
    return values


def _differing(found: Any, received: Any) -> tuple[Any, Any]:
    """Returns two values, of dicts only the entries that differ."""
    if not (isinstance(found, dict) and isinstance(received, dict)):
        return found, received
    names = sorted(name for name in found.keys() | received.keys() if found.get(name) != received.get(name))
    return {name: found.get(name) for name in names}, {name: received.get(name) for name in names}


def _flat_scores(scores: dict[str, Any], prefix: str) -> dict[str, float]:
    first, *others = scores
    flat = {f"{prefix}_{name}": value for name, value in scores[first].as_dict().items()}
    main = next(iter(scores[first].as_dict()))  # what the other heads are shown by as well, such as top1
    return {**flat, **{f"{prefix}_{head}_{main}": scores[head].as_dict()[main] for head in others}}


def _resolve_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device) == "cuda" and current_processes().world_size > 1:
        device = f"cuda:{current_processes().local_rank}"
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises for names and for missing drivers
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            reason = "The device 'cuda' was asked for, but PyTorch finds no GPU."
        else:
            reason = f"The device {str(device)!r} cannot be used ({error})."
        raise ValueError(f"{reason} Pass device='cpu'.") from error
    return resolved


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C or SIGTERM into a flag; a second one ends the process as usual."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        flag.set()
        signal.signal(number, previous[signal.Signals(number)])

    try:
        for number in previous:
            signal.signal(number, ask)
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
