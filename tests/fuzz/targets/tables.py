"""Tables of paths and labels: CSV, TSV; with one to leave images out (`fix.csv`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.changes import of_bytes, of_one_file
from tests.fuzz.driver import Target, joined, write_files

_TABLES = ("a.csv", "a.tsv", "fix.csv")
_CELLS = (
    "", "0", "1", "-1", "1.5", "nan", "inf", "1e999", "cat", "dog", "cat|dog", "cat,dog", "['cat']", "[1]", "{", "true",
    "train", "val", "test", "a.png", "../a.png", "/dev/zero", "b.png\0", "é", "\u202e", "=1+1", " ", "\t", "9" * 5000,
    "[" + "9" * 5000 + "]",
)  # fmt: skip


def small_image(seed: int = 0) -> bytes:
    """Returns a PNG of 4 x 5 pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (4, 5), (seed * 40 % 256, 30, 200 - seed)).save(file, "PNG")
    return file.getvalue()


def open_and_read(path: Any, **options: Any) -> None:
    """Opens a data set as `deit train` does, with each type of labels, and reads all images and labels.

    Raises:
        UserError: No type can be opened; that of single labels.
    """
    from deit.core.errors import UserError
    from deit.data.open_data import open_data

    errors: list[UserError] = []
    kinds = ("single_label_classification", "multi_label_classification", "regression")
    for kind in kinds:
        try:
            data = open_data(path, problem_type=kind, **options)
            for part in (data.train, data.val):
                part.fingerprint()
                for row in range(min(len(part.labels), 20)):
                    part.image(row)
        except UserError as error:
            errors.append(error)
    if len(errors) == len(kinds):
        raise errors[0]


def _read(data: bytes, folder: Path) -> None:
    files = write_files(data, folder, _TABLES)
    for i, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        (folder / name).write_bytes(small_image(i))
    for name in files:
        if name != "fix.csv":
            open_and_read(folder / name, **({"exclude": folder / "fix.csv"} if "fix.csv" in files else {}))


def _change(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Changes cells, rows and columns, or bytes."""
    if random.randrange(3) == 0:
        return of_bytes(random, data, others)
    text = data.decode("utf-8", "replace").replace("\0", "")
    delimiter = "\t" if "\t" in text else ","
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return of_bytes(random, data, others)
    for _ in range(random.choice((1, 2, 4, 12))):
        if not rows:
            break
        row = random.choice(rows)
        place = random.randrange(len(row) + 1)
        kind = random.randrange(5)
        if kind < 3:
            row[place : place + 1] = [random.choice(_CELLS)]
        elif kind == 3:
            rows.insert(random.randrange(len(rows) + 1), list(row))
        else:
            for each in rows:
                each[place : place + random.randrange(2)] = [random.choice(_CELLS)]
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue().encode("utf-8", "surrogatepass")


def _seeds() -> Mapping[str, bytes]:
    names = ("a.png", "b.png", "c.png", "d.png")

    def table(header: str, *cells: str) -> bytes:
        return "\n".join([header, *(f"{name},{cell}" for name, cell in zip(names, cells, strict=True)), ""]).encode()

    plain = table("path,label", "cat", "dog", "cat", "dog")
    return {
        "plain": joined({"a.csv": plain}),
        "split": joined({"a.csv": table("path,label,split", "cat,train", "dog,train", "cat,val", "dog,val")}),
        "several": joined({"a.csv": table("path,label", "cat|dog", "dog", "cat", "dog|cat")}),
        "switches": joined({"a.csv": table("path,cat,dog", "1,0", "0,1", "1,1", "0,0")}),
        "numbers": joined({"a.csv": table("path,label", "0.5", "1.5", "-2", "3")}),
        "tabs": joined({"a.tsv": plain.replace(b",", b"\t")}),
        "semicolons": joined({"a.csv": plain.replace(b",", b";")}),
        "left_out": joined(
            {
                "a.csv": plain,
                "fix.csv": b"action,file,new_label\ndrop,a.csv line 2 (a.png),\nrelabel,a.csv line 3 (b.png),cat\n",
            }
        ),
    }


TARGETS = (Target(name="tables", read=_read, change=of_one_file(csv=_change, tsv=_change), seeds=_seeds),)
