"""What several processes ask each other, they ask through `Processes`; saving a state is a collective operation."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

import deit
from deit.train.run.state import load_state
from tests.ranks import run_on_ranks

SOURCE = Path(deit.__file__).parent
# Divides weights by PyTorch, which asks; reads files alone.
PARTS = {"train/sharding/fully_sharded.py", "train/sharding/parts_of_states.py"}


def test_no_other_file_asks_processes_anything() -> None:
    imports = re.compile(r"torch\.distributed|from torch import [^\n]*\bdistributed\b")
    found = {f.relative_to(SOURCE).as_posix() for f in SOURCE.rglob("*.py") if imports.search(f.read_text("utf-8"))}
    assert found - PARTS == {"runtime/processes.py"}


def test_a_state_of_sharded_tensors_is_written_in_parts_and_read_whole(tmp_path) -> None:
    """5 rows on 2 processes; what is not divided is written once, by the first."""
    ran = run_on_ranks("tests.runtime.sharded_state", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["step-00000003", "step-00000003"]  # both know where it is
    saved = load_state(tmp_path / "states")
    assert saved is not None
    assert torch.equal(saved.tensors["sharded"], torch.arange(10.0).reshape(5, 2))
    assert torch.equal(saved.tensors["plain"], torch.ones(3))
    assert saved.meta == {"teacher": None}
    parts = [load_file(file) for file in sorted((tmp_path / "states" / "step-00000003").glob("*.safetensors"))]
    assert [part.keys() for part in parts] == [{"sharded", "plain"}, {"sharded"}]
    assert torch.equal(torch.cat([part["sharded"] for part in parts]), torch.arange(10.0).reshape(5, 2))


def test_an_error_of_the_process_that_writes_ends_the_others_too(tmp_path) -> None:
    (tmp_path / "states").write_text("a file where the folder of states should be")
    ran = run_on_ranks("tests.runtime.sharded_state", tmp_path)
    assert sorted(ran.stdout.split()) == ["FileExistsError", "FirstProcessError"], ran.stderr
