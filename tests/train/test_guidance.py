import numpy as np
import pytest
import torch
from torch import nn

from deit.core.errors import UserError
from deit.runtime.library_order import make_order_safe
from deit.train.loop import fit
from deit.train.recipes.sections import Distillation
from deit.train.tasks.distillation import DistillationTask
from deit.train.tasks.guidance import (
    feature_maps,
    guidance_loss,
    relations,
    stages,
    tokens_of_blocks,
    useful_maps,
)
from deit.train.teachers.teacher import Teacher, TeacherEnsemble
from tests.train import tiny

make_order_safe()
import timm  # noqa: E402  # after torchvision

SETTINGS = Distillation(kind="soft", guidance=10.0)


@pytest.fixture(scope="module")
def convnet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3)


def teacher(model: nn.Module) -> Teacher:
    return Teacher(model, image_size=(64, 64), name="convnet")


def student(**fields: object) -> nn.Module:
    return tiny.student(patch_size=4, encoder_stride=4, num_hidden_layers=4, **fields)


def task(model: nn.Module, settings: Distillation = SETTINGS, **fields: object) -> DistillationTask:
    return DistillationTask(student(**fields), teacher(model), tiny.processor(), distillation=settings)


def relations_by_hand(features: np.ndarray) -> np.ndarray:
    """(C, h, w) -> (P, P)."""
    places = features.reshape(len(features), -1).T
    places = places - places.mean(0)
    return np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in places] for a in places])


def test_relations_are_cosines_of_centered_features() -> None:
    features = torch.randn(2, 5, 3, 2)
    expected = np.stack([relations_by_hand(each) for each in features.double().numpy()])
    np.testing.assert_allclose(relations(features, (3, 2)), expected, atol=1e-5)


def test_features_that_are_turned_scaled_and_shifted_have_the_same_relations() -> None:
    features = torch.randn(2, 5, 3, 3)
    turn, _ = torch.linalg.qr(torch.randn(8, 5))
    other = 3 * torch.einsum("dc,bchw->bdhw", turn, features) + torch.randn(2, 8, 1, 1)
    torch.testing.assert_close(relations(other, (3, 3)), relations(features, (3, 3)), atol=1e-5, rtol=0)


