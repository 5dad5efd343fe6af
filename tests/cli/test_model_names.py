"""How models and paths are named on the command line: ~, names on the hub, `timm/NAME`."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from deit.cli.app import app
from deit.inference.predictor import Predictor
from deit.models.timm.models import create_timm
from deit.models.timm.preprocessing import processor_from_timm
from deit.serve.hosting.sources import read_sources
from tests.cli.conftest import SHORT, VARIANT, deit, is_refused, succeeds
from tests.core.hub_on_loopback import serve, use_hub
from tests.data.pictures import picture


@pytest.fixture
def home(monkeypatch, tmp_path, student, photos):
    """A home folder with a model and images, away from the working directory."""
    folder, here = tmp_path / "home", tmp_path / "here"
    for path in (folder, here):
        path.mkdir()
    (folder / "model").symlink_to(student)
    (folder / "photos").symlink_to(photos)
    picture("red").save(folder / "a.png")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(here)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty model hub."""
    with serve() as server:
        use_hub(server, monkeypatch, tmp_path / "cache")
        yield server


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


# --- ~ ------------------------------------------------------------------------------------------------

NO_PATHS = {  # texts that name nothing on a disk
    "student", "labels", "freeze", "set_", "device", "config", "head", "precision", "image_column", "label_column",
    "average", "token", "to", "variant", "message", "branch", "name", "problem_type", "log",
    "positive", "sets", "engine", "engines", "precisions", "batch_sizes", "on", "explain", "method", "target", "host",
    "sharding", "cache_size",
    "models",  # of deit serve: see test_the_models_of_a_server_know_the_home_folder
}  # fmt: skip


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda command: command.callback.__name__)
def test_every_parameter_that_can_be_a_path_knows_the_home_folder(command, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    for name, hint in get_type_hints(inspect.unwrap(command.callback), include_extras=True).items():
        kind = getattr(hint, "__origin__", None)  # of what is annotated
        if name in NO_PATHS or not {str, Path} & {kind, *get_args(kind)}:
            continue
        assert str(hint.__metadata__[0].parser("~/x")) == "/somewhere/x", name


def test_the_models_of_a_server_know_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert [source.path for source in read_sources(["~/x", "birds=~/y"])] == ["/somewhere/x", "/somewhere/y"]


def test_paths_with_a_tilde_are_in_the_home_folder(home):
    results = json.loads(succeeds("classify", "~/model", "~/a.png", "~/*.png", "--json").stdout)
    assert [result["image"] for result in results] == [str(home / "a.png")] * 2
    succeeds("classify", "~/model", "~/a.png", "--out", "~/predictions.csv")
    assert (home / "predictions.csv").is_file()
    succeeds("evaluate", "~/model", "~/photos", "--teacher", "~/model", "--report", "~/report.html")
    assert (home / "report.html").is_file()
    assert list(Path().iterdir()) == []


def test_what_a_file_of_settings_names_with_a_tilde_is_in_the_home_folder(home):
    Path("my.yaml").write_text("init: ~/model\n")
    for given in (("--set", "init=~/model"), ("--recipe", "my.yaml"), ("--init=~/model",)):
        succeeds("train", "~/photos", "--out=~/run", *given, *SHORT, "--epochs", 1)
        assert f"init: {home}/model" in (home / "run" / "recipe.yaml").read_text()
        shutil.rmtree(home / "run")
    is_refused(
        deit("train", "~/photos", "--out", "~/run", "--set", "teacher=~/nowhere", "--student", VARIANT),
        f"No teacher at {home}/nowhere.",
    )


def test_a_file_that_begins_with_a_tilde_keeps_its_name(home, student):
    picture("blue").save("~a.png")
    (result,) = json.loads(succeeds("classify", "~/model", "~a.png", "--json").stdout)
    assert result["image"] == "~a.png"


# --- the hub ------------------------------------------------------------------------------------------


def test_commands_take_models_of_the_hub(home, hub, student, photos):
    hub.files["me/colours"] = {"main": content(student)}
    named, local = (
        json.loads(succeeds("classify", model, "~/a.png", "--json").stdout) for model in ("me/colours", student)
    )
    assert named == local
    named, local = (
        json.loads(succeeds("evaluate", model, photos, "--teacher", model, "--json").stdout)
        for model in ("me/colours", student)
    )
    assert named["model"] == "me/colours"
    assert named["heads"]["both"]["loss"] == local["heads"]["both"]["loss"]
    succeeds("embed", "me/colours", "~/a.png", "--out", "features.parquet")
    is_refused(
        deit("classify", "me/nothing", "~/a.png"), "There is no model 'me/nothing' on the hub, or it is private."
    )


# --- timm/NAME ----------------------------------------------------------------------------------------


@pytest.fixture
def published(hub, tmp_path):
    """Serves a convnet as timm's weights of `test_resnet`, under the name with the tag that timm takes for it."""
    from timm.models import save_for_hf

    save_for_hf(create_timm("test_resnet").eval(), str(tmp_path / "timm"), safe_serialization=True)
    hub.files["timm/test_resnet.r160_in1k"] = {"main": content(tmp_path / "timm")}
    return tmp_path / "timm"


def test_timm_names_mean_the_weights_that_timm_takes_for_them(home, published):
    """In classify, evaluate --teacher, --init and --teacher, with and without the tag, as for --student."""
    first, second = (
        json.loads(succeeds("classify", name, "~/a.png", "--json", "--top-k", 1000).stdout)
        for name in ("timm/test_resnet", "timm/test_resnet.r160_in1k")
    )
    assert first == second
    import timm
    import torch

    model = timm.create_model(f"local-dir:{published}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        expected = model(transform(picture("red"))[None]).softmax(-1)[0]
    names = timm.data.ImageNetInfo().label_names()
    scores = {prediction["label"]: prediction["score"] for prediction in first[0]["predictions"]}
    assert [scores[name] for name in names] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_training_starts_from_timm_names_as_it_learns_from_them(home, published, photos):
    run = succeeds("train", photos, "--init", "timm/test_resnet", "--image-size", 32, *SHORT, "--out", "a")
    assert "Starts from: timm/test_resnet." in run.stdout
    named = succeeds(
        "train", photos, "--student", "timm/test_resnet", "--init", "timm/test_resnet.r160_in1k", "--image-size", 32,
        *SHORT, "--out", "b",
    )  # fmt: skip
    assert [line for line in run.stdout.splitlines() if line.startswith("epoch")] == [
        line for line in named.stdout.splitlines() if line.startswith("epoch")
    ]
    is_refused(deit("train", photos, "--init", "timm/resnet1e4", "--out", "c"), "timm cannot build 'resnet1e4'")
    is_refused(deit("evaluate", "a", photos, "--teacher", "timm/resnet1e4"), "timm cannot build 'resnet1e4'")
    other = deit("evaluate", "a", photos, "--teacher", "timm/test_resnet")  # it was found, and knows ImageNet's classes
    assert "The teacher lacks 3 of the model's 3 classes" in other.stderr


def test_a_tag_that_names_weights_is_no_architecture(home, photos):
    """Weights of a student are what --init says: a tag would be passed over without a word."""
    is_refused(
        deit("train", photos, "--student", "timm/test_resnet.r160_in1k", "--image-size", 32, *SHORT, "--out", "a"),
        "timm/test_resnet.r160_in1k names weights (r160_in1k)",
        "--student timm/test_resnet --init timm/test_resnet.r160_in1k",
    )


@pytest.mark.parametrize(
    ("cfg", "size"),
    [
        ({"crop_pct": 0.95, "interpolation": "bicubic"}, (38, 38)),
        ({"crop_pct": 0.875, "interpolation": "bilinear"}, (48, 48)),
        ({"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "squash"}, (48, 48)),
    ],
)
def test_timms_preprocessing_gives_the_pixels_of_timms_own_transform(cfg, size):
    import timm

    whole = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "crop_mode": "center", **cfg}
    image = picture("green").resize((90, 70))
    expected = timm.data.create_transform(input_size=(3, *size), is_training=False, **whole)(image).numpy()
    pixels = processor_from_timm(whole, size)(image, return_tensors="np").pixel_values[0]
    assert pixels == pytest.approx(expected, abs=1e-4)


def test_the_predictor_takes_names_too(home, hub, student):
    hub.files["me/colours"] = {"main": content(student)}
    assert Predictor.open("me/colours").classify(["../home/a.png"]) == Predictor.open(student).classify(
        ["../home/a.png"]
    )
