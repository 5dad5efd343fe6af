import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import deit
from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.processing.image_processor import evaluation_processor
from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD
from deit.models.classifier import head_logits
from deit.models.weights.loading import published_tensors
from deit.train.students.deit import build_student
from tests.train import tiny

timm = pytest.importorskip("timm")

DIGITS = "deit-digits-distilled-patch8-32"
TINY, TINY_DISTILLED = "deit-tiny-patch16-224", "deit-tiny-distilled-patch16-224"
CLASSES = ["cat", "dog", "owl"]
ARCHITECTURE = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 256, "image_size": 32,
    "patch_size": 8, "encoder_stride": 8, "layer_norm_eps": 1e-6,
}  # fmt: skip
THIRD = {"layer_scale_init": 1e-4, "pos_embed_prefix": False}
TWO_HEADED, ONE_HEADED = deit.DeiTForImageClassificationWithTeacher, deit.ViTForImageClassification


@pytest.fixture
def checkpoint(redraw):
    """Makes a model of the architecture of the digits variant with large random weights."""

    def make(kind=TWO_HEADED, names=CLASSES, **fields):
        config = ViTConfig if kind.__name__.startswith("ViT") else DeiTConfig
        labels = {} if names is None else {"id2label": dict(enumerate(names))}
        return redraw(kind(config(**{**ARCHITECTURE, **labels, **fields})), std=0.1).eval()

    return make


def saved(model, folder, *, mean=tiny.MEAN, std=tiny.STD):
    model.save_pretrained(folder)
    size = model.config.grid_image_size
    evaluation_processor(size, crop_ratio=1.0, mean=mean, std=std).save_pretrained(folder)
    return folder


def start(init, classes=CLASSES, name=None, **options):
    return build_student(name, classes, tiny.recipe(drop_path_rate=0.1), init=init, **options)


def pixels(height=32, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def heads(model, image=None):
    return head_logits(model.eval(), pixels() if image is None else image)


def assert_same_answers(one, other):
    first, second = heads(one), heads(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def names_of(entries):
    return [entry[0] for entry in entries]


# --- new ----------------------------------------------------------------------------------------------


def test_the_same_seed_builds_the_same_student_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one = build_student(DIGITS, ["a", "b"], tiny.recipe(seed=3, drop_path_rate=0.1))
    two = build_student(DIGITS, ["a", "b"], tiny.recipe(seed=3)).model
    other = build_student(DIGITS, ["a", "b"], tiny.recipe(seed=4)).model
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.parameters(), strict=True))
    assert not torch.equal(two.deit.trunk.pos_embed, other.deit.trunk.pos_embed)
    assert one.model.config.id2label == {0: "a", 1: "b"}
    assert one.processor.output_size == (32, 32)
    assert one.model.config.drop_path_rate == pytest.approx(0.1)
    assert one.report is None


@pytest.mark.parametrize(
    ("name", "expected"), [(TINY, "ViTForImageClassification"), (TINY_DISTILLED, TWO_HEADED.__name__)]
)
def test_a_variant_without_distillation_has_one_head(name, expected):
    model = build_student(name, ["a", "b"], tiny.recipe(), image_size=32).model
    assert type(model).__name__ == expected
    one_head = expected.startswith("ViT")
    assert list(heads(model)) == (["class"] if one_head else ["both", "class", "distillation"])


def test_the_papers_evaluation_resizes_to_256_and_crops_224():
    processor = build_student(TINY_DISTILLED, ["a", "b"], tiny.recipe(crop_ratio=0.875)).processor
    assert processor.size == {"shortest_edge": 256}
    assert processor.crop_size == {"height": 224, "width": 224}
    assert processor.channel_mean == IMAGENET_MEAN


def test_images_need_not_be_square():
    student = build_student(DIGITS, ["a", "b"], tiny.recipe(), image_size=(24, 40))
    assert student.model.config.grid_size == (3, 5)
    assert student.processor.output_size == (24, 40)
    assert heads(student.model, pixels(24, 40))["both"].shape == (2, 2)


