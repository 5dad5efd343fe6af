"""Cached teachers: records by hand, replay batch for batch, and everything that is refused."""

import dataclasses
import json
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deit.data.augment import Augmentation
from deit.train.loop import fit
from deit.train.recipes.sections import Distillation
from deit.train.tasks.distillation import DistillationTask
from deit.train.teachers.cache import BatchPlace, TeacherCache
from deit.train.teachers.records import HardRecords, SoftRecords
from deit.train.teachers.teacher import Teacher
from tests.train import tiny

MIXED = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0, num_repeats=2)
PLACE = BatchPlace(step=3, part=0, checksums=(99,))


class CountingConvnet(tiny.TinyConvnet):
    """A teacher that knows how often it was asked."""

    asked = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return super().forward(pixels)


def teacher(seed: int = 1) -> Teacher:
    torch.manual_seed(seed)
    return Teacher(CountingConvnet(), mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0), image_size=(8, 8), name="tiny")


def task(distillation: Distillation, teach: Teacher | None, *, seed: int = 0) -> DistillationTask:
    return DistillationTask(tiny.student(seed=seed), teach, tiny.processor(), distillation=distillation)


def recipe(distillation: Distillation, **settings: object):
    return tiny.recipe(
        **{"augment": MIXED, "ema_decay": 0.9, "drop_path_rate": 0.1, "distillation": distillation, **settings}
    )


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


# --- records -----------------------------------------------------------------------------------------


def test_a_hard_record_takes_two_bytes_for_each_view_and_four_above_65536_classes() -> None:
    logits = torch.zeros(3, 65_536)
    logits[[0, 1, 2], [65_535, 0, 300]] = 1
    record = HardRecords(65_536).encode(logits)
    assert record == np.array([65_535, 0, 300], "<u2").tobytes()
    assert HardRecords(65_536).decode(record).tolist() == [65_535, 0, 300]
    many = torch.zeros(1, 65_537)
    many[0, 65_536] = 1
    record = HardRecords(65_537).encode(many)
    assert len(record) == 4
    assert HardRecords(65_537).decode(record).tolist() == [65_536]


def test_a_soft_record_of_few_classes_is_exact() -> None:
    logits = torch.randn(4, 10) * 7
    records = SoftRecords(10, top_k=100, temperature=3.0)
    assert records.bytes_per_view == 40
    assert torch.equal(records.decode(records.encode(logits)), logits)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_sparse_record_keeps_the_largest_probabilities_and_spreads_the_rest(temperature) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 1000) * 4 + 30
    records = SoftRecords(1000, top_k=20, temperature=temperature)
    assert records.bytes_per_view == 20 * 2 + 20 * 2 + 2
    decoded = records.decode(records.encode(logits))
    truth, kept = (logits / temperature).softmax(1), (decoded / temperature).softmax(1)
    top = truth.topk(20, dim=1).indices
    torch.testing.assert_close(kept.gather(1, top), truth.gather(1, top), rtol=0.01, atol=1e-5)  # fp16 logits
    rest = kept.scatter(1, top, 0)
    torch.testing.assert_close(rest.sum(1), truth.scatter(1, top, 0).sum(1), rtol=0.01, atol=1e-5)
    others = rest[rest > 0].view(5, -1)
    torch.testing.assert_close(others, others[:, :1].expand_as(others))  # the same for every other class
    assert torch.equal(decoded.argmax(1), logits.argmax(1))


def test_the_record_of_a_batch_by_hand(tmp_path) -> None:
    cache = TeacherCache(tmp_path / "cache", {"teacher": "t"}, HardRecords(3), batch_size=2, units=2)
    cache.write(BatchPlace(step=1, part=1, checksums=(7,)), torch.tensor([[0.0, 0.0, 5.0], [0.0, 1.0, 0.0]]))
    payload = np.array([2, 1], "<u2").tobytes()
    own = zlib.crc32(payload, zlib.crc32(np.array([7, 1, 1], "<u4").tobytes()))
    expected = bytes(3 * 12) + np.array([7, own], "<u4").tobytes() + payload  # the fourth record of 8 + 4 bytes
    assert (tmp_path / "cache" / "records.bin").read_bytes() == expected
    assert cache.read(BatchPlace(step=1, part=0, checksums=(7,))) is None
    assert cache.read(BatchPlace(step=9, part=0, checksums=(7,))) is None


