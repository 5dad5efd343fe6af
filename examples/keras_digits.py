"""Trains a small DeiT on digits with Keras, with a convnet as teacher.

The images are those of `deit demo`: scikit-learn's handwritten digits. Works on each backend of Keras:

    pip install "deit[tensorflow]" scikit-learn
    KERAS_BACKEND=tensorflow python examples/keras_digits.py --out digits

Takes about a minute on two CPU cores. Prints the top-1 accuracy of the teacher and of the student on 360 test images,
writes the student as a model directory, which the PyTorch classes open as well, and reads one image with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

from deit import (
    DeiTConfig,
    DeiTImageProcessor,
    KerasDistillation,
    KerasTeacher,
    TFDeiTForImageClassificationWithTeacher,
)
from deit.keras.optimization import WarmupCosine, keras_adamw

SIZE = 16  # the scans have 8 x 8 pixels
TEST_IMAGES = 360
PROCESSOR = DeiTImageProcessor(size=SIZE, do_center_crop=False)


class ShiftedDigits(keras.utils.PyDataset):
    """Training images, each shifted by at most a pixel of the scan, in a new order every epoch."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, batch_size: int, seed: int = 0) -> None:
        super().__init__()
        self.pixels, self.labels, self.batch_size = pixels, labels, batch_size
        self.random = np.random.default_rng(seed)
        self.on_epoch_begin()

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.labels) // self.batch_size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns pixels (B, 3, H, W) and labels (B,)."""
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        shifts = self.random.integers(-2, 3, (len(chosen), 2))
        moved = [np.roll(self.pixels[i], shift, axis=(1, 2)) for i, shift in zip(chosen, shifts, strict=True)]
        return np.stack(moved), self.labels[chosen]

    def on_epoch_begin(self) -> None:
        """Shuffles."""
        self.order = self.random.permutation(len(self.labels))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns all scans as 8-bit RGB (N, 8, 8, 3), shuffled, and their labels (N,)."""
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    return np.repeat(images[order][..., None], 3, axis=-1), data.target[order]


def convnet() -> keras.Model:
    """Returns a small convnet from normalized pixels (channels last) to probabilities."""
    blocks = []
    for width in (32, 64):
        blocks += [
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    head = [keras.layers.Flatten(), keras.layers.Dropout(0.3), keras.layers.Dense(10, activation="softmax")]
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *blocks, *head], name="convnet")


def build_student(start: Path | None) -> TFDeiTForImageClassificationWithTeacher:
    """Returns a new student, or one that starts from the weights of a model directory."""
    if start is not None:
        return TFDeiTForImageClassificationWithTeacher.from_pretrained(
            start, num_labels=10, image_size=SIZE, ignore_mismatched_sizes=True
        )
    return TFDeiTForImageClassificationWithTeacher(
        DeiTConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            image_size=SIZE,
            patch_size=4,
            num_labels=10,
            drop_path_rate=0.05,
        )
    )


def main() -> None:
    """Trains, saves and classifies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits"), help="folder of the student")
    parser.add_argument("--start", type=Path, help="model directory to start from; a new model without one")
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=10_000, help="training images at most")
    options = parser.parse_args()

    keras.utils.set_random_seed(0)
    images, labels = digits()
    pixels = PROCESSOR(list(images), return_tensors="np").pixel_values
    test, test_labels = pixels[:TEST_IMAGES], labels[:TEST_IMAGES]
    batches = ShiftedDigits(
        pixels[TEST_IMAGES:][: options.images], labels[TEST_IMAGES:][: options.images], batch_size=64
    )

    teacher = convnet()
    teacher.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    channels_last = [np.moveaxis(part, 1, -1) for part in (batches.pixels, test)]
    teacher.fit(channels_last[0], batches.labels, batch_size=64, epochs=options.teacher_epochs, verbose=0)
    accuracy = teacher.evaluate(channels_last[1], test_labels, verbose=0)[1]
    print(f"teacher: top-1 {100 * accuracy:.1f} %")

    student = build_student(options.start)
    distillation = KerasDistillation(
        student, KerasTeacher(teacher, output="probabilities"), kind="soft", temperature=3.0, processor=PROCESSOR
    )
    warmup = min(5, options.epochs)
    rate = WarmupCosine(2e-3, steps_per_epoch=len(batches), epochs=options.epochs, warmup_epochs=warmup)
    distillation.compile(keras_adamw(distillation, rate))
    distillation.fit(batches, epochs=options.epochs, verbose=0)
    scores = distillation.evaluate(test, test_labels, verbose=0, return_dict=True)
    print(f"student: top-1 {scores['top1']:.1f} % (class head {scores['class_top1']:.1f} %, ", end="")
    print(f"distillation head {scores['distillation_top1']:.1f} %)")

    student.config.id2label = {i: str(i) for i in range(10)}
    student.config.label2id = {str(i): i for i in range(10)}
    student.save_pretrained(options.out)
    PROCESSOR.save_pretrained(options.out)

    model = TFDeiTForImageClassificationWithTeacher.from_pretrained(options.out)
    processor = DeiTImageProcessor.from_pretrained(options.out)
    logits = model(processor(images[0], return_tensors="np").pixel_values).logits
    answer = model.config.id2label[int(keras.ops.argmax(logits))]
    print(f"the saved student reads a {labels[0]} as a {answer}")


if __name__ == "__main__":
    main()
