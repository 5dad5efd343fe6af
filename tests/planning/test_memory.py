"""The formulas of memory and communication against counts of real models; benchmarks/scaling.py measures runs."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from deit.core.published import VARIANTS
from deit.planning.memory import exchanged, parameters_of, training_memory
from deit.train.recipes.recipe import Recipe
from deit.train.students.deit import build_student
from deit.train.tasks.classification import ClassificationTask

SMALL = "deit-micro-distilled-patch8-64"


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.parameters])
def test_the_parameters_are_those_that_were_published(name) -> None:
    assert parameters_of(name).total == VARIANTS[name].parameters


def test_the_parameters_of_other_sizes_and_classes_are_those_of_a_model() -> None:
    student = build_student(SMALL, ["a", "b", "c"], Recipe(), image_size=32).model
    counted = parameters_of(SMALL, classes=3, side=32)
    assert counted.total == sum(parameter.numel() for parameter in student.parameters())
    assert counted.blocks == sum(parameter.numel() for parameter in student.base_model.trunk.blocks.parameters())


def kept_for_each_image(*, checkpointing: bool) -> float:
    """Bytes that autograd keeps for one image more in a batch of 24 than of 8, without drop path."""
    student = build_student(SMALL, ["a", "b"], Recipe(drop_path_rate=0.0))
    if checkpointing:
        student.model.gradient_checkpointing_enable()
    task, sizes = ClassificationTask(student.model, student.processor).train(), []
    weights = {parameter.data_ptr() for parameter in task.parameters()}
    for count in (8, 24):
        kept: dict[int, torch.Tensor] = {}
        with saved_tensors_hooks(lambda each, kept=kept: kept.setdefault(each.untyped_storage().data_ptr(), each), id):
            task(torch.randn(count, 3, 64, 64), torch.zeros(count, dtype=torch.long))
        sizes.append(sum(each.untyped_storage().nbytes() for where, each in kept.items() if where not in weights))
    return (sizes[1] - sizes[0]) / 16


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_activations_are_about_those_that_autograd_keeps(checkpointing) -> None:
    found = kept_for_each_image(checkpointing=checkpointing)
    expected = training_memory(SMALL, 1, classes=2, checkpointing=checkpointing).activations
    if checkpointing:  # the formula is for the backward pass, in which one block is there again
        whole = training_memory(SMALL, 1, classes=2).activations
        expected -= (whole - 2 * 4 * 3 * 64**2) // VARIANTS[SMALL].depth
    assert 0.8 * found < expected < 1.4 * found  # there is room for what drop path leaves, none for what heads keep


def test_divided_weights_take_their_share_and_cost_more_bytes_on_the_way() -> None:
    name = "deit-base-distilled-patch16-224"
    whole, part = (training_memory(name, 8, average=True, processes=8, sharding=way) for way in ("none", "fsdp"))
    assert (whole.optimizer, whole.average) == (8 * 87338192, 4 * 87338192)
    assert (part.optimizer, part.average) == (87338192, 87338192 / 2)
    assert part.weights < whole.weights / 3
    counted = parameters_of(name)
    assert exchanged(counted, sharding="none", parts=2).sent(4) == 2 * 0.75 * 4 * counted.total
    fsdp = exchanged(counted, sharding="fsdp", precision="bf16", parts=2)
    assert fsdp.sent(4) == 0.75 * 2 * (2 * 2 * counted.blocks + 4 * counted.rest + 4 * counted.total)