def test_a_damaged_or_half_written_record_counts_as_missing_and_is_told(tmp_path, caplog) -> None:
    cache = TeacherCache(tmp_path / "cache", {"teacher": "t"}, HardRecords(3), batch_size=2)
    cache.write(PLACE, torch.eye(3)[:2])
    assert cache.read(PLACE).tolist() == [0, 1]
    file = tmp_path / "cache" / "records.bin"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert cache.read(PLACE) is None
    file.write_bytes(content[:-3])
    assert cache.read(PLACE) is None
    assert caplog.text.count("is damaged") == 1


def test_other_views_than_the_teacher_saw_are_refused(tmp_path) -> None:
    cache = TeacherCache(tmp_path / "cache", {"teacher": "t"}, HardRecords(3), batch_size=2)
    cache.write(PLACE, torch.eye(3)[:2])
    with pytest.raises(ValueError, match="views of step 3 are not those"):
        cache.read(dataclasses.replace(PLACE, checksums=(100,)))


# --- runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "distillation",
    [
        Distillation(kind="hard"),
        Distillation(kind="soft", temperature=3.0),
        Distillation(kind="soft", temperature=3.0, cache_top_k=2),
    ],
    ids=["hard", "soft", "sparse"],
)
def test_a_cached_run_equals_the_uncached_one_and_asks_nobody(tmp_path, distillation) -> None:
    """Augmentation, repeats, Mixup, CutMix, dropout, EMA: the same weights, whichever student recorded."""
    settings = recipe(distillation)
    steps = 9
    recording = teacher()
    fit(
        task(distillation, recording, seed=5), tiny.data(), settings, out=tmp_path / "other student", device="cpu",
        teacher_cache=tmp_path / "cache",
    )  # fmt: skip
    assert recording.model.asked == steps
    replaying = teacher()
    fit(
        task(distillation, replaying), tiny.data(), settings, out=tmp_path / "cached", device="cpu",
        teacher_cache=tmp_path / "cache",
    )  # fmt: skip
    assert replaying.model.asked == 0
    fit(  # no teacher at all
        task(distillation, None), tiny.data(), settings, out=tmp_path / "alone", device="cpu",
        teacher_cache=tmp_path / "cache",
    )  # fmt: skip
    assert same(weights(tmp_path / "cached"), weights(tmp_path / "alone"))
    record = json.loads((tmp_path / "alone" / "training.json").read_text())
    assert record["teacher"] == "tiny"
    fit(task(distillation, teacher()), tiny.data(), settings, out=tmp_path / "asked", device="cpu")
    if (
        distillation.kind == "soft" and distillation.cache_top_k < 3
    ):  # one of three logits is not kept: close, not equal
        one, two = weights(tmp_path / "cached"), weights(tmp_path / "asked")
        assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-3
    else:
        assert same(weights(tmp_path / "cached"), weights(tmp_path / "asked"))
    views = 4
    size = (tmp_path / "cache" / "records.bin").stat().st_size
    bytes_per_view = {"hard": 2, "soft": 12 if distillation.cache_top_k > 3 else 10}[distillation.kind]
    assert size == steps * views * (8 + bytes_per_view)  # a step has four units here


def test_a_half_filled_cache_asks_for_what_is_missing_or_says_so(tmp_path) -> None:
    hard = Distillation(kind="hard")
    short, long = (recipe(hard, schedule=tiny.Schedule(epochs=n, warmup_epochs=1)) for n in (1, 3))
    fit(task(hard, teacher()), tiny.data(), short, out=tmp_path / "short", device="cpu", teacher_cache=tmp_path / "c")
    with pytest.raises(ValueError, match=r"nothing about step 3. Pass the teacher"):
        fit(task(hard, None), tiny.data(), long, out=tmp_path / "a", device="cpu", teacher_cache=tmp_path / "c")
    asked = teacher()
    fit(task(hard, asked), tiny.data(), long, out=tmp_path / "b", device="cpu", teacher_cache=tmp_path / "c")
    assert asked.model.asked == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0, now 1"),
        ({"batch_size": 6}, "batch_size 4, now 6"),
        ({"augment": dataclasses.replace(MIXED, erase_rate=0.5)}, "augment "),
        ({"distillation": Distillation(kind="soft")}, 'kind "hard", now "soft"'),
    ],
    ids=["seed", "batch", "augmentation", "kind"],
)
def test_a_cache_of_another_training_is_refused(tmp_path, change, message) -> None:
    hard = Distillation(kind="hard")
    fit(
        task(hard, teacher()), tiny.data(), recipe(hard), out=tmp_path / "run", device="cpu",
        teacher_cache=tmp_path / "cache",
    )  # fmt: skip
    other = recipe(change.pop("distillation", hard), **change)
    with pytest.raises(ValueError, match=message):
        fit(
            task(other.distillation, teacher()), tiny.data(), other, out=tmp_path / "other", device="cpu",
            teacher_cache=tmp_path / "cache",
        )  # fmt: skip
    assert not (tmp_path / "other").exists()


