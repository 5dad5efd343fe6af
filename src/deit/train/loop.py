"""The one training loop: `fit(task, data, recipe, out=...)`.

Everything random is a function of the seed and the step, so a run that was stopped goes on exactly where it was.
Started by `torchrun`, every process calls `fit` alike: they share each batch, and the first one writes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deit.core.errors import UserError
from deit.core.file_names import LAST_NAME, STATE_NAME
from deit.core.images.reading import ImageError
from deit.core.writing import writing
from deit.data.loader import Batch, StepOrder, refuse_import_by_worker
from deit.data.sources import Data, former_fingerprint
from deit.runtime.devices import resolve
from deit.runtime.processes import current_processes
from deit.runtime.signals import Interrupt, interrupts
from deit.train.loss_sums import LossSums
from deit.train.numerics.going_back import look_at_steps
from deit.train.numerics.guard import Guard, describe_guard
from deit.train.open_images import open_batches, step_order
from deit.train.optimization import describe_rates, learning_rate
from deit.train.progress import FitResult, StepEvent
from deit.train.recipes.recipe import Recipe
from deit.train.run.ending import Ending
from deit.train.run.folder import check_room, finished_record, open_run_folder, write_model
from deit.train.run.history import History
from deit.train.run.identity import check_identity, facts_of_start, identity_of_run
from deit.train.run.known_images import keep_run_images
from deit.train.run.left_out import LeftOut
from deit.train.run.record import data_record, hardware_and_versions, rates_record, scores_record, task_record
from deit.train.run.recorded_images import images_of_run, record_images
from deit.train.run.resumed import PRECISION, Resumed, precision_of_run
from deit.train.run.state import State, fields_of, load_state, remove_states, state_folder
from deit.train.selection.evaluations import Evaluations, describe_selection
from deit.train.states.state_writer import StateWriter
from deit.train.step import StepResult, TrainStep, check_division
from deit.train.students.drop_path import apply_drop_path
from deit.train.tasks.agreement import with_division
from deit.train.tasks.task import EACH_EVALUATION, Task
from deit.train.teachers.batch_norm import check_batch_norm
from deit.train.teachers.cache import open_cache

logger = logging.getLogger(__name__)

_LEFT_OUT, _CHANGED, _GUARD = "images left out", "changed settings", "guard"  # in a state
_GPU_EVENT_STEPS = 10  # a GPU runs ahead of Python; asking it after every step would make it wait


def fit(
    task: Task,
    data: Data,
    recipe: Recipe,
    *,
    out: str | Path,
    device: str | torch.device | None = None,
    resume: bool = False,
    teacher_cache: str | Path | None = None,
    more_record: Mapping[str, Any] | None = None,
    detect_anomaly: bool = False,
    sharding: str = "none",
    gradient_checkpointing: bool = False,
    notice_file: str | Path | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> FitResult:
    """Trains a student and writes it as a model directory.

    The folder gets `recipe.yaml`, `metrics.jsonl`, `metrics.csv`, `curves.png`, and a training state before each
    evaluation and after every `recipe.state_steps`; at the end the model, with the weights that `recipe.keep` names
    (with "best" the last ones lie in `last`). An interrupt saves a state. docs/reliability.md says what happens to
    unreadable images and to numbers that are infinite or NaN. No other thread may draw from the global generators.

    Args:
        task: Student and losses, from `build_task` with the same recipe.
        data: Images to learn from and to measure on; without the latter nothing is scored.
        recipe: All hyper-parameters. The run records it, with student, teacher and division of the data.
        out: Folder of the run; new or empty, unless `resume`.
        device: "cpu", "cuda", ...; None or "auto" takes the GPU if there is one (each process its own).
        resume: True continues from the newest state in `out`.
        teacher_cache: Folder that records the teacher's answers, and returns those recorded before.
        more_record: More entries of `training.json`; nothing by default.
        detect_anomaly: True ends the run at the first value that is infinite or NaN, and names its module. Slow.
        sharding: "fsdp" divides weights, gradients, optimizer and average among the processes, see docs/scaling.md.
        gradient_checkpointing: True keeps only the inputs of blocks, and computes the blocks again.
        notice_file: File whose appearance, on the machine of any process, stops the run as SIGUSR1 does.
        on_step: Called after every step; on a GPU after every tenth and before each state.
        on_epoch: Called with the metrics after every evaluation.

    Returns:
        The scores and the path of the model.

    Raises:
        FileExistsError: `out` holds a run or other files, and `resume` is off.
        FolderInUseError: Another process or thread uses `out`, or records into the teacher cache.
        ValueError: Task, recipe, data or a resumed run do not agree; or the cache is of another training.
        ImageError: Too many images can no longer be read; the state is saved.
        NonFiniteLossError: Losses, gradients or weights were infinite or NaN, and going back to a state did not help.
        OSError: The state or the model cannot be written; the last complete state is kept.
        TrainingInterrupted: An interrupt; the state is saved.
    """
    refuse_import_by_worker()
    with contextlib.ExitStack() as until_the_end, writing(out := Path(out)):
        found = current_processes().on_each(lambda: images_of_run(out, data, recipe, resume=resume))
        how = {"sharding": sharding, "gradient_checkpointing": gradient_checkpointing, "detect_anomaly": detect_anomaly}
        run = _Run(task, found, recipe, out, resolve(device).device, resume, teacher_cache, how, until_the_end)
        with run.ending.noted(), run.states, interrupts(notice_file) as interrupt:
            run.train(interrupt, on_step, on_epoch)
            return run.finish(more_record or {})


class _Run:
    """One training in progress: what `fit` needs from step to step."""

    _saved: tuple[int, Path] | None = None

    def __init__(
        self,
        task: Task,
        data: Data,
        recipe: Recipe,
        out: Path,
        device: torch.device,
        resume: bool,
        teacher_cache: str | Path | None,
        how: dict[str, Any],
        until_the_end: contextlib.ExitStack,
    ) -> None:
        self.started = time.monotonic()
        self.processes = current_processes()
        self.recipe = recipe = self.processes.on_each(lambda: with_division(task.settle(recipe), data))
        self.task, self.data, self.out, self.device = task, data, out, device
        self.steps_per_epoch = self.processes.on_each(lambda: self._set_up_task(teacher_cache)).steps_per_epoch
        self.total_steps = self.steps_per_epoch * recipe.schedule.last_epoch
        self.identity = self.processes.on_each(lambda: identity_of_run(task, data, recipe))
        self.processes.must_agree(facts_of_start(self.identity, task.student, recipe))
        task.to(device)
        if task.teacher is not None:
            task.teacher.to(device)
        self.precision = self.processes.on_first(lambda: precision_of_run(out, recipe, device, resume=resume))
        self.take_step = TrainStep(
            task,
            recipe.with_settings({PRECISION: self.precision.precision}),
            device,
            steps_per_epoch=self.steps_per_epoch,
            num_classes=len(data.train.classes),
            processes=self.processes,
            **how,
        )
        self.guard = Guard(recipe.max_skipped_steps, self.processes, scales=self.take_step.scaler.is_enabled())
        self._looks_each_step = device.type != "cuda" or self.take_step.anomaly is not None
        self.evaluations = Evaluations(task, self.take_step, recipe, data, device, self.processes)
        if teacher_cache is not None:
            self._open_cache(Path(teacher_cache), until_the_end)
        folder = open_run_folder(out, recipe, resume=resume, note=self.precision.note)
        self.processes.on_first(lambda: until_the_end.enter_context(folder))
        self.processes.on_first(lambda: check_room(out, self.take_step.state_bytes()))
        self.images_record = self.processes.on_first(lambda: self._keep_images(teacher_cache))
        self.step, self.run_files, self.loss_sums = 0, task.run_files, LossSums()
        self.resumed, self.ending = Resumed(note=self.precision.note), Ending(out, self.processes)
        self.states = StateWriter(out / STATE_NAME, self.processes, last=recipe.kept_states)
        self.left_out = LeftOut(recipe.data.tolerated, len(data.train.labels), tells=self.processes.is_first)
        if resume:
            self._restore()
            self.processes.must_agree({"newest state in the folder: step": self.step})
            options = {"step": self.step, "steps_per_epoch": self.steps_per_epoch}
            self.processes.on_first(lambda: self.resumed.take(out, recipe, **options))
        self.first_step = self.step
        self.history = History(out, until_step=self.step)
        if self.history.epochs and self.history.epochs[-1]["step"] == self.step:
            self.loss_sums = LossSums()  # the evaluation that needs them was done
            self.evaluations.compare(self.history.epochs[-1])
        order = self._order(self.step, self.total_steps)
        self.batches = open_batches(task, data.train, recipe, order, device, self.processes)

    def _keep_images(self, teacher_cache: str | Path | None) -> dict[str, Any]:
        record_images(self.out, self.data)
        return keep_run_images(self.task, self.data, self.out, teacher_cache)

    def _set_up_task(self, teacher_cache: str | Path | None) -> StepOrder:
        task, recipe = self.task, self.recipe
        check_division(recipe, self.processes)
        check_batch_norm(task.student, recipe, self.processes.world_size)
        if recipe.data.range is not None:  # what the images were read with is saved with the model
            task.processor.value_range = recipe.data.range
        task.check(self.data, recipe, teacher_cache)
        apply_drop_path(task.student, recipe)
        return self._order(0, 0)

    def _order(self, first_step: int, last_step: int) -> StepOrder:
        return step_order(self.data.train, self.recipe, self.processes, first_step, last_step)

    def _open_cache(self, folder: Path, until_the_end: contextlib.ExitStack) -> None:
        task = self.task
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
        logger.info(" ".join(describe_rates(self.recipe, steps_per_epoch=self.steps_per_epoch)))
        if self.loss_sums and self._evaluation_is_due():  # the run ended between the step and its evaluation
            self._measure(on_epoch)
        batches = iter(self.batches)
        while self.step < self.total_steps and not self.evaluations.kept.stops:
            result = self.take_step(self._next(batches, interrupt), self.step)
            self.step += 1
            self._write_run_files()
            self.loss_sums.add(result.losses, result.taken)
            self.guard.add(self.step, result.losses["loss"], result.taken)
            due = self._evaluation_is_due()
            saves = due or (self.recipe.state_steps > 0 and self.step % self.recipe.state_steps == 0)
            if saves or self._looks_each_step or self.step % _GPU_EVENT_STEPS == 0:
                if on_step is not None:
                    on_step(self._event(result))
                look_at_steps(
                    self.guard, self.take_step, self.ending, self.states, step=self.step,
                    ends=self.step == self.total_steps, saves=saves, span=self._steps_per_evaluation if due else 0,
                )  # fmt: skip
            if saves:
                self.guard.saves(self.step)
                self._save_state(planned=True)  # before the evaluation, which may take long and can fail
            if due:
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
        number, stop, failed = self.processes.largest(interrupt.number, unreadable, self.states.failed)
        if failed:
            self.states.wait()
        if number:
            raise self.ending.interrupted(self.step, self.total_steps, self._save_state(), number)
        if stop:
            reason = str(failure).rstrip(".") if failure else self.left_out.explain() if unreadable else ""
            raise self._stopped_by_images(reason) from failure
        assert batch is not None
        self.left_out.accept(self.step + 1)
        return batch

    def _stopped_by_images(self, reason: str) -> Exception:
        """Saves the state, and returns the error that ends the run."""
        reason = self.processes.first_text(reason).rstrip(".")
        return self.ending.unreadable(reason, self.step, self._save_state())

    def _measure(self, on_epoch: Callable[[dict[str, Any]], None] | None) -> None:
        lr = learning_rate(self.step - 1, steps_per_epoch=self.steps_per_epoch, recipe=self.recipe)
        row = self._evaluate(self.loss_sums.means(self.processes), lr)
        self.loss_sums = LossSums()
        self.evaluations.compare(row)
        if on_epoch is not None:
            on_epoch(row)
        if self.evaluations.kept.stops and self.step < self.total_steps and self.processes.is_first:
            logger.warning("%s", self._explain_stop())

    def _explain_stop(self) -> str:
        return self.evaluations.kept.explain_stop(self.step // self.steps_per_epoch, self.recipe.schedule.epochs)

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

    # --- evaluation ------------------------------------------------------------------------------------

    def _evaluation_is_due(self) -> bool:
        return self.step == self.total_steps or self.step % self._steps_per_evaluation == 0

    @property
    def _steps_per_evaluation(self) -> int:
        return self.steps_per_epoch * self.recipe.eval_epochs

    def _evaluate(self, losses: dict[str, float], lr: float) -> dict[str, Any]:
        row: dict[str, Any] = {"epoch": self.step // self.steps_per_epoch, "step": self.step, "lr": lr, **losses}
        skipped = self.guard.skipped - sum(each.get("skipped_steps", 0) for each in self.history.epochs)
        row |= {"skipped_steps": skipped} if skipped else {}
        try:
            row.update(self.evaluations.take())
        except ImageError as error:
            if self.processes.world_size > 1:  # the others do not know of it, and the state is saved already
                raise
            raise self._stopped_by_images(str(error)) from error
        if self.task.left_out:
            reason = next(iter(self.task.left_out.values()))
            logger.warning("Left out of the scores: %d image(s), such as: %s", len(self.task.left_out), reason)
        row["seconds"] = round(self._seconds(), 2)
        self.history.epochs.append(row)
        self.processes.on_first(self.history.write)
        return row

    def _write_run_files(self, student: nn.Module | None = None) -> None:
        """Writes the files of the task that are due after this step; at the end of the run those of its model."""
        step = None if student is not None else self.step
        for file in self.run_files:
            every = self._steps_per_evaluation if file.every == EACH_EVALUATION else file.every
            at_end = file.every == EACH_EVALUATION and self.step == self.total_steps
            if student is not None or at_end or (every and self.step % every == 0):
                write = partial(
                    file.write, student or self.evaluations.last(), self.data.val, self.device, self.out, step
                )
                self.processes.on_first(write)

    # --- going on --------------------------------------------------------------------------------------

    def _save_state(self, *, planned: bool = False) -> Path:
        """Saves the state after the step at hand; a `planned` one was looked at, and is written beside the steps."""
        if not planned and not self.take_step.is_finite():
            lr = self.take_step.optimizer.param_groups[0]["lr"]
            raise self.ending.non_finite("A weight became infinite or NaN", self.step, lr, good=self.guard.good)
        if self.task.cache is not None:
            self.processes.on_each(self.task.cache.sync)
        self.left_out.share(self.processes)
        if self._saved is None or self._saved[0] != self.step:
            self._saved = self.step, self._write_state()
        if not planned:
            self.states.wait()
        return self._saved[1]

    def _write_state(self) -> Path:
        ours = {_LEFT_OUT: list(self.left_out.reasons.items()), _CHANGED: self.resumed.changes}
        ours |= {PRECISION: self.precision.record(), _GUARD: self.guard.values()}
        kept = self.evaluations.kept
        tensors = self.take_step.tensors() | self.loss_sums.tensors(self.processes) | kept.tensors()
        state = State(step=self.step, tensors=tensors, meta={**self.identity, **ours, **kept.values()})
        return self.states.save(state, good=self.guard.good)

    def _restore(self) -> None:
        state = load_state(self.out / STATE_NAME, self.take_step.layout())
        if state is None:
            return
        check_identity(self.identity, state.meta, self.data, self.out)
        try:
            self.take_step.restore(state.tensors)
        except RuntimeError as error:
            raise UserError(f"The run in {self.out} has another student. Resume it with the same one.") from error
        self.step, self._saved = state.step, (state.step, state_folder(self.out / STATE_NAME, state.step))
        fields = fields_of(self._saved[1])
        self.left_out.restore(state.meta.get(_LEFT_OUT, []), fields)
        self.resumed.changes = fields.listed({_CHANGED: [], **state.meta}, _CHANGED, dict, 10_000)
        since = (self.step - 1) % self._steps_per_evaluation + 1
        self.loss_sums = LossSums.from_state(state.tensors, self.device, since)
        self.guard.restore(fields.table({_GUARD: {}, **state.meta}, _GUARD), state.step, fields)
        self.evaluations.kept.restore(state, fields)

    # --- the result ------------------------------------------------------------------------------------

    def finish(self, more_record: Mapping[str, Any]) -> FitResult:
        """Writes the model directory, and with `keep="best"` another one of the last weights."""
        self.states.wait()
        last, evaluations = self.evaluations.last(), self.evaluations
        finished = finished_record(self.out) if self.step == self.first_step else {}
        if not evaluations.scores:  # resumed after the last step, or there is nothing to measure on
            if self.step == self.first_step and self.processes.is_first:
                why = self._explain_stop() if self.step < self.total_steps else ""
                logger.warning("%s", self.ending.nothing_left(self.recipe.schedule.last_epoch, why))
            evaluations.scores = evaluations.score(last)
        # A run of which nothing was left to train took as long as it did.
        seconds = finished["seconds"] if isinstance(finished.get("seconds"), float) else self._seconds()
        student, scores, choice = last, evaluations.scores, evaluations.record()
        if "kept" in choice:
            self._write_model(self.out / LAST_NAME, last, self._record(seconds, scores, evaluations.record_of_last()))
            student = evaluations.model()
            scores = evaluations.score(student)
        self._write_run_files(student)
        self._write_model(self.out, student, record := self._record(seconds, scores, {**choice, **more_record}))
        if not self.recipe.keep_state:
            self.processes.on_first(lambda: remove_states(self.out / STATE_NAME))
        return FitResult(
            out=self.out,
            scores=scores,
            history=self.history.epochs,
            steps=self.step,
            seconds=seconds,
            notes=tuple(record.get("notes", ())),
            student=student,
        )

    def _seconds(self) -> float:
        """Returns the seconds of the run, with those before it was resumed, up to the last evaluation there."""
        earlier = [row for row in self.history.epochs if row["step"] <= self.first_step]
        return float(earlier[-1].get("seconds", 0) if earlier else 0) + time.monotonic() - self.started

    def _write_model(self, folder: Path, student: nn.Module, record: dict[str, Any]) -> None:
        classes, processor = self.data.train.classes, self.task.processor
        self.processes.on_first(lambda: write_model(folder, student, classes, processor, record))

    def _record(self, seconds: float, scores: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
        changes = {"changed_settings": self.resumed.changes} if self.resumed.changes else {}
        record = {
            **task_record(self.task, self.recipe, self.data, self.identity),
            PRECISION: {"asked": self.recipe.precision, **self.precision.record()},
            **changes,
            "learning_rate": rates_record(self.recipe, self.steps_per_epoch),
            **scores_record(scores),
            **choice,
            "data": data_record(self.data, self.identity, self.left_out.reasons, scores),
            "images": self.images_record,
            "steps": self.step,
            "seconds": round(seconds, 1),
            **hardware_and_versions(self.device, self.processes.world_size),
        }
        guard = self.guard.record()
        record |= {"guard": guard} if guard else {}
        notes = [*describe_selection(record), *describe_guard(guard)]
        return {**record, "notes": notes} if notes else record
