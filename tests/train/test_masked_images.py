"""Masked-image pre-training against transformers, and against formulas written out here."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.processing.image_processor import evaluation_processor
from deit.data.augment import Augmentation, build_transform
from deit.data.readers.image_folder import ImageFiles
from deit.data.sources import ArraySource, WithoutLabels, place_of
from deit.models.deit import DeiTForMaskedImageModeling
from deit.models.vit import ViTForMaskedImageModeling
from deit.runtime.random_state import seeded
from deit.runtime.signals import TrainingInterrupted
from deit.train.loop import fit
from deit.train.recipes.catalog import named_recipe
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Masking, Optimizer, Schedule
from deit.train.students.deit import build_masked_student, build_student
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.masked_images import MaskedImageTask
from deit.train.tasks.reconstructions import varied
from deit.train.teachers.cache import BatchPlace
from tests.train import tiny

MASKING = Masking(patch=8, ratio=0.5, picture_steps=4, pictures=3)


def masked_model(kind: str = "deit", *, seed: int = 0, **fields: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    config_class, model_class = {
        "deit": (DeiTConfig, DeiTForMaskedImageModeling),
        "vit": (ViTConfig, ViTForMaskedImageModeling),
    }[kind]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
             "image_size": tiny.SIDE, "patch_size": 4, "encoder_stride": 4}  # fmt: skip
    return model_class(config_class(**{**sizes, **fields}))


def task(**fields: object) -> MaskedImageTask:
    return MaskedImageTask(masked_model(**fields), tiny.processor(), masking=MASKING, seed=5)


def unlabelled(train: int = 12, val: int = 6):
    data = tiny.data(train, val)
    return type(data)(train=WithoutLabels(data.train), val=WithoutLabels(data.val))


def recipe(**settings: object):
    return tiny.recipe(**{"augment": tiny.PLAIN, "masking": MASKING, "seed": 5, **settings})


# --- the task -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["deit", "vit"])
def test_loss_and_reconstruction_equal_transformers_on_the_same_weights_and_masks(kind, tmp_path):
    ours = MaskedImageTask(masked_model(kind), tiny.processor(), masking=MASKING)
    with torch.no_grad():
        ours.student.deit.trunk.mask_token.normal_() if kind == "deit" else ours.student.vit.trunk.mask_token.normal_()
    ours.student.save_pretrained(tmp_path)
    name = {"deit": "DeiTForMaskedImageModeling", "vit": "ViTForMaskedImageModeling"}[kind]
    theirs = getattr(transformers, name).from_pretrained(tmp_path).eval()
    pixels = torch.randn(3, 3, tiny.SIDE, tiny.SIDE)
    pixels, mask = ours.prepare(pixels, torch.zeros(3), BatchPlace(step=9, part=0, checksums=(0,)))
    expected = theirs(pixels, bool_masked_pos=mask.to(torch.int64))
    ours.eval()
    torch.testing.assert_close(ours(pixels, mask)["loss"], expected.loss, rtol=1e-5, atol=1e-6)
    received = ours.student(pixels, bool_masked_pos=mask).reconstruction
    torch.testing.assert_close(received, expected.reconstruction, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_absolute_error_of_the_hidden_pixels():
    ours = task().eval()
    pixels, mask = ours.prepare(torch.randn(4, 3, 16, 16), torch.zeros(4))
    made = ours.student(pixels, bool_masked_pos=mask).reconstruction
    hidden = mask.reshape(4, 1, 4, 4).numpy().repeat(4, axis=2).repeat(4, axis=3).repeat(3, axis=1)
    by_hand = np.abs(made.detach().numpy() - pixels.numpy())[hidden].mean()
    assert float(ours(pixels, mask)["loss"].detach()) == pytest.approx(by_hand, rel=1e-5)


def test_only_hidden_pixels_carry_gradient():
    ours = task()
    pixels, mask = ours.prepare(torch.randn(2, 3, 16, 16), torch.zeros(2))
    made = []

    def keep(module, inputs, output):
        output.retain_grad()
        made.append(output)

    ours.student.decoder.register_forward_hook(keep)
    ours(pixels, mask)["loss"].backward()
    hidden = mask.reshape(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    assert (made[0].grad[~hidden] == 0).all()
    assert (made[0].grad[hidden] != 0).all()


def test_a_mask_changes_the_output_and_an_empty_one_gives_the_plain_forward():
    model = masked_model().eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        plain = model(pixels).reconstruction
        empty = model(pixels, bool_masked_pos=torch.zeros(2, 16, dtype=torch.bool)).reconstruction
        one = torch.zeros(2, 16, dtype=torch.bool)
        one[:, 3] = True
        masked = model(pixels, bool_masked_pos=one).reconstruction
    assert torch.equal(plain, empty)
    assert not torch.allclose(plain, masked)


def test_processes_that_share_a_step_hide_what_one_would():
    ours = task()
    _, whole = ours.prepare(torch.zeros(6, 3, 16, 16), torch.zeros(6), BatchPlace(step=2, part=0, checksums=(0,)))
    for part in range(3):
        place = BatchPlace(step=2, part=part, checksums=(0,), parts=3)
        _, share = ours.prepare(torch.zeros(2, 3, 16, 16), torch.zeros(2), place)
        assert torch.equal(share, whole[part::3])


@pytest.mark.parametrize("size", [(16, 32), (32, 16)])
def test_images_need_not_be_square(size, tmp_path):
    processor = evaluation_processor(size, crop_ratio=1.0, mean=tiny.MEAN, std=tiny.STD)
    ours = MaskedImageTask(masked_model(image_size=size), processor, masking=MASKING)
    result = fit(ours, unlabelled(), recipe(schedule=Schedule(epochs=1, warmup_epochs=0)), out=tmp_path / "run")
    assert np.isfinite(result.scores["reconstruction"].loss)


# --- a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    ours = task()
    return ours, fit(ours, unlabelled(24, 6), recipe(schedule=Schedule(epochs=10, warmup_epochs=1)), out=out)


def test_a_run_learns_and_leaves_a_model_that_transformers_opens(run):
    ours, result = run
    losses = [row["val_loss"] for row in result.history]
    assert losses[-1] < 0.8 * losses[0]
    assert result.scores["reconstruction"].images == 6
    theirs = transformers.DeiTForMaskedImageModeling.from_pretrained(result.out).eval()
    images = unlabelled(24, 6).val
    pixels = ours.processor([images.image(i) for i in range(6)], return_tensors="pt").pixel_values
    with torch.no_grad():
        loss = theirs(pixels, bool_masked_pos=ours.masks.for_images(range(6)).long()).loss
    assert float(loss) == pytest.approx(losses[-1], rel=1e-4)
    record = json.loads((result.out / "training.json").read_text())
    assert (record["task"], record["data"]["train_images"]) == ("MaskedImageTask", 24)
    assert record["scores"]["reconstruction"] == {"images": 6, "loss": losses[-1]}


def test_pictures_show_original_hidden_and_reconstruction_side_by_side(run):
    ours, result = run
    names = sorted(path.name for path in (result.out / "pictures").iterdir())
    assert names == [f"step-{step:08d}.png" for step in range(4, 61, 4)]
    grid = np.asarray(Image.open(result.out / "reconstruction.png")).astype(int)
    times, top = 96 // 16, len(grid) - (3 * 98 - 2)
    assert grid.shape[1:] == (3 * 98 - 2, 3)
    for column in range(3):  # a heading stands over each
        assert (grid[:top, column * 98 : column * 98 + 96] < 128).any()
    grid = grid[top:]
    images = unlabelled(24, 6).val
    ours.student.eval()
    for row, number in enumerate(varied(images, 3).tolist()):
        cells = [grid[row * 98 : row * 98 + 96 : times, column * 98 : column * 98 + 96 : times] for column in range(3)]
        original = np.asarray(images.image(number)).astype(int)
        assert np.abs(cells[0] - original).max() <= 1
        hidden = ours.masks.for_images([number]).numpy().reshape(4, 4).repeat(4, axis=0).repeat(4, axis=1)
        assert (cells[1][hidden] == 128).all()
        assert (cells[1][~hidden] == cells[0][~hidden]).all()
        assert (cells[2][~hidden] == cells[0][~hidden]).all()
        pixels = ours.processor(images.image(number), return_tensors="pt").pixel_values
        with torch.no_grad():
            made = ours.student(pixels, bool_masked_pos=ours.masks.for_images([number])).reconstruction[0]
        expected = (made.permute(1, 2, 0).numpy() * tiny.STD + tiny.MEAN) * 255
        assert np.abs(cells[2][hidden] - np.clip(expected, 0, 255)[hidden]).max() <= 1


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [
        ([0] * 6 + [1] * 4 + [2] * 2, 3, [3, 8, 11]),  # one of each class
        ([0] * 6 + [1] * 4 + [2] * 2, 5, [1, 7, 10, 4, 9]),  # then another of each
        ([0, 0, 0, 0], 2, [1, 3]),
        ([0, 1], 8, [0, 1]),
        (list(range(10)), 2, [2, 7]),  # more classes than places: over the whole list
    ],
)
def test_pictures_are_of_different_classes(labels, count, expected):
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    source = ArraySource(images, np.array(labels), [str(i) for i in range(10)])
    assert varied(source, count).tolist() == expected


def test_pictures_without_labels_are_of_different_folders(tmp_path):
    for folder, count in (("a", 5), ("b", 3), ("c/d", 1)):
        for i in range(count):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * i, 0, len(folder))).save(tmp_path / folder / f"{i}.png")
    images = ImageFiles(tmp_path)
    folders = [os.path.dirname(place_of(images, int(i))) for i in varied(images, 3)]
    assert sorted(folders) == [str(tmp_path / name) for name in ("a", "b", "c/d")]


def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path):
    long = recipe(
        augment=Augmentation(rand_augment="", erase_rate=0.0, mix_rate=0.0), drop_path_rate=0.2, ema_decay=0.9
    )
    whole = fit(task(), unlabelled(), long, out=tmp_path / "whole", device="cpu")

    def stop(event):
        if event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        fit(task(), unlabelled(), long, out=tmp_path / "cut", device="cpu", on_step=stop)
    again = fit(task(seed=9), unlabelled(), long, out=tmp_path / "cut", device="cpu", resume=True)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.scores == whole.scores
    one, two = ((tmp_path / name / "reconstruction.png").read_bytes() for name in ("whole", "cut"))
    assert one == two


def test_accumulated_parts_give_the_whole_step(tmp_path):
    weights = []
    for accumulate in (1, 2):
        ours = task()
        fit(ours, unlabelled(), recipe(accumulate=accumulate), out=tmp_path / str(accumulate), device="cpu")
        weights.append(torch.cat([p.detach().flatten() for p in ours.student.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


# --- from it to a classifier --------------------------------------------------------------------------


def test_a_classifier_takes_the_trunk_and_reports_what_it_does_not(run):
    _, result = run
    built = build_student(None, ["a", "b", "c"], recipe(), init=result.out)
    assert {name for name, _ in built.report.dropped} == {"decoder.0.bias", "decoder.0.weight", "mask_token"}
    assert {name.split(".")[0] for name, _ in built.report.new} == {"cls_classifier", "distillation_classifier"}
    trunk = load_file(result.out / "model.safetensors")
    query = trunk["deit.encoder.layer.1.attention.attention.query.weight"]
    assert torch.equal(built.model.deit.trunk.blocks[1].attn.qkv.weight[:16], query)
    assert built.processor.channel_mean == pytest.approx(tiny.MEAN)


def test_a_masked_student_goes_on_from_itself_and_from_a_classifier(run, tmp_path):
    _, result = run
    again = build_masked_student(None, recipe(), init=result.out)
    assert (again.report.new, again.report.dropped) == ((), ())
    classifier = tiny.student()
    classifier.config.encoder_stride = 16  # as files say whose patches are of another size
    classifier.save_pretrained(tmp_path)
    tiny.processor().save_pretrained(tmp_path)
    started = build_masked_student(None, recipe(), init=tmp_path)
    assert {name for name, _ in started.report.new} == {"mask_token", "decoder.0.weight", "decoder.0.bias"}
    MaskedImageTask(started.model, started.processor, masking=MASKING)


def test_the_configuration_of_a_variant_can_be_changed():
    name = "deit-digits-distilled-patch8-32"
    model = build_masked_student(name, recipe(), overrides="num_hidden_layers=3,patch_size=4").model
    assert len(model.deit.trunk.blocks) == 3
    assert (model.config.patch_size, model.config.encoder_stride) == (4, 4)


# --- views and recipes --------------------------------------------------------------------------------


def test_views_are_those_of_run_mim():
    """The script composes torchvision; ours draws by timm, so the distributions are compared, and the resizing."""
    simmim = named_recipe("simmim-100").recipe
    settings = simmim.with_settings({"augment.interpolation": "bilinear"}).augment
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    mirrored = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.5, 1.5), "flip_rate": 1.0}
    ours = build_transform(
        Augmentation(**mirrored, interpolation="bilinear", rand_augment="", erase_rate=0.0, mix_rate=0.0),
        (16, 16), tiny.MEAN, tiny.STD,
    )  # fmt: skip
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(16, scale=(1.0, 1.0), ratio=(1.5, 1.5)),
            transforms.RandomHorizontalFlip(1.0),
            transforms.ToTensor(),
            transforms.Normalize(tiny.MEAN, tiny.STD),
        ]
    )
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-6, atol=1e-6)

    crop = transforms.RandomResizedCrop(16, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3))
    our_crop = build_transform(settings, (16, 16), tiny.MEAN, tiny.STD).image_steps[0]
    assert (our_crop.scale, our_crop.ratio) == (crop.scale, crop.ratio)
    with seeded(0):
        drawn = [
            np.array([each.get_params(image, crop.scale, crop.ratio)[2:] for _ in range(1500)], float)
            for each in (crop, our_crop)
        ]
    for values in ([b.prod(1) for b in drawn], [b[:, 1] / b[:, 0] for b in drawn]):
        np.testing.assert_allclose(*(np.quantile(v, [0.1, 0.5, 0.9]) for v in values), rtol=0.04)
    assert (settings.flip_rate, settings.rand_augment, settings.erase_rate, settings.mixes) == (0.5, "", 0.0, False)


@pytest.mark.parametrize("epochs", [100, 800])
def test_the_recipes_are_simmim_s(epochs):
    named = named_recipe(f"simmim-{epochs}")
    recipe = named.recipe
    assert (named.verb, named.top1, recipe.schedule.epochs) == ("pretrain", None, epochs)
    assert (recipe.masking.patch, recipe.masking.ratio) == (32, 0.6)
    assert (recipe.learning_rate(), recipe.optimizer.weight_decay) == (pytest.approx(4e-4), 0.05)
    assert (recipe.optimizer.clip_grad, recipe.schedule.warmup_epochs, recipe.batch_size) == (5.0, 10, 2048)
    assert named.command.startswith("torchrun --nproc-per-node 16 -m deit pretrain DATA --recipe simmim-")


def test_the_fine_tuning_from_masked_images_is_simmim_s():
    """configs/vit_base__800ep/simmim_finetune__vit_base__img224__800ep.yaml; rates there are for 512 images."""
    named = named_recipe("simmim-fine-tune")
    recipe = named.recipe
    assert (named.verb, recipe.schedule.epochs, recipe.schedule.warmup_epochs) == ("train", 100, 20)
    assert recipe.learning_rate() == pytest.approx(1.25e-3 * 2048 / 512)
    assert recipe.schedule.warmup_lr == recipe.schedule.min_lr == pytest.approx(2.5e-7 * 2048 / 512)
    assert (recipe.optimizer.layer_decay, recipe.optimizer.weight_decay, recipe.drop_path_rate) == (0.65, 0.05, 0.1)
    assert (recipe.augment.rand_augment, recipe.augment.mixup_alpha) == ("rand-m9-mstd0.5-inc1", 0.8)
    assert (recipe.augment.cutmix_alpha, recipe.augment.erase_rate) == (1.0, 0.25)
    assert "--init SIMMIM-800" in named.command


# --- bad input ----------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_at_once(tmp_path):
    def of(masking: Masking = MASKING, **fields: object) -> MaskedImageTask:
        return MaskedImageTask(masked_model(**fields), tiny.processor(), masking=masking)

    with pytest.raises(ValueError, match="mask patch 6 is not a multiple of the model's patch size 4"):
        of(Masking(patch=6))
    with pytest.raises(ValueError, match="image size 16 is not a multiple of the mask patch 12"):
        of(Masking(patch=12))
    with pytest.raises(ValueError, match="hide all of the image"):
        of(Masking(patch=16))
    with pytest.raises(ValueError, match="encoder_stride 8 must equal patch_size 4"):
        of(encoder_stride=8)
    with pytest.raises(TypeError, match="Received: DeiTForImageClassificationWithTeacher"):
        MaskedImageTask(tiny.student(), tiny.processor())
    with pytest.raises(ValueError, match="Masked images are not mixed"):
        fit(task(), unlabelled(), recipe(augment=Augmentation(rand_augment="")), out=tmp_path / "run")
    with pytest.raises(ValueError, match="12 of 12 training images have no label, and without a teacher"):
        fit(ClassificationTask(tiny.student(), tiny.processor()), unlabelled(), recipe(), out=tmp_path / "run")
    with pytest.raises(ValueError, match="'depth=3' names no field"):
        build_masked_student("deit-digits-distilled-patch8-32", recipe(), overrides="depth=3")
    with pytest.raises(ValueError, match="A checkpoint has its own architecture"):
        build_masked_student(None, recipe(), init=tmp_path, overrides="num_hidden_layers=3")
    with pytest.raises(ValueError, match=r"masking.ratio must lie between 0 and 1. Received: 1.5"):
        recipe().with_settings({"masking.ratio": 1.5})
    with pytest.raises(ValueError, match="needs a name or a checkpoint"):
        build_masked_student(None, recipe())
    assert not (tmp_path / "run").exists()


def test_an_average_is_drawn_and_saved_where_one_is_kept(tmp_path):
    averaged = recipe(ema_decay=0.5, optimizer=Optimizer(lr=1e-2, reference_batch_size=0))
    result = fit(task(), unlabelled(), averaged, out=tmp_path / "run")
    assert result.history[-1]["ema_loss"] == result.scores["reconstruction"].loss != result.history[-1]["val_loss"]


def test_a_task_that_was_given_nothing_masks_as_the_recipe_says() -> None:
    recipe = Recipe().with_settings({"masking.patch": 8, "masking.ratio": 0.25, "masking.picture_steps": 3, "seed": 7})
    task = MaskedImageTask(masked_model(), tiny.processor())
    assert task.settle(recipe).masking == task.masking == recipe.masking
    assert (task.seed, [file.every for file in task.run_files]) == (7, [3])
    other = MaskedImageTask(masked_model(), tiny.processor(), masking=MASKING, seed=7)
    with pytest.raises(ValueError, match=r"masking\.ratio=0\.25.*given masking\.ratio=0\.5, masking\.picture_steps=4"):
        other.settle(recipe)