@pytest.mark.parametrize("size", [100, (96, 100), (100, 96)])
def test_an_image_size_that_the_patches_do_not_fill_is_refused(size):
    with pytest.raises(ValueError, match=r"image_size 100 is not a multiple of patch_size 16\. Use 96 or 112"):
        build_student(TINY_DISTILLED, ["a", "b"], tiny.recipe(), image_size=size)


def test_an_image_size_that_is_none_is_refused():
    with pytest.raises(TypeError, match="image_size must be an integer or a pair"):
        build_student(DIGITS, ["a"], tiny.recipe(), image_size="large")


def test_neither_name_nor_checkpoint_is_refused():
    with pytest.raises(ValueError, match="needs a name or a checkpoint"):
        build_student(None, ["a"], tiny.recipe())


@pytest.mark.parametrize(
    ("problem_type", "classes"),
    [("multi_label_classification", CLASSES), ("regression", ["age"]), ("single_label_classification", CLASSES)],
)
def test_the_configuration_says_what_kind_of_problem_it_is(problem_type, classes, checkpoint, tmp_path):
    recipe = tiny.recipe().with_settings({"data.problem_type": problem_type})
    init = saved(checkpoint(), tmp_path)
    for student in (build_student(DIGITS, classes, recipe), build_student(None, classes, recipe, init=init)):
        assert student.model.config.problem_type == problem_type
        assert student.model.config.num_labels == len(classes)


def test_regression_of_several_classes_is_refused():
    recipe = tiny.recipe().with_settings({"data.problem_type": "regression"})
    with pytest.raises(ValueError, match=r"Regression predicts one number.*Received: 3"):
        build_student(DIGITS, CLASSES, recipe)


# --- the same again -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TWO_HEADED, ONE_HEADED])
@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize("form", ["folder", "huggingface", "transformers", "timm", "original", "deit"])
def test_a_student_of_the_same_classes_and_size_answers_as_its_checkpoint_to_the_bit(
    kind, third, form, checkpoint, tmp_path
):
    model = checkpoint(kind, **(THIRD if third else {}))
    init = tmp_path
    if form == "folder":
        saved(model, tmp_path)
    elif form == "original":
        init = tmp_path / "checkpoint.pth"
        torch.save({"model": published_tensors(model.state_dict(), form), "epoch": 3}, init)
    else:
        init = tmp_path / "weights.safetensors"
        save_file(published_tensors(model.state_dict(), form), init)
    student = start(init)
    assert type(student.model) is kind
    assert_same_answers(student.model, model)
    assert student.model.config.layer_scale_init == (1e-4 if third else 0.0)
    report = student.report
    assert len(report.loaded) == len(model.state_dict())
    assert (report.resized, report.new, report.dropped) == ((), (), ())


def test_a_folder_of_timm_starts_a_student_of_this_package(tmp_path):
    from timm.models import save_for_hf

    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 48}
    theirs = timm.create_model("deit_tiny_patch16_224", num_classes=3, **sizes).eval()
    config = {"label_names": CLASSES, "model_args": sizes}
    save_for_hf(theirs, str(tmp_path), model_config=config, safe_serialization=True)
    student = start(tmp_path, CLASSES[::-1])
    with torch.no_grad():
        expected = theirs(pixels(48, 48)).flip(1)
    torch.testing.assert_close(heads(student.model, pixels(48, 48))["class"], expected, atol=1e-5, rtol=0)
    assert student.processor.channel_mean == tuple(theirs.pretrained_cfg["mean"])


def test_the_normalization_of_the_checkpoint_is_kept_and_the_crop_is_the_recipes(checkpoint, tmp_path):
    processor = start(saved(checkpoint(), tmp_path), image_size=48).processor
    assert (processor.channel_mean, processor.channel_std) == (tiny.MEAN, tiny.STD)
    assert processor.output_size == (48, 48)


