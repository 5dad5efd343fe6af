"""Records what a run answers to its held-out images, at each evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from deit.core.errors import DamagedFileError, parsing
from deit.core.files import replaced_file
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.writing import writing
from deit.data.loader import EvaluationBatches
from deit.data.sources import Source
from deit.models.classifier import head_logits
from deit.train.tasks.pseudo_labels import evaluation_mode
from deit.train.tasks.task import EACH_EVALUATION

_FOLDER = "answers"
_KIND = "recorded answers"

Logits = npt.NDArray[np.float32]


class HeldOutAnswers:
    """Writes the logits of the model's answer to each validation image, NaN for those that cannot be read.

    Implements `RunFile`: the files lie in the folder `answers` of the run, one for each evaluation, or one for the end
    alone. The files of an evaluation are written before its state, so that a run that goes on has them all.

    Args:
        processor: The preprocessing of the student.
        batch_size: Images in a batch.
        each: True records each evaluation, False the model alone.
    """

    def __init__(self, processor: DeiTImageProcessor, batch_size: int, *, each: bool) -> None:
        self.every = EACH_EVALUATION if each else 0
        self._processor, self._batch_size = processor, batch_size

    def write(self, student: nn.Module, images: Source, device: torch.device, folder: Path, step: int | None) -> None:
        """Writes the answers of a student; see `RunFile.write`."""
        with writing(folder / _FOLDER):
            (folder / _FOLDER).mkdir(exist_ok=True)
        logits = self._logits(student, images, device)
        with replaced_file(answers_file(folder, step)) as temporary, temporary.open("wb") as file:
            np.save(file, logits)

    def _logits(self, student: nn.Module, images: Source, device: torch.device) -> Logits:
        batches = EvaluationBatches(images, self._processor, self._batch_size)
        found: Logits | None = None
        with evaluation_mode(student), torch.inference_mode():
            for pixels, _ in batches:
                answer = next(iter(head_logits(student, torch.from_numpy(pixels).to(device)).values()))
                if found is None:
                    found = np.full((len(images.labels), answer.shape[1]), np.nan, np.float32)
                found[batches.numbers] = answer.float().cpu().numpy()
        # The evaluation that follows reports that no image can be read.
        return np.full((len(images.labels), len(images.classes)), np.nan, np.float32) if found is None else found


def answers_file(folder: Path, step: int | None) -> Path:
    """Returns the file of the answers after a step; None for those of the model."""
    return folder / _FOLDER / ("model.npy" if step is None else f"step-{step:08d}.npy")


def read_answers(folder: Path, step: int | None, images: int, answers: int) -> Logits:
    """Reads the logits that `HeldOutAnswers` wrote, (images, answers).

    Raises:
        DamagedFileError: They are of another form.
        OSError: There are none.
    """
    file = answers_file(folder, step)
    with parsing(file, _KIND), file.open("rb") as handle:
        logits: Logits = np.load(handle, allow_pickle=False)
    if logits.shape != (images, answers) or logits.dtype != np.float32:
        raise DamagedFileError(f"{file} is not {_KIND} of {images} images. Remove it and pass --resume.")
    return logits
