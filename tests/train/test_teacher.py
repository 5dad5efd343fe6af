import json
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import get_model, get_model_weights

from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD
from deit.inference.engines.opening import open_engine
from deit.models.timm.models import create_timm
from deit.models.weights.torchvision import processor_from_torchvision
from deit.train.teachers.teacher import Teacher, TeacherEnsemble, match_teacher, open_teacher, open_teachers
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

    model = create_timm("test_resnet", num_classes=2).eval()
    config = {"label_names": ["x", "y"]}
    save_for_hf(model, str(tmp_path), model_config=config, safe_serialization=True)
    teacher = open_teacher(tmp_path)
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(teacher(pixels, mean=teacher.mean, std=teacher.std), model(pixels))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in teacher.model.modules())
    assert teacher.label_names == ["x", "y"]
    plain = Teacher(model, mean=teacher.mean, std=teacher.std, image_size=(160, 160))
    assert teacher.fingerprint() == plain.fingerprint()


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


def test_several_names_open_an_ensemble_and_one_name_a_teacher(tmp_path) -> None:
    for name in ("one", "two"):
        tiny.student(id2label={0: "a", 1: "b", 2: "c"}).save_pretrained(tmp_path / name)
        tiny.processor().save_pretrained(tmp_path / name)
    assert isinstance(open_teachers([tmp_path / "one"]), Teacher)
    ensemble = open_teachers([tmp_path / "one", tmp_path / "two"])
    assert isinstance(ensemble, TeacherEnsemble)
    assert ensemble.name == f"{tmp_path / 'one'} + {tmp_path / 'two'}"
    assert ensemble.label_names == ["a", "b", "c"]


def test_a_published_student_of_this_package_is_looked_up_on_the_hub(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="'facebook/deit-base-distilled-patch16-224' is not in the local cache"):
        open_teacher("deit-base-distilled-patch16-224")


@pytest.mark.parametrize("pickled", [False, True])
def test_a_published_convnet_of_timm_speaks_of_imagenets_classes(monkeypatch, tmp_path, pickled) -> None:
    from timm.models import save_for_hf

    save_for_hf(create_timm("test_resnet"), str(tmp_path), safe_serialization=not pickled)
    monkeypatch.setattr("deit.models.timm.models.local_path", lambda name: tmp_path)  # no network
    names = open_teacher("timm/test_resnet").label_names
    assert names is not None
    assert (len(names), names[0], names[-1]) == (1000, "n01440764", "n15075141")


# --- speed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "regnety_002"])
def test_a_convnet_answers_the_same_in_the_faster_memory_format(name, redraw) -> None:
    model = redraw(create_timm(name, num_classes=5), std=0.1).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixels)
    teacher = Teacher(model, mean=tiny.MEAN, std=tiny.STD)
    convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight[0].numel() > 1)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    answer = teacher(pixels, mean=tiny.MEAN, std=tiny.STD)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=1e-4)


def test_the_logits_can_be_kept_for_a_backward_pass() -> None:
    teacher = Teacher(tiny.TinyConvnet())
    weight = torch.ones(3, requires_grad=True)
    (teacher(torch.randn(2, 3, 8, 8), mean=tiny.MEAN, std=tiny.STD) * weight).sum().backward()
    assert weight.grad is not None


# --- fingerprints -------------------------------------------------------------------------------------


def convnet(seed: int = 0) -> tiny.TinyConvnet:
    torch.manual_seed(seed)
    return tiny.TinyConvnet()


def test_the_fingerprint_is_that_of_all_that_the_answer_follows_from() -> None:
    def change_buffer(model: nn.Module) -> nn.Module:
        model.norm.running_mean[0] = 1.0
        return model

    names = ["a", "b", "c"]
    teachers = [
        Teacher(convnet()),
        Teacher(convnet(1)),
        Teacher(convnet().double()),
        Teacher(change_buffer(convnet())),
        Teacher(convnet(), mean=tiny.MEAN),
        Teacher(convnet(), std=tiny.STD),
        Teacher(convnet(), image_size=(8, 8)),
        Teacher(convnet()).with_classes([0, 2, 1], names),
        Teacher(convnet()).with_classes([0, 2], names[:2]),
    ]
    assert len({teacher.fingerprint() for teacher in teachers}) == len(teachers)
    assert Teacher(convnet(), name="other", label_names=names).fingerprint() == teachers[0].fingerprint()
    assert len(teachers[0].fingerprint()) == 64


def test_the_number_of_heads_is_in_the_fingerprint_for_the_tensors_do_not_tell_it() -> None:
    one, other = (Teacher(tiny.student(seed=0)) for _ in range(2))
    assert one.fingerprint() == other.fingerprint()
    model = tiny.student(seed=0)
    model.config.num_attention_heads = 4
    assert Teacher(model).fingerprint() != one.fingerprint()


