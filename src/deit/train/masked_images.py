"""Masked-image pre-training (SimMIM): the task, its score, and a picture of what is made of hidden patches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deit.core.errors import UserError, WrongTypeError
from deit.core.file_names import RECONSTRUCTION_NAME
from deit.core.files import replaced_file
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.writing import writing
from deit.data.loader import EvaluationBatches
from deit.data.masks import BlockMasks
from deit.data.sources import Data, Source, Subset
from deit.models.deit import DeiTForMaskedImageModeling
from deit.models.heads import require_equal_stride
from deit.models.vit import ViTForMaskedImageModeling
from deit.runtime.processes import Processes
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Masking
from deit.train.reconstructions import side_by_side, varied
from deit.train.tasks import Task, chosen, evaluation_mode
from deit.train.teachers.cache import BatchPlace

RECONSTRUCTION = "reconstruction"
PICTURES_NAME = "pictures"

_GREY = 128  # of a hidden patch


@dataclass(frozen=True, kw_only=True)
class ReconstructionScores:
    """How well hidden pixels are reconstructed.

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
    """Learns to reconstruct the pixels of hidden patches; labels are not looked at.

    The masks of a training step are a function of seed, step and place in the step; those of an evaluation are always
    the same, so that its scores can be compared.

    Args:
        student: `DeiTForMaskedImageModeling` or `ViTForMaskedImageModeling`.
        processor: The preprocessing of the student: evaluation uses it whole, training its mean, std and size.
        masking: Size and share of the hidden blocks; the recipe's when None.
        seed: Of the masks; the recipe's when None.

    Raises:
        TypeError: The student cannot reconstruct.
        ValueError: The student's encoder stride is not its patch size, or the sizes of image, mask patch and patch do
            not fit; see `BlockMasks`.
    """

    def __init__(
        self,
        student: nn.Module,
        processor: DeiTImageProcessor,
        *,
        masking: Masking | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(student, processor)
        if not isinstance(student, (DeiTForMaskedImageModeling, ViTForMaskedImageModeling)):
            raise WrongTypeError(
                f"Masked images need a DeiTForMaskedImageModeling or ViTForMaskedImageModeling. "
                f"Received: {type(student).__name__}."
            )
        require_equal_stride(student.config)
        self._given = {"masking": masking, "seed": seed}
        self.seed = 0 if seed is None else seed
        self._take(Masking() if masking is None else masking)
        if masking is not None:
            _ = self.masks

    def _take(self, masking: Masking) -> None:
        self.masking = masking
        self.picture_steps = masking.picture_steps
        self._masks: BlockMasks | None = None

    @property
    def masks(self) -> BlockMasks:
        """What draws the masks; raises ValueError where they do not fit the model."""
        if self._masks is None:
            patch_size = self.student.config.grid_patch_size  # type: ignore[union-attr]
            size, settings = self.processor.output_size, self.masking
            self._masks = BlockMasks(size, patch_size, mask_patch=settings.patch, ratio=settings.ratio)  # type: ignore[arg-type]
        return self._masks

    def settle(self, recipe: Recipe) -> Recipe:
        """Takes masking and seed from the recipe; see `Task.settle`."""
        self._take(chosen("masking", self._given["masking"], recipe.masking))
        self.seed = chosen("seed", self._given["seed"], recipe.seed)
        _ = self.masks
        how = {f"masking.{name}": value for name, value in asdict(self.masking).items()}
        return super().settle(recipe.with_settings(how))

    def check(self, data: Data, recipe: Recipe) -> None:
        """Checks that images are not mixed: whose pixels would be to be reconstructed?

        Raises:
            ValueError: The recipe mixes.
        """
        if recipe.augment.mixes:
            raise UserError(
                "Masked images are not mixed. Received: a recipe with Mixup or CutMix. Pass augment.mix_rate=0, or the "
                "recipe simmim-100."
            )

    def prepare(self, pixels: Tensor, targets: Tensor, place: BatchPlace | None = None) -> tuple[Tensor, ...]:
        """Returns the tensors of a batch: pixels (B, 3, H, W) and masks (B, P), True where a patch is hidden.

        Args:
            pixels: (B, 3, H, W).
            targets: Not used.
            place: Which batch this is; the first of a training when None.
        """
        place = BatchPlace(step=0, part=0, checksum=0) if place is None else place
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
        """Scores reconstructions under masks that are always the same."""
        totals = np.zeros(2)
        for pixels, labels in batches:
            mask = self.masks.for_images(batches.numbers).to(device)
            loss = student(torch.from_numpy(pixels).to(device), bool_masked_pos=mask).loss
            totals += len(labels), float(loss) * len(labels)  # every image has the same number of hidden pixels
        count, loss_sum = processes.sum(totals)
        if not count:
            raise UserError("No images were evaluated.")
        return {RECONSTRUCTION: ReconstructionScores(loss=float(loss_sum / count), images=int(count))}

    def draw(self, student: nn.Module, images: Source, device: torch.device, folder: Path, step: int | None) -> None:
        """Draws reconstructions, see `draw_reconstructions`: on the way below `pictures`, the last one beside it."""
        path = folder / RECONSTRUCTION_NAME
        if step is not None:
            path = folder / PICTURES_NAME / f"step-{step:08d}.png"
            with writing(path):
                path.parent.mkdir(exist_ok=True)
        draw_reconstructions(student, self, images, device, path)


def draw_reconstructions(
    student: nn.Module, task: MaskedImageTask, images: Source, device: torch.device, path: Path
) -> None:
    """Draws some images in rows of three, under headings: the original, what the student sees, its reconstruction.

    The reconstruction shows the student's pixels where patches were hidden, and the original elsewhere, of which
    nothing was learnt. Written whole or not at all.

    Args:
        student: The task's own, or an average of it.
        task: Its masks are those of the evaluation.
        images: `task.masking.pictures` of them are drawn, of different classes or folders.
        device: Where the student is.
        path: Of the PNG.
    """
    numbers = varied(images, task.masking.pictures)
    batches = EvaluationBatches(Subset(images, numbers), task.processor, max(len(numbers), 1))
    first = next(iter(batches), None)
    if first is None:  # none can be read, of which the scores tell
        return
    pixels = torch.from_numpy(first[0]).to(device)
    masks = task.masks.for_images(numbers[np.asarray(batches.numbers)]).to(device)
    with evaluation_mode(student), torch.inference_mode():
        drawn = student(pixels, bool_masked_pos=masks).reconstruction.float()
    config: Any = task.student.config
    rows, columns = (side // patch for side, patch in zip(pixels.shape[-2:], config.grid_patch_size, strict=True))
    hidden = masks.reshape(len(masks), 1, rows, columns)
    for dim in (2, 3):
        hidden = hidden.repeat_interleave(pixels.shape[dim] // hidden.shape[dim], dim)
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in (task.processor.channel_mean, task.processor.channel_std)
    )
    original, made = ((tensor * std + mean) * 255 for tensor in (pixels, drawn))
    shown = (original, original.where(~hidden, float(_GREY)), made.where(hidden, original))
    with replaced_file(path) as temporary:
        side_by_side([_bytes(tensor) for tensor in shown]).save(temporary, "PNG")


def _bytes(pixels: Tensor) -> Any:
    return pixels.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
