"""Tar shards, Parquet files, tables of names, folders of `datasets`."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.data.pictures import COLOURS, colour_members, encoded, write_colours, write_shard
from tests.hostile.kit import Case, Kit, sparse

CASES: dict[str, Case] = {}


def _file(name: str, file: str, write: Callable[[Path], object], *, refused: bool = True) -> None:
    def make(kit: Kit) -> list[Any]:
        path = kit.folder / file
        write(path)
        return kit.train(path)

    CASES[name] = Case(make=make, refused=refused)


# --- tar ----------------------------------------------------------------------------------------------


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE, *, binary: bool = True) -> bytes:
    """A header of any size, negative ones included, in the binary form of GNU tar."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if binary:
        block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _good() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in colour_members(4).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue().rstrip(b"\0") + bytes(1024)


def _before(*blocks: bytes) -> bytes:
    """Blocks, then a good archive whose first block begins on a block."""
    return b"".join(blocks) + _good()


def _pax(size: int) -> bytes:
    return _header("./PaxHeaders/a", size, tarfile.XHDTYPE)


def _tiny_members(path: Path) -> None:
    with path.open("wb") as file:
        block = _header("a/b.txt", 0)
        for _ in range(600):
            file.write(block * 1000)
        file.write(bytes(1024))


def _nested_label(path: Path) -> None:
    deep = b'{"label":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    write_shard(path, {"a.png": encoded("red"), "a.json": deep, "b.png": encoded("green"), "b.json": b'{"label": 1}'})


def _sparse_label(path: Path) -> None:
    sparse(path, 20 * 2**30 + 2048, _header("a.txt", 20 * 2**30))


def _sparse_image(path: Path) -> None:
    start = b"".join(_header(f"a{i}.cls", 0) for i in range(3))
    sparse(path, 20 * 2**30 + 4096, start + _header("a.png", 20 * 2**30))


_file("tar: a size of -512", "a.tar", lambda p: p.write_bytes(_before(_header("a.png", -512))))
_file("tar: a size of -1024", "a.tar", lambda p: p.write_bytes(_before(_header("a.png", 0), _header("b.png", -1024))))
_file("tar: a size of 2 to the 60th", "a.tar", lambda p: p.write_bytes(_before(_header("a.png", 2**60))))
_file("tar: a long name of 8 GB", "a.tar", lambda p: p.write_bytes(_before(_header("a", 8 * 10**9, tarfile.GNUTYPE_LONGNAME))))  # fmt: skip  # noqa: E501
_file("tar: a long name of 20 GB in a sparse file", "a.tar", lambda p: sparse(p, 20 * 2**30, _header("a", 20 * 2**30 - 1024, tarfile.GNUTYPE_LONGNAME)))  # fmt: skip  # noqa: E501
_file("tar: a pax header of 8 GB", "a.tar", lambda p: p.write_bytes(_before(_pax(8 * 10**9))))
_file("tar: a pax header of 20 GB in a sparse file", "a.tar", lambda p: sparse(p, 20 * 2**30, _pax(20 * 2**30 - 1024)))
_file("tar: a negative pax header", "a.tar", lambda p: p.write_bytes(_before(_pax(-512))))
_file("tar: 5,000 pax headers in a row", "a.tar", lambda p: p.write_bytes(_before(*[_pax(0)] * 5000)))
_file("tar: a label of 20 GB in a sparse file", "a.tar", _sparse_label)
_file("tar: an image of 20 GB in a sparse file", "a.tar", _sparse_image)
_file("tar: 600,000 empty labels", "a.tar", _tiny_members)
_file("tar: a label nested 100,000 deep", "a.tar", _nested_label)
_file("tar: a sparse member of GNU tar", "a.tar", lambda p: p.write_bytes(_before(_header("a.png", 512, tarfile.GNUTYPE_SPARSE))))  # fmt: skip  # noqa: E501
_file("tar: random bytes", "a.tar", lambda p: p.write_bytes(bytes(range(256)) * 400))
_file("tar: empty", "a.tar", lambda p: p.write_bytes(b""))
_file("tar: /dev/zero", "a.tar", lambda p: p.symlink_to("/dev/zero"))
_file("tar: a FIFO", "a.tar", lambda p: os.mkfifo(p))
_file("tar: a sparse file of 100 GB", "a.tar", lambda p: sparse(p, 100 * 2**30))


