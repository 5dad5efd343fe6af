"""One function resolves every device and precision."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import deit
from deit.core.errors import UserError
from deit.runtime.devices import Placement, resolve

SOURCE = Path(deit.__file__).parent


def test_cpu_and_fp32_are_what_nobody_has_to_ask_for_without_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for device in (None, "auto", "cpu", -1, torch.device("cpu")):
        assert resolve(device) == Placement(torch.device("cpu"), None)
    assert resolve("cpu", "bf16").dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("nowhere", "fp32", "Unknown device 'nowhere'"),
        ("cuda", "fp32", "PyTorch finds no GPU"),
        (1, "fp32", "There is no accelerator number 1 here"),
        ("cpu", "fp8", "The precision must be auto or fp32 or bf16 or fp16. Received: 'fp8'"),
    ],
)
def test_what_is_not_there_is_refused_by_name(monkeypatch, device, precision, message) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        resolve(device, precision)


def test_each_process_of_torchrun_has_the_gpu_of_its_own_number(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Placement, "move", lambda self, model: model)  # no GPU is here to move to
    assert resolve("auto").device == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve("auto").device == resolve("cuda").device == torch.device("cuda:3")
    assert resolve("cuda:1").device == torch.device("cuda:1")


def test_autocast_multiplies_in_the_precision_that_was_asked_for() -> None:
    a = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with resolve("cpu", precision).autocast():
            assert (a @ a).dtype is dtype


ASKS = re.compile(r"torch\.autocast\(|(?:cuda|accelerator)\.is_available\(|current_accelerator\(")


def test_no_other_file_resolves_a_device_or_a_precision() -> None:
    found = {f.relative_to(SOURCE).as_posix() for f in SOURCE.rglob("*.py") if ASKS.search(f.read_text("utf-8"))}
    assert found == {"runtime/devices.py"}
