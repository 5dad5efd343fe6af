"""Explains image files: reads, preprocesses, explains, scores the maps and draws them over the image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.errors import UserError
from deit.core.images.image_inputs import image_of, is_array, name_of
from deit.core.images.reading import load_image
from deit.core.model_directory import kind_of_model, read_image_processor
from deit.core.processing.reduced_reading import ReducedReader, wants_exact_decoding
from deit.explain.maps import DEFAULT_METHOD, Explanation, Target, check_method, explain_image, is_regression
from deit.explain.network import Network
from deit.explain.overlay import over_original, over_seen
from deit.explain.placement import Placement, placement_of, seen_image
from deit.explain.score import RANDOM_ORDERS, MapScore, score_explanation

_MOST_SIDE = 1600  # of a picture that is drawn, in pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class ExplainedImage:
    """One image with its maps and what is needed to draw them.

    Attributes:
        name: Its path, or "an image".
        explanation: The maps.
        scores: A score for each head's overall map; empty if none was asked for, or for a regression.
        size: (height, width) of the original image; None for an array.
        placement: Where the model's pixels lie in it; None if the preprocessing does not tell.
        patch_size: (height, width) of a patch, in the model's pixels.
        seen: What the model sees, as an image.
        original: The original image, at most 1600 pixels a side; None for an array.
    """

    name: str
    explanation: Explanation
    scores: dict[str, MapScore]
    size: tuple[int, int] | None
    placement: Placement | None
    patch_size: tuple[int, int]
    seen: Image.Image = field(repr=False)
    original: Image.Image | None = field(repr=False)

    def array(self) -> npt.NDArray[np.float32]:
        """Returns all maps, (heads, L + 1, rows, columns) in 0..1: those of the blocks, then the overall one."""
        heads = self.explanation.heads.values()
        return np.stack([np.concatenate((maps.blocks, maps.overall[None])) for maps in heads])

    def draw(self, head: str | None = None, block: int | None = None, *, original: bool = True) -> Image.Image:
        """Draws a map over the image.

        Args:
            head: Name of the head; the first one, which is the model's answer, when None.
            block: Number of a block, counted from 1; the overall map when None.
            original: Over the original image, where that is known; else over what the model sees.

        Raises:
            UserError: There is no such head or block.
        """
        heads = self.explanation.heads
        head = next(iter(heads)) if head is None else head
        if head not in heads:
            raise UserError(f"The explanation has the heads {', '.join(heads)}. Received: {head!r}.")
        depth = len(heads[head].blocks)
        if block is not None and not 1 <= block <= depth:
            raise UserError(f"block must lie between 1 and {depth}. Received: {block}.")
        chosen = heads[head].overall if block is None else heads[head].blocks[block - 1]
        if not original or self.original is None or self.placement is None or self.size is None:
            return over_seen(self.seen, chosen, self.patch_size)
        rows, columns = self.original.height / self.size[0], self.original.width / self.size[1]
        place = Placement(
            top=self.placement.top * rows, left=self.placement.left * columns,
            height=self.placement.height * rows, width=self.placement.width * columns,
        )  # fmt: skip
        return over_original(self.original, chosen, self.patch_size, (self.seen.height, self.seen.width), place)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values: targets, logits, probabilities, scores, the overall maps and where they lie."""
        told, place = self.explanation, self.placement
        heads = {
            name: {
                "target": maps.target, "label": maps.label, "logit": maps.logit, "probability": maps.probability,
                "score": self.scores[name].to_dict() if name in self.scores else None,
                "verdict": self.scores[name].describe() if name in self.scores else None,
                "values": maps.values.tolist(),
            }
            for name, maps in told.heads.items()
        }  # fmt: skip
        region = None if place is None else [place.left, place.top, place.left + place.width, place.top + place.height]
        return {
            "image": self.name, "size": self.size, "method": told.method, "target": told.target, "label": told.label,
            "grid": list(told.grid), "patch_size": list(self.patch_size),
            "seen_size": [self.seen.height, self.seen.width], "region": region, "notes": list(told.notes),
            "heads": heads,
        }  # fmt: skip


