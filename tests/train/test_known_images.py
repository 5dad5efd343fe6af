"""Runs and teacher caches know their images by what is in them, and a model what it was trained on."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from deit.data.readers.image_folder import ImageFolder
from deit.data.sources import Data
from deit.train.loop import fit
from deit.train.recipes.sections import Distillation
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.teachers.teacher import Teacher
from tests.train import tiny


@pytest.fixture
def folder(tmp_path):
    """Twelve images of three classes, of equal size in bytes."""
    for i in range(12):
        path = tmp_path / "images" / f"class {i % 3}" / f"{i}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((tiny.SIDE, tiny.SIDE, 3), 20 * i, np.uint8)).save(path)
    return tmp_path / "images"


def swap(folder) -> None:
    """Two images of two classes change places: names, sizes and times of change of the files stay."""
    one, two, aside = folder / "class 0" / "0.ppm", folder / "class 1" / "1.ppm", folder / "aside"
    for source, target in ((one, aside), (two, one), (aside, two)):
        source.rename(target)


def opened(folder) -> Data:
    return Data(train=ImageFolder(folder), val=tiny.data().val)


def as_an_older_version_wrote_it(state, folder) -> None:
    """Puts the fingerprint of names and sizes into a training state."""
    meta = json.loads((state / "meta.json").read_text())
    meta["training images"] = ImageFolder(folder).former_fingerprint()
    del meta["validation images"]
    (state / "meta.json").write_text(json.dumps(meta))
    manifest = json.loads((state / "manifest.json").read_text())
    manifest["meta.json"] = hashlib.sha256((state / "meta.json").read_bytes()).hexdigest()
    (state / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_does_not_go_on_with_images_that_were_swapped_for_others_of_the_same_size(folder, tmp_path):
    def run(resume: bool, data: Data) -> None:
        task = ClassificationTask(tiny.student(), tiny.processor())
        fit(task, data, tiny.recipe(), out=tmp_path / "run", device="cpu", resume=resume)

    run(False, opened(folder))
    run(True, opened(folder))
    for state in (tmp_path / "run" / "state").glob("step-*"):
        as_an_older_version_wrote_it(state, folder)
    run(True, opened(folder))  # which is accepted where it can be checked by the old rule
    kept = ImageFolder(folder).former_fingerprint()
    swap(folder)
    assert ImageFolder(folder).former_fingerprint() == kept
    (tmp_path / "run").rename(tmp_path / "old")
    swap(folder)
    run(False, opened(folder))
    with pytest.raises(ValueError, match=r"of the 18 images of the run are gone or changed; the first: image "):
        run(True, Data(train=ImageFolder(folder), val=tiny.data(15).train))
    swap(folder)
    with pytest.raises(ValueError, match=r"another training images: .* were added, left out or swapped"):
        run(True, opened(folder))


def test_a_teacher_cache_does_not_serve_images_that_were_swapped(folder, tmp_path):
    hard = Distillation(kind="hard")
    cache, recipe = tmp_path / "cache", tiny.recipe(distillation=hard)

    def run(out: str) -> None:
        teacher = Teacher(tiny.TinyConvnet(), name="tiny")
        teacher.model.requires_grad_(False)
        task = DistillationTask(
            tiny.student(), None if out != "first" else teacher, tiny.processor(), distillation=hard
        )
        fit(task, opened(folder), recipe, out=tmp_path / out, device="cpu", teacher_cache=cache)

    run("first")
    run("second")
    header = json.loads((cache / "header.json").read_text())
    header["training images"] = ImageFolder(folder).former_fingerprint()
    (cache / "header.json").write_text(json.dumps(header))
    run("third")  # a cache of an older version
    header["training images"] = ImageFolder(folder).fingerprint()
    (cache / "header.json").write_text(json.dumps(header))
    swap(folder)
    with pytest.raises(ValueError, match=r"belongs to another training: other training images"):
        run("fourth")
