"""A run in TensorBoard, trackio and Weights & Biases: it shows what happened, and a service stops no training."""

from __future__ import annotations

import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit.core.errors import MissingPackageError, UserError
from deit.runtime.processes import Processes
from deit.train.loggers import training_log
from deit.train.loggers.training_log import SERVICES, TrainingLog
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Schedule
from deit.train.tasks.classification import ClassificationTask
from tests.cli.conftest import deit
from tests.train import tiny

STEPS, EPOCHS = 3, 3  # 12 images in batches of 4


class Killed(BaseException):
    """The process ends here."""


def train(out: Path, name: str, *, resume: bool = False, kill_at: int = 0) -> tuple[list[Any], list[dict[str, Any]]]:
    """Returns the events and rows of a logged run, which may be killed after a step and the logging of it."""
    events, rows = [], []
    recipe = tiny.recipe(schedule=Schedule(epochs=EPOCHS, warmup_epochs=1))
    log = TrainingLog(name, out=out, recipe=recipe)

    def on_step(event: Any) -> None:
        events.append(event)
        log.on_step(event)
        if event.step == kill_at:
            raise Killed

    def on_epoch(row: dict[str, Any]) -> None:
        rows.append(row)
        log.on_epoch(row)

    task = ClassificationTask(tiny.student(), tiny.processor())
    with log:
        fit(task, tiny.data(), recipe, out=out, device="cpu", resume=resume, on_step=on_step, on_epoch=on_epoch)
    return events, rows


def read_events(folder: Path) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def curve(found: Any, name: str) -> tuple[list[int], list[float]]:
    points = found.Scalars(name)
    return [point.step for point in points], [point.value for point in points]


# --- TensorBoard --------------------------------------------------------------------------------------


@pytest.mark.skipif(not find_spec("tensorboard"), reason="needs tensorboard")
def test_tensorboard_reads_back_what_happened(tmp_path):
    had = "tensorflow" in sys.modules
    events, rows = train(tmp_path / "run", "tensorboard")
    assert ("tensorflow" in sys.modules) == had  # loading it takes seconds
    found = read_events(tmp_path / "run" / "tensorboard")
    steps = list(range(1, STEPS * EPOCHS + 1))
    for name in ("loss", "lr", "images_per_second"):
        expected = [getattr(event, name) for event in events]
        assert curve(found, f"step/{name}") == (steps, pytest.approx(expected, rel=1e-6))
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert written == rows
    for name in set(rows[0]) - {"step", "epoch"}:
        expected = [row[name] for row in rows]
        assert curve(found, f"epoch/{name}") == ([3, 6, 9], pytest.approx(expected, rel=1e-6))
    (picture,) = found.Images("curves")
    assert picture.step == steps[-1]
    with Image.open(tmp_path / "run" / "curves.png") as image:
        assert (picture.width, picture.height) == image.size
    (text,) = found.Tensors("recipe/text_summary")
    (shown,) = text.tensor_proto.string_val
    indented = shown.decode().splitlines()
    assert (
        "\n".join(line.removeprefix("    ") for line in indented) + "\n"
        == (tmp_path / "run" / "recipe.yaml").read_text()
    )


@pytest.mark.skipif(not find_spec("tensorboard"), reason="needs tensorboard")
@pytest.mark.parametrize("kill_at", [5, 6, 2])
def test_a_killed_run_continues_its_curves_at_the_right_step(tmp_path, kill_at):
    """Each step is there once; those that were done again have the values of a run that was never killed."""
    whole, whole_rows = train(tmp_path / "whole", "tensorboard")
    with pytest.raises(Killed):
        train(tmp_path / "run", "tensorboard", kill_at=kill_at)
    train(tmp_path / "run", "tensorboard", resume=True)
    found = read_events(tmp_path / "run" / "tensorboard")
    steps = list(range(1, STEPS * EPOCHS + 1))
    assert curve(found, "step/loss") == (steps, pytest.approx([event.loss for event in whole], rel=1e-6))
    expected = [row["val_top1"] for row in whole_rows]
    assert curve(found, "epoch/val_top1") == ([3, 6, 9], pytest.approx(expected))
    assert len(found.Tensors("recipe/text_summary")) == 1


