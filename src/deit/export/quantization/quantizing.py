"""Quantizes a model, and keeps the result only if it agrees with the original and is faster here."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from deit.core.errors import UserError
from deit.core.export_file import ONNX, OPENVINO, Check, ExportedFormat
from deit.core.file_names import CONFIG_NAME
from deit.core.files import replace_folder_content, sha256_of_file
from deit.core.printable import counted
from deit.core.scores.functions import FUNCTIONS, function_name
from deit.core.scores.metrics import REGRESSION
from deit.export.original import Original, open_original
from deit.export.quantization.attempts import Attempt, attempts
from deit.export.quantization.pictures import Pictures, answers_of, read_pictures
from deit.export.quantization.speed import Speed, compare_speed
from deit.inference.contract import Contract
from deit.inference.engines.engine import Engine
from deit.inference.engines.opening import open_engine
from deit.inference.predictor import Predictor
from deit.runtime.packages import installed_versions

FLIPS_NAME = "label_flips.csv"
DEFAULT_AGREEMENT = 99.0  # percent

_KINDS = {
    "openvino": (OPENVINO, "deit.export.quantization.openvino_model"),
    "onnxruntime": (ONNX, "deit.export.quantization.onnx_model"),
}
_ANY_DIFFERENCE = 1e30  # of logits: agreement decides
_SPEED_SECONDS = 20.0
_NEXT_WITHIN = 900.0  # seconds since the start; later no other way to quantize is tried

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Flip:
    """An image whose answer quantizing changes.

    Attributes:
        image: Its name.
        original: Answer of the original.
        original_score: Its score.
        quantized: Answer of the quantized model.
        quantized_score: Its score.
    """

    image: str
    original: str
    original_score: float
    quantized: str
    quantized_score: float


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The result of quantizing.

    Attributes:
        folder: Where the model is; None if it was refused.
        engine: Engine that runs it.
        kept: What was left in higher precision, in words.
        agreement: Percent of the images with the same answer.
        compared: Images that it was compared on.
        calibrated: Images that it was calibrated with.
        disjoint: Whether no image was used for both.
        flips: Images whose answer changes, in the order of reading.
        tried: What was tried before, and its agreement.
        unreadable: Why images were left out.
        largest_difference: Of a logit.
        speed: Compared with the original; None if its answers differ too much to measure it.
        refusal: Why it was refused; empty if it was kept.
    """

    folder: Path | None
    engine: str
    kept: str
    agreement: float
    compared: int
    calibrated: int
    disjoint: bool
    flips: tuple[Flip, ...]
    tried: tuple[tuple[str, float], ...]
    unreadable: tuple[str, ...]
    largest_difference: float
    speed: Speed | None
    refusal: str = ""

    def describe_images(self) -> str:
        """Returns a sentence that says how many images were used, and for what."""
        also = "" if self.disjoint else " These images overlap, as there are few: pass more for an honest agreement."
        return (
            f"Calibrated with {counted(self.calibrated, 'image')}, compared with the original on "
            f"{'other ' if self.disjoint else ''}{counted(self.compared, 'image')}.{also}"
        )


class QuantizationRefusedError(UserError):
    """The quantized model was refused, and nothing was written.

    Args:
        result: What was measured.
    """

    def __init__(self, result: Quantized) -> None:
        super().__init__(result.refusal)
        self.result = result


