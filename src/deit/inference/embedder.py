"""Turns images into features: a token of any block of a DeiT or ViT. Writes them as a Parquet file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deit.core.errors import UserError
from deit.core.files import replaced_file
from deit.core.images.image_inputs import is_one_image, items_of, name_of
from deit.core.images.known_images import KnownImages
from deit.core.model_directory import kind_of_model, read_image_processor, read_known_images
from deit.core.printable import as_unicode
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.inference.answers import Answers, Item, answers
from deit.inference.contract import Array
from deit.runtime.devices import resolve

TOKENS = ("class", "distillation", "mean")


class Embedder:
    """Turns pixels into features with the trunk of a model.

    Args:
        model: A `DeiTModel` or `ViTModel`; it is put in evaluation mode.
        processor: The preprocessing that its weights were trained with.
        device: "cpu", "cuda", ..., or "auto" for a GPU if there is one.
        known_images: The images that the model has learned from; None if that is not recorded.

    Attributes:
        tokens: Those of `TOKENS` that the model has.
        depth: Number of blocks.

    Raises:
        ValueError: There is no such device.
    """

    def __init__(
        self,
        model: Any,
        processor: DeiTImageProcessor,
        device: str = "cpu",
        *,
        known_images: KnownImages | None = None,
    ) -> None:
        placement = resolve(device)
        self.device = placement.device
        self.model = placement.move(model).eval()
        self.processor = processor
        self.known_images = known_images
        self.tokens = tuple(name for name in TOKENS if name != "distillation" or model.config.num_prefix_tokens == 2)
        self.depth = int(model.config.num_hidden_layers)

    @classmethod
    def open(cls, name_or_path: str | os.PathLike[str], device: str = "cpu") -> Embedder:
        """Opens the trunk of any DeiT or ViT: of a classifier, of a model of masked images, or bare.

        Args:
            name_or_path: A model directory, with its preprocessing; or a name, see
                `deit.models.weights.model_names.find_model`.
            device: See `Embedder`.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, the model is of another kind, or there is no such device.
        """
        from deit.models.weights.model_names import find_model

        folder = find_model(name_or_path)
        if kind_of_model(folder) != "deit":
            raise UserError(f"{folder} is a model of timm. Features are taken from a DeiT or ViT of this package.")
        from deit.models.auto import CLASSIFICATION, FEATURES, MASKED_IMAGE, find_class, names_of
        from deit.models.auto_openers import AutoConfig
        from deit.models.weights.finiteness import refuse_non_finite_model
        from deit.models.weights.from_pretrained import OWN_MEMORY

        config = AutoConfig.from_pretrained(folder)
        named = set(config.architectures or ())
        # The class that wrote the files: another one would warn of unused heads or an unused decoder.
        task = next((task for task in (CLASSIFICATION, MASKED_IMAGE) if named & set(names_of(task))), FEATURES)
        model_class = find_class(task, config.model_type, config.architectures)
        arguments = _parts_in_file(folder) if task == FEATURES else {}
        model = model_class.from_pretrained(folder, config=config, **arguments, **OWN_MEMORY)
        refuse_non_finite_model(model, folder)
        trunk = getattr(model, model.base_model_prefix, model)
        return cls(trunk, read_image_processor(folder), device, known_images=read_known_images(folder))

    def check(self, token: str, block: int | None) -> None:
        """Checks that the model has a token and a block.

        Raises:
            UserError: It has not.
        """
        if token not in self.tokens:
            raise UserError(f"token must be one of {', '.join(self.tokens)}. Received: {token!r}.")
        if block is not None and not 0 <= block <= self.depth:
            raise UserError(f"block must lie between 0 (before the first) and {self.depth}. Received: {block}.")

    def embed(
        self, images: Any, *, token: str = "class", block: int | None = None, batch_size: int = 32, strict: bool = False
    ) -> Any:
        """Returns the features of one image, or of several.

        Args:
            images: See `Predictor.classify`.
            token: One of `tokens`.
            block: See `__call__`.
            batch_size: Images that go through the model together.
            strict: Raise at the first of several images that cannot be read.

        Returns:
            For one image its features, (D,). For several a list of `EmbeddedImage`; an unreadable one has an `error` in
            place of features.

        Raises:
            FileNotFoundError: The path of the one image does not exist.
            ImageError: The one image cannot be read.
            ValueError: The model has no such token or block, `batch_size` is smaller than 1, or it is no image.
        """
        single = is_one_image(images)
        items = [images] if single else items_of(images)
        batches = self._embedded(items, token, block, batch_size, strict=strict or single)
        results = [result for batch in batches for result in batch]
        return results[0].features if single else results

    def answers(
        self,
        images: Iterable[Item],
        batch_size: int,
        *,
        block: int | None = None,
        read: Callable[[Item], Any] | None = None,
        name: Callable[[Item], str] = name_of,
        strict: bool = False,
    ) -> Iterator[Answers[Item]]:
        """Yields the features of every token, batch after batch; see `deit.inference.answers.answers`."""
        model = partial(self, block=block)
        return answers(model, self.processor, images, batch_size, read=read, name=name, strict=strict)

    def _embedded(
        self, images: Iterable[Any], token: str, block: int | None, batch_size: int, *, strict: bool
    ) -> Iterator[list[EmbeddedImage]]:
        """Embeds images batch after batch; an unreadable image has an error in its place."""
        self.check(token, block)
        for told in self.answers(images, batch_size, block=block, strict=strict):
            rows = iter(told.outputs.get(token, ()))
            yield [
                EmbeddedImage(name=name_of(image), features=None if error else next(rows), error=error)
                for image, error in zip(told.batch.items, told.batch.errors, strict=True)
            ]

    def __call__(self, pixels: Array, *, block: int | None = None) -> dict[str, Array]:
        """Returns the features (B, D) of each token in `tokens`.

        Args:
            pixels: (B, 3, H, W), float32.
            block: Block whose output is taken, from 1; 0 is the input of the first. None is the end, after the final
                norm, which only this choice includes. "mean" is the mean of the patch tokens.

        Raises:
            ValueError: A feature is NaN or infinite.
        """
        import torch

        from deit.models.weights.finiteness import refuse_non_finite_answers

        with torch.inference_mode():
            output = self.model(torch.from_numpy(pixels).to(self.device), output_hidden_states=block is not None)
        tokens = output.last_hidden_state if block is None else output.hidden_states[block]
        tokens = refuse_non_finite_answers(tokens.float(), "The model").cpu().numpy()
        prefix = self.model.config.num_prefix_tokens
        made = {"class": tokens[:, 0], "distillation": tokens[:, 1], "mean": tokens[:, prefix:].mean(axis=1)}
        return {name: made[name] for name in self.tokens}


def _parts_in_file(folder: Path) -> dict[str, bool]:
    """Returns the parts of a bare trunk in the file that features do not need: opening them avoids a warning."""
    from deit.models.weights.from_pretrained import FileOptions, open_checkpoint

    shapes = open_checkpoint(folder, FileOptions()).source.shapes
    return {
        "add_pooling_layer": any(name.startswith("pooler.") for name in shapes),
        "use_mask_token": any(name.endswith("mask_token") for name in shapes),
    }


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The features of some images.

    Attributes:
        names: Names of the readable images.
        features: (N, D) float32.
        errors: Reasons why the others cannot be read.
    """

    names: list[str]
    features: Array
    errors: list[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedImage:
    """The features of one image.

    Attributes:
        name: Its path, "standard input" for bytes, or "an image".
        features: (D,) float32; None for an unreadable image.
        error: Why the image cannot be read, or an empty string.
    """

    name: str
    features: Array | None
    error: str = ""


def embed_files(
    embedder: Embedder,
    paths: Sequence[str],
    *,
    token: str = "class",
    block: int | None = None,
    batch_size: int = 32,
    strict: bool = False,
) -> Iterator[Embedded]:
    """Embeds image files batch after batch; leaves out unreadable ones and reports them.

    Args:
        embedder: The model.
        paths: Paths of the images.
        token: One of `embedder.tokens`.
        block: See `Embedder`.
        batch_size: Images that go through the model together.
        strict: Raise at the first image that cannot be read.

    Raises:
        ValueError: The model has no such token or block, or `batch_size` is smaller than 1.
        FileNotFoundError: A path does not exist, and `strict` is on.
        ImageError: An image cannot be read, and `strict` is on.
    """
    width = int(embedder.model.config.hidden_size)
    for batch in embedder._embedded(paths, token, block, batch_size, strict=strict):
        rows = [result.features for result in batch if result.features is not None]
        yield Embedded(
            names=[result.name for result in batch if not result.error],
            features=np.stack(rows) if rows else np.zeros((0, width), np.float32),
            errors=[result.error for result in batch if result.error],
        )


def write_features(path: Path, parts: Iterator[Embedded], *, notes: dict[str, str]) -> tuple[int, list[str]]:
    """Writes features as a Parquet file, whole or not at all: a column `image`, and `features` as lists of float32.

    Args:
        path: Path of the file.
        parts: Results of `embed_files`.
        notes: Metadata of the file: model, token, block.

    Returns:
        The number of images in the file, and the errors of the others.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: No image could be read.
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}. Make it first.")
    count, errors = 0, []
    with replaced_file(path) as temporary:
        writer = None
        try:
            for part in parts:
                errors += part.errors
                kind = pa.list_(pa.float32(), part.features.shape[1])
                schema = pa.schema([("image", pa.string()), ("features", kind)], metadata=notes)
                writer = writer or pq.ParquetWriter(temporary, schema)
                if part.names:
                    cells = pa.FixedSizeListArray.from_arrays(
                        pa.array(part.features.reshape(-1)), part.features.shape[1]
                    )
                    writer.write_table(pa.table([pa.array(map(as_unicode, part.names)), cells], schema=schema))
                count += len(part.names)
        finally:
            if writer is not None:
                writer.close()
        if not count:
            raise UserError(f"None of {len(errors)} file(s) could be read as an image. {' '.join(errors[:1])}")
    return count, errors
