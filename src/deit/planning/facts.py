"""Defines what a plan is made from: the images, the machine, the weights within reach and what the user has chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deit.core.scores.metrics import SINGLE_LABEL


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a plan needs to know about the images.

    Attributes:
        labelled: Training images with a label.
        unlabelled: Training images without one.
        val_images: Validation images.
        classes: Number of classes.
        smallest_class: Labelled training images of the smallest class; 0 where images do not have one class each.
        largest_class: Of the largest class; likewise.
        side: Shorter side of a typical image in pixels: the median of a sample.
        unlabelled_side: Likewise of the images without a label; 0 where there are none.
        mirrored: Share of a sample whose nearest other image is a mirror image; see `mirrored_share`.
        problem_type: One of `PROBLEM_TYPES`.
    """

    labelled: int
    unlabelled: int = 0
    val_images: int
    classes: int
    smallest_class: int = 0
    largest_class: int = 0
    side: int
    unlabelled_side: int = 0
    mirrored: float = 0.5
    problem_type: str = SINGLE_LABEL

    @property
    def images(self) -> int:
        """Training images, with a label or without."""
        return self.labelled + self.unlabelled


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """What a plan needs to know about the machine.

    Attributes:
        device: "cpu", or the kind of accelerator, such as "cuda".
        name: Of the processor or accelerator, for people.
        cores: CPU cores that this process may use.
        workers: Processes that prepare images beside the training.
        memory: Bytes that are free: of the accelerator, or else of main memory. 0 where it cannot be told.
        precision: What `precision=auto` means here.
        processes: Processes that share each step.
    """

    device: str
    name: str = ""
    cores: int
    workers: int = 0
    memory: int = 0
    precision: str = "fp32"
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user has chosen. The plan keeps it and fills in the rest.

    Attributes:
        settings: Dotted name of a setting of the recipe -> its value.
        minutes: Time that the training may take; None leaves it to the plan.
        spent: Seconds of that time that are gone already.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    spent: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Reachable:
    """Weights that lie on this machine.

    Attributes:
        students: Published variants of this package, from the smallest to the largest.
        convnets: Published models of timm, as `timm/NAME`.
        taught_side: Side of the input, in pixels, of the weights that the user starts from, if a convnet can teach and
            guide their model; else 0.
    """

    students: tuple[str, ...] = ()
    convnets: tuple[str, ...] = ()
    taught_side: int = 0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured of one training on this machine, in seconds.

    Attributes:
        step: Forward, backward and update of one batch, the teacher's answers included.
        answers: Of that, the teacher's answers.
        light_view: Reading and varying one image lightly.
        strong_view: Likewise strongly.
        evaluation: One validation image.
        saving: One training state.
        memory: Bytes at the peak; 0 where it was not measured.
    """

    step: float
    light_view: float
    strong_view: float
    evaluation: float
    answers: float = 0.0
    saving: float = 0.0
    memory: int = 0
