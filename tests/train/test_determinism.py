"""The same bits each time, also on a GPU."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.backends import cuda, cudnn

from deit.core.errors import UserError
from deit.runtime.random_state import deterministic_kernels
from deit.runtime.signals import TrainingInterrupted
from deit.train.loop import fit
from tests.train import tiny
from tests.train.test_loop import HOW, STRONG, distillation_task


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        cudnn.benchmark,
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_the_settings_of_pytorch_are_set_back(monkeypatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    with deterministic_kernels(False):
        assert settings() == before
    with deterministic_kernels():
        assert settings() == (True, False, False, False, ":4096:8")
    assert settings() == before
    with pytest.raises(KeyError), deterministic_kernels():
        raise KeyError
    assert settings() == before


def test_an_operation_without_such_a_kernel_is_named() -> None:
    told = r"cannot do this deterministically: put_\. Leave out --deterministic"
    with pytest.raises(UserError, match=told), deterministic_kernels():
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))  # refused on the CPU too
    with pytest.raises(RuntimeError, match="out of memory"), deterministic_kernels():
        raise RuntimeError("out of memory")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_on_a_gpu_ends_with_the_same_bits(tmp_path, precision) -> None:
    recipe = tiny.recipe(
        distillation=HOW, augment=STRONG, ema_decay=0.9, drop_path_rate=0.2, precision=precision, accumulate=2
    )

    def interrupt(event) -> None:
        if event.step >= 3:
            os.kill(os.getpid(), signal.SIGINT)

    def run(name: str, **options) -> None:
        fit(distillation_task(), tiny.data(), recipe, out=tmp_path / name, device="cuda", **options)

    with deterministic_kernels():
        run("whole")
        run("again")
        with pytest.raises(TrainingInterrupted):
            run("two", on_step=interrupt)
        run("two", resume=True)
    whole, again, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again", "two"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert all(torch.equal(whole[name], two[name]) for name in whole)
    assert json.loads((tmp_path / "two" / "training.json").read_text())["deterministic"]
