"""Configurations, preprocessing and weight files."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

from tests.hostile.kit import Case, Kit, sparse

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"

CASES: dict[str, Case] = {}


def _value(file: str, name: str, **values: Any) -> None:
    CASES[name] = Case(make=lambda kit: kit.classify(kit.changed(file, **values)))


def _content(file: str, name: str, content: bytes) -> None:
    def make(kit: Kit) -> list[Any]:
        model = kit.model()
        (model / file).write_bytes(content)
        return kit.classify(model)

    CASES[name] = Case(make=make)


_value(CONFIG, "config: 100,000,000 labels", num_labels=10**8, id2label=None, label2id=None)
_value(CONFIG, "config: label number 2,000,000,000", id2label={"2000000000": "cat", "0": "dog"}, label2id=None)
_value(CONFIG, "config: 200,000 layers", num_hidden_layers=200_000)
_value(CONFIG, "config: width 1,000,000,000", hidden_size=10**9)
_value(CONFIG, "config: width of the MLP 10 to the 12th", intermediate_size=10**12)
_value(CONFIG, "config: images of 1,000,000 pixels", image_size=10**6)
_value(CONFIG, "config: 16 million patches", image_size=32_000)
_value(CONFIG, "config: patches of 1,000,000 pixels", patch_size=10**6, image_size=10**6)
_value(CONFIG, "config: 1,000,000 channels", num_channels=10**6)
_value(CONFIG, "config: no attention heads", num_attention_heads=0)
_value(CONFIG, "config: half a layer", num_hidden_layers=0.5)
_value(CONFIG, "config: a list for a number", hidden_size=[1, 2])
_value(CONFIG, "config: infinite epsilon", layer_norm_eps=float("inf"))
_value(CONFIG, "config: a number of 4,000 digits", hidden_size=10**4000)
_value(CONFIG, "config: 300,000 labels of one name", id2label={str(i): "cat" for i in range(300_000)}, label2id=None)
_value(CONFIG, "config: labels that are no text", id2label={"0": {"a": [1]}, "1": None, "2": 3}, label2id=None)
_content(CONFIG, "config: nested 100,000 deep", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
_content(CONFIG, "config: no UTF-8", b"\xff\xfe{}")
_content(CONFIG, "config: empty", b"")
_content(CONFIG, "config: a list", b"[1, 2]")
_content(CONFIG, "config: 60 MB of keys", b'{"model_type": "deit"' + b"".join(b',"k%d":0' % i for i in range(4_500_000)) + b"}")  # fmt: skip  # noqa: E501

_value(PROCESSOR, "processor: resize to 40,000 x 40,000", size={"height": 40_000, "width": 40_000})
_value(PROCESSOR, "processor: crop of 40,000 x 40,000", crop_size={"height": 40_000, "width": 40_000}, do_center_crop=True)  # fmt: skip  # noqa: E501
_value(PROCESSOR, "processor: shortest edge 10 to the 9th", size={"shortest_edge": 10**9})
_value(PROCESSOR, "processor: size 0", size={"height": 0, "width": 0})
_value(PROCESSOR, "processor: negative size", size={"height": -32, "width": -32})
_value(PROCESSOR, "processor: mean of 100,000 numbers", image_mean=[0.5] * 100_000)
_value(PROCESSOR, "processor: standard deviation 0", image_std=[0, 0, 0])
_value(PROCESSOR, "processor: unknown resampling", resample=99)
_value(PROCESSOR, "processor: text for a number", rescale_factor="large")
_content(PROCESSOR, "processor: nested 100,000 deep", b'{"size":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


# --- files that are none ------------------------------------------------------------------------------


def _special(file: str) -> None:
    def replaced(kit: Kit, by: str) -> list[Any]:
        model = kit.model()
        (model / file).unlink()
        if by == "fifo":
            os.mkfifo(model / file)
        elif by == "folder":
            (model / file).mkdir()
        else:
            (model / file).symlink_to(by if by.startswith("/") else file)
        return kit.classify(model)

    kinds = {"a FIFO": "fifo", "/dev/zero": "/dev/zero", "a folder": "folder", "a link to itself": "loop"}
    for what, by in kinds.items():
        CASES[f"{file}: {what}"] = Case(make=lambda kit, by=by: replaced(kit, by))


for _file in (CONFIG, PROCESSOR, WEIGHTS):
    _special(_file)


# --- safetensors --------------------------------------------------------------------------------------


def _safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _header(**tensors: Any) -> bytes:
    return _safetensors(json.dumps(tensors).encode(), bytes(16))


_content(WEIGHTS, "weights: empty", b"")
_content(WEIGHTS, "weights: a header of 2 to the 63rd bytes", struct.pack("<Q", 2**63) + b"{}")
_content(WEIGHTS, "weights: a header beyond the end", struct.pack("<Q", 10**6) + b"{}")
_content(WEIGHTS, "weights: a header nested 100,000 deep", _safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))  # fmt: skip  # noqa: E501
_content(WEIGHTS, "weights: a tensor of 2 to the 60th numbers", _header(a=_tensor([2**30, 2**30], [0, 16])))
_content(WEIGHTS, "weights: negative offsets", _header(a=_tensor([4], [-16, 0])))
_content(WEIGHTS, "weights: a billion tensors in one place", _header(a=_tensor([4], [0, 16]), b=_tensor([4], [0, 16])))
_content(WEIGHTS, "weights: an unknown type", _header(a=_tensor([4], [0, 16], "F3")))
_content(WEIGHTS, "weights: other tensors", _header(a=_tensor([4], [0, 16])))


def _large_header(kit: Kit) -> list[Any]:
    model = kit.model()
    entries = ",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(1_000_000))
    (model / WEIGHTS).write_bytes(_safetensors(b"{" + entries.encode() + b"}"))
    return kit.classify(model)


def _large_metadata(kit: Kit) -> list[Any]:
    model = kit.model()
    header = b'{"__metadata__":{"a":"' + b"x" * 60_000_000 + b'"}}'
    (model / WEIGHTS).write_bytes(_safetensors(header))
    return kit.classify(model)


def _sparse_weights(kit: Kit) -> list[Any]:
    model = kit.model()
    size = 50 * 2**30
    header = json.dumps({"deit.embeddings.cls_token": _tensor([1, 1, size // 4], [0, size])}).encode()
    sparse(model / WEIGHTS, 8 + len(header) + size, _safetensors(header))
    return kit.classify(model)


CASES["weights: a header of 60 MB, 1,000,000 tensors"] = Case(make=_large_header)
CASES["weights: a header of 60 MB, one text"] = Case(make=_large_metadata)
CASES["weights: a tensor of 50 GB in a sparse file"] = Case(make=_sparse_weights)


def _index(name: str, weight_map: Any) -> None:
    def make(kit: Kit) -> list[Any]:
        model = kit.model()
        (model / WEIGHTS).unlink()
        (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return kit.classify(model)

    CASES[name] = Case(make=make)


_index("index: 500,000 files", {f"t{i}": f"model-{i}.safetensors" for i in range(500_000)})
_index("index: a file outside of the folder", {"a": "../../../../etc/passwd"})
_index("index: /dev/zero", {"a": "/dev/zero"})
_index("index: no names", {"a": 3})
_index("index: a list", [1, 2])


# --- pickles ------------------------------------------------------------------------------------------


def _pickle(name: str, content: bytes, file: str = "pytorch_model.bin") -> None:
    def make(kit: Kit) -> list[Any]:
        model = kit.model()
        (model / WEIGHTS).unlink()
        (model / file).write_bytes(content)
        return kit.classify(model)

    CASES[name] = Case(make=make)


def _as_archive(content: bytes, *, data: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3\n")
        if data:
            with archive.open("archive/data/0", "w", force_zip64=True) as member:
                for _ in range(data // 2**20):
                    member.write(bytes(2**20))
    return file.getvalue()


class _Command:
    def __init__(self, touched: str) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo executed >&2; touch {self.touched}",)


_RUN = pickle.dumps({"a": _Command("executed")})
_EIGHT_GB = b"\x80\x04" + b"\x8e" + struct.pack("<Q", 8 * 10**9) + b"xxxx."
_BYTEARRAY = b"\x80\x05" + b"\x96" + struct.pack("<Q", 8 * 10**9) + b"xxxx."
_LONG_MEMO = b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b"."
_DOUBLED = b"\x80\x04]\x94" + b"(h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00t\x94" + b"".join(
    b"(" + b"h" + bytes([i]) * 1 + (b"h" + bytes([i])) * 9 + b"t\x94" for i in range(1, 60)
) + b"."  # fmt: skip

_pickle("pickle: runs a command", _RUN)
_pickle("pickle: runs a command, in an archive", _as_archive(_RUN))
_pickle("pickle: 32 bytes that ask for 8 GB", _EIGHT_GB)
_pickle("pickle: a byte array of 8 GB", _BYTEARRAY)
_pickle("pickle: 8 GB, in an archive", _as_archive(_EIGHT_GB))
_pickle("pickle: a memo of 2 to the 31st places", _LONG_MEMO)
_pickle("pickle: tuples of tuples, 10 to the 60th", _DOUBLED)
_pickle("pickle: nested 1,000,000 deep", b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".")
_pickle("pickle: nested 1,000,000 deep, in an archive", _as_archive(b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b"."))  # fmt: skip  # noqa: E501
_pickle("pickle: cut", pickle.dumps({"a": 1})[:-3])
_pickle("pickle: empty", b"")
_pickle("pickle: an archive without data", b"PK\x05\x06" + bytes(18))
_pickle("pickle: zeros of 2 GB for data.pkl", b"")


def _archive_bomb(kit: Kit, content: bytes, data: int) -> list[Any]:
    model = kit.model()
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(_as_archive(content, data=data))
    return kit.classify(model)


def _zeros_as_pickle(kit: Kit) -> list[Any]:
    model = kit.model()
    (model / WEIGHTS).unlink()
    with zipfile.ZipFile(model / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as member:
            for _ in range(2048):
                member.write(bytes(2**20))
        archive.writestr("archive/version", b"3\n")
    return kit.classify(model)


def _tensor_pickle(count: int, key: str = "0", extra: bytes = b"") -> bytes:
    """What torch.save writes for {"a": a tensor of `count` floats}, by hand."""
    storage = (
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00" + key.encode()
        + b"X\x03\x00\x00\x00cpu\x8a\x08" + struct.pack("<q", count) + b"tQ"
    )  # fmt: skip
    number = b"\x8a\x08" + struct.pack("<q", count)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + b"K\x00" + number + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"  # fmt: skip  # noqa: E501
    return b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s" + extra + b"."


CASES["pickle: zeros of 2 GB for data.pkl"] = Case(make=_zeros_as_pickle)
CASES["pickle: a tensor of 2 GB from 2 MB"] = Case(
    make=lambda kit: _archive_bomb(kit, _tensor_pickle(2**29), 2 * 2**30)
)
CASES["pickle: a tensor of 8 EB without data"] = Case(make=lambda kit: _archive_bomb(kit, _tensor_pickle(2**61), 0))


def _weight_file(name: str, file: str, content: bytes) -> None:
    """A weight file that training is asked to begin with."""

    def make(kit: Kit) -> list[Any]:
        path = kit.folder / file
        path.write_bytes(content)
        return kit.train(kit.photos(), "--init", path)

    CASES[name] = Case(make=make)


_weight_file("init: a .pth that runs a command", "model_best.pth.tar", _RUN)
_weight_file("init: a .ckpt that asks for 8 GB", "last.ckpt", _EIGHT_GB)
_weight_file("init: a picture called .pth", "weights.pth", b"\x89PNG\r\n\x1a\n" + bytes(100))


def _converted(kit: Kit) -> list[Any]:
    source: Path = kit.folder / "old.pth"
    source.write_bytes(_RUN)
    return ["convert", source, kit.folder / "new"]


CASES["convert: a .pth that runs a command"] = Case(make=_converted)