def quantize(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    calibrate: Sequence[Any],
    engine: str = "openvino",
    agreement: float = DEFAULT_AGREEMENT,
    allow_slower: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Quantizes a classifier to 8-bit integers, and writes it if it agrees with the original and is faster here.

    Tries up to three ways: every product in 8 bits; without patch embedding and heads; and without the second product
    of each MLP too. The first one with the wanted agreement is taken. Its speed is then compared, in turns, with the
    original in the same engine and in PyTorch. The folder that is written opens with `Predictor.open`, and holds
    `export.json`, the preprocessing and `label_flips.csv`. A calibration of scores is not taken over: it belongs to
    the logits of the original. Calibrate the folder anew.

    Args:
        model: A model directory, or a name; see `open_engine`.
        out: A new or empty folder.
        calibrate: Images like those that the model will see, without labels: paths or PIL images, 100 or more. Up to
            300 set the ranges of activations; the answers are compared on others, up to 1,000.
        engine: "openvino" or "onnxruntime".
        agreement: Percent of the images that must keep their answer (the best class; with several labels, all).
        allow_slower: Keep the model even if it is not faster here, to be run elsewhere.
        progress: Called with what is done now, and the done and the total number of images or ways.

    Raises:
        FileExistsError: `out` holds something.
        MissingPackageError: A package is missing.
        QuantizationRefusedError: The answers agree too little, or the model is not faster.
        UserError: There are too few images, they all have the same answer, or the model cannot be quantized.

    Examples:
        >>> from pathlib import Path
        >>> deit.quantize("runs/pets", "pets-int8", calibrate=sorted(Path("photos").rglob("*.jpg")))  # doctest: +SKIP
    """
    folder = Path(out)
    _check_arguments(folder, engine, agreement)
    original = _opened(model)
    predictor = original.predictor
    said = progress or (lambda *_: None)
    with read_pictures(
        predictor, calibrate, agreement, lambda done, all_: said("reading images", done, all_)
    ) as pictures:
        work = _Work(original, pictures, engine, agreement, said)
        with TemporaryDirectory(prefix="deit-quantize-") as place:
            result, written = work.best(Path(place))
            if not result.refusal:
                said("comparing speed", 0, 1)
                result = _with_speed(result, open_engine(written), predictor, model, allow_slower=allow_slower)
            if result.refusal:
                raise QuantizationRefusedError(result)
            _keep(result, written, folder)
    return replace(result, folder=folder)


def _check_arguments(folder: Path, engine: str, agreement: float) -> None:
    if engine not in _KINDS:
        raise UserError(f"engine must be {' or '.join(_KINDS)}. Received: {engine!r}.")
    if not 0 < agreement <= 100:
        raise UserError(f"agreement must be a percentage above 0 and at most 100. Received: {agreement:g}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty. Pass a new folder as out.")
    import_module(_KINDS[engine][1]).require()


def _opened(model: str | os.PathLike[str]) -> Original:
    original = open_original(model, preprocessing=False, calibrated=False, verb="quantize")
    if original.contract.problem_type == REGRESSION:
        raise UserError(f"{model} answers with numbers, not classes, so an agreement of answers means nothing.")
    return original


class _Work:
    """Tries ways to quantize a model."""

    def __init__(self, original: Original, pictures: Pictures, engine: str, agreement: float, said: Progress) -> None:
        self.original = original
        self.contract: Contract = original.contract
        self.pictures = pictures
        self.engine = engine
        self.wanted = agreement
        self.said = said
        self.format, module = _KINDS[engine]
        self.kind: Any = import_module(module)

    def best(self, place: Path) -> tuple[Quantized, Path]:
        """Returns the first result with the wanted agreement, else the best one, and its folder."""
        graph = self.original.graph
        ways = attempts(self.kind.products(self.kind.converted(graph, self.contract)))
        found: list[tuple[Quantized, Path]] = []
        began = time.monotonic()
        for number, way in enumerate(ways):
            if found and time.monotonic() - began > _NEXT_WITHIN:
                break
            self.said(f"quantizing: {way.words}", number, len(ways))
            folder = place / str(number)
            folder.mkdir()
            # Of a model of its own each time: quantizing may change what it is given.
            self.kind.write_quantized(self.kind.converted(graph, self.contract), way, self._calibration(), folder)
            result = self._compared(folder, way, [(each.kept, each.agreement) for each, _ in found])
            found.append((result, folder))
            if result.agreement >= self.wanted:
                return found[-1]
        best = max(found, key=lambda each: each[0].agreement)
        tried = "; ".join(f"{each.kept}: {each.agreement:.2f} %" for each, _ in found)
        why = (
            f"The quantized model keeps only {best[0].agreement:.2f} % of {best[0].compared} answers, and "
            f"{self.wanted:g} % must stay, so it was not written. Tried: {tried}. Pass more images like those that the "
            "model will see, another engine, or a lower agreement."
        )
        return replace(best[0], refusal=why), best[1]

    def _calibration(self) -> Any:
        return np.array(self.pictures.pixels[: self.pictures.calibrated])

    def _compared(self, folder: Path, way: Attempt, tried: list[tuple[str, float]]) -> Quantized:
        """Describes what was written, opens it as a user does, and compares its answers."""
        self._describe(folder, Check(images=0, largest_difference=0.0, agreement=0.0, tolerance=_ANY_DIFFERENCE))
        opened = open_engine(folder)
        head = self.contract.head_names[0]
        logits = np.concatenate([np.asarray(opened(pixels)[head]) for pixels in self.pictures.batches()])
        original = self.pictures.logits[self.pictures.compared_from :]
        flips = self._flips(original, logits)
        share = 1 - len(flips) / len(original)
        largest = float(np.abs(logits - original).max()) if np.isfinite(logits).all() else _ANY_DIFFERENCE
        self._describe(
            folder,
            Check(images=len(original), largest_difference=largest, agreement=share, tolerance=_ANY_DIFFERENCE),
        )
        _write_flips(folder / FLIPS_NAME, flips)
        return Quantized(
            folder=None,
            engine=self.engine,
            kept=way.words,
            agreement=100 * share,
            compared=len(original),
            calibrated=self.pictures.calibrated,
            disjoint=self.pictures.disjoint,
            flips=tuple(flips),
            tried=tuple(tried),
            unreadable=self.pictures.unreadable,
            largest_difference=largest,
            speed=None,
        )

    def _flips(self, original: Any, quantized: Any) -> list[Flip]:
        kind = self.contract.problem_type
        function = FUNCTIONS[function_name(kind, original.shape[1])]
        before, after = answers_of(original, kind), answers_of(quantized, kind)
        # NaN answers nothing: such an image counts as changed.
        same = (before == after).reshape(len(before), -1).all(1) & np.isfinite(quantized).all(1)
        scores = function(original), function(quantized)
        names = self.pictures.names[self.pictures.compared_from :]
        return [
            Flip(
                image=names[i],
                original=self._named(before[i]),
                original_score=float(scores[0][i].max()),
                quantized=self._named(after[i]),
                quantized_score=float(scores[1][i].max()),
            )
            for i in map(int, np.flatnonzero(~same))
        ]

    def _named(self, answer: Any) -> str:
        labels = self.original.predictor.label_names
        if np.ndim(answer):
            return "; ".join(label for label, given in zip(labels, answer, strict=False) if given)
        return labels[int(answer)]

    def _describe(self, folder: Path, check: Check) -> None:
        """Writes `export.json`. Its identity is of its own: a calibration of the original's scores is refused."""
        names = [self.kind.MODEL, *([Path(self.kind.MODEL).stem + ".bin"] if self.format == OPENVINO else [])]
        files = {name: sha256_of_file(folder / name) for name in names}
        described = ExportedFormat(
            precision="int8",
            model=self.kind.MODEL,
            classifier="",
            files=files,
            checked_with=f"{self.kind.PACKAGES[0]} {version(self.kind.PACKAGES[0])}",
            check=check,
            versions=installed_versions(("deit", *self.kind.PACKAGES)),
        )
        weights = hashlib.sha256("".join(files.values()).encode()).hexdigest()
        self.original.described({self.format: described}, weights=weights).write(folder)
        self.original.predictor.processor.save_pretrained(folder)
        source = self.contract.folder
        if source is not None and (source / CONFIG_NAME).is_file():
            shutil.copyfile(source / CONFIG_NAME, folder / CONFIG_NAME)


def _with_speed(
    result: Quantized, opened: Engine, predictor: Predictor, model: Any, *, allow_slower: bool
) -> Quantized:
    others = {"torch fp32": predictor.engine, f"{result.engine} fp32": open_engine(model, engine=result.engine)}
    speed = compare_speed(opened, others, _SPEED_SECONDS)
    refusal = ""
    if speed.speedup <= 1 and not allow_slower:
        refusal = (
            f"The quantized model keeps {result.agreement:.2f} % of the answers but is not faster here, so it was not "
            f"written: {speed.describe()}. Pass allow_slower= to keep it for another machine."
        )
    return replace(result, speed=speed, refusal=refusal)


def _keep(result: Quantized, written: Path, folder: Path) -> None:
    with replace_folder_content(folder) as temporary:
        for file in written.iterdir():
            shutil.copyfile(file, temporary / file.name)


def _write_flips(path: Path, flips: Sequence[Flip]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["image", "original", "original_score", "quantized", "quantized_score"])
        for flip in flips:
            scores = f"{flip.original_score:.6f}", f"{flip.quantized_score:.6f}"
            table.writerow([flip.image, flip.original, scores[0], flip.quantized, scores[1]])
