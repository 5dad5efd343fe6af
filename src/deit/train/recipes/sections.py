"""Defines the sections of a recipe: optimizer, schedule, distillation, data, ... Each checks its values."""

from __future__ import annotations

from dataclasses import dataclass

from deit.core.config.following_defaults import DISTILLATION_KINDS, FOLLOWS, REDUCTIONS, TEACHER_LOSSES, following
from deit.core.images.sample_values import ValueRange, checked_range
from deit.core.scores.metrics import PROBLEM_TYPES
from deit.train.recipes.values import require, require_one_of

OPTIMIZERS = ("adamw", "lamb", "sgd", "muon")
UPDATES = ("step", "epoch", "original")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer; see `deit.train.optimization`.

    Attributes:
        name: "adamw" (DeiT), "lamb" (DeiT III), "sgd" (with Nesterov's momentum, as timm's) or "muon" (weight matrices
            of the blocks by Muon, all else by AdamW, with one learning rate for both).
        lr: Learning rate for a batch of `reference_batch_size`; other batch sizes scale it in proportion.
        reference_batch_size: 512 in the paper; 0 takes `lr` as it is.
        weight_decay: Decay of matrices and convolutions; norms, biases, tokens and position embeddings have none.
        betas: Decay rates of the running averages of AdamW and LAMB.
        eps: Added to the denominator of AdamW and LAMB.
        momentum: Momentum of SGD (default 0.9) and of Muon (default 0.95, its authors').
        clip_grad: Maximum norm of the gradient; 0 for no limit (the paper's choice for DeiT).
        layer_decay: Ratio of the learning rate of a block to that of the next; 1 uses one rate everywhere.
        decay_distillation_token: True decays the distillation token too, a mistake of the paper's code.
    """

    name: str = "adamw"
    lr: float = 5e-4
    reference_batch_size: int = 512
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = FOLLOWS
    clip_grad: float = 0.0
    layer_decay: float = 1.0
    decay_distillation_token: bool = False

    def __post_init__(self) -> None:
        require_one_of("optimizer.name", self.name, OPTIMIZERS)
        object.__setattr__(self, "momentum", following("optimizer.momentum", self.momentum, self.name))
        require(self.lr > 0, "optimizer.lr must be positive", self.lr)
        received = self.reference_batch_size
        require(received >= 0, "optimizer.reference_batch_size must be at least 0", received)
        require(self.weight_decay >= 0, "optimizer.weight_decay must be at least 0", self.weight_decay)
        require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas must lie in [0, 1)", self.betas)
        require(self.eps > 0, "optimizer.eps must be positive", self.eps)
        require(0 <= self.momentum < 1, "optimizer.momentum must lie in [0, 1)", self.momentum)
        require(self.clip_grad >= 0, "optimizer.clip_grad must be at least 0", self.clip_grad)
        require(0 < self.layer_decay <= 1, "optimizer.layer_decay must lie in (0, 1]", self.layer_decay)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a cosine.

    Attributes:
        epochs: Passes over the training images.
        warmup_epochs: Length of the warm-up, at most `epochs`; fractions are allowed.
        warmup_lr: Learning rate at the start of the warm-up. The batch size scales it only if it would otherwise
            not lie below the peak; see `Recipe.learning_rates`.
        min_lr: Learning rate at the end of the cosine; scaled likewise.
        updates: When the rate changes: "step" after each step; "epoch" after each epoch; "original" after each epoch
            and one epoch late. In the paper's code epochs 0 and 1 both train at `warmup_lr`.
        patience: Evaluations without a better score after which the run ends; 0 for no such end. The score is
            `Recipe.keep_score`.
        stop_epoch: The epoch after which the run ends, with the learning rates of a run of `epochs`; 0 for the last.
            `fit_folds` chooses it.
    """

    epochs: int = 300
    warmup_epochs: float = 5.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    updates: str = "step"
    patience: int = 0
    stop_epoch: int = 0

    def __post_init__(self) -> None:
        require_one_of("schedule.updates", self.updates, UPDATES)
        require(self.epochs >= 1, "schedule.epochs must be at least 1", self.epochs)
        require(self.patience >= 0, "schedule.patience must be at least 0", self.patience)
        require(
            0 <= self.stop_epoch <= self.epochs,
            f"schedule.stop_epoch must lie in [0, {self.epochs}], the epochs of the training",
            self.stop_epoch,
        )
        object.__setattr__(self, "warmup_epochs", float(self.warmup_epochs))  # text is converted to its type
        require(
            0 <= self.warmup_epochs <= self.epochs,
            f"schedule.warmup_epochs must lie in [0, {self.epochs}], the epochs of the training",
            f"{self.warmup_epochs:g}",
        )
        require(self.warmup_lr >= 0, "schedule.warmup_lr must be at least 0", self.warmup_lr)
        require(self.min_lr >= 0, "schedule.min_lr must be at least 0", self.min_lr)

    @property
    def last_epoch(self) -> int:
        """The epoch after which the run ends: `stop_epoch`, else `epochs`."""
        return self.stop_epoch or self.epochs


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Settings of the loss of the distillation head (paper, section 4).

    Attributes:
        kind: "hard" (the teacher's top class; the paper's choice), "soft" (the teacher's distribution), or a loss of
            `deit.train.tasks.teacher_losses`: "standardized", "wttm", "dist".
        temperature: Temperature of the softmax. Default: that of the kind's paper, 3 for soft, 2 for standardized, 5
            for wttm, 1 for dist; 1 for hard, which ignores it.
        weight: Weight of the distillation loss in [0, 1]. Default: that of the kind's paper, 0.5 for hard, 0.1 for
            soft, 0.99 for standardized, 0.8 for wttm, 0.67 for dist.
        reduction: "batchmean", or "numel" as in the paper's code (K times smaller); see `distillation_loss`. Of hard
            and soft alone.
        intra_weight: Weight of the part of "dist" that compares the images of a batch, relative to the part that
            compares the classes of an image. 1 in the paper; 0 leaves it out.
        flip_teacher: True shows the teacher each view and its mirror image, and averages the probabilities: a better
            teacher that takes twice the time. Not for images whose left and right mean something.
        guidance: Weight of the loss that guides the student's patch tokens by the feature maps of a convnet of timm,
            added to the others; see `deit.train.tasks.guidance`. 0 for none; 10 is what plans use. Needs the teacher in
            each step, so no cache.
        cache_top_k: Number of largest logits that a teacher cache stores for each view (soft and wttm). Caches of
            "standardized" and "dist" store all logits.
    """

    kind: str = "hard"
    temperature: float = FOLLOWS
    weight: float = FOLLOWS
    reduction: str = "batchmean"
    intra_weight: float = 1.0
    flip_teacher: bool = False
    guidance: float = 0.0
    cache_top_k: int = 100

    def __post_init__(self) -> None:
        require_one_of("distillation.kind", self.kind, TEACHER_LOSSES)
        for name in ("temperature", "weight"):
            value = following(f"distillation.{name}", getattr(self, name), self.kind)
            object.__setattr__(self, name, value)
        require(self.temperature > 0, "distillation.temperature must be positive", self.temperature)
        require(0 <= self.weight <= 1, "distillation.weight must lie in [0, 1]", self.weight)
        require_one_of("distillation.reduction", self.reduction, REDUCTIONS)
        require(
            self.reduction == "batchmean" or self.kind in DISTILLATION_KINDS,
            f"distillation.reduction must be 'batchmean' with distillation.kind={self.kind}",
            self.reduction,
        )
        require(self.intra_weight >= 0, "distillation.intra_weight must be at least 0", self.intra_weight)
        require(self.guidance >= 0, "distillation.guidance must be at least 0", self.guidance)
        require(self.cache_top_k >= 1, "distillation.cache_top_k must be at least 1", self.cache_top_k)


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """Settings of pseudo-labels for unlabeled images (Semi-ViT, arXiv 2208.05688); see `PseudoLabeller`.

    Attributes:
        weight: Weight of the loss of unlabeled images relative to that of labeled ones; 5 in the paper. 0 makes no
            pseudo-labels.
        threshold: Least probability of the class that the averaged model finds; less sure images give no loss.
        mixup: Mixes pairs of unlabeled images in proportion to their probabilities (probabilistic pseudo-mixup). Pixels
            then depend on the student, so a teacher cache cannot be used.
    """

    weight: float = 0.0
    threshold: float = 0.7
    mixup: bool = True

    def __post_init__(self) -> None:
        require(self.weight >= 0, "pseudo_labels.weight must be at least 0", self.weight)
        require(0 <= self.threshold <= 1, "pseudo_labels.threshold must lie in [0, 1]", self.threshold)


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Settings of masked-image training (SimMIM, arXiv 2111.09886); unused by other tasks.

    Attributes:
        patch: Side of the hidden blocks in pixels. A multiple of the patch size that divides the image size.
        ratio: Share of the blocks that are hidden.
        picture_steps: Steps between two pictures of reconstructions; 0 draws one at the end only.
        pictures: Images in each picture.
    """

    patch: int = 32
    ratio: float = 0.6
    picture_steps: int = 1000
    pictures: int = 8

    def __post_init__(self) -> None:
        require(self.patch >= 1, "masking.patch must be at least 1", self.patch)
        require(0 < self.ratio < 1, "masking.ratio must lie between 0 and 1", self.ratio)
        require(self.picture_steps >= 0, "masking.picture_steps must be at least 0", self.picture_steps)
        require(self.pictures >= 1, "masking.pictures must be at least 1", self.pictures)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Settings that read and divide the data set.

    Attributes:
        val_fraction: Share held out for validation if the data set has no validation part.
        split_seed: Random seed of the images held out. Independent of the seed of the run, so that runs with several
            seeds can be compared.
        strict: True stops at the first unreadable image; False leaves it out and reports it.
        check_images: True reads each image before the start. False reads none, for data known to be intact. Then a
            broken image is found only when it is used (see `max_bad_images`), duplicates are not detected, and
            `deit evaluate` cannot count the images that the model was trained on.
        max_bad_images: Number of training images that may become unreadable during a run (deleted, truncated,
            changed). The run replaces each by another image of its batch and reports it. If there are more, the run
            saves its state and stops: probably a disk or a network fails. `strict` allows none.
        image_column: Column of a table that holds the images; empty detects it.
        label_column: Column of a table that holds the labels; empty detects it.
        problem_type: Kind of the labels; transformers' names.
        label_separator: Separator of several classes in one text; see `deit.data.labels.cells.read_separator`.
        value_range: The values that become black and white in gray images of more than 8 bits; (0, 0) if the type or
            the file defines them. Saved with the model. See `deit.core.images.sample_values`.
        labels_per_class: Images of each class that keep their labels; 0 for all. See `deit.data.few_labels`.
        label_fraction: Share of each class that keeps its labels; 1 for all.
        label_seed: Random seed of the choice of labels. Independent of the seed of the run, so that runs with several
            seeds can be compared.
        labelled_share: Minimum share of labeled images among the images shown, if a teacher also labels unlabeled
            images; labeled images are repeated to reach it. At 0.1 most batches have some labeled images and the
            student does not overfit them. 0 shows all images equally often.
        max_train_images: Maximum number of training images, chosen at random; 0 for all.
        max_val_images: Maximum number of validation images, chosen at random; 0 for all.
        max_unlabelled_images: Maximum number of training images without a label, likewise; 0 for all.
        shuffle_buffer: Number of images in the buffer that shuffles shards, see `deit.data.shard_order`. 0 shuffles all
            images; of shards elsewhere as many as have 4 GiB, because two buffers must fit into the cache.
        exclude: A `fix.csv` of `deit inspect` with images to leave out or to relabel; empty for none.
        exclude_hash: SHA-256 of that file, so that a recipe is not followed with another list; empty for any.
    """

    val_fraction: float = 0.2
    split_seed: int = 0
    strict: bool = False
    check_images: bool = True
    max_bad_images: int = 10
    image_column: str = ""
    label_column: str = ""
    problem_type: str = "single_label_classification"
    label_separator: str = ""
    value_range: tuple[float, float] = (0.0, 0.0)
    labels_per_class: int = 0
    label_fraction: float = 1.0
    label_seed: int = 0
    labelled_share: float = 0.1
    max_train_images: int = 0
    max_val_images: int = 0
    max_unlabelled_images: int = 0
    shuffle_buffer: int = 0
    exclude: str = ""
    exclude_hash: str = ""

    def __post_init__(self) -> None:
        limits = ("max_train_images", "max_val_images", "max_unlabelled_images", "max_bad_images")
        for name in ("split_seed", "label_seed", "labels_per_class", "shuffle_buffer", *limits):
            require(getattr(self, name) >= 0, f"data.{name} must be at least 0", getattr(self, name))
        if self.range is not None:
            checked_range(self.range, "data.value_range")
        require(0 <= self.labelled_share < 1, "data.labelled_share must lie in [0, 1)", self.labelled_share)
        require(0 < self.label_fraction <= 1, "data.label_fraction must lie in (0, 1]", self.label_fraction)
        require(
            not (self.labels_per_class and self.label_fraction < 1),
            "Pass data.labels_per_class or data.label_fraction, not both",
            f"{self.labels_per_class} and {self.label_fraction}",
        )
        require(0 < self.val_fraction < 1, "data.val_fraction must lie between 0 and 1", self.val_fraction)
        require_one_of("data.problem_type", self.problem_type, PROBLEM_TYPES)

    @property
    def tolerated(self) -> int:
        """Number of images that may become unreadable: `max_bad_images`, or 0 with `strict`."""
        return 0 if self.strict else self.max_bad_images

    @property
    def range(self) -> ValueRange | None:
        """`value_range`, or None if it is not set."""
        return None if self.value_range == (0, 0) else self.value_range
