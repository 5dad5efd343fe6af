"""What all tests share: tiny configurations and models whose numbers are large enough to show a mistake."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.runtime.packages import refuse_telemetry
from deit.train.run import history
from tests.blank_curves import write_blank

pytest_plugins = ["tests.crashes"]

refuse_telemetry()  # before any test imports OpenVINO
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start: several run at a time already

with contextlib.suppress(ModuleNotFoundError):  # the tests of the core run without PyTorch
    import torch

    torch.set_num_threads(1)

# A shell that starts the suite in the background ignores these, and a run leaves signals that are ignored alone.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "encoder_stride": 4,
    "num_labels": 5,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first, so that no worker is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def caches_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what is cached out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("DEIT_ENGINE", "torch")  # tests compare bits; those of the other engines name them
        yield


@pytest.fixture(autouse=True, scope="session")
def blank_curves() -> Iterator[None]:
    """Saves the time of drawing; test_curves.py, test_loop.py, tests/cli and commands in their own process draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "draw_curves", write_blank)
        yield


@pytest.fixture
def tiny_fields() -> dict[str, Any]:
    """Fields of a tiny DeiT: 4 x 4 patches and 5 classes."""
    return dict(TINY)


@pytest.fixture
def tiny_config() -> Callable[..., DeiTConfig]:
    """Makes a tiny configuration; keywords override its fields."""
    return lambda **fields: DeiTConfig(**{**TINY, **fields})


@pytest.fixture
def tiny_vit_config() -> Callable[..., ViTConfig]:
    """Makes a tiny configuration of a ViT; keywords override its fields."""
    return lambda **fields: ViTConfig(**{**TINY, **fields})


@pytest.fixture
def redraw() -> Callable[..., Any]:
    """Gives every parameter of a model large random values, tokens and position embeddings too."""

    def redraw_parameters(model: Any, seed: int = 0, std: float = 0.2) -> Any:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1.0)
        return model

    return redraw_parameters
