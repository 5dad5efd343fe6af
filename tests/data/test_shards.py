"""Tar shards, against webdataset's own writer and reader, and over the web from this machine."""

from __future__ import annotations

import gc
import io
import json
import pickle
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit.core.images.reading import ImageError
from deit.data.readers import webdataset as shards
from deit.data.readers.image_stores import StoredImages
from deit.data.readers.webdataset import expand_braces, read_shards
from tests.data.pictures import COLOURS, colour_members, encoded, picture, truncated_jpeg, write_shard, write_text
from tests.hostile import table_cases
from tests.hostile.kit import Kit

webdataset = pytest.importorskip("webdataset")

MULTI, REGRESSION = "multi_label_classification", "regression"


def source(*paths: Path, **options: Any) -> StoredImages:
    columns = {key: options.pop(key) for key in ("image_column", "label_column") if key in options}
    problem_type = options.get("problem_type", "single_label_classification")
    return StoredImages(read_shards("train", list(paths), problem_type=problem_type, **columns), **options)


def read_by_webdataset(paths: list[Path]) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        reader = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
        samples = list(reader.decode("pil").to_tuple("png", "cls"))
        del reader
        gc.collect()
    return samples


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "a.tar",
        "a-{000..011}.tar",
        "{8..11}.tar",
        "{train,val}-{0..1}.tar",
        "{train-{00..01},val-00}.tar",
        "x{a,b}{c,d}y",
        "http://host/{0..2}/a-{1..2}.tar?key=1",
        "{a,}",
    ],
)
def test_braces_stand_for_what_the_shell_makes_of_them(pattern):
    import braceexpand  # comes with webdataset

    assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern))


@pytest.mark.parametrize("pattern", ["a-{0..3.tar", "a-0..3}.tar", "{a,{b}.tar"])
def test_braces_that_do_not_match_are_refused(pattern):
    with pytest.raises(ValueError, match="do not match"):
        expand_braces(pattern)


def test_a_range_that_runs_backwards_is_refused():
    with pytest.raises(ValueError, match="runs backwards"):
        expand_braces("a-{003..000}.tar")


# --- what is found ------------------------------------------------------------------------------------


