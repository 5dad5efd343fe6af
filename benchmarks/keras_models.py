"""Compares the Keras models with keras-hub's DeiT of the same sizes: compiled forward passes on the CPU.

    python benchmarks/keras_models.py                  # about 5 minutes, writes results/DATE-keras_models.json
    python benchmarks/keras_models.py --backend jax    # one backend, in this process; prints JSON

Each backend runs in a process of its own; inside it the two libraries take turns on the same image sizes and the same
number of blocks. TensorFlow compiles with `tf.function(jit_compile=True)`, JAX with `jax.jit` around `stateless_call`.
Both read the whole result. Needs keras-hub (`pip install keras-hub`), which is not a dependency of this package.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import compare, report, take_turns

SIZES = {"tiny": (192, 3), "base": (768, 12)}
BATCHES = (1, 8)
ROUNDS = {("tiny", 1): 200, ("tiny", 8): 40, ("base", 1): 40, ("base", 8): 12}
MARK = "rows: "


def compiled(model: Any, pick: Callable[[Any], Any], pixels: np.ndarray) -> Callable[[], Any]:
    """A call without arguments that runs the compiled model and waits for its result."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        function = tf.function(lambda x: pick(model(x, training=False)), jit_compile=True)
        tensor = tf.constant(pixels)
        return lambda: function(tensor).numpy()
    import jax

    trainable = [v.value for v in model.trainable_variables]
    other = [v.value for v in model.non_trainable_variables]
    forward = jax.jit(lambda t, o, x: pick(model.stateless_call(t, o, x, training=False)[0]))
    array = jax.numpy.asarray(pixels)
    return lambda: np.asarray(forward(trainable, other, array))


def measure() -> list[dict[str, Any]]:
    """Times every size and batch on the backend of this process."""
    import keras
    import keras_hub

    import deit

    rows = []
    for size, (width, heads) in SIZES.items():
        config = deit.DeiTConfig(
            hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, layer_norm_eps=1e-6
        )
        ours = deit.TFDeiTModel(config, add_pooling_layer=False)
        theirs = keras_hub.models.DeiTBackbone(
            image_shape=(224, 224, 3),
            patch_size=16,
            num_layers=12,
            num_heads=heads,
            hidden_dim=width,
            intermediate_dim=4 * width,
        )
        for batch in BATCHES:
            pixels = np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype(np.float32)
            channels_last = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
            functions = {
                "deit": compiled(ours, lambda output: output["last_hidden_state"], pixels),
                "keras-hub": compiled(theirs, lambda output: output, channels_last),
            }
            seconds = take_turns(functions, rounds=ROUNDS[size, batch])
            row = {"backend": keras.backend.backend(), "model": size, "batch": batch, **compare(seconds)}
            row |= {f"{name} fastest ms": 1e3 * min(values) for name, values in seconds.items()}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["tensorflow", "jax"])
    parser.add_argument("--no-write", action="store_true", help="print the rows and write no file")
    arguments = parser.parse_args()
    if arguments.backend:
        os.environ["KERAS_BACKEND"] = arguments.backend
        print(MARK + json.dumps(measure()))
        return
    rows = []
    for backend in ("tensorflow", "jax"):
        command = [sys.executable, __file__, "--backend", backend]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        rows += json.loads(result.stdout.rpartition(MARK)[2])
    report("keras_models", rows, write=not arguments.no_write)


if __name__ == "__main__":
    main()
