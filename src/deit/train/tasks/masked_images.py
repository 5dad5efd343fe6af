"""Defines `MaskedImageTask`: a student learns to reconstruct hidden patches (SimMIM, arXiv 2111.09886)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deit.core.config.field_checks import require_equal_stride
from deit.core.errors import UserError, WrongTypeError
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.data.loader import EvaluationBatches
from deit.data.masks import BlockMasks
from deit.data.sources import Data
from deit.models.deit import DeiTForMaskedImageModeling
from deit.models.vit import ViTForMaskedImageModeling
from deit.runtime.processes import Processes
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Masking
from deit.train.tasks.reconstructions import ReconstructionPicture
from deit.train.tasks.task import RunFile, Task
from deit.train.teachers.cache import BatchPlace

RECONSTRUCTION = "reconstruction"


@dataclass(frozen=True, kw_only=True)
class ReconstructionScores:
    """Scores of the reconstruction of hidden pixels.

    Attributes:
        loss: Mean absolute error of the hidden pixels, in the units of normalized pixels.
        images: Number of images counted.
    """

    loss: float
    images: int

    def as_dict(self) -> dict[str, float]:
        """Returns the scores by name, without the count."""
        return {name: value for name, value in asdict(self).items() if name != "images"}


class MaskedImageTask(Task):
    """Learns to reconstruct the pixels of hidden patches. Labels are not used.

    The masks of a training step are a function of seed, step and place in the step. The masks of an evaluation are
    always the same, so that its scores can be compared.

    Args:
        student: `DeiTForMaskedImageModeling` or `ViTForMaskedImageModeling`.
        processor: The preprocessing of the student. Evaluation uses all of it, training its mean, std and size.
        masking: Size and share of the hidden blocks. None takes the recipe's; without `fit`, SimMIM's.
        seed: Random seed of the masks. None takes the recipe's; without `fit`, 0.

    Raises:
        TypeError: The student cannot reconstruct.
        ValueError: The student's encoder stride is not its patch size, or the sizes of image, mask patch and patch do
            not fit; see `BlockMasks`.
    """

    unused: ClassVar[tuple[str, ...]] = ("distillation", "loss", "label_smoothing", "class_weights")
    masking: Masking
    seed: int

    def __init__(
        self,
        student: nn.Module,
        processor: DeiTImageProcessor,
        *,
        masking: Masking | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(student, processor, {"masking": masking, "seed": seed})
        if not isinstance(student, (DeiTForMaskedImageModeling, ViTForMaskedImageModeling)):
            raise WrongTypeError(
                f"Masked images need a DeiTForMaskedImageModeling or ViTForMaskedImageModeling. "
                f"Received: {type(student).__name__}."
            )
        require_equal_stride(student.config)
        self._masks: tuple[Masking, BlockMasks] | None = None
        if masking is not None:
            _ = self.masks

    @property
    def masks(self) -> BlockMasks:
        """Draws the masks. Raises a ValueError if they do not fit the model."""
        settings = self.masking
        if self._masks is None or self._masks[0] != settings:
            patch_size: Any = self.student.config.grid_patch_size  # type: ignore[union-attr]
            size = self.processor.output_size
            self._masks = settings, BlockMasks(size, patch_size, mask_patch=settings.patch, ratio=settings.ratio)
        return self._masks[1]

    @property
    def run_files(self) -> Sequence[RunFile]:
        """The picture of reconstructions."""
        return (ReconstructionPicture(self.processor, self.masks, self.masking),)

    def score_names(self, problem_type: str) -> tuple[str, ...]:
        """Returns the one score of reconstructions, their loss."""
        return ("loss",)

    def settle(self, recipe: Recipe) -> Recipe:
        """Takes masking and seed from the recipe; see `Task.settle`."""
        settled = super().settle(recipe)
        _ = self.masks
        return settled

    def check(self, data: Data, recipe: Recipe, teacher_cache: str | Path | None = None) -> None:
        """Rejects Mixup and CutMix: a mixed image has no single reconstruction target.

        Raises:
            ValueError: The recipe mixes images, or has a teacher.
        """
        if recipe.augment.mixes:
            raise UserError(
                "Masked images are not mixed. Received: a recipe with Mixup or CutMix. Pass augment.mix_rate=0, or the "
                "recipe simmim-100."
            )
        if recipe.pseudo_labels.weight:
            raise UserError("Masked images have no labels. Received: a recipe with pseudo_labels.weight. Pass 0.")
        if recipe.teacher or teacher_cache is not None:
            received = ", ".join(recipe.teacher) or teacher_cache
            raise UserError(f"Masked images have no teacher. Received: {received}. Leave it out.")

    def prepare(self, pixels: Tensor, targets: Tensor, place: BatchPlace | None = None) -> tuple[Tensor, ...]:
        """Returns the tensors of a batch: pixels (B, 3, H, W) and masks (B, P), True where a patch is hidden.

        Args:
            pixels: (B, 3, H, W).
            targets: Not used.
            place: Step and share of the batch; None means the first batch of a training.
        """
        place = BatchPlace(step=0, part=0) if place is None else place
        positions = range(place.part, place.part + len(pixels) * place.parts, place.parts)
        return pixels, self.masks.for_step(self.seed, place.step, positions).to(pixels.device)

    def forward(self, pixels: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Returns {"loss": mean absolute error of the hidden pixels}.

        Args:
            pixels: (B, 3, H, W).
            mask: (B, P), True where a patch is hidden.
        """
        return {"loss": self.student(pixels, bool_masked_pos=mask).loss}

    def _score(
        self,
        student: nn.Module,
        batches: EvaluationBatches,
        problem_type: str,
        device: torch.device,
        processes: Processes,
    ) -> dict[str, Any]:
        """Scores reconstructions under the masks of evaluations."""
        totals = np.zeros(2)
        for pixels, labels in batches:
            mask = self.masks.for_images(batches.numbers).to(device)
            loss = student(torch.from_numpy(pixels).to(device), bool_masked_pos=mask).loss
            totals += len(labels), float(loss) * len(labels)  # every image has the same number of hidden pixels
        count, loss_sum = processes.sum(totals)
        if not count:
            raise UserError("No images were evaluated.")
        return {RECONSTRUCTION: ReconstructionScores(loss=float(loss_sum / count), images=int(count))}