def test_the_fingerprint_survives_saving_and_is_computed_once(tmp_path) -> None:
    model = tiny.student()
    model.save_pretrained(tmp_path)
    tiny.processor().save_pretrained(tmp_path)
    teacher = open_teacher(tmp_path)
    fingerprint = teacher.fingerprint()
    assert open_teacher(tmp_path).fingerprint() == fingerprint
    teacher.model.deit.trunk.cls_token.data += 1
    assert teacher.fingerprint() == fingerprint


def test_a_teacher_that_answered_has_the_fingerprint_of_one_that_did_not() -> None:
    teacher = Teacher(convnet())
    teacher(torch.randn(4, 3, 8, 8), mean=tiny.MEAN, std=tiny.STD)
    assert teacher.fingerprint() == Teacher(convnet()).fingerprint()


def test_the_name_of_a_function_stands_for_it() -> None:
    def answer(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))

    assert Teacher(answer, name="mean").fingerprint() == Teacher(answer, name="mean").fingerprint()
    assert Teacher(answer, name="mean").fingerprint() != Teacher(answer, name="mean of 2027").fingerprint()
    with pytest.raises(ValueError, match=r"The teacher is a function.*Pass name= to Teacher"):
        Teacher(answer).fingerprint()


# --- several teachers ---------------------------------------------------------------------------------


def says(logits: list[list[float]], label_names: list[str] | None = None, name: str = "t") -> Teacher:
    return Teacher(lambda pixels: torch.tensor(logits), label_names=label_names, name=name)


def ask(teacher: Teacher | TeacherEnsemble) -> torch.Tensor:
    return teacher(torch.zeros(2, 3, 4, 4), mean=tiny.MEAN, std=tiny.STD)


def test_an_ensemble_says_the_logarithm_of_the_mean_probabilities() -> None:
    one = says([[math.log(2), 0.0, 0.0], [0.0, math.log(6), 0.0]])  # (2, 1, 1) / 4 and (1, 6, 1) / 8
    two = says([[5.0, 5.0, 5.0], [1.0 + math.log(2), 1.0, 1.0]])  # thirds and (2, 1, 1) / 4
    expected = torch.tensor([[5 / 12, 7 / 24, 7 / 24], [5 / 16, 1 / 2, 3 / 16]])
    answer = ask(TeacherEnsemble([one, two]))
    torch.testing.assert_close(answer, expected.log())
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(2))


def test_an_ensemble_of_sure_teachers_stays_finite() -> None:
    answer = ask(TeacherEnsemble([says([[0.0, 1000.0]]), says([[0.0, 900.0]])]))
    assert bool(torch.isfinite(answer).all())
    assert answer[0, 0].item() == pytest.approx(-900 - math.log(2))


