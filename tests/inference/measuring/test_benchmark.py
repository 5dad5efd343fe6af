"""`deit.benchmark`: each cell in a process of its own, in turns, with figures that follow from the calls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import deit
from deit.core.errors import UserError
from deit.inference.measuring.benchmark import DEFAULT_VARIANT
from deit.inference.measuring.cells import Cell, cells_of, default_engines
from deit.inference.measuring.machine import Machine, OtherWork
from deit.inference.measuring.matrix_rate import MatrixRate
from deit.inference.measuring.operations import count_operations
from deit.inference.measuring.processes import CellError, MeasuringProcess, fair_share, spinning_neighbor
from deit.inference.measuring.result import Benchmark, CellResult, Timing


def alive(parent: int) -> list[int]:
    """Returns the processes that a process has started, from the system itself."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    state, owner = file.read().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(owner) == parent and state != "Z":
                found.append(int(name))
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A result for a tiny model in two batch sizes, beside a neighbor too."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = deit.DeiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4
    )
    deit.DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    deit.DeiTImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(folder)
    told = []
    result = deit.benchmark(
        folder,
        engines=["torch"],
        precisions=["fp32"],  # some CPUs have others too
        batch_sizes=[1, 3],
        seconds=3,
        noisy=True,
        threads=1,
        progress=lambda *each: told.append(each),
    )
    return folder, result, told


def test_every_cell_is_measured_in_turns_beside_nothing_and_beside_a_neighbor(measured):
    _, result, told = measured
    assert [each.cell for each in result.cells] == [Cell("torch", "fp32", 1), Cell("torch", "fp32", 3)]
    for each in result.cells:
        assert each.error == ""
        assert len(each.quiet.rounds) >= 2
        assert len(each.noisy.rounds) >= 1
        assert 0.1 < each.first_answer < 60
        assert 50e6 < each.peak_bytes < 5e9
        assert 0 < each.share < 1
    names = [what for what, _, _ in told if what.startswith("torch")]
    assert names.index("torch fp32, batch 3") < len(names) - 1 - names[::-1].index("torch fp32, batch 1")  # in turns
    assert result.image_size == (16, 16)
    assert result.in_turns
    assert not result.interrupted
    assert alive(os.getpid()) == []


def test_what_is_written_is_what_was_measured_and_says_where(measured, tmp_path):
    pytest.importorskip("matplotlib")
    _, result, _ = measured
    result.write(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert told["machine"]["threads"] == 1
    assert told["machine"]["cpu"]
    assert told["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (told["cells"][1]["batch_size"], told["cells"][1]["engine"]) == (3, "torch")
    assert told["cells"][0]["calls"] == len(result.cells[0].quiet.latencies)
    assert told["cells"][0]["noisy"]["images_per_second"] > 0
    assert told["fair_share"] == pytest.approx(fair_share(1, result.machine.cores), abs=1e-3)
    assert (tmp_path / "out" / "benchmark.png").stat().st_size > 5000


def test_operations_are_those_of_the_formula(measured):
    folder, result, _ = measured
    tokens, width, hidden, patches = 18, 32, 64, 16
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens**2 * width
    expected = 2 * block + 2 * patches * 48 * width + 2 * 2 * 2 * width
    assert result.operations == count_operations(str(folder)) == expected


def test_percentiles_and_speed_follow_from_the_calls():
    timing = Timing()
    calls = np.linspace(0.01, 0.02, 101)
    timing.add(list(calls), 4)
    timing.add([0.5], 4)
    assert timing.throughput == pytest.approx((4 / calls.mean() + 8) / 2)  # the median of two rounds
    assert timing.percentile(50) == pytest.approx(np.percentile([*calls, 0.5], 50))
    assert timing.percentile(99) == pytest.approx(np.percentile([*calls, 0.5], 99))
    few = Timing()
    few.add([0.1] * 19, 1)
    assert few.percentile(95) is None  # one slow call among 19 says nothing about 5 of 100
    assert few.percentile(50) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("threads", "cores", "share"), [(1, 1, 1 / 2), (2, 2, 2 / 3), (1, 2, 1), (4, 4, 4 / 5), (4, 2, 4 / 5)]
)
def test_the_fair_share_gives_each_thread_as_much(threads, cores, share):
    assert fair_share(threads, cores) == pytest.approx(share)


def test_without_a_model_it_says_that_the_weights_are_random():
    machine = Machine(cpu="c", cores=2, threads=2, system="s", python="3", versions={})
    assert DEFAULT_VARIANT in deit.list_models() or DEFAULT_VARIANT == "deit-small-distilled-patch16-224"
    busy = Benchmark(model="m", machine=machine, other_cores=1.0, left_out=["bf16"], interrupted=True)
    notes = " ".join(busy.notes())
    assert "used 1.0 of 2 core(s) meanwhile: the machine was busy" in notes
    assert "Left out: bf16" in notes
    assert "Interrupted" in notes
    busy.other_cores = 0.1
    assert "the machine was quiet" in " ".join(busy.notes())


def test_other_work_counts_what_others_do_and_not_what_this_process_does():
    pytest.importorskip("resource")
    others = OtherWork()
    ends = time.monotonic() + 0.3
    while time.monotonic() < ends:
        pass
    alone = others.cores()
    with spinning_neighbor():
        beside = OtherWork()
        time.sleep(0.3)
        with_neighbor = beside.cores()
    assert with_neighbor > 0.2  # the neighbor has not ended, so it counts as another's
    assert alone < os.cpu_count()


def test_the_rate_of_matrix_products_is_one_that_this_machine_reaches():
    rate = MatrixRate("fp32").measure(0.05)
    left = torch.ones(512, 512)
    before = time.perf_counter()
    for _ in range(4):
        left @ left
    plain = 4 * 2 * 512**3 / (time.perf_counter() - before)
    assert rate > plain / 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"engines": ["torhc"]}, "Unknown engine 'torhc'"),
        ({"precisions": ["fp7"]}, "Unknown precision 'fp7'"),
        ({"batch_sizes": [0]}, "at least 1"),
        ({"batch_sizes": []}, "at least 1"),
        ({"seconds": 0}, "above 0"),
        ({"seconds": float("nan")}, "above 0"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"engines": ["onnxruntime"], "precisions": ["bf16"]}, "None of these engines"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(arguments, words):
    with pytest.raises(UserError, match=words):
        deit.benchmark("no-such-folder", **arguments)


