"""What "auto" stands for: measured, remembered, pinned or by the rule; and the measurement itself."""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path

import pytest
import torch

from deit.core.errors import UserError
from deit.runtime import auto_precision, cache_folder, devices, precision_speed
from deit.runtime.auto_precision import INFERENCE, TRAINING, choose_precision
from deit.runtime.devices import autocast_type, bf16_instructions, resolve

CPU = torch.device("cpu")


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache, in a process that has measured nothing."""
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEIT_AUTO_PRECISION", raising=False)
    forget(monkeypatch)
    return tmp_path / "cache" / "precision"


def forget(monkeypatch) -> None:
    monkeypatch.setattr(auto_precision, "_measured", {})


def time_as(monkeypatch, fp32: float, bf16: float) -> list[bool]:
    """Puts seconds in the place of the clock; returns which precision each timed run had."""
    runs: list[bool] = []

    def seconds(run, in_bf16: bool) -> float:
        runs.append(in_bf16)
        return bf16 if in_bf16 else fp32

    monkeypatch.setattr(precision_speed, "_seconds", seconds)
    monkeypatch.setattr(precision_speed, "_block", lambda *sizes: lambda in_bf16: None)
    return runs


def with_features(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **dict.fromkeys(names, True), "l2": 1})


# --- the rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "instructions"),
    [
        ([], ""),
        (["avx512_f", "avx512_bw", "avx512_vnni"], ""),
        (["avx512_f", "avx512_bf16"], "AVX512-BF16"),
        (["avx512_bf16", "amx_tile", "amx_bf16"], "AMX"),
    ],
)
def test_the_rule_takes_bf16_on_cpus_that_multiply_it_and_measures_nothing(monkeypatch, cache, features, instructions):
    with_features(monkeypatch, *features)
    monkeypatch.setattr(precision_speed, "measure_speedup", None)
    assert bf16_instructions() == instructions
    assert autocast_type("auto", CPU) is resolve("cpu", "auto").dtype is (torch.bfloat16 if instructions else None)
    monkeypatch.setenv("DEIT_AUTO_PRECISION", "rule")
    choice = choose_precision("auto", CPU, TRAINING)
    assert (choice.precision, choice.source) == ("bf16" if instructions else "fp32", "rule")
    assert choice.reason == f"the CPU has {instructions or 'no instructions for bf16'}"


@pytest.mark.parametrize("answers", [{}, {"_is_amx_tile_supported": True}, {"_is_avx512_bf16_supported": True}])
def test_an_older_pytorch_is_asked_in_its_own_way(monkeypatch, answers):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: answers.get(name, False), raising=False)
    assert bool(bf16_instructions()) == bool(answers)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert bf16_instructions() == ""


def test_a_gpu_takes_bf16_and_another_device_fp32_without_measuring(monkeypatch, cache):
    monkeypatch.setattr(precision_speed, "measure_speedup", None)
    assert choose_precision("auto", torch.device("cuda"), TRAINING).precision == "bf16"
    assert choose_precision("auto", torch.device("mps"), TRAINING).precision == "fp32"


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning", "ignore:.torch.jit.trace:DeprecationWarning")
def test_nothing_is_measured_while_pytorch_traces_or_compiles(monkeypatch, cache):
    monkeypatch.setattr(precision_speed, "measure_speedup", None)
    found = []

    def traced(x: torch.Tensor) -> torch.Tensor:
        found.append(choose_precision("auto", CPU, INFERENCE).source)
        return x + 1

    torch.jit.trace(traced, torch.ones(1), check_trace=False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    traced(torch.ones(1))
    assert found == ["rule", "rule"]


# --- the measurement ----------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", [TRAINING, INFERENCE])
@pytest.mark.parametrize(
    ("bf16", "precision", "why"),
    [
        (0.1, "bf16", "3.0 x as fast as fp32, measured in "),
        (0.25, "bf16", "1.2 x as fast as fp32, measured in "),
        (0.28, "fp32", "bf16 is only 1.07 x as fast, measured in "),
        (0.6, "fp32", "bf16 takes 2.0 x as long, measured in "),
    ],
)
def test_the_faster_one_is_taken_whatever_the_cpu_says(monkeypatch, cache, purpose, bf16, precision, why):
    for features in ([], ["amx_bf16"]):
        with_features(monkeypatch, *features)
        time_as(monkeypatch, 0.3, bf16)
        choice = choose_precision("auto", CPU, purpose)
        assert (choice.precision, choice.source) == (precision, "measured")
        assert choice.reason.startswith(why)
        assert choice.describe().startswith(f"Precision: {precision} ({why}")
        assert choice.speedup == pytest.approx(0.3 / bf16, abs=1e-3)


def test_both_take_turns_and_one_disturbed_round_changes_nothing(monkeypatch):
    runs = time_as(monkeypatch, 0.3, 0.1)
    calm = precision_speed._seconds
    monkeypatch.setattr(precision_speed, "_seconds", lambda run, b: calm(run, b) * (40 if len(runs) in (6, 9) else 1))
    assert precision_speed.measure_speedup(trains=False) == pytest.approx(3)
    assert runs == [False, True] * (len(runs) // 2)
    assert len(runs) == 2 * (2 + 5)


def test_a_clearly_slower_bf16_is_measured_on_the_small_block_alone(monkeypatch):
    runs = time_as(monkeypatch, 0.1, 1.0)
    assert precision_speed.measure_speedup(trains=True) == pytest.approx(0.1)
    assert len(runs) == 4


@pytest.mark.parametrize("purpose", [TRAINING, INFERENCE])
def test_a_real_measurement_is_short_sane_and_leaves_no_trace(cache, purpose):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        choice = choose_precision("auto", CPU, purpose)
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.rand(2), expected)
    record = json.loads(json.dumps(choice.record()))
    assert record.keys() == {"precision", "reason", "source", "speedup", "seconds"}
    assert 0.001 < record["speedup"] < 100
    assert 0 < record["seconds"] < 20  # half a second on a machine with nothing else to do
    assert record["precision"] == ("bf16" if record["speedup"] >= 1.2 else "fp32")


def test_the_measured_block_is_the_one_of_pytorch():
    """Against PyTorch's own layer, with the same weights."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(128, 2, 512, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    weights = [
        layer.self_attn.in_proj_weight,
        layer.self_attn.out_proj.weight,
        layer.linear1.weight,
        layer.linear2.weight,
    ]
    x = torch.randn(2, 5, 128)
    torch.testing.assert_close(precision_speed._forward(x, weights), layer(x))


