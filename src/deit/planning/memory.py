"""Estimates the memory of a training, and the numbers that its processes exchange, by formulas; see docs/scaling.md."""

from __future__ import annotations

from dataclasses import dataclass

from deit.core.published import VARIANTS

# Bytes that a block keeps until the backward pass for each value of its tokens (B, N, D): norms, queries, keys, values,
# attention, MLP and what drop path leaves, counted on this package's models. Flash attention keeps no (N, N).
_KEPT = {"fp32": 85, "bf16": 46, "fp16": 46}
_PIXEL_COPIES = 2  # of the images: as they come, and as patches


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of trained parameters of a variant.

    Attributes:
        blocks: In all blocks together.
        rest: In patches, tokens, positions, last norm and heads.
    """

    blocks: int
    rest: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.blocks + self.rest


def parameters_of(student: str, *, classes: int = 1000, side: int = 0) -> Parameters:
    """Counts the parameters of a variant.

    Args:
        student: Name of a variant.
        classes: Number of classes.
        side: Of the input in pixels; 0 for the variant's own.
    """
    variant = VARIANTS[student]
    width, heads = variant.hidden_size, 1 + variant.distilled
    scales = 2 * width if variant.layer_scale_init else 0
    block = 12 * width**2 + 13 * width + scales
    positions = tokens_of(student, side) - (heads if variant.layer_scale_init else 0)  # DeiT III: of patches alone
    embeddings = (variant.num_channels * variant.patch_size**2 + 1 + heads + positions) * width
    return Parameters(blocks=variant.depth * block, rest=embeddings + 2 * width + heads * classes * (width + 1))


def tokens_of(student: str, side: int = 0) -> int:
    """Returns the number of tokens of an image, N; `side` as in `parameters_of`."""
    variant = VARIANTS[student]
    return ((side or variant.image_size) // variant.patch_size) ** 2 + 1 + variant.distilled


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of one process, on its device, in the backward pass, where they are most.

    Attributes:
        weights: fp32 weights, and those that are gathered or cast for the time of a step.
        gradients: fp32, with the buffers in which DDP sums them.
        optimizer: Both averages of AdamW.
        average: Running average of the weights; 0 without.
        activations: What the forward pass keeps.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def training_memory(
    student: str,
    batch_size: int,
    *,
    side: int = 0,
    classes: int = 1000,
    precision: str = "fp32",
    average: bool = False,
    processes: int = 1,
    sharding: str = "none",
    checkpointing: bool = False,
) -> TrainingMemory:
    """Estimates the memory of a process that trains a variant with AdamW.

    Args:
        student: Name of a variant.
        batch_size: Images of one process in one accumulated part.
        side: Of the input in pixels; 0 for the variant's own.
        classes: Number of classes.
        precision: "fp32", "bf16" or "fp16".
        average: Whether there is a running average.
        processes: That share the step.
        sharding: "none" or "fsdp".
        checkpointing: Whether blocks are computed again.
    """
    variant, counted = VARIANTS[student], parameters_of(student, classes=classes, side=side)
    few = 4 if precision == "fp32" else 2
    side = side or variant.image_size
    values = tokens_of(student, side) * variant.hidden_size  # of an image in a block
    kept = _KEPT[precision] * values * variant.depth
    if checkpointing:
        kept = 4 * values * variant.depth + _KEPT[precision] * values
    images = _PIXEL_COPIES * 4 * variant.num_channels * side**2
    if sharding == "fsdp":
        own = -(-counted.total // processes)
        block = counted.blocks // variant.depth
        # One block is at work while the next one is on its way; the gradients of one are summed meanwhile.
        weights, gradients = 4 * own + 2 * few * block + 4 * counted.rest, 4 * own + 4 * block + 4 * counted.rest
    else:
        own = counted.total
        weights = 4 * own + (few * own if few < 4 else 0)  # autocast keeps the cast ones
        gradients = 4 * own * (2 if processes > 1 else 1)
    return TrainingMemory(
        weights=weights,
        gradients=gradients,
        optimizer=8 * own,
        average=4 * own if average else 0,
        activations=batch_size * (kept + images),
    )


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Bytes that the collective operations of a step are given, in each process.

    In a ring of N a process sends 1 - 1/N of what is gathered or scattered, and twice that of what is summed.

    Attributes:
        summed: Of gradients, all-reduce (DDP).
        gathered: Of weights, all-gather (FSDP2).
        scattered: Of gradients, reduce-scatter (FSDP2).
    """

    summed: int = 0
    gathered: int = 0
    scattered: int = 0

    def sent(self, processes: int) -> float:
        """Returns the bytes that a process sends in a ring of N processes."""
        return (1 - 1 / processes) * (2 * self.summed + self.gathered + self.scattered)


def exchanged(counted: Parameters, *, sharding: str, precision: str = "fp32", parts: int = 1) -> Exchange:
    """Returns what the processes of a step exchange, but for padding and a few numbers.

    Args:
        counted: Parameters of the student.
        sharding: "none": the gradients once; "fsdp": for each part the weights of blocks forward and backward, all
            other weights once, and the gradients.
        precision: Weights of blocks travel in it; gradients in fp32.
        parts: Accumulated parts of a step.
    """
    if sharding == "none":
        return Exchange(summed=4 * counted.total)
    few = 4 if precision == "fp32" else 2
    return Exchange(gathered=parts * (2 * few * counted.blocks + 4 * counted.rest), scattered=parts * 4 * counted.total)
