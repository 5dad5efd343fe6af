"""Images that become unreadable during a run: what stands in their place, what is told, and when the run stops."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from deit.core.images.reading import ImageError
from deit.data.sources import Data, Source
from deit.runtime.signals import TrainingInterrupted
from deit.train.loop import fit
from deit.train.recipes.sections import DataOptions
from deit.train.run.state import load_state
from deit.train.tasks.classification import ClassificationTask
from tests.train import tiny


class Fading:
    """A source of which some images cannot be read from some call on."""

    def __init__(self, source: Source, broken: tuple[int, ...], *, after: int = 0) -> None:
        self._source, self._broken, self._calls, self._after = source, broken, 0, after
        self.classes, self.labels, self.problem_type = source.classes, source.labels, source.problem_type

    def image(self, index: int) -> Image.Image:
        self._calls += 1
        if index in self._broken and self._calls > self._after:
            raise ImageError(f"photos/{index}.png cannot be read as an image.")
        return self._source.image(index)

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def fading(train: tuple[int, ...] = (), val: tuple[int, ...] = (), after: int = 0) -> Data:
    data = tiny.data()
    return Data(train=Fading(data.train, train, after=after), val=Fading(data.val, val))


def run(out: Path, data: Data, *, options: DataOptions | None = None, **given: Any) -> Any:
    task = ClassificationTask(tiny.student(), tiny.processor(), label_smoothing=0.0)
    return fit(
        task, data, tiny.recipe(data=options or DataOptions(), label_smoothing=0.0), out=out, device="cpu", **given
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_images_that_become_unreadable_are_left_out_and_counted(tmp_path, caplog) -> None:
    result = run(tmp_path / "run", fading(train=(3, 7), val=(1,)))
    assert result.steps == 9
    record = json.loads((tmp_path / "run" / "training.json").read_text())["data"]
    assert record["train_images"] == 12
    assert record["train_images_left_out"] == [f"photos/{i}.png cannot be read as an image." for i in (3, 7)]
    assert record["val_images_left_out"] == 1
    assert {scores.images for scores in result.scores.values()} == {5}
    told = [line for line in caplog.messages if line.startswith("Left out of training from step ")]
    assert len(told) == 2  # each once, although they come in every epoch
    assert sum("Left out of the scores: 1 image(s), such as: photos/1.png" in line for line in caplog.messages) == 3


@pytest.mark.parametrize("stop_after", [1, 5])
def test_a_run_with_unreadable_images_goes_on_to_the_same_bits_and_remembers_them(tmp_path, stop_after) -> None:
    run(tmp_path / "whole", fading(train=(3, 7)))

    def stop(event: Any) -> None:
        if event.step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "run", fading(train=(3, 7)), on_step=stop)
    run(tmp_path / "run", fading(train=(3, 7)), resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    records = [json.loads((tmp_path / name / "training.json").read_text())["data"] for name in ("whole", "run")]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("options", "count"), [({"max_bad_images": 1}, 2), ({"max_bad_images": 0}, 1), ({"strict": True}, 1)]
)
def test_more_of_them_than_allowed_stop_the_run_before_they_count_and_it_goes_on_once_mended(
    tmp_path, caplog, options, count
) -> None:
    chosen = DataOptions(**options)
    run(tmp_path / "whole", tiny.data(), options=chosen)
    broken = (3, 7)[:count]
    # The first epoch reads all 12 images; in the second one they are gone.
    with pytest.raises(
        ImageError,
        match=r"^photos/\d.png .*The state after step \d is saved \(.*step-0000000\d\): pass --resume once",
    ) as caught:
        run(tmp_path / "run", fading(train=broken, after=12), options=chosen)
    assert "\n" not in str(caught.value)
    step = int(re.search(r"after step (\d)", str(caught.value))[1])
    assert load_state(tmp_path / "run" / "state").step == step
    assert caplog.text.count("Left out of training") == count - 1  # not the one that stopped the run
    run(tmp_path / "run", tiny.data(), options=chosen, resume=True)
    if count == 1:  # with two, the first of them was replaced before
        whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert "train_images_left_out" not in json.loads((tmp_path / "run" / "training.json").read_text())["data"]


def test_validation_images_of_which_none_can_be_read_do_not_cost_the_trained_state(tmp_path) -> None:
    with pytest.raises(
        ImageError, match=r"No validation image can be read any more; the first: .* after step 3 is sav"
    ):
        run(tmp_path / "run", fading(val=tuple(range(6))))
    result = run(tmp_path / "run", tiny.data(), resume=True)
    assert result.steps == 9


def test_a_recipe_allows_a_few_by_default() -> None:
    assert dataclasses.replace(DataOptions()).max_bad_images == 10
    with pytest.raises(ValueError, match="max_bad_images must be at least 0"):
        DataOptions(max_bad_images=-1)
