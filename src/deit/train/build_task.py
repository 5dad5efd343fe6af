"""Builds the task of a recipe: the one place where a recipe becomes losses. To add a kind of training, add it here."""

from __future__ import annotations

from deit.core.errors import UserError
from deit.core.scores.metrics import SINGLE_LABEL
from deit.models.deit import DeiTForMaskedImageModeling
from deit.models.vit import ViTForMaskedImageModeling
from deit.train.recipes.recipe import Recipe
from deit.train.students.deit import Student
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.tasks.masked_images import MaskedImageTask
from deit.train.tasks.task import Task
from deit.train.teachers.teacher import Teacher, TeacherEnsemble, match_teacher


def build_task(
    recipe: Recipe, student: Student, teacher: Teacher | TeacherEnsemble | None = None, *, cached: bool = False
) -> Task:
    """Returns the task that trains a student as a recipe says.

    * A student of `build_masked_student` reconstructs hidden patches.
    * A student with a teacher learns from labels and the teacher. The teacher's classes are matched to the student's,
      see `match_teacher`.
    * Any other student learns from labels.

    Args:
        recipe: All hyper-parameters. Pass the same recipe to `fit`.
        student: From `build_student` or `build_masked_student`.
        teacher: From `open_teacher` or `open_teachers`; None for labels alone.
        cached: True if the teacher cache that `fit` gets holds the answers, so that the teacher may be None.

    Raises:
        TypeError: The teacher does not return logits.
        ValueError: The recipe names a teacher and none was passed, the student has no distillation head, the labels
            are not one class per image, or the teacher does not know the student's classes.

    Examples:
        >>> recipe = Recipe()
        >>> student = build_student("deit-digits-distilled-patch8-32", ["cat", "dog"], recipe)
        >>> type(build_task(recipe, student)).__name__
        'ClassificationTask'
    """
    model, processor = student.model, student.processor
    if isinstance(model, (DeiTForMaskedImageModeling, ViTForMaskedImageModeling)):
        if teacher is not None:
            raise UserError(f"Masked images have no teacher. Received: {teacher.name}. Leave it out.")
        return MaskedImageTask(model, processor, masking=recipe.masking, seed=recipe.seed)
    if teacher is None and not cached:
        if recipe.teacher:
            raise UserError(
                f"The recipe learns from the teacher {', '.join(recipe.teacher)}. Pass open_teachers(recipe.teacher), "
                'or a recipe.with_settings({"teacher": ()}) to learn from labels alone.'
            )
        return ClassificationTask(model, processor, label_smoothing=recipe.label_smoothing, loss=recipe.loss)
    if recipe.data.problem_type != SINGLE_LABEL:
        raise UserError(
            f"Distillation is for one class per image. Received: data.problem_type={recipe.data.problem_type}. "
            "Leave out the teacher (--set teacher= where the recipe has one)."
        )
    if not hasattr(model, "distillation_classifier"):
        raise no_distillation_head(recipe.student or recipe.init or type(model).__name__)
    if teacher is not None and student.classes:
        teacher = match_teacher(teacher, student.classes, processor.output_size)
    return DistillationTask(
        model,
        teacher,
        processor,
        distillation=recipe.distillation,
        label_smoothing=recipe.label_smoothing,
        loss=recipe.loss,
    )


def no_distillation_head(student: str) -> UserError:
    """Returns the error of a student that cannot be distilled."""
    return UserError(
        f"Distillation needs a student with a distillation head. Received: {student}. Pass a distilled variant as "
        "--student, such as deit-tiny-distilled-patch16-224; --init may be an undistilled checkpoint of its size. Or "
        "leave out the teacher (--set teacher= where the recipe has one)."
    )
