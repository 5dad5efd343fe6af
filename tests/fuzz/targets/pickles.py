"""PyTorch's own weight files, as an archive and in the form before PyTorch 1.6."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from tests.fuzz.changes import of_bytes
from tests.fuzz.driver import Target
from tests.fuzz.targets.models import SETTINGS, good_model, open_model

_NAME = "pytorch_model.bin"
_MARK = "executed-by-a-pickle"


def _read(data: bytes, folder: Path) -> None:
    for name in SETTINGS:
        (folder / name).write_bytes((good_model() / name).read_bytes())
    (folder / _NAME).write_bytes(data)
    open_model(folder)


def _change(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Changes the instructions inside an archive and packs it anew, or bytes of the file."""
    if random.randrange(4) == 0:
        return of_bytes(random, data, others)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {each.filename: archive.read(each) for each in archive.infolist()}
    except Exception:  # noqa: BLE001  # of a damaged archive, zipfile raises anything
        return of_bytes(random, data, others)
    if members:
        likely = [name for name in members if name.endswith(".pkl")]
        name = random.choice(likely or sorted(members)) if random.randrange(4) else random.choice(sorted(members))
        members[name] = of_bytes(random, members[name])
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return changed.getvalue()


class _Code:
    def __reduce__(self) -> tuple[object, ...]:
        return open, (_MARK, "w")


def _seeds() -> Mapping[str, bytes]:
    import torch

    from deit.core.weights.files import find_weights
    from deit.models.weights.tensor_source import open_source, read_tensors

    tensors = read_tensors(open_source(find_weights(good_model())))
    kept = {name: tensors[name] for name in sorted(tensors)}
    new, old, nested = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(kept, new)
    torch.save(kept, old, _use_new_zipfile_serialization=False)
    torch.save({"model": {"a": torch.zeros(2, 2)}, "epoch": 3, "args": None, "half": torch.zeros(1).half()}, nested)
    return {
        "archive": new.getvalue(),
        "old": old.getvalue(),
        "nested": nested.getvalue(),
        "code": pickle.dumps({"a": _Code()}),
        "plain": pickle.dumps({"a": [1, 2.5, ("b", None)], "c": {True: b"x"}}, protocol=2),
    }


TARGETS = (Target(name="pickles", read=_read, change=_change, seeds=_seeds, prepare=good_model),)
