"""Weight files of PyTorch (`.bin`, `.pth`) as NumPy arrays; the only file of `deit.keras` that needs PyTorch."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from deit.core.weights.files import WeightFiles


def read_pickles(weights: WeightFiles) -> dict[str, np.ndarray]:
    """Returns the tensors of pickled weight files, which PyTorch reads as data.

    Raises:
        ValueError: A file is damaged, or holds code.
        ModuleNotFoundError: PyTorch is not installed.
    """
    try:
        import torch

        from deit.models.weights.tensor_source import open_source
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{weights.main} is a PyTorch pickle, which needs the 'torch' package. Save the weights as "
            'model.safetensors where PyTorch is installed, or install it with: pip install "deit[torch]"',
            name="torch",
        ) from error
    source = open_source(weights)
    arrays = {}
    for name, shape in source.shapes.items():
        tensor = torch.empty(shape, dtype=source.dtypes[name])
        source.read_into({name: tensor})
        if tensor.dtype == torch.bfloat16:
            arrays[name] = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            arrays[name] = tensor.numpy()
    return arrays
