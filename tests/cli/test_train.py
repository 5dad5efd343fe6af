"""`deit train`: the run folder it writes, going on after an interrupt, and everything it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from deit.core.processing.image_processor import DeiTImageProcessor
from deit.data.readers.image_folder import ImageFolder
from deit.inference.engines.opening import open_engine
from deit.train.recipes.recipe import Recipe
from deit.train.run.state import load_state
from deit.train.students.deit import build_student
from deit.train.teachers.teacher import open_teacher
from tests.cli.conftest import RATE, SHORT, VARIANT, deit, is_refused, succeeds
from tests.data.pictures import COLOURS, fill, picture, write_text, write_truncated_jpeg

RUN_FILES = {
    ".lock", "README.md", "config.json", "curves.png", "images.npy", "metrics.csv", "metrics.jsonl",
    "model.safetensors", "preprocessor_config.json", "recipe.yaml", "state", "training.json",
}  # fmt: skip


def train(data: Path, out: Path, *options: object) -> Any:
    return deit("train", data, "--student", VARIANT, *SHORT, "--out", out, *options)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def same_weights(one: Path, other: Path) -> bool:
    """Whether two model directories hold the same bits."""
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- the run folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def alone(photos, tmp_path_factory):
    """A student trained from labels, and what the command printed."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    return out, succeeds("train", photos, "--student", VARIANT, *SHORT, "--out", out)


def test_training_from_labels_prints_epochs_scores_and_the_place_of_the_model(alone):
    out, result = alone
    assert result.stderr == ""
    text = " ".join(result.stdout.split())
    assert f"24 training and 12 validation images, 3 classes. Student: {VARIANT}. Teacher: none." in text
    assert len(re.findall(r"epoch \d, loss \d\.\d{3}, top-1 \d+\.\d\d %", text)) == 2
    for head in ("both", "class", "distillation"):
        assert re.search(rf"{head} +│ +\d+\.\d\d │ +[\d.]+ to [\d.]+ │ +100\.00 │ +\d\.\d{{3}} │ +12 │", result.stdout)
    assert re.search(r"With 12 images top-1 is known to plus or minus \d+ points: [\d.]+ to [\d.]+ % \(95 %", text)
    assert f"Model: {out}" in result.stdout


@pytest.mark.parametrize("kind", ["alone", "student", "teacher"])
def test_a_run_folder_holds_these_files_and_no_others(request, kind):
    folder = request.getfixturevalue(kind)
    folder = folder[0] if kind == "alone" else folder
    assert {path.name for path in folder.iterdir()} == RUN_FILES
    assert sorted(path.name for path in (folder / "state").glob("step-*")) == ["step-00000006", "step-00000012"]


def test_the_recipe_is_saved_as_it_was_resolved(student):
    recipe = Recipe.load(student / "recipe.yaml")
    expected = Recipe().with_settings(
        {
            "student": VARIANT,
            "image_size": 32,
            "teacher": recipe.teacher,
            "schedule.epochs": 2,
            "schedule.warmup_epochs": 0.2,  # a tenth of the two
            "batch_size": 4,
            "optimizer.lr": 0.001,
            "optimizer.reference_batch_size": 0,
        }
    )
    assert recipe == expected
    assert [Path(name).name for name in recipe.teacher] == ["teacher"]