# --- trackio, Weights & Biases ------------------------------------------------------------------------


@pytest.mark.skipif(not find_spec("trackio"), reason="needs trackio")
def test_trackio_reads_back_what_happened_and_each_step_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from trackio.sqlite_storage import SQLiteStorage

    for module in [m for n, m in sys.modules.items() if n.startswith("trackio") and hasattr(m, "TRACKIO_DIR")]:
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    whole, rows = train(tmp_path / "whole", "trackio")
    with pytest.raises(Killed):
        train(tmp_path / "run", "trackio", kill_at=5)
    train(tmp_path / "run", "trackio", resume=True)
    name = json.loads((tmp_path / "run" / "logger.json").read_text())["trackio"]
    logged = SQLiteStorage.get_logs("deit", name)
    points = [(row["step"], row["step/loss"]) for row in logged if "step/loss" in row]
    assert points == [(event.step, pytest.approx(event.loss)) for event in whole]
    scores = [(row["step"], row["epoch/val_top1"]) for row in logged if "epoch/val_top1" in row]
    assert scores == [(row["step"], pytest.approx(row["val_top1"])) for row in rows]
    assert [row["step"] for row in logged if "curves" in row][-1] == STEPS * EPOCHS
    assert SQLiteStorage.get_run_config("deit", name)["schedule.epochs"] == EPOCHS


@pytest.mark.skipif(not find_spec("wandb"), reason="needs wandb")
def test_wandb_writes_what_happened_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    events, rows = train(tmp_path / "run", "wandb")
    wandb.teardown()
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    store, history = DataStore(), []
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    store._fp.close()
    found = [(row["_step"], row["step/loss"]) for row in history if "step/loss" in row]
    assert found == [(event.step, pytest.approx(event.loss)) for event in events]
    found = [(row["_step"], row["epoch/val_top1"]) for row in history if "epoch/val_top1" in row]
    assert found == [(row["step"], pytest.approx(row["val_top1"])) for row in rows]
    assert any(key.startswith("curves") for row in history for key in row)


@pytest.mark.parametrize(("name", "variable"), [("trackio", "TRACKIO_PROJECT"), ("wandb", "WANDB_PROJECT")])
def test_a_service_is_asked_for_the_same_run_when_it_goes_on(tmp_path, monkeypatch, name, variable):
    """With a stand-in for the package, which keeps the steps of each run as both services do."""
    runs: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    calls: list[dict[str, Any]] = []

    def init(project: str, **options: Any) -> Any:
        calls.append({"project": project, **options})
        points = runs.setdefault(options["name"], [])
        following = points[-1][0] + 1 if points else 0
        return SimpleNamespace(
            log=lambda values, step: points.append((step, values)), finish=lambda: calls.append({}),
            step=following, _next_step=following,
        )  # fmt: skip

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init, Image=lambda path: Path(path)))
    monkeypatch.setattr(training_log, "find_spec", lambda name: name)
    monkeypatch.delenv(variable, raising=False)
    whole, _ = train(tmp_path / "whole", name)
    with pytest.raises(Killed):
        train(tmp_path / "run", name, kill_at=5)
    monkeypatch.setenv(variable, "mine")
    train(tmp_path / "run", name, resume=True)
    first, second, third = (call for call in calls if call)
    assert calls.count({}) == 3  # each was closed
    assert first["name"] != second["name"] == third["name"]
    assert (first["project"], third["project"]) == ("deit", "mine")
    assert third["resume"] == "allow"
    assert third["config"]["optimizer.lr"] == tiny.recipe().optimizer.lr
    points = runs[second["name"]]
    assert [step for step, values in points if "step/loss" in values] == list(range(1, 10))
    assert [values["step/loss"] for _, values in points if "step/loss" in values] == [e.loss for e in whole]
    assert [step for step, values in points if "epoch/val_top1" in values] == [3, 6, 9]
    assert points[-1] == (9, {"curves": tmp_path / "run" / "curves.png"})


# --- what a service may not do ------------------------------------------------------------------------