def test_a_missing_model_is_refused_before_a_process_starts(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        deit.benchmark(tmp_path / "gone")


def test_engines_that_are_not_installed_are_not_measured_unless_named(monkeypatch):
    monkeypatch.setattr("deit.inference.measuring.cells.find_spec", lambda name: None if name == "openvino" else 1)
    assert default_engines("cpu") == ["torch", "onnxruntime"]
    assert default_engines("mps") == ["torch"]
    assert {cell.engine for cell in cells_of(None, None, [1])} == {"torch", "onnxruntime"}
    assert {cell.engine for cell in cells_of(["openvino", "torch-compiled"], None, [1])} == {
        "openvino",
        "torch-compiled",
    }


def test_a_process_that_cannot_open_its_model_says_why_and_is_gone(tmp_path):
    order = {"what": "cell", "model": str(tmp_path / "gone"), "device": "cpu", "precision": "fp32"}
    with pytest.raises(CellError, match="gone"):
        MeasuringProcess(order | {"engine": "torch", "batch_size": 1}, threads=1, most_seconds=60)
    assert alive(os.getpid()) == []


def test_a_process_that_is_killed_is_told_from_one_that_answers():
    process = MeasuringProcess({"what": "rate", "precision": "fp32", "device": "cpu"}, threads=1, most_seconds=60)
    child = process._process.pid
    os.kill(child, signal.SIGKILL)
    with pytest.raises(CellError, match="ended by SIGKILL, as the system does when memory runs out"):
        process.ask({"seconds": 0.01}, 30)
    process.close()


def test_ctrl_c_keeps_what_was_measured_and_leaves_no_process(measured):
    folder, _, _ = measured
    answers: list[Benchmark] = []
    seen: list[str] = []

    def interrupt(what: str, done: int, total: int) -> None:
        seen.append(what)
        if seen.count("torch fp32, batch 1") == 2:
            raise KeyboardInterrupt  # as Python does on SIGINT

    answers.append(
        deit.benchmark(folder, engines=["torch"], batch_sizes=[1], seconds=30, threads=1, progress=interrupt)
    )
    assert answers[0].interrupted
    assert len(answers[0].cells[0].quiet.rounds) == 1
    assert answers[0].cells[0].share is not None
    assert alive(os.getpid()) == []
    assert threading.current_thread() is threading.main_thread()


def test_processes_end_with_the_one_that_started_them(measured):
    """Also when that is killed, and can do nothing any more."""
    folder, _, _ = measured
    code = (
        "import deit, sys\n"
        f"deit.benchmark({str(folder)!r}, engines=['torch'], precisions=['fp32'], batch_sizes=[1], seconds=60,\n"
        "    threads=1, noisy=True, progress=lambda *each: print(each[0], flush=True))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in parent.stdout:
        if line.startswith("torch fp32, batch 1, beside"):
            break
    children = alive(parent.pid)
    assert len(children) == 3  # the rate, the cell, the neighbor
    parent.kill()
    parent.wait()
    parent.stdout.close()
    ends = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{child}/stat") and child in living() for child in children):
        assert time.monotonic() < ends, "left behind"
        time.sleep(0.05)


def living() -> set[int]:
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                if file.read().rpartition(")")[2].split()[0] != "Z":
                    found.add(int(name))
        except OSError:
            continue
    return found


def test_a_cell_that_was_not_reached_is_no_figure():
    each = CellResult(cell=Cell("torch", "fp32", 1), error="no time was left")
    told = each.as_dict()
    assert told["images_per_second"] is None
    assert told["p50_ms"] is None
    assert told["error"] == "no time was left"