def test_a_weight_file_says_no_normalization_and_the_report_says_what_is_taken(checkpoint, tmp_path):
    save_file(published_tensors(checkpoint().state_dict()), tmp_path / "weights.safetensors")
    student = start(tmp_path / "weights.safetensors")
    assert (student.processor.channel_mean, student.processor.channel_std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert "The checkpoint has no normalization; ImageNet's is used" in student.report.describe()


def test_training_settings_are_the_recipes_and_forward_gives_an_output_object(checkpoint, tmp_path):
    model = checkpoint(drop_path_rate=0.7, return_dict=False, output_attentions=True)
    student = start(saved(model, tmp_path))
    assert student.model.config.drop_path_rate == pytest.approx(0.1)
    assert student.model.deit.trunk.blocks[-1].drop_path.rate == pytest.approx(0.1)
    assert student.model.training
    assert student.model(pixels()).attentions is None


def test_a_half_precision_checkpoint_gives_a_student_in_float32(checkpoint, tmp_path):
    student = start(saved(checkpoint().to(torch.bfloat16), tmp_path))
    assert {parameter.dtype for parameter in student.model.parameters()} == {torch.float32}
    assert student.model.config.dtype is None


def test_the_checkpoint_is_not_changed_by_training_the_student(checkpoint, tmp_path):
    before = saved(checkpoint(), tmp_path).joinpath("model.safetensors").read_bytes()
    student = start(tmp_path)
    for parameter in student.model.parameters():
        parameter.data.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


# --- another resolution -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TWO_HEADED, ONE_HEADED])
@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize("size", [(48, 48), (48, 64), (24, 40), (16, 16)])
def test_a_resized_student_answers_as_its_checkpoint_that_interpolates(kind, third, size, checkpoint, tmp_path):
    model = checkpoint(kind, **(THIRD if third else {}))
    student = start(saved(model, tmp_path), image_size=size)
    with torch.no_grad():
        expected = model(pixels(*size), interpolate_pos_encoding=True).logits
        answer = student.model.eval()(pixels(*size)).logits
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)
    old, new = model.base_model.trunk.pos_embed.shape, student.model.base_model.trunk.pos_embed.shape
    assert student.report.resized == (("pos_embed", tuple(old), tuple(new)),)
    assert "pos_embed" not in names_of(student.report.loaded)
    assert student.model.config.grid_image_size == size


@pytest.mark.parametrize("grid", [(6, 6), (6, 8), (3, 5)])
def test_the_position_embedding_is_resized_as_transformers_does(grid, checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = checkpoint()
    theirs = transformers.DeiTModel.from_pretrained(saved(model, tmp_path), add_pooling_layer=False)
    height, width = grid[0] * 8, grid[1] * 8
    expected = theirs.embeddings.interpolate_pos_encoding(torch.zeros(1, 2 + grid[0] * grid[1], 64), height, width)
    trunk = start(tmp_path, image_size=(height, width)).model.deit.trunk
    torch.testing.assert_close(trunk.pos_embed, expected, atol=1e-6, rtol=0)


def test_a_saved_student_opens_with_the_same_answers(checkpoint, tmp_path):
    student = start(saved(checkpoint(), tmp_path / "one"), ["x", "y"], image_size=(24, 40))
    saved(student.model, tmp_path / "two")
    again = TWO_HEADED.from_pretrained(tmp_path / "two")
    image = pixels(24, 40)
    assert torch.equal(heads(again, image)["both"], heads(student.model, image)["both"])


# --- other classes ------------------------------------------------------------------------------------


def test_the_same_classes_in_another_order_keep_their_rows(checkpoint, tmp_path):
    model = checkpoint()
    student = start(saved(model, tmp_path), ["owl", "cat", "dog"])
    expected = {name: logits[:, [2, 0, 1]] for name, logits in heads(model).items()}
    answers = heads(student.model)
    assert all(torch.allclose(answers[name], expected[name], atol=1e-6) for name in expected)
    assert "The heads keep their classes, reordered to those of the data by name." in student.report.notes
    assert student.report.new == ()


@pytest.mark.parametrize("classes", [["cat", "dog", "bat"], ["cat", "dog"], [*CLASSES, "bat"]])
def test_other_classes_start_both_heads_anew_and_keep_the_trunk(classes, checkpoint, tmp_path):
    model = checkpoint()
    report = (student := start(saved(model, tmp_path), classes)).report
    expected = [f"{head}_classifier.{kind}" for head in ("cls", "distillation") for kind in ("weight", "bias")]
    assert sorted(names_of(report.new)) == sorted(names_of(report.dropped)) == sorted(expected)
    assert dict(report.new)["cls_classifier.weight"] == (len(classes), 64)
    assert dict(report.dropped)["cls_classifier.weight"] == (3, 64)
    trunk, own = model.deit.trunk.state_dict(), student.model.deit.trunk.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in trunk.items())
    assert student.model.cls_classifier.weight.detach().std().item() == pytest.approx(0.02, rel=0.3)
    assert "The classes of the checkpoint are not those of the data: the heads are new." in report.describe()


