import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deit.data.augment import Augmentation
from deit.train.teachers.batch_norm import check_batch_norm, fold_batch_norms
from tests.train import tiny

timm = pytest.importorskip("timm")


def experienced(model: nn.Module) -> nn.Module:
    """Gives batch norms the statistics and weights of a trained model."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0), (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):  # fmt: skip
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    head.weight.data.normal_(generator=generator)
    return model.eval()


def count_batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/regnety_002", "timm/test_efficientnet", "resnet18"])
def test_a_convnet_without_its_batch_norms_answers_the_same(name):
    library, _, architecture = name.rpartition("/")
    torchvision_models = pytest.importorskip("torchvision").models
    model = timm.create_model(architecture) if library else torchvision_models.get_model(name)
    model = experienced(model)
    pixels = torch.randn(2, 3, 64, 64)
    before = count_batch_norms(model)
    with torch.no_grad():
        expected = model(pixels)
        assert fold_batch_norms(model) == before > 0
        assert count_batch_norms(model) == 0
        torch.testing.assert_close(model(pixels), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


class Shared(nn.Module):
    """Uses what stands before its batch norm twice, so nothing can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.convolution(pixels)
        return self.head((x + self.norm(x)).mean((2, 3)))


class Untraceable(tiny.TinyConvnet):
    """Decides by values."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels if pixels.sum() > 0 else -pixels)


@pytest.mark.parametrize("model", [Shared(), Untraceable(), tiny.TinyConvnet().double()])
def test_what_cannot_be_folded_stays_as_it_is(model):
    model = experienced(model)
    pixels = torch.randn(2, 3, 8, 8).to(next(model.parameters()).dtype)
    with torch.no_grad():
        expected = model(pixels)
        assert fold_batch_norms(model) == 0
        assert torch.equal(model(pixels), expected)


@pytest.mark.parametrize(
    ("settings", "world_size", "message"),
    [
        ({"batch_size": 1}, 1, r"would see one image at a time: the batch size is 1\. Pass 2 or more"),
        ({"batch_size": 4, "accumulate": 4}, 1, r"the batch size is 4, in 4 parts\. Pass 8 or more"),
        ({"batch_size": 2}, 2, r"the batch size is 2, in 2 parts\. Pass 4 or more"),
        ({"batch_size": 2}, 1, None),
        ({"batch_size": 1, "freeze": "trunk"}, 1, None),
    ],
)
def test_batch_norms_that_would_see_one_image_are_refused(settings, world_size, message):
    recipe = tiny.recipe(**settings, augment=Augmentation(mix_rate=0))
    model = timm.create_model("test_resnet", num_classes=3)
    if message is None:
        check_batch_norm(model, recipe, world_size)
    else:
        with pytest.raises(ValueError, match=rf"has \d+ batch norms \(\w+.*{message}"):
            check_batch_norm(model, recipe, world_size)
    check_batch_norm(nn.Linear(1, 1), recipe, world_size)
