"""The benchmark of few labels, several models at once: order, failures, the limit, and the same models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from deit.data.sources import ArraySource, Data

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks() -> Iterator[None]:
    """Lets tests import the benchmarks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


def module(name: str) -> ModuleType:
    return pytest.importorskip(name)


def job(folder: Path, name: str, work: Any, *needs: str) -> Any:
    return module("side_by_side").Job(name=name, work=work, log=folder / f"{name}.log", needs=needs)


def tiny_trainings(out: Path) -> Any:
    """Returns trainings of some steps on 60 images of noise."""
    cells = module("few_labels_cells")
    noise = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)
    labels = np.tile(np.arange(2), 40)
    data = Data(train=ArraySource(noise[:60], labels[:60]), val=ArraySource(noise[60:], labels[60:]))
    budget = cells.Budget(
        train_images=60, val_images=20, student="deit-digits-distilled-patch8-32", teacher="timm/test_resnet",
        teacher_side=32, steps=6, teacher_steps=4, batch_size=5, convnet_steps=4,
    )  # fmt: skip
    return cells.Trainings(cells.some_of(data, budget), budget, out, "cpu", 0)


def test_a_job_waits_for_what_it_needs_and_a_failure_stops_only_those_that_need_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    jobs = [
        job(tmp_path, "reads", partial(made.rename, tmp_path / "read"), "makes"),  # fails if it starts too early
        job(tmp_path, "fails", partial(int, "no number")),
        job(tmp_path, "makes", made.mkdir),
        job(tmp_path, "needs it", partial(time.sleep, 0), "fails"),
    ]
    unfinished = module("side_by_side").run_side_by_side(jobs, at_once=2, describe=lambda job: f"({job.name})")
    assert unfinished == {"fails": "failed", "needs it": "not started"}
    assert (tmp_path / "read").is_dir()
    printed = capsys.readouterr().out
    assert "reads: (reads), " in printed
    assert "fails: failed with code 1" in printed
    assert "    ValueError: invalid literal for int() with base 10: 'no number'" in printed


def test_after_the_limit_nothing_starts_and_what_runs_is_stopped(tmp_path: Path) -> None:
    jobs = [job(tmp_path, f"{number}", partial(time.sleep, 600)) for number in range(2)]
    began = time.monotonic()
    unfinished = module("side_by_side").run_side_by_side(jobs, at_once=1, limit=0, describe=str)
    assert unfinished == {"0": "stopped", "1": "not started"}
    assert time.monotonic() - began < 25  # SIGKILL would come after 30 seconds


def test_models_trained_side_by_side_are_the_same_and_finished_ones_are_not_trained_again(tmp_path: Path) -> None:
    few_labels = module("few_labels")
    runs = few_labels.all_runs([0], [0.5], ["distilled"])
    first, second = tiny_trainings(tmp_path / "in turn"), tiny_trainings(tmp_path / "side by side")
    expected = few_labels.in_turn(first, runs)
    found, unfinished = few_labels.side_by_side(second, runs, 2, None)
    assert not unfinished
    assert [run.name for run in found] == ["teacher", "distilled"]
    for run in runs:
        files = [trainings.out / run.folder / "model.safetensors" for trainings in (first, second)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert found[run].heads == expected[run].heads
    written = files[1].stat().st_mtime_ns
    assert few_labels.side_by_side(second, runs, 2, None) == (found, {})
    assert few_labels.in_turn(second, runs) == found
    assert files[1].stat().st_mtime_ns == written


def test_the_table_leaves_out_what_is_unfinished() -> None:
    few_labels = module("few_labels")
    rows = [{"share": 0.1, "top-1": {"teacher": 60.0, "dist": 50.0}}, {"share": 0.1, "top-1": {"teacher": 62.0}}]
    text = few_labels.table(rows, ["teacher", "dist", "flip"])
    assert text.splitlines()[-1] == "| 10 % | 61.0 ± 1.4 | 50.0 | - |"


def test_each_cell_needs_its_convnet_and_its_pre_training() -> None:
    few_labels = module("few_labels")
    names = ["scratch", "both", "pseudo", "mimetic-better"]
    runs = few_labels.all_runs([3], [0.1], names)
    assert [run.name for run in runs] == ["pre-training", "teacher", "convnet", *names]
    needs = {run.name: [each.folder for each in run.needs()] for run in runs}
    assert {name: found for name, found in needs.items() if found} == {
        "both": ["seed-3/pre-training", "seed-3/labels-0.1/teacher"],
        "mimetic-better": ["seed-3/labels-0.1/convnet"],
    }
