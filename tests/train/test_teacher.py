import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD
from deit.models.classifier import head_logits
from deit.train.students import build_student
from deit.train.teacher import Teacher, check_teacher, open_teacher
from tests.train import tiny


class Recorder(nn.Module):
    """Keeps what it was shown."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen = pixels
        return pixels.mean((2, 3))


def test_a_teacher_sees_pixels_in_its_own_normalization() -> None:
    image = torch.rand(2, 3, 8, 8)  # in [0, 1]

    def normalized(mean, std):
        return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    model = Recorder()
    Teacher(model, mean=IMAGENET_MEAN, std=IMAGENET_STD)(normalized(tiny.MEAN, tiny.STD), mean=tiny.MEAN, std=tiny.STD)
    torch.testing.assert_close(model.seen, normalized(IMAGENET_MEAN, IMAGENET_STD), atol=1e-6, rtol=1e-6)


def test_a_teacher_with_the_students_normalization_sees_the_very_same_pixels() -> None:
    model, pixels = Recorder(), torch.randn(1, 3, 8, 8)
    Teacher(model, mean=tiny.MEAN, std=tiny.STD)(pixels, mean=tiny.MEAN, std=tiny.STD)
    assert model.seen is pixels


def test_a_teacher_of_another_size_sees_the_image_resized() -> None:
    model, pixels = Recorder(), torch.randn(1, 3, 8, 8)
    Teacher(model, mean=tiny.MEAN, std=tiny.STD, image_size=(12, 20))(pixels, mean=tiny.MEAN, std=tiny.STD)
    expected = F.interpolate(pixels, size=(12, 20), mode="bicubic", antialias=True)
    assert torch.equal(model.seen, expected)


def test_any_function_can_teach() -> None:
    teacher = Teacher(lambda pixels: pixels.flatten(1)[:, :2], mean=tiny.MEAN, std=tiny.STD)
    pixels = torch.randn(3, 3, 4, 4)
    assert torch.equal(teacher(pixels, mean=tiny.MEAN, std=tiny.STD), pixels.flatten(1)[:, :2])


def test_a_function_that_gives_no_logits_is_refused() -> None:
    with pytest.raises(TypeError, match="must return logits"):
        Teacher(lambda pixels: pixels)(torch.zeros(1, 3, 4, 4), mean=tiny.MEAN, std=tiny.STD)


def test_a_teacher_is_frozen_and_stays_in_evaluation_mode() -> None:
    model = tiny.TinyConvnet().train()
    teacher = Teacher(model)
    assert not any(p.requires_grad for p in model.parameters())
    model.train()  # someone meddles
    before = {k: v.clone() for k, v in model.state_dict().items()}
    logits = teacher(torch.randn(4, 3, 8, 8), mean=tiny.MEAN, std=tiny.STD)
    assert not model.training
    assert not logits.requires_grad
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_two_headed_teacher_speaks_with_the_mean_of_its_heads(tmp_path) -> None:
    model = tiny.student(id2label={0: "a", 1: "b", 2: "c"}).eval()
    model.save_pretrained(tmp_path)
    tiny.processor().save_pretrained(tmp_path)
    teacher = open_teacher(tmp_path)
    pixels = torch.randn(2, 3, tiny.SIDE, tiny.SIDE)
    with torch.no_grad():
        torch.testing.assert_close(teacher(pixels, mean=tiny.MEAN, std=tiny.STD), model(pixels).logits)
    assert teacher.label_names == ["a", "b", "c"]
    assert (teacher.mean, teacher.image_size) == (tiny.MEAN, (tiny.SIDE, tiny.SIDE))


def test_a_timm_folder_can_teach(tmp_path) -> None:
    from timm.models import save_for_hf

    model, _ = build_student("timm/test_resnet", ["x", "y"], tiny.recipe())
    model.eval()
    config = {"label_names": ["x", "y"]}
    save_for_hf(model, str(tmp_path), model_config=config, safe_serialization=True)
    teacher = open_teacher(tmp_path)
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(teacher(pixels, mean=teacher.mean, std=teacher.std), model(pixels))


def test_an_unknown_timm_name_is_refused() -> None:
    with pytest.raises(ValueError, match="timm cannot build 'resnet10000'"):
        open_teacher("timm/resnet10000")


def test_an_unknown_torchvision_name_is_refused() -> None:
    with pytest.raises(ValueError, match="torchvision has no model 'resnet10000'"):
        open_teacher("torchvision/resnet10000")


def test_published_weights_without_a_network_are_one_clear_error(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"published weights of timm/test_resnet\.r160_in1k cannot be fetched"):
        open_teacher("timm/test_resnet.r160_in1k")


def test_a_missing_folder_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="No teacher at"):
        open_teacher(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model type 'bert'"):
        open_teacher(tmp_path)


def test_a_teacher_of_other_classes_is_refused() -> None:
    teacher = Teacher(tiny.TinyConvnet(3), name="t")
    check_teacher(teacher, ["a", "b", "c"], (8, 8))
    with pytest.raises(ValueError, match="The teacher t has 3 classes and the data has 2"):
        check_teacher(teacher, ["a", "b"], (8, 8))


def test_a_teacher_with_the_classes_in_another_order_is_refused() -> None:
    teacher = Teacher(tiny.TinyConvnet(3), label_names=["a", "c", "b"])
    with pytest.raises(ValueError, match="its 'c' stands where the data has 'b'"):
        check_teacher(teacher, ["a", "b", "c"], (8, 8))


def test_the_same_seed_builds_the_same_student_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, processor = build_student("deit-digits-distilled-patch8-32", ["a", "b"], tiny.recipe(seed=3))
    two, _ = build_student("deit-digits-distilled-patch8-32", ["a", "b"], tiny.recipe(seed=3))
    other, _ = build_student("deit-digits-distilled-patch8-32", ["a", "b"], tiny.recipe(seed=4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.deit.trunk.pos_embed, other.deit.trunk.pos_embed)
    assert one.config.id2label == {0: "a", 1: "b"}
    assert processor.output_size == (32, 32)
    assert one.config.drop_path_rate == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deit-tiny-patch16-224", "ViTForImageClassification"),
        ("deit-tiny-distilled-patch16-224", "DeiTForImageClassificationWithTeacher"),
    ],
)
def test_a_variant_without_distillation_has_one_head(name: str, expected: str) -> None:
    model, _ = build_student(name, ["a", "b"], tiny.recipe(), image_size=32)
    assert type(model).__name__ == expected
    assert list(head_logits(model.eval(), torch.zeros(1, 3, 32, 32))) == (
        ["class"] if expected.startswith("ViT") else ["both", "class", "distillation"]
    )


def test_the_papers_evaluation_resizes_to_256_and_crops_224() -> None:
    _, processor = build_student("deit-tiny-distilled-patch16-224", ["a", "b"], tiny.recipe(crop_ratio=0.875))
    assert processor.size == {"shortest_edge": 256}
    assert processor.crop_size == {"height": 224, "width": 224}
    np.testing.assert_allclose(processor.image_mean, IMAGENET_MEAN)


def test_an_image_size_that_the_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size 100 is not a multiple of patch_size 16\. Use 96 or 112"):
        build_student("deit-tiny-distilled-patch16-224", ["a"], tiny.recipe(), image_size=100)
