"""Tar shards of WebDataset."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from tests.fuzz.changes import of_bytes, of_json
from tests.fuzz.driver import Target
from tests.fuzz.targets.tables import open_and_read, small_image

_BLOCK = 512


def _read(data: bytes, folder: Path) -> None:
    path = folder / "a.tar"
    path.write_bytes(data)
    open_and_read(path)


def _change(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Changes members and writes them anew, or bytes of headers with the right checksum, or any bytes."""
    kind = random.randrange(4)
    if kind == 0:
        return of_bytes(random, data, others)
    if kind == 1:
        return _new_members(random, data)
    found = bytearray(data)
    headers = [at for at in range(0, len(found) - _BLOCK, _BLOCK) if found[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return of_bytes(random, data, others)
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.choice(headers)
        header = bytearray(of_bytes(random, bytes(found[at : at + _BLOCK]))[:_BLOCK].ljust(_BLOCK, b"\0"))
        if random.randrange(3) == 0:
            header[156:157] = random.choice((b"0", b"1", b"5", b"x", b"g", b"L", b"K", b"S", b"7", b"\0"))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        found[at : at + _BLOCK] = header
    return bytes(found)


def _new_members(random: Random, data: bytes) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [(each.name, archive.extractfile(each)) for each in archive.getmembers() if each.isreg()]
            read = [(name, file.read() if file else b"") for name, file in members]
    except Exception:  # noqa: BLE001  # of a damaged archive, tarfile raises anything
        return of_bytes(random, data)
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(len(read) + 1)
        name, content = random.choice(read) if read else ("a.png", b"")
        ending = random.choice((".png", ".cls", ".txt", ".json", ".jpg", ".depth.png", ".npy", "", ".cls.txt", ".PNG"))
        stem = name.partition(".")[0]
        renamed = random.choice(
            (name, stem + ending, "é/\u202e" + ending, "../" + name, "." + name, "a" * 200 + ending)
        )
        changed = of_json(random, content) if name.endswith("json") else of_bytes(random, content)
        read[place : place + random.randrange(2)] = [(renamed, changed if random.randrange(2) else content)]
    file = io.BytesIO()
    form = random.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    try:
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            for name, content in read:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    except (ValueError, UnicodeEncodeError):  # a name that the form has no place for
        return data
    return file.getvalue()


def _seeds() -> Mapping[str, bytes]:
    def archive(members: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as opened:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))
        return file.getvalue().rstrip(b"\0") + bytes(2 * _BLOCK)

    def samples(endings: Mapping[str, list[bytes]]) -> dict[str, bytes]:
        return {f"{i}.{ending}": contents[i % len(contents)] for i in range(4) for ending, contents in endings.items()}

    image = [small_image(i) for i in range(4)]
    json_labels = [b'{"label": %d, "split": "train", "caption": "x"}' % (i % 2) for i in range(4)]
    return {
        "cls": archive(samples({"png": image, "cls": [b"0", b"1"]})),
        "json": archive(samples({"png": image, "json": json_labels})),
        "txt": archive(samples({"depth.png": image, "png": image, "txt": [b"cat", b"dog"]}), tarfile.PAX_FORMAT),
        "dots": archive(
            {f"a/{i}.5.{end}": [image[i], b"%d" % (i % 2)][end == "cls"] for i in range(4) for end in ("png", "cls")}
        ),
    }


TARGETS = (Target(name="shards", read=_read, change=_change, seeds=_seeds),)
