"""Model directories: `config.json` and `preprocessor_config.json`; safetensors files and their index."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.changes import of_bytes, of_json, of_one_file, of_values
from tests.fuzz.driver import Target, joined, lasting_folder, write_files

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
SETTINGS = (CONFIG, PROCESSOR)
WEIGHT_FILES = (WEIGHTS, f"{WEIGHTS}.index.json", "one.safetensors", "two.safetensors")
TINY = {
    "image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 8, "id2label": {0: "ant", 1: "bee", 2: "cow"}, "label2id": {"ant": 0, "bee": 1, "cow": 2},
}  # fmt: skip


@cache
def good_model() -> Path:
    """Returns a folder with a tiny model, which stays until the process ends."""
    import torch

    import deit

    folder = lasting_folder("model")
    torch.manual_seed(0)
    deit.DeiTForImageClassificationWithTeacher(deit.DeiTConfig(**TINY)).save_pretrained(folder)
    deit.DeiTImageProcessor(size={"shortest_edge": 9}, crop_size=8).save_pretrained(folder)
    return folder


def open_model(folder: Path) -> None:
    """Opens a model directory as `deit classify` does, and asks it about one image."""
    from PIL import Image

    from deit.inference.predictor import Predictor

    Predictor.open(folder, device="cpu", engine="torch").classify([Image.new("RGB", (9, 9))])


def _settings() -> Mapping[str, bytes]:
    import deit

    files = {name: (good_model() / name).read_bytes() for name in SETTINGS}
    vit = deit.ViTConfig(**TINY).to_dict() | {"architectures": ["ViTForImageClassification"]}
    timm = {"architecture": "deit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 8, 8]}}
    two_sizes = {
        "size": {"height": 8, "width": 9},
        "do_center_crop": False,
        "image_processor_type": "ViTImageProcessor",
    }
    return {
        "deit": joined(files),
        "vit": joined({CONFIG: json.dumps(vit, default=str).encode(), PROCESSOR: json.dumps(two_sizes).encode()}),
        "timm": joined({CONFIG: json.dumps(timm).encode()}),
        "regression": joined(
            {CONFIG: json.dumps(TINY | {"model_type": "deit", "problem_type": "regression"}).encode()}
        ),
    }


def _read_settings(data: bytes, folder: Path) -> None:
    for file in good_model().iterdir():
        shutil.copyfile(file, folder / file.name)
    write_files(data, folder, SETTINGS)
    open_model(folder)


# --- weights ---------------------------------------------------------------------------------------------


def of_safetensors(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Changes values of the header and mends its length, or bytes by chance."""
    if random.randrange(4) and len(data) > 8:
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.dumps(of_values(random, json.loads(data[8 : 8 + length]))).encode()
        except (ValueError, RecursionError):
            return of_bytes(random, data, others)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    return of_bytes(random, data, others)


def _weights() -> Mapping[str, bytes]:
    import numpy as np
    from safetensors.numpy import load_file, save

    tensors = load_file(good_model() / WEIGHTS)
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    index: dict[str, Any] = {
        "metadata": {"total_size": 1},
        "weight_map": {n: f for f, part in parts.items() for n in part},
    }
    files = {file: save({name: tensors[name] for name in part}, {"format": "pt"}) for file, part in parts.items()}
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    return {
        "whole": joined({WEIGHTS: (good_model() / WEIGHTS).read_bytes()}),
        "half": joined({WEIGHTS: save(half)}),
        "index": joined({f"{WEIGHTS}.index.json": json.dumps(index).encode(), **files}),
        "other": joined({WEIGHTS: save({"a": np.zeros((2, 3), np.int64), "b": np.zeros(0, np.bool_)})}),
    }


def _read_weights(data: bytes, folder: Path) -> None:
    for name in SETTINGS:
        shutil.copyfile(good_model() / name, folder / name)
    write_files(data, folder, WEIGHT_FILES)
    open_model(folder)


_CHANGE = of_one_file(json=of_json, safetensors=of_safetensors)
TARGETS = (
    Target(name="settings", read=_read_settings, change=_CHANGE, seeds=_settings, prepare=good_model),
    Target(name="weights", read=_read_weights, change=_CHANGE, seeds=_weights, prepare=good_model),
)
