"""Parquet files of images."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.changes import of_bytes, of_values
from tests.fuzz.driver import Target
from tests.fuzz.targets.tables import open_and_read, small_image

_ROWS = 4


def _read(data: bytes, folder: Path) -> None:
    path = folder / "a.parquet"
    path.write_bytes(data)
    open_and_read(path)


def _change(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Changes bytes, or writes a table of other columns."""
    return of_bytes(random, data, others) if random.randrange(3) else _table(random)


def _table(random: Random) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, labels = _images(), _labels()
    columns = {random.choice(("image", "img", "photo", "a", "b/c", "file.bytes")): random.choice(images)}
    for _ in range(random.choice((1, 1, 2, 4))):
        name = random.choice(("label", "labels", "split", "path", "class", "cat", "dog", "", "é", "label.x", "score"))
        columns[name] = random.choice(labels if random.randrange(8) else images)
    table = pa.table(columns)
    if random.randrange(2):
        notes = of_values(random, _notes()) if random.randrange(3) else _notes()
        table = table.replace_schema_metadata({b"huggingface": json.dumps(notes).encode()})
    options: dict[str, Any] = {"compression": random.choice(("none", "snappy", "zstd", "gzip", "brotli", "lz4"))}
    options["row_group_size"] = random.choice((1, 3, _ROWS))
    options["use_dictionary"], options["store_schema"] = random.choice((True, False)), random.choice((True, False))
    file = io.BytesIO()
    try:
        pq.write_table(table, file, **options)
    except (pa.ArrowException, TypeError, ValueError):  # a type that Parquet has no place for
        return b"PAR1"
    return file.getvalue()


def _notes() -> dict[str, Any]:
    classes = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    return {
        "info": {"features": {"image": {"_type": "Image"}, "label": classes, "labels": [classes], "split": classes}}
    }


def _images() -> list[Any]:
    import pyarrow as pa

    content = [small_image(i) for i in range(_ROWS)]
    paths = pa.array(["a/b.png"] * _ROWS).dictionary_encode()
    cells = [{"bytes": each, "path": f"train/{i}.png"} for i, each in enumerate(content)]
    return [
        pa.array(content), pa.array(content, pa.large_binary()), pa.array(content, pa.binary_view()), pa.array(cells),
        pa.array([None, b"", *content[:2]]), pa.array([content[0]] * _ROWS).dictionary_encode(),
        pa.array([{"bytes": None, "path": "a.png"}] * _ROWS), pa.array([{"bytes": each} for each in content]),
        pa.array([[each] for each in content]), pa.array([{"bytes": {"bytes": each}} for each in content]),
        pa.array([list(each[:9]) for each in content], pa.list_(pa.uint8())), pa.nulls(_ROWS),
        pa.array([each[:60] for each in content], pa.binary(60)),
        pa.array([{"bytes": each, "path": i} for i, each in enumerate(content)]),
        pa.StructArray.from_arrays([pa.array(content), paths], ["bytes", "path"]),
    ]  # fmt: skip


def _labels() -> list[Any]:
    import datetime
    import decimal

    import pyarrow as pa

    day = datetime.datetime(2020, 1, 1)
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in range(_ROWS + 1)))
    return [
        pa.array(["cat", "dog", "cat", "dog"]), pa.array([0, 1, 0, 1]), pa.array([0, 1, 0, 7]), pa.array([-1, 0, 1,
        None]),
        pa.array([0.5, 1.5, float("nan"), float("inf")]), pa.array([True, False, None, True]),
        pa.array([2**63 - 1] * _ROWS),
        pa.array([["cat"], ["cat", "dog"], [], None]), pa.array([[0], [0, 1], [1], [9]]), pa.array(["train",
        "val"] * 2),
        pa.array(["cat|dog", "dog", "", None]), pa.array(["cat", "dog"] * 2).dictionary_encode(), pa.nulls(_ROWS),
        pa.array([day] * _ROWS), pa.array([day.date()] * _ROWS), pa.array([decimal.Decimal("1.5")] * _ROWS),
        pa.array([{"a": 1}] * _ROWS), pa.array([[["a"]]] * _ROWS), pa.array([b"\xff\xfe"] * _ROWS),
        pa.array([2**64 - 1] * _ROWS, pa.uint64()), pa.array([1.5] * _ROWS, pa.float16()), pa.array(["1", "0", "x",
        "2"]),
        pa.Array.from_buffers(pa.string(), _ROWS, [None, offsets, pa.py_buffer(b"a\xffb\xfe")]),
        pa.array([[("a", 1)]] * _ROWS, pa.map_(pa.string(), pa.int64())), pa.array([datetime.timedelta(1)] * _ROWS),
        pa.array([[1, 0]] * _ROWS, pa.list_(pa.int8(), 2)), pa.array([day] * _ROWS, pa.timestamp("ns", "Europe/Paris")),
        pa.array(["cat", "dog"] * 2, pa.string_view()), pa.array([[1.5], [2], [], None]),
    ]  # fmt: skip


def _seeds() -> Mapping[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, labels = _images(), _labels()
    noted = {b"huggingface": json.dumps(_notes()).encode()}
    tables = {
        "plain": pa.table({"image": images[0], "label": labels[0]}),
        "noted": pa.table({"image": images[3], "label": labels[1]}).replace_schema_metadata(noted),
        "split": pa.table(
            {"image": images[0], "label": labels[0], "split": pa.array(["train", "train", "val", "val"])}
        ),
        "several": pa.table({"image": images[0], "labels": labels[7]}),
        "large": pa.table({"image": images[1], "label": labels[11]}),
    }
    found = {}
    for name, table in tables.items():
        file = io.BytesIO()
        pq.write_table(table, file, store_schema=name != "large", row_group_size=3)
        found[name] = file.getvalue()
    return found


TARGETS = (Target(name="parquet_files", read=_read, change=_change, seeds=_seeds),)
