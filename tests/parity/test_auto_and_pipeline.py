"""The Auto classes and pipelines against those of transformers, on the same folders."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deit
from tests.parity.processor_cases import IMAGENET, mode, photo, rgb, turned

transformers = pytest.importorskip("transformers")

PROCESSING = {"size": 20, "do_center_crop": True, "crop_size": 16, **IMAGENET}
NAMES = {
    "DeiTModel": "AutoModel",
    "DeiTForImageClassification": "AutoModelForImageClassification",
    "DeiTForImageClassificationWithTeacher": "AutoModelForImageClassification",
    "DeiTForMaskedImageModeling": "AutoModelForMaskedImageModeling",
    "ViTModel": "AutoModel",
    "ViTForImageClassification": "AutoModelForImageClassification",
    "ViTForMaskedImageModeling": "AutoModelForMaskedImageModeling",
}


@pytest.fixture
def folder(tmp_path: Path, tiny_fields: dict[str, Any], redraw: Callable[..., Any]) -> Callable[..., Path]:
    """Writes a folder with a tiny model and its preprocessing, by transformers; keywords are configuration fields."""

    def write(name: str, **fields: Any) -> Path:
        model_class = getattr(transformers, name)
        model = redraw(model_class(model_class.config_class(**{**tiny_fields, **fields})))
        model.save_pretrained(tmp_path / name)
        getattr(transformers, f"{name[:4].rstrip('MF')}ImageProcessor")(**PROCESSING).save_pretrained(tmp_path / name)
        return tmp_path / name

    return write


# --- Auto classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_class_is_the_one_that_transformers_opens(name, folder):
    place = folder(name)
    theirs = getattr(transformers, NAMES[name]).from_pretrained(place)
    ours = getattr(deit, NAMES[name]).from_pretrained(place)
    assert type(ours).__name__ == type(theirs).__name__ == name
    assert type(ours.config) is type(deit.AutoConfig.from_pretrained(place))
    assert type(deit.AutoConfig.from_pretrained(place)).__name__ == type(theirs.config).__name__
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for ours_tensor, theirs_tensor in zip(ours(pixels).to_tuple(), theirs(pixels).to_tuple(), strict=True):
            torch.testing.assert_close(ours_tensor, theirs_tensor, atol=1e-5, rtol=1e-5)


def test_a_bare_model_is_opened_from_a_classifier(folder):
    place = folder("DeiTForImageClassification")
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(place, add_pooling_layer=False)(pixels).last_hidden_state
        ours = deit.AutoModel.from_pretrained(place, add_pooling_layer=False)(pixels).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_fields_can_be_overridden_while_opening(folder):
    place = folder("DeiTForImageClassification")
    model = deit.AutoModelForImageClassification.from_pretrained(
        place, num_labels=3, ignore_mismatched_sizes=True, output_hidden_states=True, trust_remote_code=False
    )
    assert (model.config.num_labels, model.classifier.out_features) == (3, 3)
    assert len(model(torch.zeros(1, 3, 16, 16)).hidden_states) == 3
    config = deit.AutoConfig.from_pretrained(place, num_labels=7, finetuning_task="image-classification")
    assert (config.num_labels, config.hidden_size) == (7, 32)


def test_a_configuration_replaces_that_of_the_folder(folder):
    place = folder("DeiTForImageClassification")
    config = deit.AutoConfig.from_pretrained(place, problem_type="regression")
    model = deit.AutoModelForImageClassification.from_pretrained(place, config=config)
    assert model.config.problem_type == "regression"


@pytest.mark.parametrize("model_type", ["deit", "vit"])
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForImageClassification", "AutoModelForMaskedImageModeling"])
def test_a_configuration_without_architectures_builds_a_model_which_transformers_refuses(model_type, auto, tiny_fields):
    config = deit.AutoConfig.for_model(model_type, **tiny_fields)
    assert config.architectures is None
    if auto == "AutoModelForImageClassification" and model_type == "deit":
        with pytest.raises(TypeError, match="NoneType"):
            transformers.AutoModelForImageClassification.from_config(transformers.DeiTConfig(**tiny_fields))
    model = getattr(deit, auto).from_config(config, attn_implementation="eager", dtype=torch.float64)
    assert type(model).__name__.startswith("DeiT" if model_type == "deit" else "ViT")
    assert not type(model).__name__.endswith("WithTeacher")
    assert model.dtype == torch.float64
    assert model.config.attn_implementation == "eager"


def test_the_mappings_of_the_example_scripts_name_both_model_types():
    for name in ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING"):
        assert [c.model_type for c in getattr(deit, name)] == ["deit", "vit"]
        assert set(getattr(deit, name)) == {deit.DeiTConfig, deit.ViTConfig}


@pytest.mark.parametrize("name", ["VisionTransformerDistilled", "VisionTransformer"])
def test_weights_of_the_original_release_are_opened_without_a_configuration(name, tmp_path, redraw):
    timm = pytest.importorskip("timm")
    module = timm.models.deit if name.endswith("Distilled") else timm.models.vision_transformer
    sizes = {"img_size": 32, "embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 5}
    oracle = redraw(getattr(module, name)(**sizes)).eval()
    torch.save({"model": oracle.state_dict()}, tmp_path / "weights.pth")
    ours = deit.AutoModelForImageClassification.from_pretrained(tmp_path / "weights.pth")
    kinds = {"VisionTransformerDistilled": "DeiTForImageClassificationWithTeacher"}
    assert type(ours).__name__ == kinds.get(name, "ViTForImageClassification")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels).logits, oracle(pixels), atol=1e-5, rtol=1e-5)


def test_other_model_types_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": 9}')
    for open_it in (deit.AutoConfig, deit.AutoModel, deit.AutoModelForImageClassification):
        with pytest.raises(ValueError, match=r"Unknown model type 'swin' in .* Known: deit, vit"):
            open_it.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of no type, for a model of type 'swin'. Known: DeiTImageProcessor"):
        deit.AutoImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Unknown model type 'swin'"):
        deit.AutoConfig.for_model("swin")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no model_type"):
        deit.AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["AutoConfig", "AutoModel", "AutoImageProcessor"])
def test_an_auto_class_is_not_built(name):
    with pytest.raises(TypeError, match=f"{name} is not built directly. Use {name}.from_pretrained"):
        getattr(deit, name)()


@pytest.mark.parametrize("file_type", ["DeiT", "ViT"])
@pytest.mark.parametrize("key", ["image_processor_type", "fast", "feature_extractor_type", "model"])
@pytest.mark.parametrize("choice", [{}, {"use_fast": True}, {"use_fast": False}, {"backend": "pil"}], ids=str)
def test_the_processor_is_found_by_its_file_or_the_models_type(file_type, key, choice, tmp_path):
    types = {
        "image_processor_type": {"image_processor_type": f"{file_type}ImageProcessor"},
        "fast": {"image_processor_type": f"{file_type}ImageProcessorFast"},
        "feature_extractor_type": {"feature_extractor_type": f"{file_type}FeatureExtractor"},
        "model": {},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**types[key], "image_mean": [0.1, 0.2, 0.3]}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": file_type.lower()}))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, **choice)
    ours = deit.AutoImageProcessor.from_pretrained(tmp_path, **choice)
    assert type(ours).__name__ == f"{file_type}ImageProcessor" + ("Fast" if ours.is_fast else "")
    assert ours.backend == theirs.backend
    expected = theirs(rgb(40, 51), return_tensors="np")["pixel_values"]
    assert np.array_equal(ours(rgb(40, 51), return_tensors="np")["pixel_values"], expected)


def test_a_processor_of_another_model_or_backend_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    with pytest.raises(ValueError, match=r"of the type 'CLIPImageProcessor'. Known: DeiTImageProcessor"):
        deit.AutoImageProcessor.from_pretrained(tmp_path)
    deit.DeiTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"backend must be 'torchvision', 'pil' or None. Received: 'numpy'"):
        deit.AutoImageProcessor.from_pretrained(tmp_path, backend="numpy")
    with pytest.raises(TypeError, match=r"Unknown option do_resise. Did you mean do_resize\?"):
        deit.AutoImageProcessor.from_pretrained(tmp_path, do_resise=False)
    processor, unused = deit.AutoImageProcessor.from_pretrained(tmp_path, return_unused_kwargs=True, a=1, size=9)
    assert (unused, processor.size) == ({"a": 1}, {"height": 9, "width": 9})


# --- pipeline("image-classification") -----------------------------------------------------------------


def both(task: str | None, place: Path, **options: Any) -> tuple[Any, Any]:
    task_of_theirs = task or "image-classification"
    return (
        deit.pipeline(task, model=str(place), device="cpu", **options),
        transformers.pipeline(task_of_theirs, model=str(place), device="cpu", **options),
    )


def assert_same_predictions(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys() == {"label", "score"}
        assert ours["label"] == theirs["label"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    else:
        assert type(ours) is type(theirs) is list
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same_predictions(our, their)


@pytest.mark.parametrize(
    "name", ["DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "ViTForImageClassification"]
)
def test_a_classifier_answers_as_in_transformers(name, folder, tmp_path):
    place = folder(name, id2label={0: "cat", 1: "dog", 2: "eel", 3: "fox", 4: "gnu"}, num_labels=5)
    ours, theirs = both("image-classification", place)
    rgb(30, 41).save(tmp_path / "a.png")
    text = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    data = (f"data:image/png;base64,{text}", text, str(tmp_path / "a.png"), rgb(30, 41), photo(30, 41))
    for single in (*data, turned(rgb(30, 41)), mode("L"), mode("P"), mode("CMYK"), mode("1")):
        assert_same_predictions(ours(single), theirs(single))
    assert_same_predictions(ours([rgb(30, 41), rgb(20, 21)]), theirs([rgb(30, 41), rgb(20, 21)]))
    assert_same_predictions(ours(torch.from_numpy(photo(30, 41))), theirs(torch.from_numpy(photo(30, 41))))
    for given in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):  # beyond transformers
        assert_same_predictions(ours(given), theirs(rgb(30, 41)))


@pytest.mark.parametrize("options", [{}, {"top_k": None}, {"top_k": 2}, {"top_k": 99}, {"top_k": 1}], ids=str)
def test_the_best_classes_are_counted_as_in_transformers(options, folder):
    ours, theirs = both("image-classification", folder("DeiTForImageClassification", num_labels=9))
    assert_same_predictions(ours(rgb(30, 41), **options), theirs(rgb(30, 41), **options))
    ours, theirs = both("image-classification", folder("DeiTForImageClassification", num_labels=9), **options)
    assert_same_predictions(ours(rgb(30, 41)), theirs(rgb(30, 41)))


@pytest.mark.parametrize("function", [None, "softmax", "sigmoid", "none", "SoftMax"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_labels": 1},
        {"problem_type": "regression"},
        {"problem_type": "multi_label_classification"},
        {"problem_type": "single_label_classification"},
    ],
    ids=str,
)
def test_the_function_of_the_scores_is_chosen_as_in_transformers(function, fields, folder):
    ours, theirs = both("image-classification", folder("DeiTForImageClassification", **fields))
    given = {"function_to_apply": function}
    assert_same_predictions(ours(rgb(30, 41), **given), theirs(rgb(30, 41), **given))


def test_the_default_function_can_be_named_as_the_documentation_of_transformers_says(folder):
    ours, theirs = both("image-classification", folder("DeiTForImageClassification"))
    with pytest.raises(ValueError, match="default"):
        theirs(rgb(30, 41), function_to_apply="default")
    assert ours(rgb(30, 41), function_to_apply="default") == ours(rgb(30, 41))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_change_no_score(batch_size, folder):
    ours, theirs = both("image-classification", folder("DeiTForImageClassification"), num_workers=0)
    images = [rgb(30, 41), rgb(17, 23), rgb(30, 41), mode("L"), rgb(50, 50)]
    assert_same_predictions(ours(images, batch_size=batch_size, num_workers=0, timeout=3), theirs(images))


def test_a_generator_gives_an_iterator_that_takes_one_batch_at_a_time(folder):
    classify = deit.pipeline(model=folder("DeiTForImageClassification"), device="cpu", batch_size=2)
    taken = []

    def images() -> Iterator[Image.Image]:
        for i in range(5):
            taken.append(i)
            yield rgb(20 + i, 30)

    results = classify(images())
    assert isinstance(results, Iterator)
    assert taken == []
    first = next(results)
    assert taken == [0, 1]
    assert_same_predictions([first, *results], classify([rgb(20 + i, 30) for i in range(5)]))


class Pictures(torch.utils.data.Dataset):
    def __init__(self, wrap: bool) -> None:
        self.wrap = wrap

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        if i >= len(self):
            raise IndexError(i)
        return {"image": rgb(20 + i, 30), "label": i} if self.wrap else rgb(20 + i, 30)


@pytest.mark.parametrize("wrap", [False, True], ids=["images", "dicts"])
def test_a_data_set_gives_an_iterator(wrap, folder):
    ours, theirs = both("image-classification", folder("DeiTForImageClassification"))
    results = ours(Pictures(wrap))
    assert isinstance(results, Iterator)
    assert_same_predictions(list(results), list(theirs(Pictures(False))))


def test_a_model_and_a_processor_can_be_given_as_objects(folder):
    place = folder("DeiTForImageClassification")
    expected = transformers.pipeline("image-classification", model=str(place), device="cpu")(rgb(30, 41))
    model = deit.DeiTForImageClassification.from_pretrained(place).train()
    for processor in (deit.AutoImageProcessor.from_pretrained(place), str(place)):
        assert_same_predictions(deit.pipeline(model=model, image_processor=processor)(rgb(30, 41)), expected)
        assert_same_predictions(deit.pipeline(model=model, feature_extractor=processor)(images=rgb(30, 41)), expected)
    assert not model.training


def test_the_pillow_processor_can_be_chosen(folder):
    place = folder("DeiTForImageClassification")
    classify = deit.pipeline("image-classification", model=place, use_fast=False, device=-1)
    assert classify.image_processor.backend == "pil"
    processor = transformers.DeiTImageProcessorPil.from_pretrained(place)
    theirs = transformers.pipeline("image-classification", model=str(place), image_processor=processor, device=-1)
    assert_same_predictions(classify(rgb(30, 41)), theirs(rgb(30, 41)))


def test_half_precision_answers_in_float32(folder):
    place = folder("DeiTForImageClassification")
    ours, theirs = both("image-classification", place, dtype=torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    for our, their in zip(ours(rgb(30, 41)), theirs(rgb(30, 41)), strict=True):
        assert our["score"] == pytest.approx(their["score"], abs=2e-2)


def test_transparency_is_laid_on_white_which_transformers_drops(folder):
    ours, theirs = both("image-classification", folder("DeiTForImageClassification"))
    clear = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    assert_same_predictions(ours(clear), theirs(Image.new("RGB", (30, 30), "white")))
    assert_same_predictions(theirs(clear), theirs(Image.new("RGB", (30, 30), "red")))


def test_the_task_is_the_one_that_the_model_was_made_for_which_transformers_asks_the_hub(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = folder("DeiTForImageClassificationWithTeacher")
    with pytest.raises(RuntimeError, match="task"):
        transformers.pipeline(model=str(place), device="cpu")
    assert deit.pipeline(model=str(place), device="cpu").task == "image-classification"
    assert deit.pipeline(model=str(folder("ViTModel")), device="cpu").task == "image-feature-extraction"
    with pytest.raises(ValueError, match=r"does not say what it is for .*DeiTForMaskedImageModeling.* Pass task="):
        deit.pipeline(model=str(folder("DeiTForMaskedImageModeling")))


# --- pipeline("image-feature-extraction") -------------------------------------------------------------


@pytest.mark.parametrize("name", ["DeiTModel", "ViTModel", "DeiTForImageClassification"])
@pytest.mark.parametrize("call", [{}, {"pool": True}, {"image_processor_kwargs": {"resample": 2}}], ids=str)
def test_features_are_those_of_transformers(name, call, folder, recwarn):
    if name == "DeiTForImageClassification" and "pool" in call:
        pytest.skip("its pooler would start anew, with random weights")
    ours, theirs = both("image-feature-extraction", folder(name))
    our, their = ours(rgb(30, 41), **call), theirs(rgb(30, 41), **call)
    assert np.shape(our) == np.shape(their)
    np.testing.assert_allclose(our, their, atol=1e-5)
    images = [rgb(30, 41), rgb(20, 21)]
    ours_of_list = ours(images, return_tensors=True, batch_size=2, **call)
    for our, their in zip(ours_of_list, theirs(images, return_tensors=True, **call), strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-5)
        assert not our.is_inference()


def test_a_pooled_output_that_is_not_there_is_a_clear_error(folder):
    model = deit.DeiTModel.from_pretrained(folder("DeiTModel"), add_pooling_layer=False)
    extract = deit.pipeline(model=model, image_processor=deit.DeiTImageProcessorFast(**PROCESSING), pool=True)
    with pytest.raises(ValueError, match=r"DeiTModel has no pooled output. Leave pool=True out"):
        extract(rgb(30, 41))


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "object-detection"}, ValueError, "Unknown task 'object-detection'. Known: image-classification"),
        ({"model": None}, ValueError, "No model was named"),
        ({"function_to_apply": "argmax"}, ValueError, "function_to_apply must be one of softmax, sigmoid, none"),
        ({"top_k": 0}, ValueError, "top_k must be a whole number of at least 1. Received: 0"),
        ({"batch_size": "2"}, ValueError, "batch_size must be a whole number of at least 1. Received: '2'"),
        ({"device": "nowhere"}, ValueError, "Unknown device 'nowhere'"),
        ({"framework": "tf"}, ValueError, "framework must be 'pt'"),
        ({"colour": 1}, TypeError, "colour"),
        ({"pool": True}, TypeError, "pool"),
        ({"model": "/nowhere/at/all"}, FileNotFoundError, "No model directory at /nowhere/at/all"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_used_is_refused(arguments, error, message, folder):
    given = {"task": "image-classification", "model": folder("DeiTForImageClassification"), "device": "cpu"}
    with pytest.raises(error, match=message):
        deit.pipeline(**{**given, **arguments})


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ("http://example.org/a.png", ValueError, "is a web address. Images are not downloaded: download the file"),
        ("https://169.254.169.254/", ValueError, "is a web address"),
        ("nowhere.png", FileNotFoundError, "nowhere.png"),
        ("data:image/png;base64,%%%", ValueError, "neither a path nor base64"),
        (b"no image", ValueError, "the given bytes is not an image"),
        (None, ValueError, "No image was given"),
        (3, ValueError, "Pass an image, a list of images, an iterator or a data set. Received: int"),
        ([3], ValueError, "An image must be a path, bytes.* Received: int"),
        ({"picture": 1}, ValueError, r"A dict needs the key 'image'. Received the keys: \['picture'\]"),
        (np.full((3, 20, 20), np.nan), ValueError, "NaN or infinite"),
        (np.zeros(20, np.uint8), ValueError, "An image needs 3 dimensions"),
    ],
    ids=str,
)
def test_an_input_that_cannot_be_used_is_refused(inputs, error, message, folder):
    classify = deit.pipeline(model=folder("DeiTForImageClassification"), device="cpu")
    with pytest.raises(error, match=message):
        classify(inputs)


def test_a_model_of_another_task_or_without_preprocessing_is_refused(folder):
    place = folder("DeiTModel")
    model = deit.DeiTModel.from_pretrained(place)
    with pytest.raises(ValueError, match="DeiTModel cannot do 'image-classification'"):
        deit.pipeline("image-classification", model=model, image_processor=place)
    with pytest.raises(ValueError, match="The preprocessing is missing: pass image_processor="):
        deit.pipeline("image-feature-extraction", model=model)
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config.json"):
        deit.pipeline("image-feature-extraction", model=place)
