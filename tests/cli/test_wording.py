"""Messages name options where they come from the command line."""

from __future__ import annotations

import pytest

from deit.cli.terminal.wording import in_options
from tests.cli.conftest import SHORT, VARIANT, deit, is_refused

TRAIN = ["data", "out", "init", "teacher", "epochs", "batch_size", "seed", "image_size", "freeze", "set_", "device"]
CLASSIFY = ["model", "images", "top_k", "batch_size", "device", "value_range", "average", "strict"]


@pytest.mark.parametrize(
    ("parameters", "said", "expected"),
    [
        (CLASSIFY, "The device 'x' cannot be used. Pass device='cpu'.",
         "The device 'x' cannot be used. Pass --device cpu."),
        (CLASSIFY, "top_k and batch_size must be at least 1.", "--top-k and --batch-size must be at least 1."),
        (CLASSIFY, "a.png: no image. (2 such files; strict is on.)",
         "a.png: no image. (2 such files; --strict is on.)"),
        (CLASSIFY, "Check the name, or pass token=.",
         "Check the name, or log in with `hf auth login` (or set HF_TOKEN)."),
        (TRAIN, "Pass batch_size=48 or 56.", "Pass --batch-size 48 or 56."),
        (TRAIN, "Pass masking.patch=8.", "Pass --set masking.patch=8."),
        (TRAIN, "Pass precision=bf16 or fp32.", "Pass --set precision=bf16 or fp32."),
        (TRAIN, "Pass rand_augment='' or three_augment=False.",
         "Pass --set augment.rand_augment= or --set augment.three_augment=false."),
        (TRAIN, "schedule.epochs must be at least 1. Received: 0.", "--epochs must be at least 1. Received: 0."),
        (TRAIN, "Choose it with --set data.problem_type=regression.",
         "Choose it with --set data.problem_type=regression."),
        (TRAIN, "The run in a_b/c=d.e has other settings: seed.", "The run in a_b/c=d.e has other settings: seed."),
        (TRAIN, "Leave image_column and label_column out.", "Leave data.image_column and data.label_column out."),
        (TRAIN, "/x/batch_size/a_b.png: batch_size.png is no image.",
         "/x/batch_size/a_b.png: batch_size.png is no image."),
        (TRAIN, "has another student: {'image_size': 32}.", "has another student: {'image_size': 32}."),
    ],
)  # fmt: skip
def test_arguments_become_options_and_settings(parameters, said, expected):
    assert in_options(said, parameters) == expected


def train(photos, out, *options):
    return deit("train", photos, "--student", VARIANT, *SHORT, "--out", out, *options)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--device", "gpu"), ["Unknown device 'gpu'. Pass --device cpu or --device cuda:0."]),
        (("--epochs", 0), ["--epochs must be at least 1"]),
        (("--batch-size", 0), ["--batch-size must be at least 1"]),
        (("--set", "epochs=3"), ["Unknown setting 'epochs'. Pass the option --epochs."]),
        (("--set", "batch-size=3"), ["Unknown setting 'batch-size'. Pass the option --batch-size."]),
        (("--set", "lr=3"), ["Unknown setting 'lr'. Did you mean 'optimizer.lr'?"]),
        (("--set", "optimizer.weightdecay=3"), ["Did you mean 'optimizer.weight_decay'?"]),
        (("--set", "nonsense=3"), ["Unknown setting 'nonsense'.", "deit recipes NAME --yaml"]),
        (("--set", "augment.three_augment=true"), ["Pass --set augment.rand_augment="]),
    ],
)
def test_mistakes_in_a_training_are_told_in_options(photos, tmp_path, options, parts):
    result = train(photos, tmp_path / "run", *options)
    is_refused(result, *parts)
    assert len(result.stderr) < 400