# --- what is remembered -------------------------------------------------------------------------------


def test_a_speed_is_measured_once_for_a_machine_a_purpose_and_a_number_of_threads(monkeypatch, cache):
    counted: list[bool] = []
    monkeypatch.setattr(precision_speed, "measure_speedup", lambda *, trains: counted.append(trains) or 2.9)
    first = choose_precision("auto", CPU, TRAINING)
    assert choose_precision("auto", CPU, TRAINING) is first
    forget(monkeypatch)  # another process
    again = choose_precision("auto", CPU, TRAINING)
    assert (again.precision, again.source, again.speedup) == ("bf16", "remembered", 2.9)
    assert again.reason == "2.9 x as fast as fp32, measured earlier"
    assert counted == [True]
    choose_precision("auto", CPU, INFERENCE)
    assert counted == [True, False]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    choose_precision("auto", CPU, TRAINING)
    with_features(monkeypatch, "amx_bf16")
    choose_precision("auto", CPU, TRAINING)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    choose_precision("auto", CPU, TRAINING)
    monkeypatch.setattr(torch, "__version__", "3.0")
    choose_precision("auto", CPU, TRAINING)
    assert counted == [True, False, True, True, True, True]
    assert len(list(cache.iterdir())) == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: b"",
        lambda values: b"\xff" * 100,
        lambda values: b"[" * 50_000,
        lambda values: b"[]",
        lambda values: json.dumps({**values, "speedup": "9"}).encode(),
        lambda values: json.dumps({**values, "speedup": float("nan")}).encode(),
        lambda values: json.dumps({**values, "speedup": -2.0}).encode(),
        lambda values: json.dumps({**values, "seconds": None}).encode(),
        lambda values: json.dumps({**values, "key": {**values["key"], "cpu": "another"}}).encode(),
        lambda values: json.dumps({"speedup": 9.0, "seconds": 1.0}).encode(),
    ],
)
def test_a_damaged_or_foreign_cache_is_measured_again(monkeypatch, cache, damage):
    monkeypatch.setattr(precision_speed, "measure_speedup", lambda *, trains: 2.0)
    choose_precision("auto", CPU, TRAINING)
    (file,) = cache.iterdir()
    values = json.loads(file.read_text())
    file.write_bytes(damage(values))
    forget(monkeypatch)
    choice = choose_precision("auto", CPU, TRAINING)
    assert (choice.precision, choice.source) == ("bf16", "measured")
    assert json.loads(file.read_text())["key"] == values["key"]  # repaired