def test_unnamed_classes_of_the_same_number_are_taken_in_order_and_reported(checkpoint, tmp_path):
    model = checkpoint(names=None, num_labels=3)
    student = start(saved(model, tmp_path))
    assert_same_answers(student.model, model)
    assert any("does not name its 3 classes" in note for note in student.report.notes)


def test_unnamed_classes_of_another_number_start_anew(checkpoint, tmp_path):
    report = start(saved(checkpoint(names=None, num_labels=5), tmp_path)).report
    assert len(report.new) == 4
    assert "The checkpoint has 5 classes and the data has 3: the heads are new." in report.notes


@pytest.mark.parametrize("kind", [deit.DeiTForMaskedImageModeling, deit.ViTForMaskedImageModeling, deit.DeiTModel])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_model_without_classifier_lends_its_trunk(kind, form, checkpoint, tmp_path):
    model = checkpoint(kind)
    init = saved(model, tmp_path) if form == "folder" else tmp_path / "weights.safetensors"
    if form == "file":
        save_file(published_tensors(model.state_dict()), init)
    student = start(init)
    trunk = model.trunk if hasattr(model, "trunk") else model.base_model.trunk
    own = student.model.base_model.trunk.state_dict()
    assert all(torch.equal(trunk.state_dict()[name], tensor) for name, tensor in own.items())
    unused = {"decoder.0.weight", "decoder.0.bias", "mask_token", "pooler.dense.weight", "pooler.dense.bias"}
    assert set(names_of(student.report.dropped)) <= unused
    assert student.report.dropped
    assert "The checkpoint has no classifier." in student.report.notes


# --- with and without distillation token --------------------------------------------------------------


@pytest.mark.parametrize("third", [False, True])
def test_a_distilled_student_of_an_undistilled_checkpoint_starts_with_two_equal_tokens(third, checkpoint, tmp_path):
    model = checkpoint(ONE_HEADED, **(THIRD if third else {}))
    student = start(saved(model, tmp_path), name=DIGITS)
    own, theirs = student.model.deit.trunk, model.vit.trunk
    assert torch.equal(own.dist_token, theirs.cls_token)
    if third:
        assert torch.equal(own.pos_embed, theirs.pos_embed)
        assert "Layer scale and the kind of position embedding are those of the checkpoint" in student.report.describe()
    else:
        assert torch.equal(own.pos_embed[:, [0, *range(2, 18)]], theirs.pos_embed)
        assert torch.equal(own.pos_embed[:, 1], theirs.pos_embed[:, 0])
    answers = heads(student.model)
    torch.testing.assert_close(answers["class"], answers["distillation"], atol=1e-6, rtol=0)
    assert torch.equal(student.model.distillation_classifier.weight, model.classifier.weight)
    notes = " ".join(student.report.notes)
    assert "The distillation token starts as a copy of the class token." in notes
    assert "The distillation head starts as a copy of the class head." in notes
    assert (student.report.new, student.report.dropped) == ((), ())


