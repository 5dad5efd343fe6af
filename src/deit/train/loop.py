"""The one training loop: `fit(task, data, recipe, out=...)`.

Everything random is a function of the seed and the step, so a run that was stopped goes on exactly where it was.
Started by `torchrun`, every process calls `fit` alike: they share each batch, and the first one writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deit.core.errors import UserError
from deit.core.file_names import STATE_NAME
from deit.core.images.reading import ImageError
from deit.core.writing import writing
from deit.data.augment import build_transform
from deit.data.few_labels import count_unlabelled, labelled_again
from deit.data.loader import Batch, StepOrder, refuse_import_by_worker, training_batches
from deit.data.sources import Data, former_fingerprint
from deit.models.pretrained import PreTrainedModel
from deit.models.trunk.vision_transformer import set_drop_path
from deit.runtime.devices import resolve
from deit.runtime.processes import FirstProcessError, current_processes
from deit.runtime.signals import Interrupt, TrainingInterrupted, interrupts
from deit.train.optimization import describe_rates, learning_rate, planned_rates
from deit.train.recipes.recipe import Recipe
from deit.train.run.folder import finished_record, hardware_and_versions, open_run_folder, write_model
from deit.train.run.history import History
from deit.train.run.known_images import keep_run_images
from deit.train.run.left_out import LeftOut
from deit.train.run.recorded_images import images_of_run, record_images
from deit.train.run.resumed import Resumed, differing, plain_settings
from deit.train.run.state import State, load_state, newest_state, remove_states, save_state, state_folder
from deit.train.step import NonFiniteLossError, StepResult, TrainStep, check_division
from deit.train.tasks import DistillationTask, Task
from deit.train.teachers.batch_norm import check_batch_norm
from deit.train.teachers.cache import open_cache

logger = logging.getLogger(__name__)

_LEFT_OUT, _CHANGED = "images left out", "changed settings"  # in a state
_LOSSES = "losses."  # before the names of summed losses in a state
_IMAGES = {"training images": "train", "validation images": "val"}  # in an identity -> in the data
_GPU_EVENT_STEPS = 10  # a GPU runs ahead of Python; asking it after every step would make it wait


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
    (`README.md`). An interrupt (Ctrl-C, SIGTERM, SIGHUP) saves the state after the step at hand. An image that can no
    longer be read is left out, see `data.max_bad_images` of the recipe; more of them than that save the state and stop.
    Whatever else ends the run, a note of the error names the newest complete state.

    The folder is locked meanwhile. Trainings in several threads give what each gives alone; other threads must not draw
    from the generators of `random`, numpy and torch.

    Args:
        task: Student and losses.
        data: Images to learn from and to measure on.
        recipe: All hyper-parameters; `drop_path_rate` and its shape are set on any DeiT or ViT student.
        out: Folder of the run; new or empty, unless `resume`.
        device: "cpu", "cuda", ...; the GPU if there is one when None or "auto" (each process its own).
        resume: Go on from the newest state in `out`.
        teacher_cache: Folder in which the teacher's answers are recorded, and from which they are read.
        on_step: Called after every step, on a GPU after every tenth.
        on_epoch: Called with the metrics after every evaluation.

    Returns:
        The scores and where the model is.

    Raises:
        FileExistsError: `out` holds a run or other files, and `resume` is off.
        FolderInUseError: Another process or thread is at work in `out`, or records into the teacher cache.
        ValueError: The recipe of a resumed run is another one, the cache is of another training, or recipe and data
            do not fit together.
        ImageError: Too many images can no longer be read; the state is saved.
        NonFiniteLossError: The loss became infinite or NaN.
        OSError: The state or the model cannot be written; the last complete state is kept.
        TrainingInterrupted: An interrupt; the state is saved.
    """
    refuse_import_by_worker()
    with contextlib.ExitStack() as until_the_end, writing(Path(out)):
        found = current_processes().on_each(lambda: images_of_run(Path(out), data, recipe, resume=resume))
        run = _Run(task, found, recipe, Path(out), resolve(device).device, resume, teacher_cache, until_the_end)
        try:
            logger.info(" ".join(describe_rates(run.recipe, steps_per_epoch=run.steps_per_epoch)))
            with interrupts() as interrupt:
                run.train(interrupt, on_step, on_epoch)
                return run.finish()
        except Exception as error:
            run.add_note(error)
            raise


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
        until_the_end: contextlib.ExitStack,
    ) -> None:
        self.started = time.monotonic()
        self.processes = current_processes()
        self.recipe = recipe = self.processes.on_each(lambda: task.settle(recipe))
        self.task, self.data, self.out, self.device = task, data, out, device
        self.steps_per_epoch = self.processes.on_each(self._set_up_task).steps_per_epoch
        self.total_steps = self.steps_per_epoch * recipe.schedule.epochs
        # What must be the same for a run to go on, beside the recipe. Worked out once: the hash visits every image.
        teacher = task.teacher
        self.identity: dict[str, Any] = {
            "teacher": teacher and teacher.name,
            "teacher_fingerprint": teacher and teacher.fingerprint(),
            **{name: getattr(data, part).fingerprint() for name, part in _IMAGES.items()},
            "student": plain_settings(task.student.config) if isinstance(task.student, PreTrainedModel) else None,
            "preprocessing": plain_settings(task.processor),
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
        self._open_cache(teacher_cache, until_the_end)
        self.processes.on_first(lambda: until_the_end.enter_context(open_run_folder(out, recipe, resume=resume)))
        self.images_record = self.processes.on_first(lambda: self._keep_images(teacher_cache))
        self.step, self.resumed = 0, Resumed()
        self._saved: tuple[int, Path] | None = None
        self._has_told = False  # whether the error that ends the run says from where it can go on
        self.loss_sums: dict[str, Tensor] = {}  # since the last evaluation
        self.left_out = LeftOut(recipe.data.tolerated, len(data.train.labels), tells=self.processes.is_first)
        if resume:
            self._go_on()
        self.first_step = self.step
        self.history = History(out, until_step=self.step)
        if self.history.epochs and self.history.epochs[-1]["step"] == self.step:
            self.loss_sums = {}  # the evaluation that needs them was done
        self.scores: dict[str, Any] = {}
        processor = task.processor
        self.batches = training_batches(
            data.train,
            build_transform(recipe.augment, processor.output_size, processor.channel_mean, processor.channel_std),
            self._order(self.step, self.total_steps),
            num_workers=recipe.num_workers,
            pin_memory=device.type == "cuda",
        )

    def _go_on(self) -> None:
        self._restore()
        options = {"step": self.step, "steps_per_epoch": self.steps_per_epoch}
        self.processes.on_first(lambda: self.resumed.take(self.out, self.recipe, **options))

    def _keep_images(self, teacher_cache: str | Path | None) -> dict[str, Any]:
        record_images(self.out, self.data)
        return keep_run_images(self.task, self.data, self.out, teacher_cache)

    def _set_up_task(self) -> StepOrder:
        task, recipe = self.task, self.recipe
        check_division(recipe, self.processes)
        check_batch_norm(task.student, recipe, self.processes.world_size)
        if recipe.data.range is not None:  # what the images were read with is saved with the model
            task.processor.value_range = recipe.data.range
        task.check(self.data, recipe)
        if isinstance(task.student, PreTrainedModel):
            set_drop_path(task.student, recipe.drop_path_rate, shape=recipe.drop_path_shape)
        return self._order(0, 0)

    def _order(self, first_step: int, last_step: int) -> StepOrder:
        return StepOrder(
            len(self.data.train.labels),
            self.recipe.batch_size,
            self.recipe.seed,
            first_step,
            last_step,
            num_repeats=self.recipe.augment.num_repeats,
            multiple=self.recipe.batch_multiple(self.processes.world_size),
            again=labelled_again(self.data.train, self.recipe.data.labelled_share),
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )

    def _open_cache(self, teacher_cache: str | Path | None, until_the_end: contextlib.ExitStack) -> None:
        task = self.task
        if teacher_cache is None:
            if isinstance(task, DistillationTask) and task.teacher is None:
                raise UserError("Distillation needs a teacher, or a cache of what one said. Received neither.")
            return
        folder = Path(teacher_cache)
        if not isinstance(task, DistillationTask):
            raise UserError(f"A teacher cache needs a teacher to cache. Received: {folder}, and labels alone.")
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
        until_the_end.callback(task.cache.release)
        self.identity |= {name: task.cache.header[name] for name in ("teacher", "teacher_fingerprint")}

    # --- training --------------------------------------------------------------------------------------

    def train(
        self,
        interrupt: Interrupt,
        on_step: Callable[[StepEvent], None] | None,
        on_epoch: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        """Does all steps that are left, with an evaluation after every `eval_epochs` epochs."""
        if self.loss_sums and self._evaluation_is_due():  # the run ended between the step and its evaluation
            self._measure(on_epoch)
        batches = iter(self.batches)
        while self.step < self.total_steps:
            result = self.take_step(self._next(batches, interrupt), self.step)
            self.step += 1
            self._draw_if_due()
            for name, loss in result.losses.items():
                self.loss_sums[name] = self.loss_sums[name] + loss if name in self.loss_sums else loss
            due = self._evaluation_is_due()
            if due or self.device.type != "cuda" or self.step % _GPU_EVENT_STEPS == 0:
                if on_step is not None:
                    on_step(self._event(result))
                self._look(result)
            if due:
                self._save_state()  # before the evaluation, which may take long and can fail
                self._measure(on_epoch)

    def _next(self, batches: Iterator[Batch], interrupt: Interrupt) -> Batch:
        """Returns the images of the next step, unless a process was asked to stop or lacks too many of its own."""
        failure: ImageError | None = None
        batch: Batch | None = None
        if not interrupt:
            try:
                batch = next(batches)
                self.left_out.note(batch)
            except ImageError as error:
                failure = error
        unreadable = failure is not None or self.left_out.too_many()
        number, stop = self.processes.largest(interrupt.number, unreadable)
        if number:
            where = self._save_state()
            self._has_told = True
            raise TrainingInterrupted(
                f"Stopped after step {self.step} of {self.total_steps}; its state is {where}.", number
            )
        if stop:
            reason = str(failure).rstrip(".") if failure else self.left_out.explain() if unreadable else ""
            raise self._stopped_by_images(reason) from failure
        assert batch is not None
        self.left_out.accept(self.step + 1)
        return batch

    def _stopped_by_images(self, reason: str) -> Exception:
        """Saves the state, and returns the error that says why the run stops: on the first process the whole of it."""
        reason = self.processes.first_text(reason).rstrip(".")
        where = self._save_state()
        self._has_told = True
        if not self.processes.is_first:
            return FirstProcessError(reason)
        return ImageError(
            f"{reason}. The state after step {self.step} is saved ({where}): mend the image and pass --resume, or "
            "begin anew without it."
        )

    def _measure(self, on_epoch: Callable[[dict[str, Any]], None] | None) -> None:
        lr = learning_rate(self.step - 1, steps_per_epoch=self.steps_per_epoch, recipe=self.recipe)
        row = self._evaluate(self._mean_losses(), lr)
        self.loss_sums = {}
        if on_epoch is not None:
            on_epoch(row)

    def _look(self, result: StepResult) -> None:
        """Checks the losses since the last evaluation."""
        scaled = self.take_step.scaler.is_enabled()  # which passes over a step whose gradients overflow
        finite = scaled or bool(torch.isfinite(self.loss_sums["loss"]))
        if self.processes.any(not finite)[0]:
            raise self._non_finite("The loss", result.lr)

    def add_note(self, error: Exception) -> None:
        """Adds to an error that ends the run from where it can go on, unless the error says so itself."""
        if not self._has_told and self.processes.is_first:
            go_on = " Pass --resume to go on from there." if newest_state(self.out / STATE_NAME) else ""
            error.add_note(f"{self._newest_state()}{go_on}")

    def _non_finite(self, what: str, lr: float) -> Exception:
        self._has_told = True
        if not self.processes.is_first:
            return FirstProcessError(what)
        return NonFiniteLossError(
            f"{what} became infinite or NaN at step {self.step} (learning rate {lr:.1e}). {self._newest_state()} "
            "Try a lower optimizer.lr, a longer warm-up or optimizer.clip_grad=1, in a new folder."
        )

    def _newest_state(self) -> str:
        state = newest_state(self.out / STATE_NAME)
        return f"The last good state is {state}." if state else "No state was saved before."

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
        ends = [row["step"] for row in self.history.epochs if row["step"] < self.step]  # also of a shorter schedule
        regular = (self.step - 1) // self._steps_per_evaluation * self._steps_per_evaluation
        steps = self.step - max([regular, *ends[-1:]])
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
            if self.processes.world_size > 1:  # the others do not know of it, and the state is saved already
                raise
            raise self._stopped_by_images(str(error)) from error
        if self.task.left_out:
            reason = next(iter(self.task.left_out.values()))
            logger.warning("Left out of the scores: %d image(s), such as: %s", len(self.task.left_out), reason)
        row.update(_flat_scores(self.scores, "val"))
        if self._saves_average:
            self.scores = self._score(self._result())
            row.update(_flat_scores(self.scores, "ema"))
        row["seconds"] = round(self._seconds(), 2)
        self.history.epochs.append(row)
        self.processes.on_first(self.history.write)
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
        with self.processes.sharing():
            return self.task.score(student, self.data, self.device, batch_size=size, processes=self.processes)

    def _draw_if_due(self) -> None:
        every = self.task.picture_steps
        if every and self.step % every == 0:
            self.processes.on_first(lambda: self._draw(self.step))

    def _draw(self, step: int | None = None) -> None:
        self.task.draw(self._result(), self.data.val, self.device, self.out, step)

    # --- going on --------------------------------------------------------------------------------------

    def _save_state(self) -> Path:
        """Saves the state after the step at hand, and returns where it is."""
        if not self.take_step.is_finite():
            raise self._non_finite("A weight", self.take_step.optimizer.param_groups[0]["lr"])
        if self.task.cache is not None:
            self.processes.on_each(self.task.cache.sync)
        self.left_out.share(self.processes)
        if self._saved is None or self._saved[0] != self.step:
            sums = self._shared_loss_sums()
            self._saved = self.step, self._write_state(sums)
        return self._saved[1]

    def _shared_loss_sums(self) -> dict[str, Tensor]:
        """Returns the mean of the sums over the processes, which stands for the share of each in a resumed run."""
        if self.processes.world_size == 1 or not self.loss_sums:
            return self.loss_sums
        values = torch.stack(list(self.loss_sums.values()))
        means = self.processes.sum_tensor(values) / self.processes.world_size
        return dict(zip(self.loss_sums, means.unbind(), strict=True))

    def _write_state(self, loss_sums: dict[str, Tensor]) -> Path:
        sums = {f"{_LOSSES}{name}": value for name, value in loss_sums.items()}
        left_out = list(self.left_out.reasons.items())
        meta = {**self.identity, _LEFT_OUT: left_out, _CHANGED: self.resumed.changes}
        state = State(step=self.step, tensors=self.take_step.tensors() | sums, meta=meta)
        return save_state(self.out / STATE_NAME, state, self.processes)

    def _restore(self) -> None:
        state = load_state(self.out / STATE_NAME)
        if state is None:
            return
        for name, value in self.identity.items():
            if not self._is_same(state.meta, name):
                what, (found, received) = name.replace("_", " "), differing(state.meta.get(name), value)
                why = " Images were added, left out or swapped for others." if name in _IMAGES else ""
                raise UserError(f"The run in {self.out} has another {what}: {found}. Received: {received}.{why}")
        try:
            self.take_step.restore(state.tensors)
        except RuntimeError as error:
            raise UserError(f"The run in {self.out} has another student. Resume it with the same one.") from error
        self.step = state.step
        self._saved = state.step, state_folder(self.out / STATE_NAME, state.step)
        self.left_out.reasons = {int(number): str(reason) for number, reason in state.meta.get(_LEFT_OUT, ())}
        self.resumed.changes = list(state.meta.get(_CHANGED, ()))
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
        finished = finished_record(self.out) if self.step == self.first_step else {}
        if not self.scores:  # resumed after the last step
            self._tell_finished()
            self.scores = self._score(student)
        seconds = self._seconds()
        if isinstance(finished.get("seconds"), float):  # nothing was trained, so it took as long as it did
            seconds = finished["seconds"]
        record = self._record(seconds)
        self.processes.on_first(self._draw)
        self.processes.on_first(
            lambda: write_model(self.out, student, self.data.train.classes, self.task.processor, record)
        )
        if not self.recipe.keep_state:
            self.processes.on_first(lambda: remove_states(self.out / STATE_NAME))
        return FitResult(
            out=self.out, scores=self.scores, history=self.history.epochs, steps=self.step, seconds=seconds
        )

    def _seconds(self) -> float:
        """How long the run has taken, with what was done before it was resumed, until the last evaluation there."""
        earlier = [row for row in self.history.epochs if row["step"] <= self.first_step]
        return float(earlier[-1].get("seconds", 0) if earlier else 0) + time.monotonic() - self.started

    def _tell_finished(self) -> None:
        if self.processes.is_first:
            logger.warning(
                "The run in %s has done %s: nothing is trained. Scores and model are written anew.",
                self.out,
                _all_of(self.recipe.schedule.epochs),
            )

    def _unreadable(self) -> dict[str, Any]:
        """What became unreadable during the run."""
        counted = max((scores.images for scores in self.scores.values()), default=0)
        found = {
            "train_images_left_out": sorted(self.left_out.reasons.values()),
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
            **({"changed_settings": self.resumed.changes} if self.resumed.changes else {}),
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


def _all_of(epochs: int) -> str:
    return f"all of its {epochs} epochs" if epochs != 1 else "its one epoch"


def _flat_scores(scores: dict[str, Any], prefix: str) -> dict[str, float]:
    first, *others = scores
    flat = {f"{prefix}_{name}": value for name, value in scores[first].as_dict().items()}
    main = next(iter(scores[first].as_dict()))  # what the other heads are shown by as well, such as top1
    return {**flat, **{f"{prefix}_{head}_{main}": scores[head].as_dict()[main] for head in others}}
