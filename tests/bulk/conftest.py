"""What the tests of bulk jobs share: a tiny model, and the same pictures as a folder, Parquet and shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from deit import DeiTConfig, DeiTForImageClassificationWithTeacher, DeiTImageProcessor
from tests.cli.conftest import deit
from tests.conftest import TINY
from tests.data.pictures import COLOURS, encoded, write_shard

COUNT = 23


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights and five classes."""
    folder = tmp_path_factory.mktemp("bulk") / "model"
    config = DeiTConfig(**{**TINY, "id2label": dict(enumerate("abcde"))})
    DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    DeiTImageProcessor(size=16, crop_size=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """The content of the pictures by name."""
    return {f"{i % 3}/{i:03d}.png": encoded(COLOURS[i % 3], i) for i in range(COUNT)}


@pytest.fixture(scope="session")
def sources(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pictures in each form: a folder, a Parquet file with groups of 4 rows, and two shards."""
    root = tmp_path_factory.mktemp("pictures")
    for name, content in files.items():
        (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "folder" / name).write_bytes(content)
    ordered = [files[name] for name in sorted(files)]
    pq.write_table(pa.table({"image": ordered, "label": [0] * COUNT}), root / "all.parquet", row_group_size=4)
    for shard, start in enumerate((0, 12)):
        members = {}
        for i, content in enumerate(ordered[start : start + 12], start=start):
            members |= {f"{i:03d}.png": content, f"{i:03d}.cls": b"1"}
        write_shard(root / "shards" / f"{shard}.tar", members)
    return {"folder": root / "folder", "parquet": root / "all.parquet", "shards": root / "shards"}


@pytest.fixture
def folder(sources: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the folder, so that a test can change it."""
    return Path(shutil.copytree(sources["folder"], tmp_path / "pictures"))


@pytest.fixture
def bulk(model: Path) -> Callable[..., Result]:
    """Runs a bulk job in this process, in small units and batches."""

    def run(*arguments: object) -> Result:
        return deit("classify", model, *arguments, "--unit-images", 4, "--batch-size", 3)

    return run


def parts(out: Path) -> dict[str, bytes]:
    """The content of the parts by name."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


def rows(out: Path) -> list[dict]:
    """The rows of all parts in order."""
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
