"""What the training commands find out before they look at the first image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deit.runtime.processes import Processes
from deit.train import open_images
from deit.train.recipes.recipe import Recipe
from deit.train.run import folder as run_folder
from deit.train.trial import try_start
from tests.cli.conftest import SHORT, VARIANT, deit, is_refused
from tests.data.pictures import fill


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Images that nobody may look at."""

    def look(*_: object, **__: object) -> None:
        raise AssertionError("The images were looked at.")

    monkeypatch.setattr(open_images, "open_images", look)
    return fill(tmp_path / "photos", 2)


@pytest.mark.parametrize("verb", ["train", "pretrain"])
@pytest.mark.parametrize("place", ["photos", "photos/run", "photos/runs/a", "photos/.run", "photos/state", "link/run"])
def test_a_new_run_among_the_images_is_refused(tmp_path, data, verb, place):
    (tmp_path / "link").symlink_to(data)
    result = deit(verb, data, "--student", VARIANT, "--out", tmp_path / place)
    is_refused(result, f"--out {tmp_path / place} lies in the folder of the images, {data}")
    assert sorted(path.name for path in data.iterdir()) == ["blue", "green", "red"]


def test_a_new_teacher_cache_among_the_images_is_refused(tmp_path, data):
    cache = data / "answers"
    result = deit("train", data, "--student", VARIANT, "--out", tmp_path / "run", "--teacher-cache", cache)
    is_refused(result, f"--teacher-cache {cache} lies in the folder of the images")


def test_a_run_beside_the_images_or_of_an_earlier_version_among_them_may_go_on(tmp_path, data):
    run_folder.refuse_inside_data(tmp_path / "photos-run", str(data), "--out")
    run_folder.refuse_inside_data(tmp_path / "run", str(tmp_path / "table.csv"), "--out")
    (data / "run" / "state").mkdir(parents=True)
    (data / "run" / "recipe.yaml").touch()
    run_folder.refuse_inside_data(data / "run", str(data), "--out")


WRONG = {
    "an image size": (["--image-size", "33"], "not a multiple of patch_size 8"),
    "a student of timm": (["--student", "timm/nonsense"], "timm cannot build 'nonsense'"),
    "a device": (["--device", "nonsense"], "Unknown device 'nonsense'"),
    "a batch": (["--set", "accumulate=3"], "must be a multiple of accumulate"),
    "a teacher": (["--teacher", "nowhere"], "No teacher at nowhere"),
    "weights": (["--init", "{tmp}/nothing"], "No model directory at"),
    "weights of another kind": (["--init", "{tmp}/bert"], "bert"),
    "weights of other sizes": (["--init", "{student}", "--student", "deit-tiny-patch16-224"], "another architecture"),
    "truncated weights": (["--init", "{tmp}/half"], "It may be truncated"),
    "weights of DeiT for timm": (
        ["--init", "{student}", "--student", "timm/test_resnet"],
        "does not fit the student ResNet",
    ),
    "blocks": (["--init", "{student}", "--freeze", "blocks:99"], "blocks. Pass fewer."),
}


@pytest.fixture
def wrong(tmp_path, student):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    shutil.copytree(student, tmp_path / "half")
    weights: Path = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return tmp_path


@pytest.mark.parametrize("what", WRONG)
def test_what_a_training_cannot_begin_with_is_found_before_the_images_are_looked_at(wrong, data, student, what):
    given, message = WRONG[what]
    options = [text.format(tmp=wrong, student=student) for text in given]
    start = [] if "--student" in options or "--init" in options else ["--student", VARIANT]
    is_refused(deit("train", data, *start, *SHORT, *options, "--out", wrong / "run"), message)
    assert not (wrong / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "nonsense=3"], "names no field"),
        (["--config", "patch_size=7"], "not a multiple of patch_size 7"),
        (["--init", "{tmp}/half"], "It may be truncated"),
        (["--device", "nonsense"], "Unknown device"),
        (["--init", "{student}", "--set", "freeze=blocks:99"], "Pass fewer."),
    ],
)
def test_what_a_pretraining_cannot_begin_with_is_found_before_the_images_are_looked_at(
    wrong, data, student, options, message
):
    given = [text.format(tmp=wrong, student=student) for text in options]
    start = [] if "--init" in given else ["--student", VARIANT]
    result = deit("pretrain", data, *start, "--set", "masking.patch=8", *given, "--out", wrong / "run")
    is_refused(result, message)


@pytest.mark.parametrize("student", [VARIANT, "deit3-huge-patch14-224"])
def test_the_trial_of_a_new_student_draws_no_values(student):
    tried = try_start(Recipe().with_settings({"student": student, "image_size": 0}), "cpu", Processes())
    assert {value.device.type for value in tried.model.parameters()} == {"meta"}