def test_the_members_of_an_ensemble_see_their_own_size_and_normalization() -> None:
    models = Recorder(), Recorder()
    members = (
        Teacher(models[0], mean=tiny.MEAN, std=tiny.STD, image_size=(6, 10)),
        Teacher(models[1], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    )
    ask(TeacherEnsemble(members))
    assert models[0].seen.shape == (2, 3, 6, 10)
    means = torch.tensor(tiny.MEAN).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(models[1].seen, means)


def test_an_ensemble_is_moved_and_fingerprinted_as_a_whole() -> None:
    one, two = Teacher(convnet(0)), Teacher(convnet(1))
    ensemble = TeacherEnsemble([one, two])
    assert ensemble.to(torch.device("cpu")) is ensemble
    assert ensemble.fingerprint() == TeacherEnsemble([Teacher(convnet(0)), Teacher(convnet(1))]).fingerprint()
    assert ensemble.fingerprint() not in (one.fingerprint(), TeacherEnsemble([one, one]).fingerprint())


def test_members_that_speak_of_other_classes_are_refused() -> None:
    logits = [[0.0, 1.0]]
    with pytest.raises(ValueError, match="The teachers a and b differ in their classes or the order of classes"):
        ask(TeacherEnsemble([says(logits, ["x", "y"], "a"), says(logits, ["y", "x"], "b")]))
    with pytest.raises(ValueError, match=r"different numbers of classes: \[2, 3\]"):
        ask(TeacherEnsemble([says(logits), says([[0.0, 1.0, 2.0]])]))
    with pytest.raises(ValueError, match="at least one teacher"):
        TeacherEnsemble([])


def test_members_with_other_orders_are_brought_to_the_classes_of_the_data() -> None:
    one = says([[1.0, 2.0, 3.0]], ["a", "b", "c"])
    two = says([[3.0, 1.0, 9.0, 2.0]], ["c", "a", "z", "b"])
    matched = match_teacher(TeacherEnsemble([one, two], name="both"), ["b", "a", "c"], (4, 4))
    assert matched.name == "both"
    assert matched.label_names == ["b", "a", "c"]
    torch.testing.assert_close(ask(matched), torch.log_softmax(torch.tensor([[2.0, 1.0, 3.0]]), 1))


# --- the classes of the data --------------------------------------------------------------------------


def test_a_teacher_of_the_same_classes_is_taken_as_it_is() -> None:
    teacher = Teacher(tiny.TinyConvnet(3), label_names=["a", "b", "c"])
    assert match_teacher(teacher, ["a", "b", "c"], (8, 8)) is teacher


def test_unnamed_classes_of_the_same_number_are_taken_as_they_are() -> None:
    teacher = Teacher(tiny.TinyConvnet(3))
    assert match_teacher(teacher, ["a", "b", "c"], (8, 8)) is teacher


def test_unnamed_classes_of_another_number_are_refused() -> None:
    teacher = Teacher(tiny.TinyConvnet(3), name="t")
    with pytest.raises(ValueError, match="The teacher t has 3 classes without names, and the data has 2") as e:
        match_teacher(teacher, ["a", "b"], (8, 8))
    assert "Train it on this data first: deit train DATA --student timm/NAME --out TEACHER." in str(e.value)


def test_the_columns_of_the_datas_classes_are_picked_by_name(caplog) -> None:
    teacher = says([[0.0, 1.0, 2.0, 3.0]], ["d", "a", "c", "b"])
    with caplog.at_level(logging.WARNING):
        matched = match_teacher(teacher, ["a", "b", "c"], (8, 8))
    assert ask(matched).tolist() == [[1.0, 3.0, 2.0]]
    assert matched.label_names == ["a", "b", "c"]
    assert teacher.label_names == ["d", "a", "c", "b"]
    assert ask(teacher).shape == (1, 4)
    assert [record.getMessage() for record in caplog.records] == [
        "The teacher t has 4 classes. The classes of the data are selected by name."
    ]


def test_columns_are_picked_once_more_from_what_was_picked() -> None:
    teacher = says([[0.0, 1.0, 2.0, 3.0]], ["d", "a", "c", "b"])
    again = match_teacher(match_teacher(teacher, ["a", "b", "c"], (8, 8)), ["c", "a"], (8, 8))
    assert ask(again).tolist() == [[2.0, 1.0]]


def test_case_and_separators_may_differ_and_that_is_said(caplog) -> None:
    teacher = says([[0.0, 1.0, 2.0]], ["Polar Bear", "sea-lion", "cat"])
    with caplog.at_level(logging.WARNING):
        matched = match_teacher(teacher, ["cat", "polar_bear", "Sea Lion"], (8, 8))
    assert ask(matched).tolist() == [[2.0, 0.0, 1.0]]
    assert "selected by name, ignoring case and separators" in caplog.text


def test_the_first_classes_that_a_teacher_does_not_know_are_named() -> None:
    teacher = says([[0.0, 1.0]], ["a", "b"])
    with pytest.raises(
        ValueError, match=r"t, of 2 classes, does not know 5 of the data's 6, .*: 'v', 'w', 'x', \.\.\. Train it"
    ):
        match_teacher(teacher, ["a", "v", "w", "x", "y", "z"], (8, 8))


def test_a_teacher_with_another_number_of_names_than_logits_is_refused() -> None:
    with pytest.raises(ValueError, match="names 3 classes but returns 2 logits"):
        match_teacher(says([[0.0, 1.0]], ["a", "b", "c"]), ["a", "b"], (8, 8))


def test_a_teacher_of_another_size_is_counted_at_its_own() -> None:
    teacher = Teacher(tiny.student(), image_size=(tiny.SIDE, tiny.SIDE), label_names=["a", "b", "c"])
    matched = match_teacher(teacher, ["c", "a"], (24, 40))
    assert matched(torch.zeros(1, 3, 24, 40), mean=tiny.MEAN, std=tiny.STD).shape == (1, 2)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "convnext_tiny"])
def test_the_preprocessing_of_torchvisions_weights_is_torchvisions(name) -> None:
    preset = get_model_weights(name).DEFAULT.transforms()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    ours = processor_from_torchvision(preset)(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(ours, preset(image), atol=1e-5, rtol=0)


def test_a_published_model_of_torchvision_is_a_teacher_and_a_model_to_score(monkeypatch) -> None:
    model = get_model("squeezenet1_1", weights=None)
    monkeypatch.setattr("torchvision.models.get_model", lambda name, weights: model)
    taught, engine = open_teacher("torchvision/squeezenet1_1"), open_engine("torchvision/squeezenet1_1")
    contract = engine.contract
    assert taught.label_names == contract.label_names
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mean, std = contract.processor.channel_mean, contract.processor.channel_std
    answers = torch.from_numpy(engine(pixels.numpy())[contract.head_names[0]])
    torch.testing.assert_close(answers, taught(pixels, mean=mean, std=std), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="torchvision has no model 'resnet10000'"):
        open_engine("torchvision/resnet10000")
