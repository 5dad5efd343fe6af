"""The one training loop: `fit(task, data, recipe, out=...)`.

Everything random is a function of the seed and the step, so a run that was stopped goes on exactly where it was.
"""

from __future__ import annotations

import contextlib
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deit
from deit.core.files import replace_folder_content, write_json_atomically
from deit.core.labels import id2label_from_names
from deit.core.metrics import Scores, evaluate
from deit.core.model_directory import TRAINING_NAME
from deit.data.augment import BatchMixer, build_transform
from deit.data.loader import EvaluationBatches, StepOrder, training_batches
from deit.data.random_state import seeded
from deit.data.sources import Data
from deit.models.classifier import head_logits
from deit.models.pretrained import DeiTPreTrainedModel
from deit.train.history import History
from deit.train.optimization import all_finite, build_average, build_optimizer, learning_rate, parameter_groups
from deit.train.recipe import Recipe, differences
from deit.train.state import State, load_state, optimizer_tensors, restore_optimizer, save_state
from deit.train.tasks import DistillationTask, Task

RECIPE_NAME, STATE_NAME = "recipe.yaml", "state"
_MODEL_KEY = 2  # views take 0, mixing 1


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or NaN; the run's last state is from before that."""


class TrainingInterrupted(Exception):  # noqa: N818  # not an error: the user asked for it
    """The run was asked to stop, saved its state and can go on."""


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """Progress of a run, after a step.

    Attributes:
        step: Steps done.
        total_steps: Steps in all.
        epoch: Epochs begun.
        loss: Of this step.
        lr: Learning rate of this step.
        images_per_second: Since the run was started or resumed, evaluation included.
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
    scores: dict[str, Scores]
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
    on_step: Callable[[StepEvent], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> FitResult:
    """Trains a student and writes it as a model directory.

    The folder gets `recipe.yaml`, `metrics.jsonl`, `metrics.csv` and `curves.png` on the way, a training state after
    each evaluation, and at the end the model with its preprocessing, labels and `training.json`. An interrupt
    (Ctrl-C, SIGTERM) saves the state after the step at hand.

    Args:
        task: Student and losses.
        data: Images to learn from and to measure on.
        recipe: All hyper-parameters.
        out: Folder of the run; new or empty, unless `resume`.
        device: "cpu", "cuda", ...; the GPU if there is one when None.
        resume: Go on from the newest state in `out`.
        on_step: Called after every step.
        on_epoch: Called with the metrics after every evaluation.

    Returns:
        The scores and where the model is.

    Raises:
        FileExistsError: `out` holds a run or other files, and `resume` is off.
        ValueError: The recipe of a resumed run is another one, or recipe and data do not fit together.
        NonFiniteLossError: The loss became infinite or NaN.
        TrainingInterrupted: An interrupt; the state is saved.
    """
    run = _Run(task, data, recipe, Path(out), _resolve_device(device), resume)
    with _interrupts() as interrupted:
        run.train(interrupted, on_step, on_epoch)
    return run.finish()


class _Run:
    """One training in progress: what `fit` needs from step to step."""

    def __init__(self, task: Task, data: Data, recipe: Recipe, out: Path, device: torch.device, resume: bool) -> None:
        self.started = time.monotonic()
        self.task, self.data, self.recipe, self.out, self.device = task, data, recipe, out, device
        batch, total = recipe.batch_size, recipe.schedule.epochs
        self.steps_per_epoch = StepOrder(len(data.train.labels), batch, recipe.seed, 0, 0).steps_per_epoch
        self.total_steps = self.steps_per_epoch * total
        # What must be the same for a run to go on, beside the recipe. Worked out once: the hash visits every image.
        teacher = task.teacher.name if isinstance(task, DistillationTask) else None
        self.identity = {"teacher": teacher, "training images": data.train.fingerprint()}
        state = _open_run_folder(out, recipe, resume)

        task.to(device)
        if isinstance(task, DistillationTask):
            task.teacher.to(device)
        self.optimizer = build_optimizer(task.student, recipe.optimizer, device)
        self.average = build_average(task.student, recipe.ema_decay) if recipe.ema_decay else None
        self.trained = [p for group in parameter_groups(task.student, 0.0) for p in group["params"]]
        self.step = 0
        if state is not None:
            self._restore(state)
        self.first_step = self.step
        self.history = History(out, until_step=self.step)
        self.scores: dict[str, Scores] = {}

        processor = task.processor
        transform = build_transform(
            recipe.augment, processor.output_size, processor.channel_mean, processor.channel_std
        )
        self.batches = training_batches(
            data.train,
            transform,
            StepOrder(len(data.train.labels), batch, recipe.seed, self.step, self.total_steps),
            num_workers=recipe.num_workers,
            pin_memory=device.type == "cuda",
        )
        mixes, classes = recipe.augment.mixes, len(data.train.classes)
        self.mixer = BatchMixer(recipe.augment, classes, recipe.label_smoothing, recipe.seed) if mixes else None

    # --- training --------------------------------------------------------------------------------------

    def train(
        self,
        interrupted: threading.Event,
        on_step: Callable[[StepEvent], None] | None,
        on_epoch: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        """Does all steps that are left, with an evaluation after every `eval_epochs` epochs."""
        sums: dict[str, Tensor] = {}
        since = 0
        for pixels, labels in self.batches:
            losses, lr = self._train_step(pixels, labels)
            self.step += 1
            since += 1
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + loss.detach()
            if on_step is not None:
                on_step(self._event(losses["loss"], lr))
            if self._evaluation_is_due():
                row = self._evaluate({f"train_{name}": float(total) / since for name, total in sums.items()}, lr)
                sums, since = {}, 0
                self._save_state()
                if on_epoch is not None:
                    on_epoch(row)
            if interrupted.is_set() and self.step < self.total_steps:
                self._save_state()
                raise TrainingInterrupted(f"Stopped after step {self.step} of {self.total_steps}; its state is saved.")

    def _train_step(self, pixels: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], float]:
        lr = learning_rate(self.step, steps_per_epoch=self.steps_per_epoch, recipe=self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        pixels = pixels.to(self.device, non_blocking=True)
        targets = labels.to(self.device, non_blocking=True)
        if self.mixer is not None:
            pixels, targets = self.mixer(pixels, targets, self.step)
        self.task.train()
        with seeded(self.recipe.seed, _MODEL_KEY, self.step), self._autocast():
            if self.device.type == "cuda":
                torch.cuda.manual_seed(hash((self.recipe.seed, _MODEL_KEY, self.step)) & 0x7FFFFFFF)
            losses = self.task(pixels, targets)
        if not bool(torch.isfinite(losses["loss"])):
            raise self._non_finite("The loss", lr)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        if self.recipe.optimizer.clip_grad:
            nn.utils.clip_grad_norm_(self.trained, self.recipe.optimizer.clip_grad)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.task.student)
        return losses, lr

    def _autocast(self) -> Any:
        precision = self.recipe.precision
        wanted = precision == "bf16" or (precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)

    def _non_finite(self, what: str, lr: float) -> NonFiniteLossError:
        states = sorted((self.out / STATE_NAME).glob("step-*"))
        last = f"The last good state is {states[-1]}." if states else "No state was saved before."
        return NonFiniteLossError(
            f"{what} became infinite or NaN at step {self.step} (learning rate {lr:.1e}). {last} "
            "Try a lower optimizer.lr, a longer warm-up or optimizer.clip_grad=1, in a new folder."
        )

    def _event(self, loss: Tensor, lr: float) -> StepEvent:
        images = (self.step - self.first_step) * self.recipe.batch_size
        return StepEvent(
            step=self.step,
            total_steps=self.total_steps,
            epoch=(self.step - 1) // self.steps_per_epoch + 1,
            loss=float(loss.detach()),
            lr=lr,
            images_per_second=images / (time.monotonic() - self.started),
        )

    # --- evaluation ------------------------------------------------------------------------------------

    def _evaluation_is_due(self) -> bool:
        if self.step == self.total_steps:
            return True
        return self.step % (self.steps_per_epoch * self.recipe.eval_epochs) == 0

    def _evaluate(self, losses: dict[str, float], lr: float) -> dict[str, Any]:
        if not all_finite(self.trained):
            raise self._non_finite("A weight", lr)
        row: dict[str, Any] = {"epoch": self.step // self.steps_per_epoch, "step": self.step, "lr": lr, **losses}
        self.scores = self._score(self.task.student)
        row.update(_flat_scores(self.scores, "val"))
        if self.average is not None:
            self.scores = self._score(self.average.module)
            row.update(_flat_scores(self.scores, "ema"))
        row["seconds"] = round(time.monotonic() - self.started, 2)
        self.history.add(row)
        self.history.draw()
        return row

    def _score(self, student: nn.Module) -> dict[str, Scores]:
        return score(student, self.task, self.data, self.device, batch_size=max(self.recipe.batch_size, 32))

    # --- going on --------------------------------------------------------------------------------------

    def _save_state(self) -> None:
        if not all_finite(self.trained):
            raise self._non_finite("A weight", self.optimizer.param_groups[0]["lr"])
        tensors = {f"student.{k}": v for k, v in self.task.student.state_dict().items()}
        tensors.update(optimizer_tensors(self.optimizer))
        if self.average is not None:
            tensors.update({f"average.{k}": v for k, v in self.average.state_dict().items()})
        save_state(self.out / STATE_NAME, State(step=self.step, tensors=tensors, meta=self.identity))

    def _restore(self, state: State) -> None:
        for name, value in self.identity.items():
            if state.meta[name] != value:
                raise ValueError(f"The run in {self.out} has another {name}: {state.meta[name]}. Received: {value}.")
        try:
            self.task.student.load_state_dict(_below(state.tensors, "student."))
        except RuntimeError as error:
            raise ValueError(f"The run in {self.out} has another student. Resume it with the same one.") from error
        restore_optimizer(self.optimizer, state.tensors)
        if self.average is not None:
            self.average.load_state_dict(_below(state.tensors, "average."))
        self.step = state.step

    # --- the result ------------------------------------------------------------------------------------

    def finish(self) -> FitResult:
        """Writes the model directory and returns the scores."""
        student = self.task.student if self.average is None else self.average.module
        if not self.scores:  # resumed after the last step
            self.scores = self._score(student)
        seconds = time.monotonic() - self.started
        with replace_folder_content(self.out) as temporary:
            _save_student(student, self.data.train.classes, self.task, temporary)
            self.task.processor.save_pretrained(temporary)
            write_json_atomically(temporary / TRAINING_NAME, self._record(seconds))
        return FitResult(
            out=self.out, scores=self.scores, history=self.history.epochs, steps=self.step, seconds=seconds
        )

    def _record(self, seconds: float) -> dict[str, Any]:
        return {
            "task": type(self.task).__name__,
            "teacher": self.identity["teacher"],
            "recipe": self.recipe.to_dict(),
            "scores": {head: asdict(s) for head, s in self.scores.items()},
            "weights": "average" if self.average is not None else "last",
            "data": {
                "train_images": len(self.data.train.labels),
                "val_images": len(self.data.val.labels),
                "skipped_files": len(self.data.skipped),
                "train_fingerprint": self.identity["training images"],
                "val_fingerprint": self.data.val.fingerprint(),
            },
            "steps": self.step,
            "seconds": round(seconds, 1),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor() or "cpu",
            "versions": {"deit": deit.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }


def score(
    student: nn.Module, task: Task, data: Data, device: torch.device, *, batch_size: int = 64
) -> dict[str, Scores]:
    """Scores a student on the validation images, each head apart.

    Args:
        student: The task's own, or an average of it.
        task: Its preprocessing is used.
        data: Its validation images.
        device: Where the student is.
        batch_size: Images in a batch; the scores do not depend on it.
    """

    def predict(pixels: Any) -> dict[str, Any]:
        with torch.inference_mode():
            heads = head_logits(student, torch.from_numpy(pixels).to(device))
        return {name: logits.float().cpu().numpy() for name, logits in heads.items()}

    was_training = student.training
    student.eval()
    try:
        return evaluate(predict, EvaluationBatches(data.val, task.processor, batch_size))
    finally:
        student.train(was_training)


def _flat_scores(scores: dict[str, Scores], prefix: str) -> dict[str, float]:
    first, *others = scores
    flat = {f"{prefix}_top1": scores[first].top1, f"{prefix}_top5": scores[first].top5}
    flat[f"{prefix}_loss"] = scores[first].loss
    return {**flat, **{f"{prefix}_{name}_top1": scores[name].top1 for name in others}}


def _save_student(student: nn.Module, classes: list[str], task: Task, folder: Path) -> None:
    if isinstance(student, DeiTPreTrainedModel):
        id2label = id2label_from_names(classes)
        student.config.update({"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}})
        student.save_pretrained(folder)
        return
    from timm.models import save_for_hf

    student.pretrained_cfg = {  # type: ignore[assignment]
        **student.pretrained_cfg,  # type: ignore[dict-item]
        "mean": task.processor.channel_mean,
        "std": task.processor.channel_std,
        "num_classes": len(classes),
        "input_size": (3, *task.processor.output_size),
    }
    fixed = student.pretrained_cfg.get("fixed_input_size")  # type: ignore[operator, union-attr]
    save_for_hf(
        student,
        str(folder),
        model_config={"label_names": classes},
        model_args={"img_size": list(task.processor.output_size)} if fixed else None,
        safe_serialization=True,
    )


def check_run_folder(out: Path, recipe: Recipe, *, resume: bool) -> None:
    """Checks that a run may begin, or go on, in a folder; `fit` does so itself, before anything is computed.

    Args:
        out: Folder of the run.
        recipe: Of the run.
        resume: Whether to go on with the run in it.

    Raises:
        FileExistsError: It holds a run or other files, and `resume` is off.
        FileNotFoundError: It holds no run, and `resume` is on.
        ValueError: Its run has other settings.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file. Pass a folder for the run.")
    recipe_file = out / RECIPE_NAME
    if resume:
        if not recipe_file.is_file():
            raise FileNotFoundError(f"{out} holds no run to resume. Leave out --resume to begin one.")
        other = differences(Recipe.load(recipe_file), recipe)
        if other:
            raise ValueError(f"The run in {out} has other settings: {', '.join(other)}. Resume it with the same ones.")
    elif out.is_dir() and any(out.iterdir()):
        what = "a run" if recipe_file.is_file() else "other files"
        raise FileExistsError(f"{out} holds {what} already. Pass a new folder, or --resume to go on with a run.")


def _open_run_folder(out: Path, recipe: Recipe, resume: bool) -> State | None:
    check_run_folder(out, recipe, resume=resume)
    if resume:
        return load_state(out / STATE_NAME)
    out.mkdir(parents=True, exist_ok=True)
    recipe.save(out / RECIPE_NAME)
    return None


def _resolve_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