def test_shards_of_webdataset_give_what_webdataset_reads(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "a-%03d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            image = np.asarray(picture(COLOURS[number % 3], number))
            writer.write(
                {"__key__": f"sub.folder/{number:04d}", "png": image, "cls": number % 3, "json": {"n": number}}
            )
    paths = sorted(tmp_path.glob("*.tar"))
    assert len(paths) == 3
    theirs = read_by_webdataset(paths)
    ours = source(*paths)
    assert ours.classes == ["0", "1", "2"]
    assert ours.labels.tolist() == [label for _, label in theirs]
    assert len(ours.labels) == 10
    for i in (9, 0, 4, 3):
        assert np.array_equal(np.asarray(ours.image(i)), np.asarray(theirs[i][0]))
    assert ours.skipped == []


def test_other_members_and_hidden_files_are_not_seen(tmp_path):
    members = {
        "._a.png": b"?", "a.png": encoded("red", 1), "a.seg.png": b"?", "a.xyz": b"?", "a.cls": b" 3\n",
        "README": b"?", "x.y/b.PNG": encoded("red", 2), "x.y/b.cls": b"5",
    }  # fmt: skip
    ours = source(write_shard(tmp_path / "a.tar", members), strict=True)
    assert ours.classes == ["3", "5"]
    assert np.array_equal(np.asarray(ours.image(1)), np.asarray(picture("red", 2)))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_with_long_names(tmp_path, form):
    name = "/".join(["folder" * 5] * 4) + "/image"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for ending, content in (("png", encoded("red", 3)), ("txt", b"owl")):
            member = tarfile.TarInfo(f"{name}.{ending}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    ours = source(tmp_path / "a.tar")
    assert ours.classes == ["owl"]
    assert np.array_equal(np.asarray(ours.image(0)), np.asarray(picture("red", 3)))


def labelled(*labels: tuple[str, bytes]) -> dict[str, bytes]:
    members = {}
    for i, (ending, content) in enumerate(labels):
        members.update({f"{i}.png": encoded("red", i), f"{i}.{ending}": content})
    return members


@pytest.mark.parametrize(
    ("labels", "options", "classes", "expected"),
    [
        ([("txt", b"owl\n"), ("txt", b"cat")], {}, ["cat", "owl"], [1, 0]),
        ([("json", b'{"label": "owl"}'), ("json", b'{"label": "cat"}')], {}, ["cat", "owl"], [1, 0]),
        ([("json", b'{"label": 7}'), ("json", b'{"label": 5}')], {}, ["5", "7"], [1, 0]),
        ([("json", b'{"kind": 7}'), ("json", b'{"kind": 5}')], {"label_column": "kind"}, ["5", "7"], [1, 0]),
        ([("txt", b"a|b"), ("txt", b"b")], {"problem_type": MULTI}, ["a", "b"], [[1, 1], [0, 1]]),
        ([("json", b'{"label": [0, 2]}'), ("json", b'{"label": []}')], {"problem_type": MULTI}, ["0", "2"],
         [[1, 1], [0, 0]]),
        ([("json", b'{"label": [0, 0, 1]}')], {"problem_type": MULTI}, ["0", "1", "2"], [[0, 0, 1]]),
        ([("json", b'{"label": 0.5}'), ("json", b'{"label": 2}')], {"problem_type": REGRESSION}, ["label"], [0.5, 2.0]),
        ([("txt", b"-0.5")], {"problem_type": REGRESSION}, ["txt"], [-0.5]),
    ],
)  # fmt: skip
def test_labels_of_every_form(tmp_path, labels, options, classes, expected):
    ours = source(write_shard(tmp_path / "a.tar", labelled(*labels)), **options)
    assert ours.classes == classes
    assert ours.labels.tolist() == expected


def test_a_choice_among_several_labels_and_images(tmp_path):
    members = {
        "0.jpg": encoded("red", 0, "JPEG"), "0.png": encoded("blue", 0), "0.cls": b"4",
        "0.txt": b"a red square", "0.json": json.dumps({"label": "red", "size": 3}).encode(),
    }  # fmt: skip
    path = write_shard(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=r"several columns that can be the image: jpg, png. .*data.image_column=jpg"):
        source(path)
    ours = source(path, image_column="png")
    assert np.array_equal(np.asarray(ours.image(0)), np.asarray(picture("blue", 0)))
    assert ours.classes == ["4"]
    for asked, name in (("cls", "4"), ("txt", "a red square"), ("json", "red"), ("label", "red"), ("size", "3")):
        assert source(path, image_column="jpg", label_column=asked).classes == [name]
    with pytest.raises(ValueError, match=r"has no labels named 'colour'. .* Found: cls, txt, label, size"):
        source(path, image_column="png", label_column="colour")
    with pytest.raises(ValueError, match=r"has no column 'webp'. Its columns: jpg, png"):
        source(path, image_column="webp")


def test_a_pickled_source_reads_the_same(tmp_path):
    ours = source(write_shard(tmp_path / "a.tar", colour_members(2)))
    again = pickle.loads(pickle.dumps(ours))
    assert np.array_equal(np.asarray(again.image(3)), np.asarray(picture("green", 1)))
    assert again.fingerprint() == ours.fingerprint()


# --- what is left out or refused ----------------------------------------------------------------------


def test_samples_that_cannot_be_used_are_left_out_by_name(tmp_path):
    members = {
        "a.png": encoded(), "a.cls": b"1", "b.jpg": truncated_jpeg(), "b.cls": b"1", "c.png": encoded(), "d.cls": b"1",
        "e.png": encoded(), "e.cls": b"-1", "f.png": b"", "f.cls": b"1",
    }  # fmt: skip
    path = write_shard(tmp_path / "a.tar", members)
    ours = source(path)
    reasons = {file.path.removeprefix(f"{path}: "): file.reason for file in ours.skipped}
    assert ours.labels.tolist() == [0]
    assert reasons.pop("b.jpg").startswith("cannot be read as an image (image file is truncated")
    assert reasons.pop("f.png").startswith("is not an image")
    assert reasons == {
        "c.png": "it has no label.",
        "e.png": "it has no label.",
        "d": "it has no image (jpg, jpeg, png, webp, ...).",
    }
    with pytest.raises(ValueError, match=r"a.tar: c.png: it has no label. \(5 such files; strict is on.\)"):
        source(path, strict=True)


def test_a_name_that_comes_twice_is_two_samples(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for ending, content in (("png", encoded("red", 1)), ("cls", b"1"), ("png", encoded("red", 2)), ("cls", b"2")):
            member = tarfile.TarInfo(f"a.{ending}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert source(tmp_path / "a.tar").classes == ["1", "2"]


@pytest.mark.parametrize("where", ["in the data of a member", "in a header", "between members"])
def test_the_whole_samples_of_a_truncated_shard_are_used_and_the_rest_is_reported(tmp_path, where):
    path = write_shard(tmp_path / "a.tar", colour_members(2))
    with tarfile.open(path) as archive:
        member = archive.getmember("green-1.png")  # the fourth sample
    end = {"in the data of a member": member.offset_data + 50, "in a header": member.offset + 50}
    content = path.read_bytes()[: end.get(where, member.offset)]
    path.write_bytes(content)
    ours = source(path, write_shard(tmp_path / "b.tar", colour_members(1)))
    assert ours.labels.tolist() == [0, 0, 1, 0, 1, 2]
    assert np.array_equal(np.asarray(ours.image(2)), np.asarray(picture("green", 0)))
    assert [file.path for file in ours.skipped] == [str(path)]
    assert "truncated" in ours.skipped[0].reason
    assert ours.skipped[0].reason.endswith("Its 3 complete samples are used.")
    with pytest.raises(ValueError, match=r"a.tar: It is truncated .* \(1 such files; strict is on.\)"):
        source(path, strict=True)


def test_a_label_cut_off_at_the_end_of_a_shard_takes_its_image_along(tmp_path):
    path = write_shard(tmp_path / "a.tar", colour_members(2))
    with tarfile.open(path) as archive:
        member = archive.getmember("red-1.cls")
    path.write_bytes(path.read_bytes()[: member.offset + 10])
    part = read_shards("val", [path])
    assert len(StoredImages(part, labels_needed=True).labels) == 5


def test_a_damaged_header_ends_a_shard(tmp_path):
    path = write_shard(tmp_path / "a.tar", colour_members(2))
    with tarfile.open(path) as archive:
        offset = archive.getmember("green-1.png").offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 100] = b"\xff" * 100
    path.write_bytes(content)
    ours = source(path)
    assert len(ours.labels) == 3
    assert ours.skipped[0].reason.startswith(f"It is truncated or damaged after byte {offset}")


def test_a_shard_that_is_no_archive_is_left_out_beside_good_ones_and_refused_alone(tmp_path):
    bad, good = write_text(tmp_path / "a.tar"), write_shard(tmp_path / "b.tar", colour_members(1))
    ours = source(bad, good)
    assert len(ours.labels) == 3
    assert ours.skipped[0].path == str(bad)
    with pytest.raises(ValueError, match=r"a.tar gives no samples. It is not a tar archive"):
        source(bad)
    (tmp_path / "c.tar").touch()
    with pytest.raises(ValueError, match=r"c.tar gives no samples. It is not a tar archive \(empty file\)"):
        source(tmp_path / "c.tar")
    with tarfile.open(tmp_path / "d.tar", "w:gz") as archive:
        archive.add(good, "x.png")
    with pytest.raises(ValueError, match=r"d.tar gives no samples. .* Unpack it first: a compressed shard"):
        source(tmp_path / "d.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, r"a.tar has no images. A sample needs one of: .jpg, .jpeg, .png, .webp"),
        ({"a.cls": b"1"}, r"a.tar has no images"),
        ({"a.png": encoded()}, r"a.tar has no labels. A sample needs a .cls, .* Found: none"),
        ({"a.png": encoded(), "a.json": b"{}"}, r"a.tar has no labels. .* Found: none"),
        ({"a.png": encoded(), "a.json": b"{"}, r"a.tar: a.json cannot be read as a label \("),
        ({"a.png": encoded(), "a.json": b"[1]"}, r"a.tar has no labels"),
        ({"a.png": encoded(), "a.cls": b"\xff"}, r"a.tar: a.cls cannot be read as a label \("),
        ({"a.png": encoded(), "a.txt": b"a\nb"}, r"a.tar: a.txt cannot be read as a label \(it has several lines\)"),
    ],
)
def test_a_shard_without_images_or_labels_is_refused(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        source(write_shard(tmp_path / "a.tar", members))


@pytest.mark.parametrize("change", ["cut", "overwritten", "swapped", "removed"])
def test_a_shard_that_breaks_in_the_middle_of_an_epoch_is_named_with_the_member(tmp_path, change):
    path = write_shard(tmp_path / "a.tar", colour_members(2))
    ours = source(path)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        member = archive.getmember("red-0.png")
    if change == "removed":
        path.unlink()
    else:
        if change == "cut":
            del content[member.offset_data + 100 :]
        elif change == "overwritten":
            content[member.offset_data + 100 : member.offset_data + 110] = b"\0" * 10
        else:
            write_shard(path, colour_members(2, seed=1))
            content = bytearray(path.read_bytes())
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a.tar: red-0.png: ") as caught:
        ours.image(4)
    if change == "cut":
        assert f"the shard ends inside of it, after 100 of {member.size} bytes" in str(caught.value)
    elif change != "removed":
        assert "changed since the data was opened" in str(caught.value)


@pytest.mark.parametrize("change", ["image", "label"])
def test_the_fingerprint_changes_with(tmp_path, change):
    members = colour_members(1)
    before = source(write_shard(tmp_path / "a.tar", members)).fingerprint()
    assert source(write_shard(tmp_path / "b.tar", members)).fingerprint() == before
    members.update({"red-0.png": encoded("red", 9)} if change == "image" else {"red-0.cls": b"1"})
    assert source(write_shard(tmp_path / "a.tar", members)).fingerprint() != before


# --- over the web -------------------------------------------------------------------------------------


def test_images_are_read_from_other_formats_too(tmp_path):
    members: dict[str, bytes] = {}
    for kind in ("jpeg", "webp"):
        file = io.BytesIO()
        picture("green", 3).save(file, kind)
        members.update({f"{kind}.{kind}": file.getvalue(), f"{kind}.cls": b"0"})
    ours = source(write_shard(tmp_path / "a.tar", members))
    assert all(isinstance(ours.image(i), Image.Image) for i in range(2))
    assert shards.IMAGE_ENDINGS[:4] == ("jpg", "jpeg", "png", "webp")


# --- names with dots ----------------------------------------------------------------------------------


def test_members_with_dots_in_their_names_are_samples(tmp_path, caplog):
    members: dict[str, bytes] = {}
    for i, name in enumerate(("img_0.25", "img_0.5", "b.c.d", "plain")):
        members |= {f"{name}.png": encoded("red", i), f"{name}.cls": str(i % 2).encode()}
    ours = source(write_shard(tmp_path / "a.tar", members))
    assert ours.labels.tolist() == [0, 1, 0, 1]
    assert [ours.image(i).tobytes() for i in range(4)] == [picture("red", i).tobytes() for i in range(4)]
    assert ours.skipped == []
    assert caplog.messages == []


def test_a_second_image_with_a_longer_ending_belongs_to_its_sample(tmp_path):
    members = {}
    for i in range(2):
        members |= {
            f"{i}.png": encoded("red", i),
            f"{i}.depth.png": encoded("blue", i),
            f"{i}.meta.json": b"{}",
            f"{i}.cls": str(i).encode(),
        }
    path = write_shard(tmp_path / "a.tar", members)
    ours = source(path)
    assert (len(ours.labels), ours.image(1).tobytes()) == (2, picture("red", 1).tobytes())
    assert source(path, image_column="depth.png").image(1).tobytes() == picture("blue", 1).tobytes()


def test_of_two_images_with_longer_endings_and_one_label_one_must_be_chosen(tmp_path):
    members = {"0.img.png": encoded("red"), "0.mask.png": encoded("blue"), "0.cls": b"1"}
    path = write_shard(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=r"several columns that can be the image: img\.png, mask\.png"):
        source(path)
    assert len(source(path, image_column="img.png").labels) == 1


def test_links_other_formats_and_hidden_members_are_accounted_for(tmp_path):
    path = write_shard(tmp_path / "a.tar", {
        "0.JPG": encoded(kind="JPEG"), "0.cls": b"1", "1.bmp": encoded(kind="BMP"), "1.cls": b"1", "._0.JPG": b"x",
        "__MACOSX/0.JPG": b"x", "README": b"x", "2.jxl": b"x", "2.cls": b"1",
    })  # fmt: skip
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("3.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "0.JPG"
        archive.addfile(link)
    ours = source(path)
    assert len(ours.labels) == 2
    assert ours.ignored == {"hidden": 2, "not images": 1}
    assert [(file.path.rpartition(" ")[2], file.kind) for file in ours.skipped] == [
        ("3.jpg", "links in shards"),
        ("2", "unreadable"),
    ]


@pytest.mark.parametrize(
    "name", [name for name in table_cases.CASES if name.startswith(("tar: a ", "tar: 5,000")) and "FIFO" not in name]
)
def test_a_hostile_shard_is_refused_in_one_sentence_at_once(tmp_path, name):
    case = table_cases.CASES[name]
    case.make(Kit(tmp_path, tmp_path))
    with pytest.raises(ValueError, match=r"a\.tar"):
        read_shards("train", [tmp_path / "a.tar"])