def test_a_cache_that_cannot_be_written_or_found_is_no_error(monkeypatch, cache, tmp_path):
    counted: list[bool] = []
    monkeypatch.setattr(precision_speed, "measure_speedup", lambda *, trains: counted.append(trains) or 0.5)
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "file"))
    assert choose_precision("auto", CPU, TRAINING) is choose_precision("auto", CPU, TRAINING)  # this process knows it
    forget(monkeypatch)
    monkeypatch.setenv("DEIT_CACHE", "~nobody-of-this-name/cache")
    assert choose_precision("auto", CPU, TRAINING).precision == "fp32"
    forget(monkeypatch)
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path))
    (tmp_path / "precision").mkdir(mode=0o500)
    assert choose_precision("auto", CPU, TRAINING).precision == "fp32"
    assert len(counted) == 3


def test_several_that_fill_the_cache_at_once_leave_one_whole_file(monkeypatch, cache):
    monkeypatch.setattr(precision_speed, "measure_speedup", lambda *, trains: 2.0)
    key = auto_precision._key(TRAINING)
    values = {"speedup": 2.0, "seconds": 1.0}
    write = functools.partial(cache_folder.keep, "precision", key, values, name="training-")
    writers = [threading.Thread(target=write) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [path.name for path in cache.iterdir()] == [f"training-{cache_folder.digest_of(key)}.json"]
    remembered = auto_precision._remembered(cache_folder.recall("precision", key, name="training-"))
    assert remembered is not None
    assert remembered.speedup == 2.0


# --- the environment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_environment_pins_what_auto_stands_for_and_nothing_else(monkeypatch, cache, precision):
    monkeypatch.setattr(precision_speed, "measure_speedup", None)
    monkeypatch.setenv("DEIT_AUTO_PRECISION", precision)
    choice = choose_precision("auto", CPU, TRAINING)
    assert (choice.precision, choice.reason) == (precision, f"DEIT_AUTO_PRECISION={precision}")
    for asked in ("fp32", "bf16", "fp16"):
        assert choose_precision(asked, CPU, TRAINING).precision == asked
        assert choose_precision(asked, CPU, TRAINING).note == ""


def test_another_value_in_the_environment_is_refused(monkeypatch, cache):
    monkeypatch.setenv("DEIT_AUTO_PRECISION", "fast")
    with pytest.raises(UserError, match=r"DEIT_AUTO_PRECISION must be fp32, bf16 or rule\. Received: 'fast'"):
        choose_precision("auto", CPU, TRAINING)


def test_the_names_of_the_rule_are_those_that_pytorch_gives():
    if hasattr(torch.cpu, "get_capabilities") and torch.cpu.get_capabilities()["architecture"] == "x86_64":
        assert set(devices._BF16_FEATURES) <= set(torch.cpu.get_capabilities())
