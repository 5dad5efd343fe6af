"""The same weights in every dialect: the memory of transformers, timm, and files of the original layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import deit
from deit.models.conversion import convert
from deit.models.weights.loading import published_tensors

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")

TOLERANCE = 1e-5

# Published architectures, shrunk; the arguments are timm's.
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 48, "num_classes": 5}
ARCHITECTURES = ("deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224")

CLASSES = (
    "DeiTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "ViTModel",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
)


def pixels(size: int = 48) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def our_class(architecture: str) -> Any:
    return deit.DeiTForImageClassificationWithTeacher if "distilled" in architecture else deit.ViTForImageClassification


def our_config(architecture: str, **fields: Any) -> Any:
    config_class = deit.DeiTConfig if "distilled" in architecture else deit.ViTConfig
    third = "deit3" in architecture
    return config_class(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=256,
        image_size=48,
        patch_size=16,
        layer_norm_eps=1e-6,
        num_labels=5,
        layer_scale_init=1e-4 if third else 0.0,
        pos_embed_prefix=not third,
        **fields,
    )


@pytest.fixture
def timm_model(redraw: Callable[..., Any]) -> Callable[[str], Any]:
    return lambda architecture: redraw(timm.create_model(architecture, **SMALL)).eval()


@torch.no_grad()
def assert_same_answers(one: Any, other: Any, size: int = 48) -> None:
    answers = [model(pixels(size)) for model in (one, other)]
    first, second = (answer if isinstance(answer, Tensor) else answer[0] for answer in answers)
    assert first.abs().max() > 0.1
    torch.testing.assert_close(first, second, atol=TOLERANCE, rtol=0)


# --- transformers in memory ---------------------------------------------------------------------------


def pair_in_memory(name: str, fields: dict[str, Any]) -> tuple[Any, Any]:
    prefix = name[: name.index("T") + 1]
    theirs = getattr(transformers, name)(getattr(transformers, f"{prefix}Config")(**fields)).eval()
    ours = getattr(deit, name)(getattr(deit, f"{prefix}Config")(**fields)).eval()
    return theirs, ours


@pytest.mark.parametrize("name", CLASSES)
def test_the_state_dict_of_a_model_of_transformers_can_be_loaded(name, tiny_fields, redraw):
    theirs, ours = pair_in_memory(name, tiny_fields)
    redraw(theirs)
    result = ours.load_state_dict(theirs.state_dict())
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_same_answers(ours, theirs, size=16)


@pytest.mark.parametrize("name", CLASSES)
def test_our_tensors_under_the_names_of_transformers_fit_its_model(name, tiny_fields, redraw):
    theirs, ours = pair_in_memory(name, tiny_fields)
    redraw(ours)
    theirs.load_state_dict(published_tensors(ours.state_dict(), "transformers"))
    assert_same_answers(ours, theirs, size=16)


@pytest.mark.parametrize("name", CLASSES)
def test_the_tensors_of_a_file_of_transformers_can_be_loaded(name, tiny_fields, redraw, tmp_path):
    theirs, ours = pair_in_memory(name, tiny_fields)
    redraw(theirs).save_pretrained(tmp_path)
    ours.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert_same_answers(ours, theirs, size=16)


# --- timm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_state_dict_of_timm_gives_the_logits_of_timm(architecture, timm_model):
    theirs = timm_model(architecture)
    ours = our_class(architecture)(our_config(architecture)).eval()
    result = ours.load_state_dict(theirs.state_dict())
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_same_answers(ours, theirs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_our_tensors_under_the_names_of_timm_fit_its_model(architecture, timm_model, redraw):
    theirs = timm_model(architecture)
    ours = redraw(our_class(architecture)(our_config(architecture)), seed=3).eval()
    theirs.load_state_dict(published_tensors(ours.state_dict(), "timm"))
    assert_same_answers(ours, theirs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_bare_model_takes_the_trunk_of_timm(architecture, timm_model):
    theirs = timm_model(architecture)
    base = deit.DeiTModel if "distilled" in architecture else deit.ViTModel
    ours = base(our_config(architecture), add_pooling_layer=False).eval()
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert result.missing_keys == []
    assert all(name.startswith("head") for name in result.unexpected_keys)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels())[0], theirs.forward_features(pixels()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_of_timm_opens_here_with_the_architecture_read_off_its_tensors(architecture, timm_model, tmp_path):
    from timm.models import save_for_hf

    theirs = timm_model(architecture)
    save_for_hf(theirs, str(tmp_path), safe_serialization=True)
    ours = our_class(architecture).from_pretrained(tmp_path)
    assert_same_answers(ours, theirs)
    expected = our_config(architecture).to_dict()
    found = ours.config.to_dict()
    assert {k for k in found if found[k] != expected[k]} <= {"architectures", "dtype"}


# --- the original release -----------------------------------------------------------------------------


def original_state(model: Any) -> dict[str, Tensor]:
    """timm's names are the original's, but for the layer scale of DeiT III."""
    return {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_of_the_original_release_opens_as_it_is(architecture, timm_model, tmp_path):
    theirs = timm_model(architecture)
    torch.save({"model": original_state(theirs)}, tmp_path / "checkpoint.pth")
    assert_same_answers(our_class(architecture).from_pretrained(tmp_path / "checkpoint.pth"), theirs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_state_dict_of_the_original_release_can_be_loaded(architecture, timm_model):
    theirs = timm_model(architecture)
    ours = our_class(architecture)(our_config(architecture)).eval()
    ours.load_state_dict(original_state(theirs))
    assert_same_answers(ours, theirs)
    back = published_tensors(ours.state_dict(), "original")
    assert set(back) == set(original_state(theirs))
    for name, tensor in original_state(theirs).items():
        assert torch.equal(back[name], tensor), name


def test_a_training_checkpoint_of_the_original_code_opens_although_it_holds_its_arguments(timm_model, tmp_path):
    import argparse

    theirs = timm_model(ARCHITECTURES[0])
    value = {"model": theirs.state_dict(), "epoch": 3, "args": argparse.Namespace(lr=0.1, output_dir="x")}
    torch.save(value, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=False)
    ours = deit.DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path / "checkpoint.pth")
    assert_same_answers(ours, theirs)


# --- conversion on disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_conversion_goes_round_through_every_dialect(architecture, timm_model, tmp_path):
    from timm.models import save_for_hf

    theirs = timm_model(architecture)
    save_for_hf(theirs, str(tmp_path / "start"), safe_serialization=True)
    steps = [("start", "hf", "huggingface"), ("hf", "timm", "timm"), ("timm", "a.pth", "original")]
    for source, target, dialect in steps:
        result = convert(tmp_path / source, tmp_path / target, to=dialect)
        assert result.largest_difference <= TOLERANCE
        assert result.checked_with == ("timm" if dialect == "timm" else "deit")
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert_same_answers(again, theirs)
    value = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    assert set(value) == set(original_state(theirs))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "hf", "start", "timm"]


def test_conversion_takes_the_preprocessing_along(timm_model, tmp_path):
    from timm.data import resolve_model_data_config
    from timm.models import save_for_hf

    theirs = timm_model(ARCHITECTURES[0])
    save_for_hf(theirs, str(tmp_path / "start"), safe_serialization=True)
    result = convert(tmp_path / "start", tmp_path / "hf")
    processor = deit.DeiTImageProcessor.from_pretrained(tmp_path / "hf")
    assert "timm's configuration" in result.preprocessing
    assert processor.size == {"shortest_edge": 53}  # 48 / 0.9
    assert processor.crop_size == {"height": 48, "width": 48}
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    convert(tmp_path / "hf", tmp_path / "timm", to="timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    data = resolve_model_data_config(model)
    assert data["crop_pct"] == pytest.approx(48 / 53)
    assert (data["interpolation"], data["input_size"], data["crop_mode"]) == ("bicubic", (3, 48, 48), "center")


def test_a_folder_of_transformers_converts_to_timm(tiny_fields, redraw, tmp_path):
    fields = {**tiny_fields, "hidden_act": "gelu"}
    config = transformers.DeiTConfig(**fields)
    theirs = redraw(transformers.DeiTForImageClassificationWithTeacher(config)).eval()
    theirs.save_pretrained(tmp_path / "hf")
    result = convert(tmp_path / "hf", tmp_path / "timm", to="timm")
    assert result.source_dialect == "huggingface"
    ours = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels(16)), theirs(pixels(16)).logits, atol=1e-4, rtol=0)  # epsilons differ