def test_equal_tokens_part_when_they_learn_from_different_targets(checkpoint, tmp_path):
    student = start(saved(checkpoint(ONE_HEADED), tmp_path), name=DIGITS).model.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    answers = head_logits(student, pixels())
    targets = torch.tensor([0, 1]), torch.tensor([2, 2])
    loss = sum(
        nn.functional.cross_entropy(answers[head], target)
        for head, target in zip(("class", "distillation"), targets, strict=True)
    )
    loss.backward()
    optimizer.step()
    assert not torch.equal(student.deit.trunk.dist_token, student.deit.trunk.cls_token)


def test_a_distilled_student_of_an_undistilled_checkpoint_of_other_classes_has_two_new_heads(checkpoint, tmp_path):
    student = start(saved(checkpoint(ONE_HEADED), tmp_path), ["x", "y"], name=DIGITS)
    assert len(student.report.new) == 4
    assert not torch.equal(student.model.cls_classifier.weight, student.model.distillation_classifier.weight)
    assert names_of(student.report.dropped) == ["classifier.bias", "classifier.weight"]


def small_deit_tiny(kind, redraw):
    config = ViTConfig if kind is ONE_HEADED else DeiTConfig
    fields = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "image_size": 32}
    return redraw(kind(config(**fields, id2label=dict(enumerate(CLASSES)))), std=0.05).eval()


def test_an_undistilled_student_of_a_distilled_checkpoint_leaves_the_distillation_token_behind(redraw, tmp_path):
    model = small_deit_tiny(TWO_HEADED, redraw)
    student = start(saved(model, tmp_path), name=TINY, image_size=32)
    own, theirs = student.model.vit.trunk, model.deit.trunk
    assert torch.equal(own.pos_embed, theirs.pos_embed[:, [0, 2, 3, 4, 5]])
    assert torch.equal(own.cls_token, theirs.cls_token)
    assert torch.equal(student.model.classifier.weight, model.cls_classifier.weight)
    lost = {"dist_token", "distillation_classifier.weight", "distillation_classifier.bias"}
    assert set(names_of(student.report.dropped)) == lost
    assert "The distillation token's position is not used." in student.report.notes


def test_a_named_variant_says_the_resolution_of_the_student(redraw, tmp_path):
    student = start(saved(small_deit_tiny(ONE_HEADED, redraw), tmp_path), name=TINY)
    assert student.processor.output_size == (224, 224)
    assert student.report.resized == (("pos_embed", (1, 5, 192), (1, 197, 192)),)


def test_the_single_head_of_a_deit_becomes_both_heads_of_the_student(checkpoint, tmp_path):
    model = checkpoint(deit.DeiTForImageClassification)
    student = start(saved(model, tmp_path))
    assert type(student.model) is TWO_HEADED
    assert torch.equal(heads(student.model)["class"], heads(model)["class"])
    assert torch.equal(student.model.distillation_classifier.weight, model.classifier.weight)