def test_the_loss_compares_each_map_with_the_block_at_its_depth() -> None:
    trunk = student().base_model.trunk  # 4 blocks, 4 x 4 patches
    hidden = [torch.randn(2, 18, 16) for _ in range(5)]
    maps = [torch.randn(2, 7, 8, 8), torch.randn(2, 9, 2, 2), torch.randn(2, 3, 2, 2)]
    averaged = [nn.functional.avg_pool2d(maps[0], 2), *maps[1:]]
    expected = []
    for block, features in zip((1, 2, 3), averaged, strict=True):
        patches = hidden[block][:, 2:].double().numpy().transpose(0, 2, 1).reshape(2, 16, 4, 4)
        if features.shape[-1] == 2:
            patches = patches.reshape(2, 16, 2, 2, 2, 2).mean((3, 5))
        for ours, theirs in zip(patches, features.double().numpy(), strict=True):
            a, b = relations_by_hand(ours).ravel(), relations_by_hand(theirs).ravel()
            expected.append(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    assert guidance_loss(hidden, maps, trunk).item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_equal_features_have_a_finite_gradient() -> None:
    trunk = student().base_model.trunk
    hidden = [torch.ones(2, 18, 16, requires_grad=True) for _ in range(5)]
    guidance_loss(hidden, [torch.randn(2, 7, 4, 4), torch.ones(2, 7, 2, 2)], trunk).backward()
    assert all(each.grad is None or bool(each.grad.isfinite().all()) for each in hidden)


def test_the_maps_are_the_last_of_several_places_and_of_the_view_as_it_is(convnet) -> None:
    assert list(stages(teacher(convnet))) == ["act1", "layer1", "layer2", "layer3", "layer4"]
    pixels = torch.randn(2, 3, 64, 64)
    expected = []
    x = convnet.eval().maxpool(convnet.act1(convnet.bn1(convnet.conv1(pixels))))
    for layer in (convnet.layer1, convnet.layer2, convnet.layer3, convnet.layer4):
        x = layer(x)
        expected.append(x)
    with feature_maps(teacher(convnet)) as maps:
        convnet(pixels)
        convnet(pixels.flip(-1))
    found = useful_maps(maps.values())
    for one, two in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    assert not convnet.layer1._forward_hooks


def test_keeping_tokens_changes_no_logits_and_does_not_need_the_last_block() -> None:
    model, pixels = student().train(), torch.randn(2, 3, 16, 16)
    with tokens_of_blocks(model.base_model.trunk) as tokens:
        logits = model(pixels).logits
    assert torch.equal(logits, model(pixels).logits)
    hidden = model(pixels, output_hidden_states=True).hidden_states
    assert [tuple(each.shape) for each in tokens] == 4 * [(2, 18, 16)]  # of 5
    for one, two in zip(tokens, hidden[:4], strict=True):
        torch.testing.assert_close(one, two)
    assert model.base_model.trunk.kept_tokens is None


def test_a_map_of_one_place_has_no_relations() -> None:
    maps = [torch.randn(1, 2, 4, 4), torch.randn(1, 2, 2, 1), torch.randn(1, 2, 1, 1)]
    assert [tuple(each.shape[-2:]) for each in useful_maps(maps)] == [(4, 4), (2, 1)]


def test_a_batch_adds_the_weighted_loss(convnet) -> None:
    pixels, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    guided, plain = task(convnet), task(convnet, Distillation(kind="soft"))
    losses, others = guided(pixels, labels), plain(pixels, labels)
    assert 0 < losses["guidance_loss"].item() < 2
    assert losses["loss"].item() == pytest.approx(others["loss"].item() + 10 * losses["guidance_loss"].item(), rel=1e-5)
    assert "guidance_loss" not in others


def test_patches_learn_the_relations_of_the_convnet(convnet) -> None:
    guided, pixels, labels = task(convnet), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.AdamW(guided.student.parameters(), lr=2e-3)
    values = []
    for _ in range(60):
        losses = guided(pixels, labels)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        values.append(losses["guidance_loss"].item())
    assert values[-1] < 0.5 * values[0]


def test_a_run_records_the_loss_which_does_not_depend_on_its_parts(convnet, tmp_path) -> None:
    found = []
    for parts in (1, 2):
        recipe = tiny.recipe(distillation=SETTINGS, accumulate=parts, augment=tiny.PLAIN)
        result = fit(task(convnet), tiny.data(), recipe, out=tmp_path / str(parts), device="cpu")
        found.append([row["train_guidance_loss"] for row in result.history])
    assert len(set(found[0])) == 3
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: Teacher(tiny.TinyConvnet(), name="mine"), "one convnet of timm as teacher. Received: mine"),
        (lambda net: Teacher(lambda pixels: pixels[:, :, 0, 0], name="f"), "Received: f"),
        (lambda net: TeacherEnsemble([teacher(net), teacher(net)]), r"Received: convnet \+ convnet"),
        (lambda net: Teacher(timm.create_model("test_vit", num_classes=3), name="vit"), "Received: vit"),
    ],
)
def test_other_teachers_are_refused(convnet, tmp_path, make, message) -> None:
    guided = DistillationTask(student(), make(convnet), tiny.processor())
    with pytest.raises(UserError, match=message):
        fit(guided, tiny.data(), tiny.recipe(distillation=SETTINGS), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_guided_is_refused(convnet, tmp_path) -> None:
    recipe = tiny.recipe(distillation=SETTINGS)
    options = {"out": tmp_path / "run", "device": "cpu"}
    with pytest.raises(UserError, match="which no cache holds"):
        fit(task(convnet), tiny.data(), recipe, teacher_cache=tmp_path / "cache", **options)
    merging = task(convnet, token_merging={"r": 1})
    with pytest.raises(UserError, match="token_merging merges them"):
        fit(merging, tiny.data(), recipe.with_settings({"token_merging": 1}), **options)
    with pytest.raises(UserError, match="guidance must be at least 0"):
        Distillation(guidance=-1)
    assert not (tmp_path / "run").exists()