class Explainer:
    """Explains images with a classifier and its preprocessing.

    Args:
        model: A DeiT or ViT classifier of this package. It is only read.
        processor: The preprocessing that its weights were trained with.

    Attributes:
        exact_decoding: As in `Predictor`, so that the pixels are those of `deit classify`.

    Raises:
        WrongTypeError: The model is of another kind, such as one of timm.

    Examples:
        >>> from deit import DeiTImageProcessor, ViTConfig, ViTForImageClassification
        >>> sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32}
        >>> model = ViTForImageClassification(ViTConfig(**sizes, patch_size=8))
        >>> explainer = Explainer(model, DeiTImageProcessor(size=36, crop_size=32))
        >>> found = explainer.explain(Image.radial_gradient("L"), target="LABEL_1")
        >>> found.array().shape  # heads, blocks and the overall map, rows, columns
        (1, 4, 4, 4)
        >>> found.draw().size
        (256, 256)
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.exact_decoding = wants_exact_decoding()
        self._network = Network(model)

    @classmethod
    def open(cls, name_or_path: str | os.PathLike[str], device: str = "cpu") -> Explainer:
        """Opens a classifier by its path or name.

        Args:
            name_or_path: A model directory, with its preprocessing; or a name, see
                `deit.models.weights.model_names.find_model`. An export alone cannot be explained: it has no gradients.
            device: "cpu", "cuda", ..., or "auto" for a GPU if there is one.

        Raises:
            FileNotFoundError: A file is missing.
            UserError: A file is damaged, the model is of another kind, or there is no such device.
        """
        from deit.models.classifier import open_classifier
        from deit.models.weights.model_names import find_model
        from deit.models.weights.torchvision import torchvision_name
        from deit.runtime.devices import resolve

        placement = resolve(device)
        if torchvision_name(name_or_path):
            raise UserError(f"{name_or_path} is a model of torchvision. {_ONLY_OURS}")
        folder = find_model(name_or_path)
        if not folder.is_dir():
            raise UserError(
                f"{folder} is a file. Explanations need a model directory with weights: an export has no gradients."
            )
        if kind_of_model(folder) != "deit":
            raise UserError(f"{folder} is a model of timm. {_ONLY_OURS}")
        return cls(placement.move(open_classifier(folder)).eval(), read_image_processor(folder))

    def explain(
        self,
        image: Any,
        *,
        method: str = DEFAULT_METHOD,
        heads: Sequence[str] | None = None,
        target: Target = None,
        random_orders: int = RANDOM_ORDERS,
        seed: int = 0,
    ) -> ExplainedImage:
        """Explains one image.

        Args:
            image: See `Predictor.classify`.
            method: See `explain_image`.
            heads: See `explain_image`.
            target: See `explain_image`.
            random_orders: See `score_maps`; 0 for no score.
            seed: Of the random orders.

        Raises:
            FileNotFoundError: The path does not exist.
            ImageError: The image cannot be read.
            UserError: See `explain_image` and `score_maps`.
        """
        check_method(method)
        pixels = self.pixels(image)
        explanation = explain_image(self.model, pixels, method=method, heads=heads, target=target)
        original = self._original(image)
        size = None if original is None else (original.height, original.width)
        if original is not None:
            original.thumbnail((_MOST_SIDE, _MOST_SIDE))
        patch = self._network.trunk.patch_embed.patch_size
        return ExplainedImage(
            name=name_of(image),
            explanation=explanation,
            scores=self._scores(pixels, explanation, random_orders, seed) if random_orders else {},
            size=size,
            placement=None if size is None else placement_of(self.processor, size),
            patch_size=(int(patch[0]), int(patch[1])),
            seen=seen_image(self.processor, pixels[0]),
            original=original,
        )

    def pixels(self, image: Any) -> npt.NDArray[np.float32]:
        """Returns what the model sees, (1, C, H, W), by the same reading and preprocessing as `Predictor`."""
        read = ReducedReader(self.processor, exact=self.exact_decoding)(image)
        pixels = np.asarray(self.processor(images=read, return_tensors="np")["pixel_values"], np.float32)
        return pixels if self.processor.data_format != "channels_last" else np.moveaxis(pixels, -1, 1)

    def _original(self, image: Any) -> Image.Image | None:
        item = image_of(image)
        if is_array(item):
            return None
        loaded = load_image(item, value_range=getattr(self.processor, "value_range", None))
        return loaded.copy() if loaded is item else loaded  # it is made smaller below

    def _scores(
        self, pixels: npt.NDArray[np.float32], explanation: Explanation, random_orders: int, seed: int
    ) -> dict[str, MapScore]:
        if is_regression(self.model):
            return {}
        return score_explanation(self._network, pixels, explanation, random_orders=random_orders, seed=seed)


_ONLY_OURS = (
    "Explanations need a DeiT or ViT of this package, whose attention is computed anew. `deit convert` turns the "
    "weights of a DeiT or ViT of timm into one."
)
