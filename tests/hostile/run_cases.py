"""Recipes, training states, records of trainings and teacher caches."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.kit import SHORT, Case, Kit, sparse

CASES: dict[str, Case] = {}


def _recipe(name: str, text: Callable[[], bytes], *, refused: bool = True) -> None:
    def make(kit: Kit) -> list[Any]:
        path = kit.folder / "recipe.yaml"
        path.write_bytes(text())
        return kit.train(kit.photos(), "--recipe", path)

    CASES[name] = Case(make=make, refused=refused)


def _laughs(depth: int, width: int = 10) -> bytes:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join([*lines, f"augment: *a{depth - 1}", f"seed: *a{depth - 1}", ""]).encode()


_recipe("YAML: anchors, 10 to the 8th", lambda: _laughs(8))
_recipe("YAML: anchors, 10 to the 30th", lambda: _laughs(30))
_recipe("YAML: anchors of a setting", lambda: _laughs(8).replace(b"seed:", b"optimizer:"))
_recipe("YAML: an anchor inside itself", lambda: b"augment: &a {x: *a}\nseed: &b [*b]\n")
_recipe("YAML: nested 100,000 deep", lambda: b"seed: " + b"[" * 100_000)
_recipe("YAML: indented 3,000 deep", lambda: b"".join(b" " * i + b"a:\n" for i in range(3000)))
_recipe("YAML: runs a command", lambda: b'seed: !!python/object/apply:os.system ["touch executed"]\n')
_recipe("YAML: a number of 5,000 digits", lambda: b"seed: " + b"9" * 5000)
_recipe("YAML: a number of base 60", lambda: b"seed: " + b"1:" * 20_000 + b"1")
_recipe("YAML: 20 MB of keys", lambda: b"".join(b"k%d: 0\n" % i for i in range(1_800_000)))
_recipe("YAML: no text", lambda: b"\0\xff\xfe")
_recipe("YAML: infinite epochs", lambda: b"schedule: {epochs: .inf}\n")
_recipe("YAML: a batch of 10 to the 12th", lambda: b"batch_size: 1000000000000\n", refused=False)
_recipe("YAML: 10 to the 12th epochs", lambda: b"schedule: {epochs: 1000000000000}\n", refused=False)


def _special_recipe(by: str) -> Callable[[Kit], list[Any]]:
    def make(kit: Kit) -> list[Any]:
        path = kit.folder / "recipe.yaml"
        os.mkfifo(path) if by == "fifo" else path.symlink_to(by)
        return kit.train(kit.photos(), "--recipe", path)

    return make


CASES["YAML: a FIFO"] = Case(make=_special_recipe("fifo"))
CASES["YAML: /dev/zero"] = Case(make=_special_recipe("/dev/zero"))


# --- states and records -------------------------------------------------------------------------------


def _state(name: str, spoil: Callable[[Path], object], *, refused: bool = True, hashed: bool = True) -> None:
    """A run whose newest states are spoilt, and their hashes made to fit."""

    def make(kit: Kit) -> list[Any]:
        run = kit.run()
        for folder in (run / "state").glob("step-*"):
            spoil(folder)
            if hashed:
                names = ("tensors.safetensors", "meta.json")
                hashes = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
                (folder / "manifest.json").write_text(json.dumps(hashes))
        (run / "model.safetensors").unlink()
        return ["train", kit.good / "photos", *SHORT, "--student", "deit-digits-distilled-patch8-32", "--image-size",
                "32", "--teacher", kit.good / "teacher", "--teacher-cache", kit.cache(), "--out", run,
                "--resume"]  # fmt: skip

    CASES[name] = Case(make=make, refused=refused)


def _write(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def _replace(file: str, by: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file) if by == "fifo" else (folder / file).symlink_to(by)

    return spoil


_DEEP = b'{"step":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
_EMPTY = struct.pack("<Q", 2) + b"{}"
_HUGE = b'{"a":{"dtype":"F32","shape":[1073741824,1073741824],"data_offsets":[0,16]}}'
_state("state: a manifest nested 100,000 deep", _write("manifest.json", _DEEP), hashed=False)
_state("state: a manifest that is a list", _write("manifest.json", b"[]"), hashed=False)
_state("state: a manifest that is /dev/zero", _replace("manifest.json", "/dev/zero"), hashed=False)
_state("state: tensors that are a FIFO", _replace("tensors.safetensors", "fifo"), hashed=False)
_state("state: tensors that are /dev/zero", _replace("tensors.safetensors", "/dev/zero"), hashed=False)
_state("state: values nested 100,000 deep", _write("meta.json", _DEEP))
_state("state: values that are a list", _write("meta.json", b"[1]"))
_state("state: a step that is text", _write("meta.json", b'{"step": "many"}'))
_state("state: no tensors", _write("tensors.safetensors", _EMPTY))
_state("state: a tensor of 2 to the 60th", _write("tensors.safetensors", struct.pack("<Q", len(_HUGE)) + _HUGE + bytes(16)))  # fmt: skip  # noqa: E501
_state("state: cut tensors", lambda f: os.truncate(f / "tensors.safetensors", 1000))


def _record(name: str, content: bytes) -> None:
    def make(kit: Kit) -> list[Any]:
        model = kit.model()
        (model / "training.json").write_bytes(content)
        return ["evaluate", model, kit.good / "photos", "--held-out"]

    CASES[name] = Case(make=make)


_record("training.json: nested 100,000 deep", _DEEP)
_record("training.json: a list", b"[1, 2]")
_record("training.json: text for a table", b'{"data": "many", "scores": 3}')
_record("training.json: scores that are text", b'{"data": {}, "scores": {"student": {"accuracy": "all"}}}')
_record("training.json: a fraction that is a list", b'{"recipe": {"data": {"val_fraction": [1]}}}')
_record("training.json: no text", b"\xff\xfe\0")
_record("training.json: a number of 5,000 digits", b'{"data": {"seed": ' + b"9" * 5000 + b"}}")


def _cache(name: str, spoil: Callable[[Path], object]) -> None:
    def make(kit: Kit) -> list[Any]:
        cache = kit.cache()
        spoil(cache)
        return kit.train(kit.good / "photos", "--image-size", "32", "--teacher-cache", cache)

    CASES[name] = Case(make=make)


def _header_values(**values: Any) -> Callable[[Path], object]:
    def spoil(cache: Path) -> None:
        file = next(cache.glob("*.json"))
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return spoil


def _header_content(content: bytes) -> Callable[[Path], object]:
    return lambda cache: next(cache.glob("*.json")).write_bytes(content)


def _records(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def spoil(cache: Path) -> None:
        for file in cache.iterdir():
            if file.suffix != ".json":
                change(file)

    return spoil


_cache("teacher cache: nested 100,000 deep", _header_content(_DEEP))
_cache("teacher cache: a list", _header_content(b"[]"))
_cache("teacher cache: 10 to the 12th images", _header_values(num_images=10**12))
_cache("teacher cache: 10 to the 12th classes", _header_values(num_classes=10**12))
_cache("teacher cache: a version of text", _header_values(version="many", batch_size=10**12, record_size=10**12))
_cache("teacher cache: random records", _records(lambda f: f.write_bytes(os.urandom(f.stat().st_size))))
_cache("teacher cache: cut records", _records(lambda f: os.truncate(f, f.stat().st_size // 2)))


def _known(kit: Kit) -> list[Any]:
    return ["evaluate", kit.model(), sparse(kit.folder / "a.tar", 100 * 2**30), "--knn", kit.good / "photos"]


CASES["evaluate --knn with a sparse shard of 100 GB"] = Case(make=_known)