# --- bad checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_of_another_architecture_is_refused_and_both_are_named(checkpoint, tmp_path):
    saved(checkpoint(), tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors has another architecture than deit-tiny-dis") as error:
        start(tmp_path, name=TINY_DISTILLED)
    for part in ("depth 4 and not 12", "embedding dimension 64 and not 192", "patch size 8 and not 16"):
        assert part in str(error.value)


def test_a_variant_with_layer_scale_cannot_start_from_a_checkpoint_without(tmp_path, checkpoint):
    fields = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_hidden_layers": 12}
    saved(checkpoint(ONE_HEADED, **fields, patch_size=16), tmp_path)
    with pytest.raises(ValueError, match="another architecture than deit3-small-patch16-224: it has no layer scale"):
        start(tmp_path, name="deit3-small-patch16-224")


def test_a_checkpoint_that_lacks_a_block_is_refused(checkpoint, tmp_path):
    saved(checkpoint(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(ValueError, match=r"lacks 12 tensors of the trunk, such as 'blocks\.4"):
        start(tmp_path)


def test_a_checkpoint_whose_configuration_lies_about_its_width_is_refused(checkpoint, tmp_path):
    saved(checkpoint(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(ValueError, match=r"fc1\.weight has the shape 256 x 64 in the checkpoint and 128 x 64"):
        start(tmp_path)


def test_a_checkpoint_whose_configuration_lies_about_its_image_is_refused(checkpoint, tmp_path):
    saved(checkpoint(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_size": 48}))
    with pytest.raises(ValueError, match="has 18 positions; 2 prefix tokens and 6 x 6 patches need 38"):
        start(tmp_path)


def test_a_checkpoint_without_its_keys_is_refused(checkpoint, tmp_path):
    tensors = published_tensors(checkpoint().state_dict())
    save_file({n: t for n, t in tensors.items() if not n.endswith("3.attention.attention.key.weight")},
              tmp_path / "weights.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="lacks some of its query, key and value tensors"):
        start(tmp_path / "weights.safetensors")


def test_a_folder_of_something_else_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="type 'bert'"):
        start(tmp_path)


def test_weights_of_something_else_are_refused(tmp_path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is not a DeiT or ViT of this package: it has 'conv\.weight'"):
        start(tmp_path / "model.safetensors")


def test_a_truncated_file_is_refused(checkpoint, tmp_path):
    file = saved(checkpoint(), tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="may be truncated"):
        start(tmp_path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        start(tmp_path / "nowhere")


def test_a_name_on_the_hub_without_a_network_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="is not in the local cache and HF_HUB_OFFLINE forbids"):
        start("facebook/deit-tiny-patch16-224")


# --- timm ---------------------------------------------------------------------------------------------


@pytest.fixture
def convnet_folder(tmp_path):
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    with torch.no_grad():  # the head starts at zero
        model.get_classifier().weight.normal_()
    save_for_hf(model, str(tmp_path), model_config={"label_names": CLASSES}, safe_serialization=True)
    return model, tmp_path


@pytest.mark.parametrize("name", ["timm/test_resnet", None])
def test_a_convnet_of_timm_goes_on_from_its_folder(name, convnet_folder):
    model, folder = convnet_folder
    student = start(folder, CLASSES[::-1], name=name)
    with torch.no_grad():
        expected = model(pixels()).flip(1)
    torch.testing.assert_close(heads(student.model)["class"], expected, atol=1e-6, rtol=0)
    assert "by name" in student.report.describe()


def test_a_convnet_of_timm_gets_a_new_head_for_other_classes(convnet_folder):
    model, folder = convnet_folder
    student = start(folder, ["x", "y"], name="timm/test_resnet", image_size=64)
    assert names_of(student.report.new) == ["fc.weight", "fc.bias"]
    assert torch.equal(student.model.conv1[0].weight, model.conv1[0].weight)
    assert student.processor.output_size == (64, 64)


def test_a_weight_file_of_timm_starts_its_architecture(convnet_folder, tmp_path):
    model, _ = convnet_folder
    torch.save({"state_dict": model.state_dict()}, tmp_path / "convnet.pth")
    student = start(tmp_path / "convnet.pth", name="timm/test_resnet")
    with torch.no_grad():
        assert torch.equal(student.model.eval()(pixels()), model(pixels()))


def test_another_architecture_of_timm_is_refused_and_both_are_named(convnet_folder):
    with pytest.raises(ValueError, match=r"holds timm's test_resnet, but the student is timm/test_vit"):
        start(convnet_folder[1], name="timm/test_vit")


def test_weights_that_do_not_fit_the_architecture_of_timm_are_refused(convnet_folder):
    with pytest.raises(ValueError, match=r"does not fit the student VisionTransformer: it lacks 'cls_token'"):
        start(convnet_folder[1] / "model.safetensors", name="timm/test_vit")


def test_a_transformer_of_timm_has_its_positions_resized_as_timm_does(tmp_path):
    from timm.layers.pos_embed import resample_abs_pos_embed

    theirs = timm.create_model("test_vit", num_classes=3)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    student = start(tmp_path / "vit.safetensors", name="timm/test_vit", image_size=(96, 128))
    expected = resample_abs_pos_embed(theirs.pos_embed, [6, 8], num_prefix_tokens=1, antialias=False)
    torch.testing.assert_close(student.model.pos_embed, expected, atol=1e-6, rtol=0)
    assert names_of(student.report.resized) == ["pos_embed"]
