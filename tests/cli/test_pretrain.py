"""`deit pretrain`, and what `deit train` makes of its weights, of few labels and of a frozen trunk."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from deit.train.recipes.recipe import Recipe
from tests.cli.conftest import SHORT, VARIANT, deit, is_refused, succeeds
from tests.data.pictures import picture

MASKED = ("--student", VARIANT, "--epochs", 2, "--batch-size", 4, "--set", "masking.patch=8")


@pytest.fixture(scope="module")
def pretrained(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    return out, succeeds("pretrain", photos, *MASKED, "--set", "masking.picture_steps=6", "--out", out).output


def test_a_model_is_trained_without_labels_and_says_so(pretrained):
    out, said = pretrained
    assert "24 training and 12 validation images, without labels." in said
    assert "Hidden: 10 of 16 patches." in said
    assert "reconstruction" in said
    assert (out / "reconstruction.png").is_file()
    assert [path.name for path in sorted((out / "pictures").iterdir())] == ["step-00000006.png", "step-00000012.png"]
    recipe = Recipe.load(out / "recipe.yaml")
    assert (recipe.masking.patch, recipe.augment.crop_scale, recipe.augment.mixes) == (8, (0.67, 1.0), False)


def test_a_folder_without_class_folders_will_do(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(10):
        picture(seed=i).save(tmp_path / "images" / f"{i}.png")
    said = succeeds("pretrain", tmp_path / "images", *MASKED, "--out", tmp_path / "run").output
    assert "8 training and 2 validation images" in said
    is_refused(
        deit("train", tmp_path / "images", "--out", tmp_path / "no"), "Images without labels are for deit pretrain"
    )


def test_a_recipe_for_large_data_is_made_to_fit_small_data(photos, tmp_path):
    options = ("--student", VARIANT, "--image-size", 32, "--epochs", 1, "--out", tmp_path / "run")
    said = succeeds("pretrain", photos, *options).output
    assert "batch_size=8 in place of the recipe's 2048: there are 24 training images (--batch-size chooses" in said
    assert "masking.patch=8 in place of the recipe's 32: the input has 32 x 32 pixels" in said
    recipe = Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert (recipe.batch_size, recipe.masking.patch) == (8, 8)
    succeeds("pretrain", photos, *options, "--resume")
    for option, message in (
        (("--batch-size", 2048), "Pass a batch size of at most 24."),
        (("--set", "masking.patch=32"), "A mask would hide all"),
    ):
        is_refused(deit("pretrain", photos, *options[:-1], tmp_path / "other", *option), message)


def test_a_run_goes_on_and_other_settings_are_refused(photos, pretrained, tmp_path, copied):
    out = copied(pretrained[0])
    settings = (*MASKED, "--set", "masking.picture_steps=6", "--out", out, "--resume")
    (out / "training.json").unlink()  # not finished
    for path in (out / "state").glob("step-*"):
        if path.name == "step-00000012":
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    succeeds("pretrain", photos, *settings)
    first, second = (load_file(folder / "model.safetensors") for folder in (pretrained[0], out))
    assert all(torch.equal(first[name], second[name]) for name in first)
    is_refused(deit("pretrain", photos, *settings, "--set", "masking.ratio=0.5"), "other settings: masking.ratio")


def test_a_classifier_starts_from_it_and_reports_heads_and_decoder(photos, pretrained, tmp_path):
    out = tmp_path / "run"
    layers = ("--set", "optimizer.layer_decay=0.75")
    said = succeeds("train", photos, "--init", pretrained[0], *SHORT, *layers, "--out", out).output
    flat = " ".join(said.split())
    assert "55 tensors taken as they are." in flat
    assert "New: cls_classifier.weight (3 x 64)" in flat
    assert "Not used: decoder.0.bias (192), decoder.0.weight" in flat
    is_refused(deit("classify", pretrained[0], photos), "DeiTForMaskedImageModeling", "no image classifier")


def test_a_linear_probe_leaves_the_trunk_as_it_is(photos, pretrained, tmp_path):
    out = tmp_path / "run"
    succeeds("train", photos, "--init", pretrained[0], "--freeze", "trunk", *SHORT, "--out", out)
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained[0], out))
    trunk = [name for name in after if name.startswith("deit.")]
    assert trunk
    assert all(torch.equal(before[name], after[name]) for name in trunk)


def test_few_labels_alone_and_with_a_teacher_for_the_others(photos, teacher, tmp_path):
    student = ("--student", VARIANT, *SHORT)
    said = succeeds("train", photos, *student, "--labels", "25%", "--batch-size", 2, "--out", tmp_path / "alone").output
    assert "6 training and 12 validation images" in said
    taught = (*student, "--labels", 2, "--teacher", teacher, "--set", "data.labelled_share=0.5")
    said = succeeds("train", photos, *taught, "--out", tmp_path / "taught").output
    assert "24 training (6 with a label, 50% of what is shown) and 12" in " ".join(said.split())
    record = json.loads((tmp_path / "taught" / "training.json").read_text())
    assert (record["data"]["train_images"], record["data"]["train_labels"]) == (24, 6)
    assert record["recipe"]["data"]["labels_per_class"] == 2


def test_the_number_of_images_can_be_limited(photos, tmp_path):
    limits = ("--set", "data.max_train_images=10", "--set", "data.max_val_images=5")
    said = succeeds("train", photos, "--student", VARIANT, *SHORT, *limits, "--out", tmp_path / "run").output
    assert "10 training and 5 validation images" in said
    said = succeeds("pretrain", photos, *MASKED, *limits, "--out", tmp_path / "masked").output
    assert "10 training and 5 validation images" in said


TRAIN_MISTAKES = {
    "a share that leaves a class empty": (
        ("--labels", "1%"),
        "leave class 'blue' without labels: it has 8 training image",
    ),
    "more labels than images": (
        ("--labels", 9),
        "Class 'blue' has 8 training image(s), fewer than the 9 requested labels",
    ),
    "labels of no form": (("--labels", "many"), "--labels must be like 10 (of each class) or 1%. Received: 'many'."),
    "no labels": (("--labels", "0%"), "--labels must be more than none"),
    "more than all labels": (("--labels", "120%"), "data.label_fraction must lie in (0, 1]. Received: 1.2."),
    "both": (("--labels", 3, "--set", "data.label_fraction=0.5"), "not both"),
    "nothing to freeze": (("--freeze", "trunk"), "Pass --init with weights to keep"),
    "a freeze of no form": (("--freeze", "head"), 'freeze must be "trunk", "blocks:N" or empty. Received: \'head\''),
}


@pytest.mark.parametrize("name", TRAIN_MISTAKES)
def test_a_mistake_in_training_with_few_labels_is_one_line(name, photos, tmp_path):
    options, message = TRAIN_MISTAKES[name]
    is_refused(deit("train", photos, "--student", VARIANT, *SHORT, *options, "--out", tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()


PRETRAIN_MISTAKES = {
    "a mask patch that patches do not fill": (
        ("--set", "masking.patch=12"),
        "not a multiple of the model's patch size 8",
    ),
    "an image that blocks do not fill": (
        ("--image-size", 40, "--set", "masking.patch=16"),
        "The image size 40 is not a multiple of the mask patch 16.",
    ),
    "a mask of everything": (("--set", "masking.patch=32"), "A mask would hide all of the image"),
    "a stride that is not the patch": (("--config", "encoder_stride=16"), "encoder_stride 16 must equal patch_size 8"),
    "a field that is none": (("--config", "depth=3"), "'depth=3' names no field of DeiTConfig"),
    "a recipe that mixes": (("--set", "augment.mix_rate=1"), "Masked images are not mixed"),
    "a recipe of deit train": (("--recipe", "deit-tiny"), "deit-tiny is a recipe of deit train"),
    "frozen weights drawn at random": (("--set", "freeze=trunk"), "Pass --init with weights to keep"),
    "fewer labels": (("--set", "data.labels_per_class=2"), "deit pretrain looks at no labels"),
    "a student of timm": (("--student", "timm/resnet18"), "Unknown variant 'timm/resnet18'"),
}


@pytest.mark.parametrize("name", PRETRAIN_MISTAKES)
def test_a_mistake_in_pre_training_is_one_line(name, photos, tmp_path):
    options, message = PRETRAIN_MISTAKES[name]
    is_refused(deit("pretrain", photos, *MASKED, *options, "--out", tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()
