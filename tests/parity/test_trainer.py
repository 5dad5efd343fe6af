"""`deit.Trainer`: checkpoints, best model and what is pushed open in transformers and here, with equal logits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deit
from tests.core.hub_on_loopback import Hub, serve, use_hub

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CLASSIFIERS = ("DeiTForImageClassification", "ViTForImageClassification", "DeiTForImageClassificationWithTeacher")
PIXELS = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 5


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Eight images whose class is a matter of their brightness."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": PIXELS[i] + LABELS[i], "labels": LABELS[i]}


@pytest.fixture
def build(tiny_fields: dict[str, Any], redraw: Any) -> Any:
    def build_model(name: str) -> Any:
        model_class = getattr(deit, name)
        return redraw(model_class(model_class.config_class(**tiny_fields)))

    return build_model


def arguments_for(folder: Path, **changes: Any) -> Any:
    settings = {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 1,
        "eval_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(output_dir=str(folder), **{**settings, **changes})


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model.eval()(PIXELS).logits
    return result


def opened_on_both_sides(name: str, folder: Path) -> Tensor:
    ours = logits(getattr(deit, name).from_pretrained(folder))
    theirs, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(logits(theirs), ours, atol=1e-5, rtol=0)
    return ours


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_checkpoint_opens_on_both_sides_with_equal_logits(build: Any, tmp_path: Path, name: str) -> None:
    seen = []

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            seen.append(logits(model))
            model.train()

    processor = deit.DeiTImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False)
    trainer = deit.Trainer(
        model=build(name),
        args=arguments_for(tmp_path / "run"),
        train_dataset=Images(),
        eval_dataset=Images(),
        processing_class=processor,
        callbacks=[Watch()],
    )
    trainer.train()
    trainer.save_model()
    found = [opened_on_both_sides(name, tmp_path / "run" / f"checkpoint-{step}") for step in (1, 2, 3)]
    for expected, actual in zip(seen, found, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert (found[0] - found[2]).abs().max() > 1e-3
    torch.testing.assert_close(opened_on_both_sides(name, tmp_path / "run"), found[2], atol=1e-5, rtol=0)
    for file in ("preprocessor_config.json", "training_args.bin", "trainer_state.json"):
        assert (tmp_path / "run" / "checkpoint-2" / file).is_file()


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(build: Any, tmp_path: Path) -> None:
    name = CLASSIFIERS[0]

    def trainer(folder: Path, **changes: Any) -> Any:
        return deit.Trainer(
            build(name), arguments_for(folder, **changes), train_dataset=Images(), eval_dataset=Images()
        )

    whole = trainer(tmp_path / "whole")
    whole.train()
    started = trainer(tmp_path / "run")
    started.add_callback(_StopAt(2))
    started.train()
    resumed = trainer(tmp_path / "run")
    assert resumed.train(resume_from_checkpoint=True).global_step == 3
    for key, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], tensor, msg=key)
    again = opened_on_both_sides(name, tmp_path / "run" / "checkpoint-3")
    torch.testing.assert_close(again, logits(whole.model), atol=1e-5, rtol=0)


class _StopAt(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def test_the_best_model_is_in_the_trainer_at_the_end(build: Any, tmp_path: Path) -> None:
    name = CLASSIFIERS[0]
    trainer = deit.Trainer(
        model=build(name),
        args=arguments_for(tmp_path / "run", load_best_model_at_end=True, learning_rate=1.0, save_total_limit=1),
        train_dataset=Images(),
        eval_dataset=Images(),
    )
    trainer.train()  # the rate is so large that the first step is the best
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-1")
    best = opened_on_both_sides(name, tmp_path / "run" / "checkpoint-1")
    torch.testing.assert_close(logits(trainer.model), best, atol=1e-5, rtol=0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    import huggingface_hub

    with serve() as server:
        use_hub(server, monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.address)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)  # an earlier test may have made it
        monkeypatch.setenv("HF_TOKEN", "secret")
        server.files["me/x"] = {"main": {}}
        yield server


def test_what_is_pushed_opens_on_both_sides(build: Any, tmp_path: Path, hub: Hub) -> None:
    name = CLASSIFIERS[0]
    model = build(name)
    model.add_model_tags(["birds", "small"])
    trainer = deit.Trainer(
        model=model,
        args=arguments_for(
            tmp_path / "run",
            push_to_hub=True,
            hub_model_id="me/x",
            hub_strategy="all_checkpoints",
            hub_always_push=True,
        ),
        train_dataset=Images(),
        eval_dataset=Images(),
    )
    trainer.train()
    trainer.push_to_hub(tags="feathers")
    files = hub.files["me/x"]["main"]
    for folder, step in ((tmp_path / "pushed", ""), (tmp_path / "pushed-2", "checkpoint-2/")):
        folder.mkdir()
        for file in ("config.json", "model.safetensors"):
            (folder / file).write_bytes(files[f"{step}{file}"])
    torch.testing.assert_close(opened_on_both_sides(name, tmp_path / "pushed"), logits(model), atol=1e-5, rtol=0)
    opened_on_both_sides(name, tmp_path / "pushed-2")
    card = files["README.md"].decode()
    assert all(f"- {tag}\n" in card for tag in ("birds", "small", "feathers"))


def test_tags_come_into_the_card_that_the_model_pushes(build: Any, hub: Hub, tmp_path: Path) -> None:
    model = build(CLASSIFIERS[0])
    model.push_to_hub("me/x")
    assert sorted(hub.files["me/x"]["main"]) == ["config.json", "model.safetensors"]
    model.add_model_tags("birds")
    model.push_to_hub("me/x", tags=["small", "birds"])
    first = hub.files["me/x"]["main"]["README.md"].decode()
    assert "tags:\n- birds\n- small\n" in first
    hub.files["me/x"]["main"]["README.md"] = first.replace("# x", "# My text").encode()
    model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="me/x", tags="feathers")
    second = hub.files["me/x"]["main"]["README.md"].decode()
    assert "tags:\n- birds\n- small\n- feathers\n" in second
    assert "# My text" in second
    assert model.model_tags == ["birds"]
    assert logits(deit.DeiTForImageClassification.from_pretrained("me/x")).equal(logits(model))


def test_a_configuration_is_pushed_without_weights(tiny_fields: dict[str, Any], hub: Hub) -> None:
    for library in (transformers, deit):
        config = library.DeiTConfig(**tiny_fields, note=library.__name__)
        config.push_to_hub("me/x")
        assert "model.safetensors" not in hub.files["me/x"]["main"]
        assert json.loads(hub.files["me/x"]["main"]["config.json"])["note"] == library.__name__


def test_tags_are_added_as_in_transformers(build: Any, tiny_fields: dict[str, Any]) -> None:
    theirs = transformers.DeiTModel(transformers.DeiTConfig(**tiny_fields))
    for model in (theirs, build("DeiTModel")):
        assert model.model_tags is None
        model.add_model_tags("a")
        model.add_model_tags(["b", "a"])
        assert model.model_tags == ["a", "b"]


def test_what_transformers_own_trainer_saved_is_opened_or_refused_by_name(build: Any, tmp_path: Path) -> None:
    model = build(CLASSIFIERS[0])
    arguments = arguments_for(tmp_path / "run", eval_strategy="no", max_steps=1)
    transformers.Trainer(model=model, args=arguments, train_dataset=Images()).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: .* Train with deit\.Trainer, or pass .*config="):
        deit.DeiTForImageClassification.from_pretrained(checkpoint)
    with pytest.raises(FileNotFoundError, match=r"Train with deit\.Trainer"):
        deit.AutoModelForImageClassification.from_pretrained(checkpoint)
    opened = deit.DeiTForImageClassification.from_pretrained(checkpoint, config=model.config)
    assert torch.equal(logits(opened), logits(model))


def test_adapters_and_other_models_are_saved_as_by_transformers(build: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(build(CLASSIFIERS[0]), peft.LoraConfig(r=2, target_modules=["qkv"]))
    deit.Trainer(
        adapted, arguments_for(tmp_path / "lora", eval_strategy="no", max_steps=1), train_dataset=Images()
    ).train()
    assert (tmp_path / "lora" / "checkpoint-1" / "adapter_model.safetensors").is_file()

    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 5)

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            scores = self.layer(pixel_values.mean((2, 3)))
            return {"loss": torch.nn.functional.cross_entropy(scores, labels), "logits": scores}

    trainer = deit.Trainer(
        Other(), arguments_for(tmp_path / "other", eval_strategy="no", max_steps=1), train_dataset=Images()
    )
    trainer.train()
    assert (tmp_path / "other" / "checkpoint-1" / "model.safetensors").is_file()
    assert not (tmp_path / "other" / "checkpoint-1" / "config.json").exists()


def test_a_run_in_bfloat16_is_saved_in_it(build: Any, tmp_path: Path) -> None:
    name = CLASSIFIERS[1]
    model = build(name).to(torch.bfloat16)
    arguments = arguments_for(tmp_path / "run", eval_strategy="no", max_steps=1)
    deit.Trainer(model=model, args=arguments, train_dataset=Images()).train()
    folder = tmp_path / "run" / "checkpoint-1"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    opened = deit.ViTForImageClassification.from_pretrained(folder)
    assert opened.dtype == torch.bfloat16
    assert torch.equal(logits_of(opened), logits_of(model))


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    result: Tensor = model.eval()(PIXELS.to(model.dtype)).logits
    return result
