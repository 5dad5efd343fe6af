"""Several models by name and version: swaps that lose no request, files that vanish or change, other classes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from deit.core.errors import UserError
from deit.serve.hosting.models import Models, reload_on_hangup
from deit.serve.hosting.sources import ModelSource, read_sources
from deit.serve.metrics import Metrics, counting_workers
from deit.serve.refusals import Refusal


class Pretended:
    """Stands for an opened model: tells which opening of its folder it is."""

    def __init__(self, folder: Path, generation: int) -> None:
        calibration = "calibrated" if (folder / "calibration.json").exists() else None
        self.predictor = SimpleNamespace(engine=None, calibration=calibration)
        self.folder = folder
        self.class_names = (folder / "classes.json").read_text().split()
        self.generation = generation
        self.warm = self.closed = False

    async def warm_up(self) -> None:
        self.warm = True

    async def close(self) -> None:
        assert not self.closed
        self.closed = True


class Opening:
    """Opens pretended models, and remembers them."""

    def __init__(self) -> None:
        self.opened: list[Pretended] = []
        self.threads: list[int] = []
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, source: ModelSource) -> Pretended:
        self.threads.append(threading.get_ident())
        assert self.hold.wait(10)
        if not Path(source.path, "classes.json").exists():
            raise UserError(f"{source.path} is damaged.")
        self.opened.append(Pretended(Path(source.path), len(self.opened)))
        return self.opened[-1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "classes.json").write_text("robin wren")
    return tmp_path


def made(folder: Path, *names: str) -> tuple[Models, Opening]:
    opening = Opening()
    return Models(read_sources([f"{name}={folder}" for name in names or ("birds",)]), opening, Metrics()), opening


# --- names -----------------------------------------------------------------------------------------


def test_names_and_versions_come_from_the_command_line():
    sources = read_sources(["birds=models/a", "birds@12=models/b=c", "runs/my flowers/", "timm/resnet18.a1", "./a=b"])
    assert [(s.name, s.version, s.path) for s in sources] == [
        ("birds", "1", "models/a"),
        ("birds", "12", "models/b=c"),
        ("my-flowers", "1", "runs/my flowers/"),
        ("resnet18.a1", "1", "timm/resnet18.a1"),
        ("a-b", "1", "./a=b"),
    ]
    assert [s.label for s in sources[:2]] == ["birds", "birds@12"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model to serve"),
        (["a=x", "a=y"], "called 'a'"),
        (["x/birds", "y/birds"], "called 'birds'"),
        (["a@0=x"], "whole number"),
        (["a@two=x"], "whole number"),
        (["a@=x"], "whole number"),
        (["a="], "no path"),
    ],
)
def test_names_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        read_sources(arguments)


def test_the_highest_version_answers_unless_another_is_named(folder):
    models, _ = made(folder, "birds@2", "birds@10", "birds@9", "cats")

    async def ask():
        await models.start()
        for name, version, expected in [("birds", None, 1), ("birds", "9", 2), ("cats", None, 3), (None, None, 1)]:
            with models.borrow(name, version) as served:
                assert served.generation == expected
                assert served.warm
        for name, version, reason in [("cat", None, "unknown_model"), ("birds", "1", "unknown_version")]:
            with pytest.raises(Refusal) as refusal, models.borrow(name, version):
                pass
            assert (refusal.value.status, refusal.value.reason) == (404, reason)

    asyncio.run(ask())


# --- opening ---------------------------------------------------------------------------------------


def test_requests_are_told_to_wait_while_models_open_in_a_thread(folder):
    models, opening = made(folder, "birds", "cats")
    opening.hold.clear()

    async def ask():
        starting = asyncio.create_task(models.start())
        await asyncio.sleep(0.02)
        with pytest.raises(Refusal) as refusal, models.borrow("birds"):
            pass
        assert (refusal.value.status, refusal.value.reason) == (503, "starting")
        assert refusal.value.retry_after is not None
        assert not models.is_ready()
        assert [entry["state"] for entry in models.index()] == ["LOADING", "LOADING"]
        opening.hold.set()
        await starting
        assert models.is_ready()
        assert [entry["state"] for entry in models.index()] == ["READY", "READY"]

    asyncio.run(ask())
    assert threading.get_ident() not in opening.threads


def test_a_model_that_cannot_be_opened_stops_the_start(tmp_path):
    models, _ = made(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        asyncio.run(models.start())


# --- reload ----------------------------------------------------------------------------------------


def test_a_reload_loses_no_request(folder):
    """Requests go on while the model is swapped 20 times; each model closes after its last request, never before."""
    models, opening = made(folder)
    answered = []

    async def request():
        with models.borrow() as served:
            for _ in range(3):
                await asyncio.sleep(0.001)
                assert not served.closed
            answered.append(served.generation)

    async def clients(stop: asyncio.Event):
        while not stop.is_set():
            await asyncio.gather(*(request() for _ in range(8)))

    async def run():
        await models.start()
        stop = asyncio.Event()
        asking = asyncio.create_task(clients(stop))
        for _ in range(20):
            await models.reload("birds")
        stop.set()
        await asking
        await models.close()

    asyncio.run(run())
    assert len(opening.opened) == 21
    assert all(served.closed and served.warm for served in opening.opened)
    assert answered == sorted(answered)
    assert len(answered) % 8 == 0


def test_a_model_with_other_classes_is_refused_unless_asked_for(folder):
    models, opening = made(folder)

    async def run():
        await models.start()
        (folder / "classes.json").write_text("wren robin")
        with pytest.raises(Refusal, match="the same in another order") as refusal:
            await models.reload("birds")
        assert (refusal.value.status, refusal.value.reason) == (409, "other_classes")
        (folder / "classes.json").write_text("robin owl")
        with pytest.raises(Refusal, match="without wren and with owl"):
            await models.reload("birds")
        with models.borrow() as served:
            assert served.generation == 0
        assert models.troubles()["birds"]
        await models.reload("birds", allow_other_classes=True)
        with models.borrow() as served:
            assert served.class_names == ["robin", "owl"]
        assert models.troubles() == {}
        await models.close()

    asyncio.run(run())
    assert all(served.closed for served in opening.opened)


def test_a_reload_that_fails_keeps_the_old_model_and_says_why(folder, caplog):
    models, _ = made(folder)

    async def run():
        await models.start()
        (folder / "classes.json").unlink()
        with pytest.raises(Refusal, match=r"damaged.*keeps answering") as refusal:
            await models.reload("birds")
        assert (refusal.value.status, refusal.value.reason) == (409, "reload_failed")
        assert "damaged" in models.troubles()["birds"]
        assert models.is_ready("birds")
        with models.borrow() as served:
            assert served.generation == 0
        (folder / "classes.json").write_text("robin wren")
        await models.reload("birds")
        assert models.troubles() == {}

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert "damaged" in caplog.text


def test_a_calibration_that_a_reload_loses_is_in_the_log(folder, caplog):
    models, _ = made(folder)

    async def run():
        await models.start()
        await models.reload("birds")
        assert "calibrated" not in caplog.text
        (folder / "calibration.json").unlink()
        await models.reload("birds")
        assert "birds was calibrated before and is not now" in caplog.text

    (folder / "calibration.json").touch()
    asyncio.run(run())


def test_a_bug_in_a_reload_is_no_error_of_the_user_and_keeps_the_old_model(folder):
    models, opening = made(folder)

    async def run():
        await models.start()
        models._open_model = lambda source: 1 / 0
        with pytest.raises(ZeroDivisionError):
            await models.reload("birds")
        models._open_model = opening
        await models.reload("birds")  # nothing is left locked

    asyncio.run(run())


def test_two_reloads_at_once_are_one(folder):
    models, opening = made(folder)

    async def run():
        await models.start()
        opening.hold.clear()
        first = asyncio.create_task(models.reload("birds"))
        await asyncio.sleep(0.02)
        with pytest.raises(Refusal) as refusal:
            await models.reload("birds")
        assert (refusal.value.status, refusal.value.reason) == (409, "reloading")
        opening.hold.set()
        await first

    asyncio.run(run())
    assert len(opening.opened) == 2


def test_an_unloaded_model_finishes_its_requests_and_comes_back(folder):
    models, _ = made(folder, "birds", "cats")

    async def run():
        await models.start()
        with models.borrow("birds") as served:
            unloading = asyncio.create_task(models.unload("birds"))
            await asyncio.sleep(0.01)
            assert not served.closed
            with pytest.raises(Refusal) as refusal, models.borrow("birds"):
                pass
            assert (refusal.value.status, refusal.value.reason) == (404, "model_unloaded")
        await unloading
        assert served.closed
        assert models.is_ready()  # what was unloaded on purpose is not missing
        assert not models.is_ready("birds")
        assert models.index()[0] == {"name": "birds", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
        await models.reload("birds")
        assert models.is_ready("birds")

    asyncio.run(run())


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_hangup_reloads_all_and_one_failure_does_not_keep_the_others(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "classes.json").write_text("robin wren")
    opening = Opening()
    models = Models(read_sources([str(tmp_path / "a"), str(tmp_path / "b")]), opening, Metrics())

    async def run():
        await models.start()
        end = reload_on_hangup(models)
        (tmp_path / "a" / "classes.json").unlink()
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(200):
            await asyncio.sleep(0.01)
            with models.borrow("b") as served:
                if served.generation == 2:
                    break
        assert served.generation == 2
        assert "damaged" in models.troubles()["a"]
        end()
        await models.close()

    asyncio.run(run())


def test_a_worker_that_is_replaced_may_not_bring_other_classes(folder):
    """The processes that answer for one server agree on the classes, also when the files changed meanwhile."""
    code = (
        "import asyncio; from pathlib import Path; from tests.serve.test_models import made\n"
        f"asyncio.run(made(Path({str(folder)!r}), 'birds@2')[0].start()); print('started')"
    )
    run = partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    with counting_workers():
        assert [run().stdout for _ in range(2)] == ["started\n"] * 2
        (folder / "classes.json").write_text("wren robin")
        assert "has other classes now than the workers" in run().stderr
    with counting_workers():
        assert run().stdout == "started\n"


# --- files -----------------------------------------------------------------------------------------


def test_a_folder_that_disappears_is_reported_once_and_keeps_answering(folder, tmp_path_factory, caplog):
    models, _ = made(folder)
    away = tmp_path_factory.mktemp("away") / "model"

    async def run():
        await models.start()
        await models.look()
        assert models.troubles() == {}
        folder.rename(away)
        for _ in range(3):
            await models.look()
        assert "is gone" in models.troubles()["birds"]
        assert models.is_ready("birds")
        with models.borrow() as served:
            assert not served.closed
        away.rename(folder)
        await models.look()
        assert models.troubles() == {}

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert caplog.text.count("is gone") == 1
    assert "is as it was opened" in caplog.text


def test_a_folder_that_is_replaced_is_reported(folder):
    models, _ = made(folder)

    async def run():
        await models.start()
        (folder / "classes.json").write_text("other classes")
        await models.look()
        assert "has changed" in models.troubles()["birds"]
        watching = asyncio.create_task(models.watch(0.001))
        await asyncio.sleep(0.02)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching

    asyncio.run(run())
