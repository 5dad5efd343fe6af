"""Our models in other people's hands: transformers' Trainer, PEFT, torch.compile, torch.export, copies."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deit

transformers = pytest.importorskip("transformers")

CLASSIFIERS = ("DeiTForImageClassification", "ViTForImageClassification", "DeiTForImageClassificationWithTeacher")
CLASSES = ("DeiTModel", "ViTModel", *CLASSIFIERS, "DeiTForMaskedImageModeling", "ViTForMaskedImageModeling")


def pixels(batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def inputs_with_loss(name: str, batch: int = 3) -> dict[str, Tensor]:
    """What the model takes to return a loss; a bare model takes pixels alone."""
    given = {"pixel_values": pixels(batch)}
    if "Masked" in name:
        given["bool_masked_pos"] = torch.rand(batch, 16, generator=torch.Generator().manual_seed(2)) < 0.5
    elif name in CLASSIFIERS:
        given["labels"] = torch.arange(batch) % 5
    if name.endswith("WithTeacher"):
        given["teacher_logits"] = pixels(batch, seed=5)[:, 0, 0, :5]
    return given


@pytest.fixture
def build(tiny_fields, redraw):
    """Builds a model by its name, with large random weights."""

    def build_model(name: str, **fields: Any) -> Any:
        model_class = getattr(deit, name)
        return redraw(model_class(model_class.config_class(**{**tiny_fields, **fields})))

    return build_model


# --- transformers.Trainer -----------------------------------------------------------------------------


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Eight images whose class is a matter of their brightness, with what a teacher says of them."""

    def __init__(self, *keys: str) -> None:
        classes = torch.arange(8) % 5
        everything = {
            "pixel_values": pixels(8) + classes[:, None, None, None],
            "labels": classes,
            "teacher_logits": torch.nn.functional.one_hot(classes, 5) * 4.0,
            "bool_masked_pos": torch.arange(16).expand(8, 16) % 2,
        }
        self.columns = {key: everything[key] for key in keys}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {key: column[i] for key, column in self.columns.items()}


@pytest.fixture
def train(tmp_path):
    """Trains a model for some steps under transformers' Trainer; returns the trainer and the losses."""
    pytest.importorskip("accelerate")

    def run(model: Any, data: Images, *, steps: int = 6, **arguments: Any) -> tuple[Any, list[float]]:
        settings = {
            "max_steps": steps,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        arguments = transformers.TrainingArguments(output_dir=str(tmp_path / "run"), **{**settings, **arguments})
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
        trainer.train()
        return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return run


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_learns_under_the_trainer_of_transformers(build, train, name):
    trainer, losses = train(build(name), Images("pixel_values", "labels"))
    assert losses[-1] < 0.8 * losses[0]
    prediction = trainer.predict(trainer.eval_dataset)
    logits = prediction.predictions[0] if name.endswith("WithTeacher") else prediction.predictions
    with torch.no_grad():
        expected = trainer.model.eval()(trainer.eval_dataset.columns["pixel_values"]).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=0)
    assert set(prediction.metrics) >= {"test_loss"}


def test_a_student_learns_from_teacher_logits_in_the_batch(build, train):
    model = build("DeiTForImageClassificationWithTeacher", distillation_weight=1.0, distillation_kind="soft")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    _, losses = train(model, Images("pixel_values", "labels", "teacher_logits"), weight_decay=0.0)
    assert losses[-1] < 0.8 * losses[0]
    changed = {name: not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()}
    assert changed["distillation_classifier.weight"]
    assert not changed["cls_classifier.weight"]  # with a weight of one only the teacher teaches


@pytest.mark.parametrize("name", ["DeiTForMaskedImageModeling", "ViTForMaskedImageModeling"])
def test_masked_images_are_learnt_under_the_trainer_of_transformers(build, train, name):
    _, losses = train(build(name), Images("pixel_values", "bool_masked_pos"), label_names=[])
    assert losses[-1] < losses[0]


def test_gradient_checkpointing_and_reduced_precision_are_at_the_trainers_command(build, train):
    _, losses = train(build(CLASSIFIERS[0]), Images("pixel_values", "labels"))
    model = build(CLASSIFIERS[0])
    fields = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    argument = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    _, same = train(model, Images("pixel_values", "labels"), **{argument: True})
    assert model.is_gradient_checkpointing
    assert same == pytest.approx(losses, rel=1e-4)
    _, rough = train(build(CLASSIFIERS[0]), Images("pixel_values", "labels"), bf16=True)
    assert rough == pytest.approx(losses, rel=0.1)


def test_gradients_that_accumulate_give_the_losses_of_a_large_batch(build, train):
    """The Trainer tells the model how many labels the large batch has: sums over the parts are divided by that."""
    for name in CLASSIFIERS[:2]:
        data = Images("pixel_values", "labels")
        _, whole = train(build(name), data, steps=3)
        parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        _, summed = train(build(name), data, steps=3, **parts)
        assert summed == pytest.approx(whole, rel=1e-3)