class Failing:
    last_step = 0

    def __init__(self, where: str) -> None:
        self.where = where
        self.fail("start")

    def fail(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError("no connection\nto the service")

    def numbers(self, values: dict[str, float], step: int) -> None:
        assert all(np.isfinite(value) for value in values.values())
        self.fail("numbers")

    def picture(self, name: str, path: Path, step: int) -> None:
        self.fail("picture")

    def close(self) -> None:
        self.fail("close")


@pytest.mark.parametrize("where", ["start", "numbers", "picture", "close"])
def test_a_service_that_fails_stops_no_training_and_is_told_of_once(tmp_path, monkeypatch, caplog, where):
    monkeypatch.setitem(SERVICES, "wandb", lambda facts: Failing(where))
    monkeypatch.setattr(training_log, "find_spec", lambda name: name)
    with caplog.at_level(logging.WARNING, logger="deit.train.loggers"):
        train(tmp_path / "run", "wandb")
    (warning,) = [record.getMessage() for record in caplog.records if "Logging to" in record.getMessage()]
    assert warning == ("Logging to wandb failed and has stopped; the training goes on. no connection to the service")
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_only_the_first_process_logs(tmp_path, monkeypatch):
    monkeypatch.setitem(SERVICES, "wandb", None)
    monkeypatch.setattr(training_log, "find_spec", lambda name: name)
    monkeypatch.setattr(training_log, "current_processes", lambda: Processes(rank=1, world_size=2))
    with TrainingLog("wandb", out=tmp_path, recipe=Recipe()) as log:
        log.on_epoch({"step": 1, "train_loss": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"[]", b'{"wandb": 3}', b'{"wandb": ""}', b"\xff"])
def test_a_damaged_list_of_names_begins_a_new_run_at_the_service(tmp_path, monkeypatch, content):
    facts: list[Any] = []
    monkeypatch.setitem(SERVICES, "wandb", lambda given: facts.append(given) or Failing(""))
    monkeypatch.setattr(training_log, "find_spec", lambda name: name)
    (tmp_path / "logger.json").write_bytes(content)
    for _ in range(2):
        TrainingLog("wandb", out=tmp_path, recipe=Recipe()).on_epoch({"step": 4, "train_loss": float("nan")})
    assert [fact.goes_on for fact in facts] == [False, True]
    assert facts[0].name == facts[1].name
    assert facts[0].first_step == 4


def test_a_missing_package_or_an_unknown_service_is_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(training_log, "find_spec", lambda name: None)
    for name in SERVICES:
        with pytest.raises(MissingPackageError, match=rf'pip install "deit\[{name}\]"'):
            TrainingLog(name, out=tmp_path, recipe=Recipe())
        failed = deit("train", "no-such-folder", "--out", tmp_path / "run", "--log", name)
        assert failed.exit_code == 2
        assert f'Install it with: pip install "deit[{name}]"' in failed.output
        assert len(failed.output.splitlines()) == 1
    with pytest.raises(UserError, match="The logger must be tensorboard or trackio or wandb"):
        TrainingLog("mlflow", out=tmp_path, recipe=Recipe())
    assert deit("train", "no-such-folder", "--out", tmp_path / "run", "--log", "mlflow").exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not find_spec("tensorboard"), reason="needs tensorboard")
def test_the_command_logs(tmp_path):
    for part in ("train", "val"):
        for name in ("dark", "light"):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(2):
                color = (i, 50 if part == "val" else 0, 60 if name == "dark" else 200)
                Image.new("RGB", (20, 24), color).save(tmp_path / "photos" / part / name / f"{i}.png")
    command = ["train", tmp_path / "photos", "--out", tmp_path / "run", "--student", "deit-digits-distilled-patch8-32"]
    command += ["--epochs", 2, "--batch-size", 2, "--set", "num_workers=0", "--set", "precision=fp32"]
    ran = deit(*command, "--log", "tensorboard", "--device", "cpu")
    assert ran.exit_code == 0, ran.output
    found = read_events(tmp_path / "run" / "tensorboard")
    assert curve(found, "epoch/val_top1")[0] == [2, 4]
    assert len(found.Images("curves")) == 1
