"""A run that two processes began goes on with one, three or four: the same images, each once, and the same weights."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.data.streams.faulty_server import serving
from tests.ranks import run_on_ranks
from tests.train import other_numbers
from tests.train.other_numbers import EPOCHS, KINDS, STOP

NUMBERS = (1, 3, 4)


def seen(run: Path) -> dict[int, list[int]]:
    """Step -> numbers of the images that all processes together learned from, sorted."""
    steps: dict[int, list[int]] = {}
    for line in (run.parent / f"{run.name} saw").read_text().splitlines():
        step, _, *numbers = map(int, line.split())
        steps[step] = sorted(steps.get(step, []) + numbers)
    return steps


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """Runs that were begun by two processes, and went on with other numbers of them."""
    folder = tmp_path_factory.mktemp("numbers")
    other_numbers.write(folder)
    with pytest.MonkeyPatch.context() as patch, serving(folder=folder / "shards") as server:
        patch.setenv("DEIT_CACHE", str(folder / "cache"))
        (folder / "address").write_text(f"{server.address}/{{000..002}}.tar")
        yield trained(folder)


def trained(folder: Path) -> Path:
    ran = run_on_ranks("tests.train.other_numbers", folder, folder, "begun", "begin")
    assert ran.returncode == 0, ran.stderr
    for kind in KINDS:
        for number in NUMBERS:
            for name in ("", " cache"):
                shutil.copytree(folder / f"begun {kind}{name}", folder / f"{number} {kind}{name}")
        other_numbers.train(folder, kind, folder / f"whole {kind}")
        scored = other_numbers.train(folder, kind, folder / f"1 {kind}", resume=True)
        assert scored == len(other_numbers.data(folder, kind).val.labels)
    for number in NUMBERS[1:]:
        ran = run_on_ranks("tests.train.other_numbers", folder, folder, number, "resume", processes=number)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.split() == [word for kind in KINDS for word in (kind, str(scored))]
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_is_seen_once_in_each_epoch_in_the_same_step_by_any_number_of_processes(place, kind) -> None:
    train = other_numbers.data(place, kind).train
    of_training = Counter(
        round(train.image(i).convert("RGB").getpixel((0, 0))[0] / 4) for i in range(len(train.labels))
    )
    repeats = other_numbers.recipe(kind).augment.num_repeats
    whole = seen(place / f"whole {kind}")
    per_epoch = len(whole) // EPOCHS
    assert len(whole) > STOP
    for number in NUMBERS:  # the last step before the stop was not saved, and is done again
        begun, resumed = seen(place / f"begun {kind}"), seen(place / f"{number} {kind}")
        assert list(begun) == list(range(STOP))
        assert list(resumed) == list(range(STOP - 1, len(whole)))
        assert {**begun, **resumed} == whole
    for epoch in range(EPOCHS):
        shown = Counter(n for step in range(epoch * per_epoch, (epoch + 1) * per_epoch) for n in whole[step])
        assert set(shown.values()) == {repeats}
        assert set(shown) <= set(of_training)
        assert sum(shown.values()) == per_epoch * 24


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", NUMBERS)
def test_weights_are_those_of_one_process_that_was_never_stopped(place, number, kind) -> None:
    """Sums are added in another order, so in fp32 not the last bits."""
    expected = load_file(place / f"whole {kind}" / "model.safetensors")
    received = load_file(place / f"{number} {kind}" / "model.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(received[name], weight, atol=1e-5, rtol=0)
