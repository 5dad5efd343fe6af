"""What the PyTorch models compute, written to files for the tests of Keras, which run without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import deit
from deit.models.losses import NO_LABEL, classification_loss, distillation_loss
from deit.models.trunk.activations import ACTIVATIONS
from tests.keras.model_cases import ACTIVATION_INPUTS, CALLS, GRADIENTS, MODELS, fields_of, pixels


def write_model_cases(folder: Path, redraw: Any) -> None:
    """Writes a model directory for each model, `outputs.npz`, `gradients.npz`, `activations.npz` and `losses.npz`.

    Args:
        folder: Exists.
        redraw: Gives every parameter of a model large random values.
    """
    models, outputs, gradients = {}, {}, {}
    for name, (model_class, _, arguments) in MODELS.items():
        config_class = deit.DeiTConfig if model_class.startswith("DeiT") else deit.ViTConfig
        model = redraw(getattr(deit, model_class)(config_class(**fields_of(name)), **arguments)).eval()
        model.save_pretrained(folder / name)
        models[name] = model
    for call, (name, size, arguments) in CALLS.items():
        model = models[name]
        model.zero_grad()
        output = model(torch.from_numpy(pixels(name, size)), **{k: _tensor(v) for k, v in arguments.items()})
        for field, value in output.items():
            for i, tensor in enumerate(value if isinstance(value, tuple) else (value,)):
                outputs[f"{call}/{field}/{i}"] = tensor.detach().numpy()
        if call in GRADIENTS:
            objective(output).backward()
            for parameter, tensor in model.named_parameters():
                if tensor.grad is not None:
                    gradients[f"{call}/{parameter}"] = tensor.grad.numpy().copy()
    np.savez(folder / "outputs.npz", **outputs)
    np.savez(folder / "gradients.npz", **gradients)
    inputs = torch.from_numpy(ACTIVATION_INPUTS)
    np.savez(folder / "activations.npz", **{name: function(inputs).numpy() for name, function in ACTIVATIONS.items()})
    np.savez(folder / "losses.npz", **_losses())
    _write_dialects(models["teacher"], folder)


def objective(output: Any) -> Any:
    """What is differentiated: the loss, or the mean of the squares of all that a model without one returns."""
    if "loss" in output:
        return output["loss"]
    return sum(
        (output[name] ** 2).mean() for name in ("logits", "last_hidden_state", "pooler_output") if name in output
    )


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _losses() -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(3)
    logits, teacher = (3 * torch.randn(4, 6, generator=generator) for _ in range(2))
    labels, shares = torch.tensor([5, NO_LABEL, 0, 2]), torch.rand(4, 6, generator=generator).softmax(1)
    values = {"logits": logits, "teacher": teacher, "labels": labels, "shares": shares}
    for kind, target in (("labels", labels), ("shares", shares)):
        values[f"ce/{kind}"] = classification_loss(logits, target)
        values[f"smooth/{kind}"] = classification_loss(logits, target, label_smoothing=0.1)
        values[f"bce/{kind}"] = classification_loss(logits, target, loss="bce")
    values["nobody/labels"] = classification_loss(logits, torch.full((4,), NO_LABEL))
    values["hard"] = distillation_loss(logits, teacher)
    values["hard/classes"] = distillation_loss(logits, teacher.argmax(1))
    for reduction in ("batchmean", "numel"):
        values[f"soft/{reduction}"] = distillation_loss(
            logits, teacher, kind="soft", temperature=2.5, reduction=reduction
        )
    return {name: value.numpy() for name, value in values.items()}


def _write_dialects(model: Any, folder: Path) -> None:
    """The model of two heads as timm and the original write it, as a pickle, in two files and in half precision."""
    from safetensors.torch import save_file

    from deit.models.weights.loading import published_tensors

    state = model.state_dict()
    for dialect in ("timm", "original", "transformers"):
        target = folder / f"{dialect}.safetensors"
        save_file(published_tensors(state, dialect), target)
    torch.save({"model": published_tensors(state, "timm")}, folder / "timm.pth")
    model.save_pretrained(folder / "sharded", max_shard_size=5000)
    model.save_pretrained(folder / "pickled", safe_serialization=False)
    half = type(model).from_pretrained(folder / "teacher", dtype=torch.bfloat16)
    half.save_pretrained(folder / "half")
    (folder / "broken").mkdir()
    whole = (folder / "teacher" / "model.safetensors").read_bytes()
    (folder / "broken" / "model.safetensors").write_bytes(whole[:-100])
    (folder / "broken" / "config.json").write_text((folder / "teacher" / "config.json").read_text())
