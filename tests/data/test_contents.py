"""One pass reads, checks and hashes images; the next one reads only what has changed."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit.data.open_data import open_labelled
from deit.data.readers.image_folder import ImageFolder
from deit.data.sources import ArraySource, Subset, contents_of
from deit.data.storage import contents
from deit.data.storage.contents import SWITCH, content_hash, file_stamp

LONG_AGO = 60 * 10**9


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)  # of equal size whatever the pixels
    return file.getvalue()


def blake(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four images in two classes, with a clock that is a minute ahead: nothing was changed lately."""
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contents.time, "time_ns", lambda: os.stat(tmp_path).st_mtime_ns + LONG_AGO)
    for i in range(4):
        path = tmp_path / "data" / ("cat" if i < 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    return tmp_path / "data"


@pytest.fixture
def reads(monkeypatch):
    """Counts the images that are decoded."""
    seen = []
    check = contents.check_image
    monkeypatch.setattr(
        contents, "check_image", lambda data, **given: (seen.append(content_hash(data)), check(data, **given))
    )
    return seen


def write_tar(path: Path, images: list[bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for i, data in enumerate(images):
            for name, content in ((f"{i}.png", data), (f"{i}.cls", str(i % 2).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def test_a_hash_is_blake2b_of_the_files_bytes(folder):
    expected = [blake(png(i)) for i in range(4)]
    assert ImageFolder(folder).contents.tolist() == expected
    assert ImageFolder(folder).contents.tolist() == expected  # from the cache
    assert content_hash(png(0)) == expected[0]


def test_the_same_bytes_have_the_same_hash_wherever_they_lie(folder, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [png(i) for i in range(4)]
    expected = ImageFolder(folder).contents.tolist()
    table = pa.table({"image": pa.array(images, pa.binary()), "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "a.parquet")
    write_tar(tmp_path / "a.tar", images)
    rows = [f"data/{'cat' if i < 2 else 'dog'}/{i}.png,{i % 2}" for i in range(4)]
    (tmp_path / "a.csv").write_text("path,label\n" + "\n".join(rows))
    for name in ("a.parquet", "a.tar", "a.csv"):
        for _ in range(2):  # read, then from the cache
            assert open_labelled(tmp_path / name).contents.tolist() == expected, name


def test_what_has_not_changed_is_neither_read_nor_decoded_again(folder, tmp_path, reads):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [png(i) for i in range(4)]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "label": [0, 1, 0, 1]}), tmp_path / "a.parquet")
    write_tar(tmp_path / "a.tar", images)
    (tmp_path / "a.csv").write_text("path,label\ndata/cat/0.png,a\ndata/dog/2.png,b\n")
    for path in (folder, tmp_path / "a.parquet", tmp_path / "a.tar", tmp_path / "a.csv"):
        open_labelled(path)
        assert reads, path
        reads.clear()
        again = open_labelled(path)
        assert not reads, path
        assert again.image(0).size == (8, 8)  # what is kept of length and CRC-32 is right


def test_what_was_swapped_for_an_image_of_the_same_size_is_read_again(folder, reads):
    first = ImageFolder(folder)
    path = folder / "cat" / "0.png"
    kept = os.stat(path)
    path.write_bytes(png(9))
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as a copy that preserves times does
    assert os.stat(path).st_size == kept.st_size
    reads.clear()
    second = ImageFolder(folder)
    assert reads == [blake(png(9))]
    assert second.contents.tolist() == [blake(png(i)) for i in (9, 1, 2, 3)]
    assert second.fingerprint() != first.fingerprint()
    assert second.former_fingerprint() == first.former_fingerprint()


def test_two_images_that_change_places_are_noticed(folder):
    first = ImageFolder(folder)
    one, two, aside = folder / "cat" / "0.png", folder / "dog" / "3.png", folder / "aside"
    one.rename(aside), two.rename(one), aside.rename(two)
    assert ImageFolder(folder).contents.tolist() == [blake(png(i)) for i in (3, 1, 2, 0)]
    assert ImageFolder(folder).fingerprint() != first.fingerprint()


def test_a_file_that_was_changed_just_now_is_not_trusted(folder, monkeypatch):
    path = folder / "cat" / "0.png"
    assert file_stamp(path) is not None
    changed = max(os.stat(path).st_mtime_ns, os.stat(path).st_ctime_ns)
    monkeypatch.setattr(contents.time, "time_ns", lambda: changed + 1000)
    assert file_stamp(path) is None
    assert file_stamp(folder / "no such file") is None


def test_a_broken_image_is_looked_at_each_time(folder, reads):
    (folder / "cat" / "0.png").write_bytes(png(0)[:-30])
    for _ in range(2):
        reads.clear()
        source = ImageFolder(folder)
        assert blake(png(0)[:-30]) in reads
        assert [Path(file.path).name for file in source.skipped] == ["0.png"]
        assert source.contents.tolist() == [blake(png(i)) for i in (1, 2, 3)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"something else",
        lambda data: data[:-1],
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        lambda data: data.replace(b"deit ", b"diet ", 1),
        lambda data: data + bytes(40),
    ],
)
def test_a_cache_that_is_damaged_or_of_another_version_is_made_anew(folder, tmp_path, reads, damage):
    expected = ImageFolder(folder).contents.tolist()
    (file,) = (tmp_path / "cache" / "contents").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    reads.clear()
    assert ImageFolder(folder).contents.tolist() == expected
    assert len(reads) == 4
    assert file.read_bytes() == whole


def test_without_a_place_to_write_there_is_no_cache_and_no_error(folder, tmp_path, monkeypatch, reads):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        reads.clear()
        ImageFolder(folder)
        assert len(reads) == 4
    monkeypatch.delenv("DEIT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(ImageFolder(folder).contents) == 4


def test_the_cache_can_be_switched_off_and_put_elsewhere(folder, tmp_path, monkeypatch, reads):
    monkeypatch.setenv(SWITCH, "off")
    ImageFolder(folder)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv(SWITCH, str(tmp_path / "elsewhere"))
    ImageFolder(folder)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    assert not (tmp_path / "cache").exists()
    reads.clear()
    ImageFolder(folder)
    assert not reads


def test_a_cache_keeps_other_images_of_its_place_but_does_not_grow_without_end(folder, tmp_path, monkeypatch, reads):
    ImageFolder(folder)
    (folder / "cat" / "0.png").rename(tmp_path / "0.png")
    (folder / "cat" / "new.png").write_bytes(png(7))
    ImageFolder(folder)
    (file,) = (tmp_path / "cache" / "contents").iterdir()
    assert (len(file.read_bytes()) - file.read_bytes().index(b"\n") - 17) // contents._ENTRY.itemsize == 5
    monkeypatch.setattr(contents, "_SPARE", -1)
    (folder / "cat" / "other.png").write_bytes(png(8))
    ImageFolder(folder)
    assert (len(file.read_bytes()) - file.read_bytes().index(b"\n") - 17) // contents._ENTRY.itemsize == 5


def test_a_pipe_or_a_device_among_the_images_is_left_out(folder):
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "cat" / "zero.png").symlink_to("/dev/zero")
    source = ImageFolder(folder)
    assert len(source.labels) == 4
    reasons = {Path(file.path).name: file.reason for file in source.skipped}
    assert reasons == {
        "pipe.png": "cannot be read as an image: it is a pipe, not a file.",
        "zero.png": "cannot be read as an image: it is a device, not a file.",
    }


def test_images_in_memory_and_a_part_of_a_source_have_hashes():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    images[2] = images[0]
    source = ArraySource(images, np.array([0, 1, 0]))
    assert source.contents[0] == source.contents[2] != source.contents[1]
    assert contents_of(Subset(source, np.array([2, 1]))).tolist() == source.contents[[2, 1]].tolist()


def test_of_a_source_that_has_no_hashes_none_are_made_up():
    class Own:
        classes, problem_type = ["a", "b"], "single_label_classification"
        labels = np.array([0, 1])

    assert contents_of(Own()) is None
    assert contents_of(Subset(Own(), np.array([0]))) is None