def test_a_cache_of_another_teacher_or_other_images_is_refused(tmp_path) -> None:
    hard = Distillation(kind="hard")
    cache = tmp_path / "cache"
    fit(task(hard, teacher()), tiny.data(), recipe(hard), out=tmp_path / "run", device="cpu", teacher_cache=cache)
    with pytest.raises(ValueError, match="a teacher with other weights"):
        fit(task(hard, teacher(2)), tiny.data(), recipe(hard), out=tmp_path / "b", device="cpu", teacher_cache=cache)
    with pytest.raises(ValueError, match="other training images"):
        fit(task(hard, teacher()), tiny.data(14), recipe(hard), out=tmp_path / "b", device="cpu", teacher_cache=cache)


def test_a_folder_that_is_no_cache_and_a_missing_teacher_are_refused(tmp_path) -> None:
    hard = Distillation(kind="hard")
    with pytest.raises(ValueError, match=r"no teacher cache in .* Pass the teacher as well"):
        fit(task(hard, None), tiny.data(), recipe(hard), out=tmp_path / "a", device="cpu", teacher_cache=tmp_path / "c")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        fit(
            task(hard, teacher()), tiny.data(), recipe(hard), out=tmp_path / "a", device="cpu",
            teacher_cache=tmp_path / "c",
        )  # fmt: skip
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "header.json").write_text("{")
    with pytest.raises(ValueError, match=r"header.json is damaged"):
        fit(
            task(hard, teacher()), tiny.data(), recipe(hard), out=tmp_path / "a", device="cpu",
            teacher_cache=tmp_path / "d",
        )  # fmt: skip


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch) -> None:
    cache = TeacherCache(tmp_path / "cache", {"teacher": "t"}, HardRecords(3), batch_size=2)
    monkeypatch.setattr("os.pwrite", lambda file, data, offset: len(data) // 2)
    with pytest.raises(OSError, match="the disk is full"):
        cache.write(PLACE, torch.eye(3)[:2])


def test_a_teacher_that_sees_mirror_images_too_says_the_mean_of_its_probabilities(tmp_path) -> None:
    """The teacher's logits are the left column of the pixels."""
    left = Teacher(lambda pixels: pixels[:, 0, :3, 0] * 4, mean=tiny.MEAN, std=tiny.STD, name="left")
    pixels = torch.randn(2, 3, 16, 16)
    settings = Distillation(kind="soft", flip_teacher=True)
    answers = task(settings, left).prepare(pixels, torch.tensor([0, 1]))[2]
    odds = [np.exp(4 * pixels[:, 0, :3, column].double().numpy()) for column in (0, -1)]
    mean = sum(each / each.sum(1, keepdims=True) for each in odds) / 2
    np.testing.assert_allclose(answers.exp(), mean, rtol=1e-5)
    for turn in ("recorded", "read"):
        fit(
            task(settings, teacher() if turn == "recorded" else None), tiny.data(), recipe(settings),
            out=tmp_path / turn, device="cpu", teacher_cache=tmp_path / "cache",
        )  # fmt: skip
    assert same(weights(tmp_path / "recorded"), weights(tmp_path / "read"))
    once = Distillation(kind="soft")
    with pytest.raises(ValueError, match="flip_teacher"):
        fit(
            task(once, teacher()), tiny.data(), recipe(once), out=tmp_path / "once", device="cpu",
            teacher_cache=tmp_path / "cache",
        )  # fmt: skip