def _bomb_in_tar(path: Path) -> None:
    from tests.hostile.image_cases import png

    members = colour_members(4)
    members |= {f"z{i}.png": png(9400, 9400) for i in range(8)} | {f"z{i}.cls": b"0" for i in range(8)}
    write_shard(path, {name: members[name] for name in sorted(members)})


_file("tar: 8 pictures of 88 megapixels", "a.tar", _bomb_in_tar, refused=False)


# --- Parquet ------------------------------------------------------------------------------------------


def _constant_labels(path: Path) -> None:
    """100 million rows that take a few KB: one picture and one label, repeated."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 100_000
    names = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["cat"]))
    image = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([encoded("red")]))
    table = pa.table({"image": image.dictionary_decode(), "label": names.dictionary_decode()})
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(1000):
            writer.write_table(table)


def _one_large_picture(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = encoded("red") + os.urandom(500_000)
    image = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array([picture]))
    table = pa.table({"image": image, "label": ["cat", "dog"] * 10_000})
    pq.write_table(table, path, compression="zstd", store_schema=False)


def _large_cell(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cell = bytes(1_500_000_000)
    table = pa.table({"image": pa.array([cell], pa.large_binary()), "label": ["cat"]})
    del cell
    pq.write_table(table, path, compression="zstd", use_dictionary=False)


def _large_label(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [encoded("red"), encoded("green")], "label": ["c" * 600_000_000, "dog"]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)


def _many_columns(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [encoded(c) for c in COLOURS], **{f"label{i}": list(COLOURS) for i in range(20_000)}})
    pq.write_table(table, path)


def _many_names(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": [str(i) for i in range(10**6)]}}
    table = pa.table({"image": [encoded(c) for c in COLOURS] * 4, "label": [0, 1, 2] * 4})
    noted = json.dumps({"info": {"features": features}}).encode()
    pq.write_table(table.replace_schema_metadata({b"huggingface": noted}), path)


def _nested_notes(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [encoded(c) for c in COLOURS] * 4, "label": [0, 1, 2] * 4})
    noted = b'{"info":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    pq.write_table(table.replace_schema_metadata({b"huggingface": noted}), path)


def _spoilt(at: slice, by: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = bytearray(write_colours(path, 4).read_bytes())
        content[at] = by
        path.write_bytes(content)

    return write


def _links(kind: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        cells = [{"bytes": None, "path": kind}] * 6
        pq.write_table(pa.table({"image": cells, "label": ["cat", "dog"] * 3}), path)

    return write


def _not_utf8(column: str) -> Callable[[Path], None]:
    """Texts, one of them of other bytes than UTF-8, as labels or as paths of images."""

    def write(path: Path) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        offsets = pa.py_buffer(np.arange(5, dtype=np.int32).tobytes())
        texts = pa.Array.from_buffers(pa.string(), 4, [None, offsets, pa.py_buffer(b"ab\xffc")])
        images = {"label": pa.array([encoded("red")] * 4)}.get(
            column, pa.StructArray.from_arrays([pa.nulls(4, pa.binary()), texts], names=["bytes", "path"])
        )
        labels = texts if column == "label" else pa.array(["a", "b", "a", "b"])
        pq.write_table(pa.table({"image": images, "label": labels}), path)

    return write


_file("Parquet: a label that is not UTF-8", "a.parquet", _not_utf8("label"))
_file("Parquet: a path that is not UTF-8", "a.parquet", _not_utf8("path"))
_file("Parquet: 100,000,000 rows of one picture", "a.parquet", _constant_labels)
_file("Parquet: a cell of 1.5 GB", "a.parquet", _large_cell)
_file("Parquet: a dictionary of one picture of 500 KB, 20,000 rows", "a.parquet", _one_large_picture)
_file("Parquet: a label of 600 MB", "a.parquet", _large_label, refused=False)
_file("Parquet: 20,000 columns", "a.parquet", _many_columns, refused=False)
_file("Parquet: 1,000,000 class names for 12 pictures", "a.parquet", _many_names, refused=False)
_file("Parquet: notes nested 100,000 deep", "a.parquet", _nested_notes, refused=False)
_file("Parquet: a footer of 2 GB", "a.parquet", _spoilt(slice(-8, -4), b"\xff\xff\xff\x7f"))
_file("Parquet: a damaged footer", "a.parquet", _spoilt(slice(-200, -100), bytes(100)))
_file("Parquet: a damaged page", "a.parquet", _spoilt(slice(4, 200), b"\xff" * 196))
_file("Parquet: empty", "a.parquet", lambda p: p.write_bytes(b""))
_file("Parquet: cells that name /dev/zero", "a.parquet", _links("/dev/zero"))
_file("Parquet: a FIFO", "a.parquet", lambda p: os.mkfifo(p))
_file("Parquet: /dev/zero", "a.parquet", lambda p: p.symlink_to("/dev/zero"))


# --- tables of names ----------------------------------------------------------------------------------


def _table(name: str, text: Callable[[], bytes], *, file: str = "a.csv", refused: bool = True) -> None:
    def make(kit: Kit) -> list[Any]:
        photos = kit.photos()
        (photos / file).write_bytes(text())
        os.mkfifo(photos / "pipe.png")
        return kit.train(photos / file)

    CASES[name] = Case(make=make, refused=refused)


def _rows(*rows: str) -> bytes:
    good = [f"{colour}/{i}.png,{colour}" for colour in COLOURS for i in range(4)]
    return "\n".join(["path,label", *good, *rows, ""]).encode()


_table("CSV: one line of 300 MB", lambda: b"path,label\n" + b"x" * 300_000_000)
_table("CSV: 1,000,000 columns", lambda: b",".join(b"c%d" % i for i in range(1_000_000)) + b"\na.png")
_table("CSV: a quote that never ends", lambda: _rows('"' + "x\n" * 30_000_000))
_table("CSV: 200 MB of empty lines", lambda: _rows("\n" * 200_000_000), refused=False)
_table("CSV: zero bytes", lambda: _rows("\0,\0"), refused=False)
_table("CSV: /dev/zero, a FIFO and /etc/passwd as pictures", lambda: _rows("/dev/zero,red", "pipe.png,red", "/etc/passwd,red"), refused=False)  # fmt: skip  # noqa: E501
_table("CSV: a label nested 100,000 deep", lambda: _rows('red/0.png,"' + "[" * 100_000 + '"'), refused=False)
_table("CSV: a label of 100 MB", lambda: _rows("red/0.png," + "x" * 100_000_000), refused=False)
_table("CSV: a number of 100,000 digits", lambda: _rows("red/0.png," + "9" * 100_000), refused=False)
_table(
    "CSV: 1,000,000 classes of one row", lambda: _rows(*(f"red/0.png,c{i}" for i in range(1_000_000))), refused=False
)
_table("CSV: a field of 50 MB", lambda: b"path,label\nred/0.png," + b"x" * 50_000_000 + b"\n")
_file("CSV: a FIFO", "a.csv", lambda p: os.mkfifo(p))
_file("CSV: /dev/zero as the table", "a.csv", lambda p: p.symlink_to("/dev/zero"))
_table("CSV: random bytes", lambda: bytes(range(256)) * 100)


def _folder(name: str, write: Callable[[Path], object]) -> None:
    def make(kit: Kit) -> list[Any]:
        folder = kit.folder / "saved"
        folder.mkdir()
        write(folder)
        return kit.train(folder)

    CASES[name] = Case(make=make)


def _data_set(state: bytes, info: bytes, arrow: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state.json").write_bytes(state)
        (folder / "dataset_info.json").write_bytes(info)
        (folder / "data-00000-of-00001.arrow").write_bytes(arrow)

    return write


_STATE = b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": null, "_format_columns": null, "_format_kwargs": {}, "_format_type": null, "_fingerprint": "a", "_output_all_columns": false}'  # fmt: skip  # noqa: E501
_DEEP = b'{"features":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
_folder("saved data set: no Arrow file", _data_set(_STATE, b"{}", b"\0" * 64))
_folder("saved data set: nested 100,000 deep", _data_set(_STATE, _DEEP, b"\0" * 64))
_folder("saved data set: a message of 2 GB", _data_set(_STATE, b"{}", b"\xff\xff\xff\xff\xff\xff\xff\x7f"))
_folder("saved data set: an empty state", _data_set(b"{}", b"{}", b""))
