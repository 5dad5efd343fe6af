"""The same weights in transformers (the oracle) and in deit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deit


@pytest.fixture
def pair(tmp_path: Path, tiny_fields: dict[str, Any], redraw: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Builds (transformers' model, ours) with equal random weights, taken over through a file.

    transformers' one computes attention eagerly; `attention` chooses for ours.
    """

    transformers = pytest.importorskip("transformers")

    def build(name: str, *, attention: str = "eager", arguments: dict[str, Any] | None = None, **fields: Any) -> Any:
        config_class = getattr(transformers, getattr(deit, name).config_class.__name__)
        config = config_class(**{**tiny_fields, **fields})
        oracle = redraw(getattr(transformers, name)(config, **(arguments or {}))).eval()
        oracle.set_attn_implementation("eager")
        oracle.save_pretrained(tmp_path / "oracle")
        ours, info = getattr(deit, name).from_pretrained(
            tmp_path / "oracle", attn_implementation=attention, output_loading_info=True, **(arguments or {})
        )
        assert info == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return oracle, ours

    return build


@pytest.fixture
def gradients_of(tmp_path: Path) -> Callable[[Any], dict[str, Any]]:
    """Returns the gradients of a model of transformers under the published names, which it writes to files.

    Its weights are gone after that.
    """
    import torch
    from safetensors.torch import load_file

    @torch.no_grad()
    def gradients(model: Any) -> dict[str, Any]:
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        model.save_pretrained(tmp_path / "gradients")
        return load_file(tmp_path / "gradients" / "model.safetensors")

    return gradients
