"""Predicts a unit, and writes its part: one Parquet file, whole or not at all, with the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deit.bulk.identity import BulkOptions, open_predictor
from deit.bulk.job import Job
from deit.bulk.units import UnitError, UnitImages
from deit.core.errors import ImageError, UserError, ValueRangeError
from deit.core.files import replaced_file, write_json_atomically
from deit.core.processing.batches import PixelBatch, begun, pixel_batches
from deit.core.processing.reduced_reading import ReducedReader
from deit.data.storage.contents import content_hash
from deit.inference.contract import FEATURES, Array
from deit.inference.prediction_rows import cells_of, schema_of
from deit.inference.predictor import Classified, Predictor

if TYPE_CHECKING:
    import pyarrow as pa

HASH, EMBEDDING, EXPLANATION = "hash", "embedding", "explanation"

_TOGETHER = 1024  # rows that are written together


class UnitReader:
    """Reads the images of a unit for a predictor, and keeps the hashes of their bytes.

    Args:
        images: The unit.
        predictor: The model.
    """

    def __init__(self, images: UnitImages, predictor: Predictor) -> None:
        self.images = images
        self._processor = predictor.processor
        self._decode = ReducedReader(predictor.processor, exact=predictor.exact_decoding)
        self.hashes: list[int | None] = [None] * len(images)

    def __call__(self, index: int) -> Any:
        """Returns a decoded image. Errors name it."""
        data = self.images.read(index)
        self.hashes[index] = content_hash(data)
        try:
            return self._decode(data)
        except ImageError as error:
            kind = ValueRangeError if isinstance(error, ValueRangeError) else ImageError
            raise kind(str(error).replace("the given bytes", self.images.name(index), 1)) from error

    def reduced(self) -> int:
        """Returns how many images were decoded at a reduced size since the last call."""
        return self._decode.taken()

    def batches(self, batch_size: int, most: int | None = None) -> Iterator[PixelBatch[int]]:
        """Yields the numbers and pixels (B, 3, H, W) of the images, batch after batch.

        Args:
            batch_size: Images in a batch.
            most: Images in all; None for the whole unit.
        """
        numbers = range(len(self.images))[:most]
        return pixel_batches(numbers, self._processor, batch_size, read=self, name=self.images.name)


class PartWriter:
    """Predicts units of a job, one after the other, with one opened model.

    Args:
        job: The job.
        predictor: The opened model; None opens it as the job says.
        device: Device to open it on; empty for the kind that the job began on.
    """

    def __init__(self, job: Job, predictor: Predictor | None = None, *, device: str = "") -> None:
        import torch

        opening, engine = job.manifest.opening, job.manifest.identity["engine"]
        torch.set_num_threads(opening["threads"])
        self._job = job
        self._options = options = options_of(job)
        if predictor is None:
            predictor = open_predictor(
                opening["model"],
                options,
                device=device or engine["device"],
                engine=engine["name"],
                precision=engine["precision"],
            )
        self.predictor = predictor
        self.predictor.exact_decoding = job.manifest.identity["options"]["exact_decoding"]
        self._judge = self.predictor.judge(options.wanted(), abstain=options.abstain)
        self._top_k = min(options.top_k, len(self.predictor.label_names))
        self._begun: dict[int, tuple[UnitReader, Iterator[PixelBatch[int]]]] = {}

    def write(self, number: int, following: Callable[[], int | None] = lambda: None) -> None:
        """Predicts a unit and writes its part, or the report that it cannot be read.

        Args:
            number: Of the unit.
            following: Returns the unit that is written next, if there is one. It is called when all images of this one
                are read, so that threads begin with the next one while the model works on the last batch.

        Raises:
            WritingError: The part cannot be written.
            UserError: The model cannot give what was asked for.
        """
        part, failure = self._job.part(number), self._job.failure(number)
        try:
            reader, batches = self._begun.pop(number) if number in self._begun else self._reading(number)
            with replaced_file(part) as temporary:
                self._write(temporary, number, reader, self._followed(batches, len(reader.images), following))
            failure.unlink(missing_ok=True)
        except UnitError as error:
            failure.parent.mkdir(exist_ok=True)
            facts = self._job.units.facts(number)
            told = {"unit": number, "images": facts["images"], "file": facts.get("file", ""), "error": str(error)}
            write_json_atomically(failure, told)

    def _reading(self, number: int) -> tuple[UnitReader, Iterator[PixelBatch[int]]]:
        """Begins to read a unit, in threads."""
        reader = UnitReader(images_of(self._job, number), self.predictor)
        return reader, begun(reader.batches(self._options.batch_size))

    def _followed(
        self, batches: Iterator[PixelBatch[int]], count: int, following: Callable[[], int | None]
    ) -> Iterator[PixelBatch[int]]:
        """Yields the batches of a unit of `count` images, and begins to read the following one before the last."""
        for batch in batches:
            count -= len(batch.items)
            if not count and (number := following()) is not None:
                with suppress(UnitError):  # `write` meets it again, and reports it
                    self._begun[number] = self._reading(number)
            yield batch

    def _write(self, path: Path, number: int, reader: UnitReader, batches: Iterator[PixelBatch[int]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        judged = self._judge is not None
        schema = self._schema()
        rows: list[list[Any]] = []
        with pq.ParquetWriter(path, schema) as writer:

            def flush() -> None:
                cells = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
                writer.write_table(pa.table(cells, schema=schema))
                rows.clear()

            for index, (result, hashed, extras) in enumerate(self._results(reader, batches)):
                rows.append([number, index, *cells_of(result, self._top_k, judged=judged), hashed, *extras])
                if len(rows) == _TOGETHER:
                    flush()
            if rows:
                flush()

    def _schema(self) -> pa.Schema:
        """Returns the columns: unit, index, those of a table of predictions, hash, and what else was asked for."""
        import pyarrow as pa

        schema = schema_of(self._top_k, judged=self._judge is not None)
        for place, name in enumerate(("unit", "index")):
            schema = schema.insert(place, pa.field(name, pa.int32()))
        schema = schema.append(pa.field(HASH, pa.uint64()))
        if self._options.embedding:
            schema = schema.append(pa.field(EMBEDDING, pa.list_(pa.float32())))
        if self._options.explanation:
            schema = schema.append(pa.field(EXPLANATION, pa.list_(pa.list_(pa.float32()))))
        return schema

    def _results(
        self, reader: UnitReader, batches: Iterator[PixelBatch[int]]
    ) -> Iterator[tuple[Classified, int | None, list[Any]]]:
        """Yields for each image its result, the hash of its bytes, and the cells of the optional columns."""
        predictor, options, index = self.predictor, self._options, 0
        features = options.embedding or (self._judge is not None and self._judge.needs_features)
        for answers in predictor.answers_to(batches, with_features=features):
            extras = self._extras(answers.outputs.get(FEATURES), answers.batch.pixels)
            for result, error in zip(
                predictor.classified_batch(answers, top_k=self._top_k, judge=self._judge, name=reader.images.name),
                answers.batch.errors,
                strict=True,
            ):
                yield result, reader.hashes[index], self._nothing() if error else next(extras)
                index += 1
        predictor.reduced_images += reader.reduced()

    def _nothing(self) -> list[Any]:
        return [None] * (self._options.embedding + bool(self._options.explanation))

    def _extras(self, features: Array | None, pixels: Array | None) -> Iterator[list[Any]]:
        """Yields the cells of the optional columns for each readable image."""
        options = self._options
        if options.embedding and features is None and pixels is not None:
            raise UserError("The model gives no embeddings: what its last layer is given is unknown. Leave them out.")
        for row in range(0 if pixels is None else len(pixels)):
            cells: list[Any] = []
            if options.embedding:
                assert features is not None
                cells.append(features[row])
            if options.explanation:
                assert pixels is not None
                cells.append(self._explained(pixels[row : row + 1]))
            yield cells

    def _explained(self, pixels: Array) -> list[Array]:
        """Returns the rows of the overall map of the answer of the model."""
        from deit.explain.maps import explain_image

        head = self.predictor.engine.contract.head_names[0]
        model: Any = getattr(self.predictor.engine, "model", None)
        told = explain_image(model, pixels, method=self._options.explanation, heads=[head])
        return list(told.heads[head].overall)


def options_of(job: Job) -> BulkOptions:
    """Returns the options that a job began with."""
    values = {k: v for k, v in job.manifest.identity["options"].items() if k != "exact_decoding"}
    if values["value_range"] is not None:
        values["value_range"] = tuple(values["value_range"])
    return BulkOptions(**values)


def images_of(job: Job, number: int) -> UnitImages:
    """Returns the images of a unit of a job.

    Raises:
        UnitError: They cannot be read.
    """
    manifest = job.manifest
    return UnitImages(job.units.facts(number), Path(manifest.base), manifest.kind, manifest.column)


def first_batches(images: UnitImages, predictor: Predictor, batch_size: int, most: int = 4) -> list[Array]:
    """Returns the pixels (B, 3, H, W) of the first batches of a unit, to measure engines with."""
    batches = UnitReader(images, predictor).batches(batch_size, most * batch_size)
    return [np.ascontiguousarray(batch.pixels) for batch in batches if batch.pixels is not None]