def test_weights_that_the_trainer_saves_can_be_loaded_again(build, train, tmp_path):
    trainer, _ = train(
        build(CLASSIFIERS[0]), Images("pixel_values", "labels"), steps=2, save_strategy="steps", save_steps=1
    )
    resumed, _ = train(build(CLASSIFIERS[0]), Images("pixel_values", "labels"), steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    trainer.model.save_pretrained(tmp_path / "model")
    again = deit.DeiTForImageClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(again(pixels()).logits, trainer.model.eval()(pixels()).logits)


# --- PEFT ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [["qkv"], ["qkv", "attn.proj"]], ids=str)
@pytest.mark.parametrize("name", CLASSIFIERS[:2])
def test_lora_on_the_attention_layers_trains_and_merges(build, name, targets):
    peft = pytest.importorskip("peft")
    model = build(name)
    before = {n: p.clone() for n, p in model.named_parameters()}
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["classifier"]))
    trainable = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert {("lora_" in n, "classifier.modules_to_save" in n) for n in trainable} == {(True, False), (False, True)}
    assert len([n for n in trainable if "lora_A" in n]) == 2 * len(targets)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    given, losses = inputs_with_loss(name), []
    for _ in range(8):
        loss = adapted(**given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    for n, parameter in adapted.get_base_model().named_parameters():
        if "lora_" not in n and "classifier" not in n:
            assert torch.equal(parameter, before[n.replace(".base_layer", "")]), n
    expected = adapted.eval()(pixels()).logits
    merged = adapted.merge_and_unload()
    assert type(merged) is type(model)
    assert set(merged.state_dict()) == set(before)
    torch.testing.assert_close(merged(pixels()).logits, expected, atol=1e-5, rtol=0)


def test_lora_works_with_gradient_checkpointing(build):
    peft = pytest.importorskip("peft")
    model = build(CLASSIFIERS[0])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv"])).train()
    adapted(**inputs_with_loss(CLASSIFIERS[0])).loss.backward()
    gradients = [p.grad for n, p in adapted.named_parameters() if "lora_B" in n]
    assert len(gradients) == 2
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


# --- torch.compile and torch.export -------------------------------------------------------------------


EVERYTHING = {"output_attentions": True, "output_hidden_states": True}


@pytest.mark.parametrize(("name", "asked"), [*((name, {}) for name in CLASSES), ("ViTModel", EVERYTHING)], ids=str)
def test_a_compiled_model_has_no_graph_breaks_and_the_same_numbers(build, name, asked):
    torch._dynamo.reset()
    model = build(name).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    given = {**inputs_with_loss(name), **asked}
    output, expected = compiled(**given), model(**given)
    assert type(output) is type(expected)
    assert list(output) == list(expected)
    torch.testing.assert_close(output[0], expected[0])
    if "loss" in output:
        output.loss.backward()
        assert all(p.grad is not None for p in model.parameters())


def test_a_compiled_model_takes_masks_and_other_image_sizes(build):
    torch._dynamo.reset()
    model = build("DeiTForImageClassification").eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    given = {
        "pixel_values": torch.randn(2, 3, 24, 12),
        "interpolate_pos_encoding": True,
        "attention_mask": torch.ones(2, 20).triu(),
        "head_mask": torch.tensor([1.0, 0.0, 0.5, 1.0]),
    }
    with torch.no_grad():
        torch.testing.assert_close(compiled(**given).logits, model(**given).logits)


@pytest.mark.parametrize("name", CLASSES)
def test_an_exported_model_gives_the_same_numbers_for_any_number_of_images(build, name):
    model = build(name).eval()
    given = inputs_with_loss(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (), given, dynamic_shapes={key: {0: batch} for key in given}, strict=False)
    for count in (1, 5):
        more = inputs_with_loss(name, count)
        output, expected = exported.module()(**more), model(**more)
        assert type(output) is type(expected)
        assert list(output) == list(expected)
        for key in expected:
            torch.testing.assert_close(output[key], expected[key], atol=1e-5, rtol=0)


# --- copies and types ---------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_model_that_has_run_can_be_copied_and_pickled(build, name, copied):
    model = build(name, hidden_act="gelu_new").eval()
    model.gradient_checkpointing_enable()
    expected = model(pixels(), output_attentions=True, output_hidden_states=True)[0]
    again = copied(model)
    assert torch.equal(again(pixels())[0], model(pixels())[0])
    torch.testing.assert_close(again(pixels())[0], expected, atol=1e-5, rtol=0)
    assert again.config == model.config
    assert again.config is not model.config
    assert again.is_gradient_checkpointing


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_can_change_its_type_and_back(build, name):
    model = build(name).eval()
    state = copy.deepcopy(model.state_dict())
    for cast, dtype in ((model.half, torch.float16), (model.bfloat16, torch.bfloat16), (model.double, torch.float64)):
        assert cast().dtype == dtype
        assert model(pixels())[0].dtype == dtype
        model.float().load_state_dict(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.to("meta").device == torch.device("meta")


def test_a_model_loaded_by_name_of_its_folder_is_the_same_in_a_pickle(build, tmp_path: Path):
    build("ViTForImageClassification").save_pretrained(tmp_path)
    model = deit.ViTForImageClassification.from_pretrained(tmp_path)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(pixels()).logits, model(pixels()).logits)
    assert not again.training
