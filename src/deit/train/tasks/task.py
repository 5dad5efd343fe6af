"""Defines `Task`: a student, its preprocessing, and the losses of a batch. The loop knows nothing else.

A task works in two steps. `prepare` turns a batch of the loader into tensors, once. `forward` turns them, or an equal
part of each, into losses; it is the part that may be compiled or run in several processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from deit.core.errors import UserError
from deit.core.images.reading import ImageError
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.comparing import score_names
from deit.core.scores.metrics import evaluate
from deit.data.few_labels import count_unlabelled
from deit.data.loader import EvaluationBatches
from deit.data.sources import Data, Source
from deit.models.classifier import head_logits
from deit.runtime.processes import Processes
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.values import flat, plain
from deit.train.tasks.agreement import with_student, with_teacher
from deit.train.tasks.pseudo_labels import check_pseudo_labels, evaluation_mode
from deit.train.teachers.cache import BatchPlace, TeacherCache
from deit.train.teachers.teacher import Teacher, TeacherEnsemble

EACH_EVALUATION = -1  # for `RunFile.every`


class RunFile(Protocol):
    """A file that a task adds to the folder of a run, such as a picture.

    Attributes:
        every: Steps between two of them; 0 writes only one, at the end; `EACH_EVALUATION` one before each evaluation.
    """

    every: int

    def write(self, student: nn.Module, images: Source, device: torch.device, folder: Path, step: int | None) -> None:
        """Writes the file.

        Args:
            student: The task's student, or an average of it.
            images: The validation images.
            device: Device of the student.
            folder: Folder of the run.
            step: Steps done; None at the end.
        """
        ...


class Task(nn.Module):
    """Base class of tasks. Its methods are those of a classifier that learns from labels.

    The settings of a task are fields of the recipe with the same names. A setting that is not passed is taken from the
    recipe; a setting that contradicts the recipe is refused. So the recipe that a run records is the one it trained.

    Args:
        student: Any module from pixels to outputs.
        processor: The preprocessing of the student. Evaluation uses all of it, training its mean, std and size.
        settings: Name of a field of `Recipe` -> its value, or None if it was not passed. Each becomes an attribute.

    Attributes:
        teacher: The teacher; None if the student learns from labels alone.
        cache: Records and returns the answers of the teacher; None asks the teacher every time.
        added_files: More files for the folder of the run.
        left_out: Number of a validation image -> why this process could not read it in the last evaluation.
        class_weights: (K,) weights of the classes in the loss; None where all count the same. `check` sets it.
        unused: Fields and sections of `Recipe` that this kind of task does not use.
    """

    unused: ClassVar[tuple[str, ...]] = ("distillation", "masking")

    def __init__(self, student: nn.Module, processor: DeiTImageProcessor, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.student = student
        self.processor = processor
        self.teacher: Teacher | TeacherEnsemble | None = None
        self.cache: TeacherCache | None = None
        self.left_out: dict[int, str] = {}
        self.added_files: list[RunFile] = []
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)
        self._settings = tuple(settings)
        self._not_passed: dict[str, Any] = {}  # name -> the value that stands in for it
        for name, value in settings.items():
            if value is None:
                value = self._not_passed[name] = getattr(Recipe(), name)
            setattr(self, name, value)

    @property
    def run_files(self) -> Sequence[RunFile]:
        """Files that the run writes beside the model."""
        return tuple(self.added_files)

    def settle(self, recipe: Recipe) -> Recipe:
        """Makes task and recipe agree before a training.

        Takes the settings that were not passed from the recipe.

        Returns:
            The recipe, with the names of the student and the teacher of the task.

        Raises:
            ValueError: A setting that was passed contradicts the recipe.
        """
        wrong: dict[str, Any] = {}
        for name in self._settings:
            own, wanted = getattr(self, name), getattr(recipe, name)
            if own != wanted and name in self._not_passed and own == self._not_passed[name]:
                self._not_passed[name] = wanted
                setattr(self, name, wanted)
            elif own != wanted:
                wrong |= _differing(name, own, wanted)
        if wrong:
            theirs = flat(recipe.to_dict())
            raise UserError(
                f"The recipe and the task disagree. The recipe has {_listed({name: theirs[name] for name in wrong})}; "
                f"{type(self).__name__} was given {_listed(wrong)}. Leave these out of the task, or pass "
                f"recipe.with_settings({plain(wrong)})."
            )
        return with_teacher(with_student(recipe, self.student), self.teacher)

    def check(self, data: Data, recipe: Recipe, teacher_cache: str | Path | None = None) -> None:
        """Checks, before a training, that the task can learn from the data in the way of the recipe.

        Args:
            data: Data of the training.
            recipe: Recipe of the training.
            teacher_cache: Folder of the teacher's answers, if any.

        Raises:
            ValueError: It cannot.
        """
        if teacher_cache is not None:
            raise UserError(f"A teacher cache needs a teacher to cache. Received: {teacher_cache}, and labels alone.")
        if recipe.teacher:
            raise UserError(
                f"The recipe learns from the teacher {', '.join(recipe.teacher)}, and {type(self).__name__} has none. "
                "Pass the teacher to build_task (or to DistillationTask), or "
                'recipe.with_settings({"teacher": ()}) to learn from labels alone.'
            )
        check_pseudo_labels(recipe, data, teacher_cache)
        unlabelled = count_unlabelled(data.train)
        if unlabelled and not recipe.pseudo_labels.weight:
            raise UserError(
                f"{unlabelled} of {len(data.train.labels)} training images have no label, and without a teacher "
                "nothing can be learned from them. Pass a teacher, or leave them out, or label them by the average of "
                "the weights: pseudo_labels.weight=5 and ema_decay=0.999."
            )
        if recipe.data.problem_type != data.problem_type:
            raise UserError(
                f"The recipe has data.problem_type={recipe.data.problem_type}, and the labels of the data are "
                f"{data.problem_type}. Build the student and train it with "
                f'recipe.with_settings({{"data.problem_type": "{data.problem_type}"}}).'
            )

    def score_names(self, problem_type: str) -> tuple[str, ...]:
        """Returns the names of the scores of each head, the most important first.

        Args:
            problem_type: Of the data.
        """
        return score_names(problem_type)

    def prepare(self, pixels: Tensor, targets: Tensor, place: BatchPlace | None = None) -> tuple[Tensor, ...]:
        """Returns the tensors of a batch, each (B, ...), in the order of `forward`'s arguments.

        Args:
            pixels: (B, 3, H, W).
            targets: (B,) true classes, (B, K) probabilities or marks, or (B,) numbers to regress.
            place: Step and share of the batch; None means the first batch of a training.
        """
        return pixels, targets

    def score(
        self,
        student: nn.Module,
        data: Data,
        device: torch.device,
        *,
        batch_size: int = 64,
        processes: Processes | None = None,
    ) -> dict[str, Any]:
        """Returns the scores of each head on the validation images. Skips images that cannot be read.

        Args:
            student: The task's student, or an average of it. It is scored in evaluation mode.
            data: Its validation images are used.
            device: Device of the student.
            batch_size: Images in a batch; the scores do not depend on it.
            processes: Processes that share the images; each returns the scores of all images.

        Raises:
            ImageError: No image can be read.
        """
        processes = Processes() if processes is None else processes
        batches = EvaluationBatches(
            data.val, self.processor, batch_size, rank=processes.rank, world_size=processes.world_size
        )
        self.left_out = batches.left_out
        with evaluation_mode(student), torch.inference_mode():
            try:
                return self._score(student, batches, data.problem_type, device, processes)
            except UserError as error:  # no image was counted; every process finds the same
                if not processes.any(bool(batches.left_out))[0]:
                    raise
                reason = next(iter(batches.left_out.values()), "another process says why")
                raise ImageError(f"No validation image can be read any more; the first: {reason}") from error

    def _score(
        self,
        student: nn.Module,
        batches: EvaluationBatches,
        problem_type: str,
        device: torch.device,
        processes: Processes,
    ) -> dict[str, Any]:
        def predict(pixels: Any) -> dict[str, Any]:
            heads = head_logits(student, torch.from_numpy(pixels).to(device))
            return {name: logits.float().cpu().numpy() for name, logits in heads.items()}

        return evaluate(predict, batches, problem_type=problem_type, combine=processes.sum)


def _differing(name: str, own: Any, wanted: Any) -> dict[str, Any]:
    """Returns the dotted names of a setting, or of the parts of a section, that differ, with the task's values."""
    if not dataclasses.is_dataclass(own) or isinstance(own, type):
        return {name: own}
    theirs = dataclasses.asdict(wanted)
    return {f"{name}.{key}": value for key, value in dataclasses.asdict(own).items() if value != theirs[key]}


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