def test_metrics_are_saved_as_json_lines_and_as_a_table(student):
    rows = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 6), (2, 12)]
    for row in rows:
        assert row["train_loss"] == pytest.approx((row["train_class_loss"] + row["train_distillation_loss"]) / 2)
        assert 0 <= row["val_top1"] <= row["val_top5"] == 100
        assert {"lr", "val_loss", "val_class_top1", "val_distillation_top1", "seconds"} <= row.keys()
    with (student / "metrics.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    assert [{name: float(value) for name, value in row.items()} for row in table] == rows


def test_the_learning_curves_are_a_picture(student):
    with Image.open(student / "curves.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 900
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) > 50  # lines of several colours, not an empty sheet


def test_the_model_carries_its_classes_and_preprocessing(student):
    config = read_json(student / "config.json")
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"}
    assert config["label2id"] == {"blue": 0, "green": 1, "red": 2}
    assert config["architectures"] == ["DeiTForImageClassificationWithTeacher"]
    processor = DeiTImageProcessor.from_pretrained(student)
    assert processor.size == {"shortest_edge": 36}  # 32 / 0.875
    assert processor.output_size == (32, 32)
    assert processor.channel_mean == (0.485, 0.456, 0.406)


def test_the_record_tells_recipe_scores_teacher_and_data(photos, student, teacher):
    record = read_json(student / "training.json")
    assert record["task"] == "DistillationTask"
    assert record["teacher"] == str(teacher)
    assert record["recipe"] == yaml.safe_load((student / "recipe.yaml").read_text())
    assert record["weights"] == "last"
    assert record["steps"] == 12
    assert record["data"] == {
        "train_images": 24,
        "val_images": 12,
        "skipped_files": 0,
        "train_fingerprint": ImageFolder(photos / "train").fingerprint(),
        "val_fingerprint": ImageFolder(photos / "val").fingerprint(),
    }
    assert list(record["scores"]) == ["both", "class", "distillation"]
    last = json.loads((student / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["scores"]["both"]["top1"] == last["val_top1"]
    assert record["scores"]["both"]["images"] == 12
    assert record["versions"]["torch"] == torch.__version__


def test_the_record_of_a_student_of_labels_names_no_teacher(alone):
    record = read_json(alone[0] / "training.json")
    assert record["task"] == "ClassificationTask"
    assert record["teacher"] is None


def test_the_teacher_changes_what_is_learnt(alone, student):
    assert not same_weights(alone[0], student)


def test_transformers_opens_the_model_and_agrees(photos, student):
    transformers = pytest.importorskip("transformers")
    oracle = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(student).eval()
    images = ImageFolder(photos / "val")
    processor = DeiTImageProcessor.from_pretrained(student)
    pixels = processor([images.image(i) for i in range(12)], return_tensors="np").pixel_values
    with torch.no_grad():
        expected = oracle(torch.from_numpy(pixels))
    heads = open_engine(student)(pixels)
    assert np.abs(heads["both"] - expected.logits.numpy()).max() < 1e-5
    assert np.abs(heads["class"] - expected.cls_logits.numpy()).max() < 1e-5
    assert np.abs(heads["distillation"] - expected.distillation_logits.numpy()).max() < 1e-5
    assert oracle.config.id2label == {0: "blue", 1: "green", 2: "red"}


def test_a_teacher_trained_here_keeps_its_size_classes_and_normalization(teacher):
    """test_resnet's own size is 160: shown images of another size than in its training, it would teach nonsense."""
    opened = open_teacher(teacher)
    assert opened.image_size == (32, 32)
    assert opened.label_names == list(COLOURS)
    assert opened.mean == DeiTImageProcessor.from_pretrained(teacher).channel_mean == (0.5, 0.5, 0.5)
    assert open_engine(teacher).contract.label_names == list(COLOURS)


def test_a_transformer_of_timm_is_built_for_the_size_asked_for(photos, tmp_path):
    out = tmp_path / "run"
    options = ("--image-size", 32, "--epochs", 1, "--batch-size", 4, "--out", out)
    succeeds("train", photos, "--student", "timm/vit_tiny_patch16_224", *options)
    assert open_teacher(out).image_size == (32, 32)
    logits = open_engine(out)(np.zeros((1, 3, 32, 32), np.float32))["class"]
    assert logits.shape == (1, 3)


def test_one_folder_is_divided_by_the_share_asked_for(photos, tmp_path):
    result = train(photos / "train", tmp_path / "run", "--epochs", 1, "--set", "data.val_fraction=0.25")
    assert result.exit_code == 0
    assert "18 training and 6 validation images, 3 classes." in result.stdout


def test_a_recipe_file_is_taken_and_options_override_it(photos, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("batch_size: 8\nseed: 3\nschedule: {epochs: 9, warmup_epochs: 0}\naugment: {mix_rate: 0}\n")
    out = tmp_path / "run"
    options = ("--epochs", 1, "--seed", 4, "--set", "optimizer.weight_decay=0.2", "--set", "ema_decay=0.9")
    succeeds("train", photos, "--student", VARIANT, "--recipe", file, *options, "--out", out)
    recipe = Recipe.load(out / "recipe.yaml")
    assert (recipe.batch_size, recipe.seed, recipe.augment.mix_rate) == (8, 4, 0.0)
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (1, 0)
    assert (recipe.optimizer.weight_decay, recipe.ema_decay) == (0.2, 0.9)
    record = read_json(out / "training.json")
    assert record["weights"] == "average"
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["scores"]["both"]["top1"] == last["ema_top1"]


# --- going on -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # PyTorch forks its workers
def test_ctrl_c_saves_the_state_and_the_resumed_run_ends_with_the_same_bits(photos, tmp_path):
    """Ctrl-C reaches the whole group of processes, those that prepare images too."""
    settings = ("--epochs", 3, "--batch-size", 4, *RATE, "--set", "ema_decay=0.9")
    command = ("train", photos, "--student", VARIANT, *settings)
    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    options = ("--set", "num_workers=2", "--out", interrupted)
    program = subprocess.Popen(
        [Path(sys.executable).with_name("deit"), *map(str, (*command, *options))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert program.stdout is not None
        for line in program.stdout:
            if line.startswith("epoch 1,"):
                break
        os.killpg(program.pid, signal.SIGINT)
        _, said = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 130, said
    stopped = re.fullmatch(
        r"Stopped after step (\d+) of 18; its state is .*step-\d+\. To go on, run the same command.*\n", said
    )
    assert stopped is not None, said
    step = int(stopped[1])
    assert 6 <= step < 18
    assert (interrupted / "state" / f"step-{step:08d}").is_dir()
    assert not (interrupted / "model.safetensors").exists()

    succeeds(*command, *options, "--resume")
    succeeds(*command, "--out", whole)
    assert same_weights(interrupted, whole)
    assert read_json(interrupted / "training.json")["scores"] == read_json(whole / "training.json")["scores"]
    rows = [json.loads(line)["step"] for line in (interrupted / "metrics.jsonl").read_text().splitlines()]
    assert rows == [6, 12, 18]


def test_a_damaged_newest_state_is_passed_over_for_the_one_before(photos, alone, copied, caplog):
    run = copied(alone[0])
    tensors = run / "state" / "step-00000012" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    (run / "model.safetensors").unlink()
    result = train(photos, run, "--resume")
    assert result.exit_code == 0, result.output
    assert "epoch 2, loss" in result.stdout
    assert "epoch 1, loss" not in result.stdout
    assert same_weights(run, alone[0])
    assert [m for m in caplog.messages if "Passed over the training state" in m]


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(photos, alone, copied, caplog):
    run = copied(alone[0])
    (run / "model.safetensors").unlink()
    record = read_json(run / "training.json") | {"seconds": 12345.6}
    (run / "training.json").write_text(json.dumps(record))
    result = train(photos, run, "--resume")
    assert result.exit_code == 0
    assert "Starts from" not in result.stdout  # no plan of what is not done
    assert read_json(run / "training.json")["seconds"] == 12345.6
    said = f"The run in {run} has done all of its 2 epochs: nothing is trained. Scores and model are written anew."
    assert said in caplog.messages
    assert same_weights(run, alone[0])
    assert read_json(run / "training.json")["scores"] == read_json(alone[0] / "training.json")["scores"]


def test_a_finished_run_loses_its_states_where_that_is_asked_for_and_then_says_so(photos, alone, copied):
    run = copied(alone[0])
    assert train(photos, run, "--resume", "--set", "keep_state=false").exit_code == 0
    assert {path.name for path in run.iterdir()} == RUN_FILES - {"state"}
    assert same_weights(run, alone[0])
    before = (run / "training.json").read_bytes()
    result = train(photos, run, "--resume")
    is_refused(result, f"The run in {run} is finished and its training states were removed", f"--init {run}.")
    assert (run / "training.json").read_bytes() == before


def test_resuming_where_there_is_no_run_is_refused(photos, tmp_path):
    is_refused(train(photos, tmp_path / "run", "--resume"), "holds no run to resume. Leave out --resume to begin one.")
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_settings_is_refused_by_their_names(photos, alone, copied):
    result = train(photos, copied(alone[0]), "--resume", "--epochs", 3, "--set", "optimizer.eps=1e-7")
    is_refused(result, "has other settings: optimizer.eps (1e-08, now 1e-07). Resume it with the same ones.")


def test_a_run_goes_on_for_more_epochs_where_that_is_asked_for(photos, alone, copied, caplog):
    run = copied(alone[0])
    result = succeeds("train", photos, "--student", VARIANT, *SHORT, "--out", run, "--resume", "--epochs", 3)
    assert "The run goes on to epoch 3 in place of 2." in caplog.text
    assert [line.partition(",")[0] for line in result.stdout.splitlines() if line.startswith("epoch")] == ["epoch 3"]
    began, now = (Recipe.load(folder / "recipe.yaml").schedule for folder in (alone[0], run))
    assert (now.epochs, now.warmup_epochs) == (3, began.warmup_epochs)
    other = deit("train", photos, "--student", VARIANT, "--recipe", "small-data-cpu", "--out", run, "--resume")
    is_refused(other, f"The run in {run} is one of 3 epochs. Pass --epochs 3 to go on as it began, or the number")
    result = succeeds("train", photos, "--student", VARIANT, "--batch-size", 4, *RATE, "--out", run, "--resume")
    assert "has done all of its 3 epochs: nothing is trained" in caplog.text  # its own recipe is the one that counts
    assert not [line for line in result.stdout.splitlines() if line.startswith("epoch")]


def test_resuming_with_another_student_is_refused(photos, alone, copied):
    result = train(photos, copied(alone[0]), "--resume", "--image-size", 40)
    is_refused(result, "has another student: {'image_size': 32}. Received: {'image_size': 40}.")


def test_resuming_with_a_teacher_that_was_not_there_is_refused(photos, alone, teacher, copied):
    is_refused(train(photos, copied(alone[0]), "--resume", "--teacher", teacher), "has another teacher: None.")


def test_resuming_with_other_images_is_refused(photos, alone, copied):
    data = copied(photos)
    picture("red", 77).save(data / "train" / "red" / "new.png")
    is_refused(train(data, copied(alone[0]), "--resume"), "has another training images: ")


# --- bad input: data ----------------------------------------------------------------------------------


def test_a_missing_folder_is_refused(tmp_path):
    is_refused(train(tmp_path / "nowhere", tmp_path / "run"), f"There is nothing at {tmp_path / 'nowhere'}.")
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    is_refused(train(tmp_path / "data", tmp_path / "run"), "has no class folders.")


def test_a_class_folder_without_images_is_noted(tmp_path, caplog):
    (fill(tmp_path / "data", 4) / "yellow").mkdir()
    result = train(tmp_path / "data", tmp_path / "run")
    assert result.exit_code == 0
    assert "yellow (empty): no class." in caplog.text
    assert list(read_json(tmp_path / "run" / "config.json")["label2id"]) == ["blue", "green", "red"]


@pytest.fixture
def damaged(tmp_path):
    """Images, and two files between them that are none."""
    root = fill(tmp_path / "data", 4)
    write_truncated_jpeg(root / "blue" / "half.jpg")
    write_text(root / "red" / "letter.png")
    return root


def test_broken_files_are_left_out_with_a_report(damaged, tmp_path):
    result = train(damaged, tmp_path / "run", "--epochs", 1)
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert lines[0] == "Left out 2 file(s) that cannot be used:"
    assert lines[1].startswith(f"  {damaged / 'blue' / 'half.jpg'}: cannot be read as an image (image file is trunc")
    assert lines[2].startswith(f"  {damaged / 'red' / 'letter.png'}: is not an image (known: JPEG, ")
    assert lines[3:] == ["Found 14 files: 12 used, 2 unreadable."]
    assert "9 training and 3 validation images" in result.stdout
    assert read_json(tmp_path / "run" / "training.json")["data"]["skipped_files"] == 2


def test_strict_stops_at_a_broken_file(damaged, tmp_path):
    result = train(damaged, tmp_path / "run", "--set", "data.strict=true")
    is_refused(result, str(damaged / "blue" / "half.jpg"), "2 such files; strict is on.")
    assert not (tmp_path / "run").exists()


# --- bad input: options -------------------------------------------------------------------------------

REFUSED_OPTIONS = {
    "a batch that Mixup cannot pair": (("--batch-size", 5), "--batch-size must be even. Received: 5."),
    "a batch larger than the data": (("--batch-size", 26), "There are 24 training images and the batch size is 26."),
    "a batch of one with batch norm": (
        ("--student", "timm/test_resnet", "--batch-size", 1, "--set", "augment.mix_rate=0"), "Pass 2 or more.",
    ),
    "an unknown setting": (("--set", "optimizer.weightdecay=0"), "Did you mean 'optimizer.weight_decay'?"),
    "a setting without a value": (("--set", "seed"), "--set needs NAME=VALUE. Received: 'seed'."),
    "a setting that is no number": (("--set", "optimizer.lr=fast"), "optimizer.lr must be like 0.0005. Received"),
    "an unknown RandAugment": (("--set", "augment.rand_augment=hard"), "augment.rand_augment must be like"),
    "a learning rate of nothing": (("--set", "optimizer.lr=0"), "optimizer.lr must be positive. Received: 0.0."),
    "no epochs": (("--epochs", 0), "--epochs must be at least 1. Received: 0."),
    "an unknown device": (("--device", "gpu"), "Unknown device 'gpu'"),
    "a typo in the variant": (
        ("--student", "deit-tinny-distilled-patch16-224"),
        "Unknown variant 'deit-tinny-distilled-patch16-224'. Did you mean 'deit-tiny-distilled-patch16-224'?",
    ),
    "an unknown model of timm": (("--student", "timm/resnett"), "timm cannot build 'resnett' (no such architecture)."),
    "an image size between patches": (("--image-size", 33), "33 is not a multiple of patch_size 8. Use 32 or 40."),
    "a missing recipe": (("--recipe", "nowhere.yaml"), "No recipe at nowhere.yaml."),
    "a missing teacher": (("--teacher", "nowhere"), "No teacher at nowhere. Pass a model directory,"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_OPTIONS)
def test_an_option_that_cannot_be_used_is_refused_before_anything_is_written(photos, tmp_path, name):
    options, message = REFUSED_OPTIONS[name]
    is_refused(train(photos, tmp_path / "run", *options), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_there_is_not_is_refused(photos, tmp_path):
    is_refused(train(photos, tmp_path / "run", "--device", "cuda"), "'cuda' was asked for, but PyTorch finds no GPU.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 8", "Unknown setting 'batch_sise'."),
        ("a: [", "is damaged or is not a recipe"),
        ("- 1", "must hold the settings of a recipe. Received: list."),
    ],
)
def test_a_recipe_that_is_none_is_refused(photos, tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    is_refused(train(photos, tmp_path / "run", "--recipe", tmp_path / "recipe.yaml"), message)


def test_an_output_folder_that_holds_a_run_is_refused_and_left_alone(photos, alone, copied):
    run = copied(alone[0])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    is_refused(train(photos, run), "holds a run already. Pass a new folder, or --resume to go on with the run.")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_output_folder_that_holds_other_files_and_a_file_are_refused(photos, tmp_path):
    write_text(tmp_path / "letter.txt")
    is_refused(train(photos, tmp_path), "holds other files already. Pass a new or empty folder.")
    is_refused(train(photos, tmp_path / "letter.txt"), "letter.txt is a file. Pass a folder for the run.")


# --- bad input: teachers ------------------------------------------------------------------------------


def test_a_teacher_that_lacks_a_class_is_refused(teacher, tmp_path):
    data = fill(tmp_path / "data", 4)
    (data / "green").rename(data / "white")
    (data / "red").rename(data / "grey")
    result = train(data, tmp_path / "run", "--teacher", teacher)
    is_refused(result, f"The teacher {teacher}, of 3 classes", "'grey', 'white'", "Train it on this data first")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_teacher_with_other_classes_is_refused(request, tmp_path, kind):
    data = fill(tmp_path / "data", 4)
    (data / "red").rename(data / "black")
    result = train(data, tmp_path / "run", "--teacher", request.getfixturevalue(kind))
    is_refused(result, "does not know 1 of the data's 3", "'black'")


@pytest.mark.parametrize("kind", ["teacher", "student"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_teacher_with_truncated_weights_is_refused(request, photos, tmp_path, copied, kind, share):
    folder = copied(request.getfixturevalue(kind))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * share)])
    is_refused(train(photos, tmp_path / "run", "--teacher", folder), str(folder), "It may be truncated")


# --- bad input: a loss that is no number --------------------------------------------------------------


def test_a_loss_that_becomes_nan_stops_the_run_and_names_the_step(photos, tmp_path):
    result = train(photos, tmp_path / "run", "--set", "optimizer.lr=1e30", "--set", "schedule.warmup_epochs=0")
    said = "in 5 steps in a row until then, at step 6 (learning rate 6.3e+29). No good state was saved before."
    is_refused(result, said)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "images.npy", "recipe.yaml", "state"}
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["images.npz"]  # no state of weights


def test_a_run_that_goes_wrong_later_keeps_its_last_good_state(photos, tmp_path):
    """One step is an epoch here: the second one spoils the weights, which are still finite, and the third shows it."""
    run = tmp_path / "run"
    result = train(photos, run, "--batch-size", 24, "--set", "optimizer.lr=1e30", "--epochs", 3)
    is_refused(result, "The loss or a gradient was infinite or NaN at step 3 (learning rate 2.5e+29).")
    assert f"The last good state is {run / 'state' / 'step-00000002'}." in result.stderr
    assert not (run / "model.safetensors").exists()
    state = load_state(run / "state")
    assert state is not None
    assert state.step == 2
    weights = {name.removeprefix("student."): t for name, t in state.tensors.items() if name.startswith("student.")}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    build_student(VARIANT, COLOURS, Recipe()).model.load_state_dict(weights)


def test_a_run_that_begins_with_weights_names_its_variant_and_its_card_names_them(photos, alone, tmp_path):
    result = deit("train", photos, "--init", alone[0], *SHORT, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert f"Student: {VARIANT}. " in result.stdout
    assert read_json(tmp_path / "run" / "training.json")["recipe"]["init"] == str(alone[0])
    assert f"It began with the weights `{alone[0]}`." in (tmp_path / "run" / "README.md").read_text("utf-8")


def test_the_plan_says_whether_a_teacher_cache_is_new_and_its_refusal_comes_before(photos, teacher, tmp_path):
    cache = tmp_path / "cache"
    taught = ("--teacher", teacher, "--teacher-cache", cache)
    first = train(photos, tmp_path / "first", *taught)
    assert f"Teacher cache: {cache} is new, the teacher's answers are recorded there." in first.stdout
    second = train(photos, tmp_path / "second", "--teacher-cache", cache)
    assert f"Teacher cache: {cache} holds answers, which are read" in second.stdout
    other = train(photos, tmp_path / "other", *taught, "--seed", 7)
    is_refused(other, "belongs to another training:", "seed 0, now 7")
    assert "Starts from" not in other.stdout
    assert not re.search(r"[0-9a-f]{10}", other.stderr.replace(str(tmp_path), ""))


def test_folds_print_their_score_and_write_the_answers(photos, tmp_path):
    out = tmp_path / "run"
    command = (
        "train", photos, "--out", out, "--student", VARIANT, "--epochs", 1, "--batch-size", 4, "--folds", 2,
        "--set", "precision=fp32", "--set", "num_workers=0",
    )  # fmt: skip
    text = " ".join(succeeds(*command).stdout.split())
    images = json.loads((out / "out_of_fold.json").read_text())["scores"]["images"]
    assert re.search(
        rf"Fold 2 of 2: \d+ training images, \d+ held out.*The last model: all {images} training images", text
    )
    assert "each of the" in text
    assert text.index("Out-of-fold") < text.index("Validation") < text.index(f"Model: {out}")
    assert {"model.safetensors", "out_of_fold.npz", "out_of_fold.csv", "folds"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", 1], "--folds must be at least 2"),
        (["--folds", 3, "--teacher-cache", "said"], "Leave out --teacher-cache or --folds"),
        (["--folds", 3, "--resume"], "no training of folds to resume"),
        (["--folds", 1000], "cannot be divided into 1000 folds. Pass fewer folds"),
        (["--set", "keep=best", "--set", "keep_score=micro_f1"], "is no score of this training"),
    ],
)
def test_folds_and_scores_that_cannot_be_are_refused_before_any_training(photos, tmp_path, options, message):
    result = deit(
        "train", photos, "--out", tmp_path / "run", "--student", VARIANT, "--epochs", 1, "--batch-size", 4, *options
    )
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()
