"""How a training ends before its end: signals, a second run in its folder, a full disk, a kill; what is said of it."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from deit.core.errors import UserError
from deit.core.files import remove_leftovers, replace_folder_content, replaced_file
from deit.core.images.reading import ImageError
from deit.core.writing import WritingError, why_unwritten, writing
from deit.data.sources import ArraySource, Data
from deit.runtime.folder_lock import FolderInUseError, folder_lock
from deit.runtime.signals import TrainingInterrupted, interrupts
from deit.train.loop import fit
from deit.train.run.folder import check_run_folder
from deit.train.run.state import newest_state
from deit.train.tasks.classification import ClassificationTask
from tests.train import tiny
from tests.train.test_distributed import REPOSITORY, torchrun


def task() -> ClassificationTask:
    return ClassificationTask(tiny.student(), tiny.processor())


def train(out: Path, data: Data | None = None, **options: object) -> None:
    fit(task(), data or tiny.data(), tiny.recipe(), out=out, device="cpu", **options)


# --- signals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_saves_a_state_that_exists_and_says_how_to_exit(tmp_path, name, code) -> None:
    def end(event) -> None:
        if event.step == 4:
            os.kill(os.getpid(), getattr(signal, name))

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(TrainingInterrupted, match=r"Stopped after step 4 of 9") as caught:
        train(tmp_path / "run", on_step=end)
    assert caught.value.exit_code == code
    assert str(newest_state(tmp_path / "run" / "state")) in str(caught.value)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_notice_file_in_a_folder_that_is_missing_is_named_and_still_counts(tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("deit.runtime.signals._LOOK_SECONDS", 0.0)
    notice = tmp_path / "later" / "notice"
    with interrupts(notice) as interrupt:
        assert f"The folder of the notice file {notice} does not exist." in caplog.text
        assert not interrupt
        notice.parent.mkdir()
        notice.touch()
        assert interrupt
    caplog.clear()
    with interrupts(notice):
        assert not caplog.text


def test_an_ignored_signal_stays_ignored_and_a_second_one_ends_at_once() -> None:
    """`nohup` ignores SIGHUP; the second signal goes to whoever had the first before."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    hup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt.number == signal.SIGINT
            assert heard == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, hup)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (folder / name).mkdir()
        for i in range(6):
            pixels = np.clip(random.normal(level, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def command(photos: Path, out: Path, *more: object) -> list[object]:
    return [
        "deit", "train", photos, "--student", "deit-digits-distilled-patch8-32", "--out", out, "--device", "cpu",
        "--batch-size", 4, "--epochs", 1000, "--set", "precision=fp32", "--set", "num_workers=0", *more,
    ]  # fmt: skip


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=REPOSITORY,
        env={
            **os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1",
        },
    )  # fmt: skip


def end_after_a_state(process: subprocess.Popen[str], out: Path, number: signal.Signals, code: int) -> str:
    """Sends a signal once there is a state; returns the one line that is said, which names a state that exists."""
    while newest_state(out / "state") is None and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    (line,) = [line for line in errors.splitlines() if not line.startswith("Note:")]
    named = re.search(r"its state is (\S+)\. To go on, run the same command with --resume\.", line)
    assert named is not None, line
    assert Path(named[1], "manifest.json").is_file()
    return line


def test_the_command_exits_143_on_sigterm_with_one_line_and_a_state(photos, tmp_path) -> None:
    end_after_a_state(start(*command(photos, tmp_path / "run")), tmp_path / "run", signal.SIGTERM, 143)


def test_a_mistake_under_torchrun_is_one_line_of_ours(photos, tmp_path) -> None:
    """torchrun adds its own."""
    ran = torchrun(*command(photos, tmp_path / "run", "--init", tmp_path / "nothing"))
    assert ran.returncode != 0
    assert sum(line.startswith("Error: ") for line in ran.stderr.splitlines()) == 1
    assert ran.stderr.count("Traceback") == ran.stderr.count("ChildFailedError: ") == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(("--init", "nowhere"), "Error: No model directory at nowhere."), (("--bugs", "3"), "No such option: --bugs")],
)
def test_a_mistake_with_several_processes_of_our_own_is_one_line_in_total(photos, tmp_path, wrong, said) -> None:
    _, *rest = command(photos, tmp_path / "run", *wrong)
    ran = start("deit", "--processes", 2, *rest)
    output, errors = ran.communicate(timeout=240)
    assert (ran.returncode, output) == (2, "")
    assert errors.count("Error: ") == 1
    assert said in errors
    assert "Traceback" not in errors
    if said.startswith("Error"):
        assert len(errors.splitlines()) == 1


def test_ctrl_c_with_several_processes_of_our_own_is_one_line_and_a_state(photos, tmp_path) -> None:
    _, *rest = command(photos, tmp_path / "run")
    process = start("deit", "--processes", 2, *rest)
    said = end_after_a_state(process, tmp_path / "run", signal.SIGINT, 130)
    assert "Stopped after step" in said


def test_a_killed_process_of_several_is_told_in_one_line_and_the_run_goes_on_from_its_state(photos, tmp_path) -> None:
    _, *rest = command(photos, tmp_path / "run")
    process = start("deit", "--processes", 2, *rest)
    while newest_state(tmp_path / "run" / "state") is None and process.poll() is None:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(child) for child in children if b"deit" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGKILL
    (line,) = [line for line in errors.splitlines() if not line.startswith("Note:")]
    assert re.match(
        r"Error: Process \d of 2 was ended by SIGKILL\. .* goes on from its newest state with --resume", line
    )
    assert newest_state(tmp_path / "run" / "state") is not None


def test_only_commands_that_share_their_work_are_started_several_times() -> None:
    ran = start("deit", "--processes", 2, "recipes")
    assert "Error: --processes is for train, pretrain, evaluate. Received: recipes." in ran.communicate(timeout=60)[1]
    assert ran.returncode == 2


# --- images that become unreadable ---------------------------------------------------------------------


class Fragile(ArraySource):
    def image(self, index: int) -> Image.Image:
        if index == 2:
            raise ImageError("photos/2.jpg is damaged.")
        return super().image(index)


def test_a_state_is_there_when_the_evaluation_fails_and_the_epoch_is_not_done_twice(tmp_path) -> None:
    """Whatever fails in it, the steps before are kept; the evaluation is what a resumed run does first."""
    calls = []

    class Failing(ClassificationTask):
        def score(self, *args: object, **options: object) -> dict[str, object]:
            calls.append(len(calls))
            if len(calls) == 2:
                raise ImageError("photos/2.jpg is damaged.")
            return super().score(*args, **options)

    with pytest.raises(ImageError, match=r"2.jpg is damaged. The state after step 6 is saved .*step-00000006"):
        fit(Failing(tiny.student(), tiny.processor()), tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu")
    steps = []
    train(tmp_path / "run", resume=True, on_step=lambda event: steps.append(event.step))
    assert steps == [7, 8, 9]
    train(tmp_path / "whole")
    for name in ("metrics.csv",):
        rows = [(tmp_path / run / name).read_text().splitlines() for run in ("run", "whole")]
        assert [row.rpartition(",")[0] for row in rows[0]] == [row.rpartition(",")[0] for row in rows[1]]
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("run", "whole"))
    assert all((one[name] == two[name]).all() for name in one)


def test_a_bug_is_told_with_the_newest_state(tmp_path) -> None:
    def fail(event) -> None:
        if event.step == 5:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug") as caught:
        train(tmp_path / "run", on_step=fail)
    assert str(newest_state(tmp_path / "run" / "state")) in caught.value.__notes__[0]


# --- two runs in one folder ----------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused_whether_new_or_resumed(tmp_path) -> None:
    refused = []

    def try_another(event) -> None:
        if event.step in (1, 5):
            for resume in (False, True):
                with pytest.raises((FolderInUseError, FileExistsError)) as caught:
                    train(tmp_path / "run", resume=resume)
                refused.append(type(caught.value).__name__)
            with pytest.raises(FolderInUseError, match="Another run is at work in"):
                check_run_folder(tmp_path / "run", tiny.recipe(), resume=True)

    train(tmp_path / "run", on_step=try_another)
    assert refused == ["FileExistsError", "FolderInUseError"] * 2
    train(tmp_path / "run", resume=True)  # the lock was given back


def test_of_two_new_runs_that_begin_at_once_one_has_the_folder(tmp_path) -> None:
    results: list[object] = []
    gate = threading.Barrier(2)

    def begin() -> None:
        its_task = task()
        gate.wait()
        try:
            fit(its_task, tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu")
            results.append("done")
        except (FolderInUseError, FileExistsError) as error:
            results.append(error)

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("done") == 1
    assert len(results) == 2


def test_the_lock_of_a_process_that_was_killed_is_gone_with_it(tmp_path) -> None:
    code = "import sys,time;from pathlib import Path;from deit.runtime.folder_lock import folder_lock\n"
    code += "with folder_lock(Path(sys.argv[1])): print('has it', flush=True); time.sleep(100)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "has it\n"
    with pytest.raises(FolderInUseError, match=r"at work in .*\. Wait until it has ended"), folder_lock(tmp_path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with folder_lock(tmp_path):
        pass


# --- what cannot be written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the quota of the disk is used up"),
        (OSError(errno.EROFS, "Read-only file system"), "the file system is read-only"),
        (OSError(errno.EIO, "Input/output error"), "the disk reports an error"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "is full"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"), "is full"),
        (RuntimeError("Unable to synchronously write (file write failed: errno = 28, ...)"), "is full"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_whatever_a_library_raises_is_one_sentence_with_the_place(tmp_path, kind, error, reason) -> None:
    place = tmp_path / "result"
    written = replaced_file(place) if kind == "file" else replace_folder_content(place)
    with pytest.raises(WritingError, match=reason) as caught, written:
        raise error
    assert isinstance(caught.value, (UserError, OSError))
    assert str(caught.value).startswith(f"{place} cannot be written: ")
    assert "Nothing of it is left behind." in str(caught.value)
    assert str(caught.value).endswith("and try again.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [ImageError("a.jpg is damaged"), KeyError("a bug"), RuntimeError("shapes"), OSError("broken image")]
)
def test_other_errors_stay_what_they_are(tmp_path, error) -> None:
    with pytest.raises(type(error)) as caught, writing(tmp_path / "a"):
        raise error
    assert caught.value is error
    assert why_unwritten(error) is None


def test_a_folder_that_is_missing_is_named(tmp_path) -> None:
    missing = replaced_file(tmp_path / "nowhere" / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere for a.txt. Make it first."), missing:
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_real_disk_that_is_full_ends_in_one_sentence_and_the_run_goes_on_with_room(tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(WritingError, match=r"the disk is full") as caught:
            train(disk / "run")
        assert str(disk) in str(caught.value)
        assert "--resume" in caught.value.__notes__[-1]
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        train(disk / "run", resume=True)
        train(tmp_path / "whole")
        one, two = (load_file(folder / "model.safetensors") for folder in (disk / "run", tmp_path / "whole"))
        assert all((one[name] == two[name]).all() for name in one)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_without_room_for_a_state_is_found_before_the_first_step(tmp_path, monkeypatch) -> None:
    """A student of 4,790 numbers, with as many in the optimizer twice."""
    steps: list[object] = []
    numbers = sum(weight.numel() for weight in task().student.parameters())
    free = 3 * 4 * numbers - 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - free, free))
    with pytest.raises(WritingError, match="the disk is full") as caught:
        train(tmp_path / "run", on_step=steps.append)
    assert caught.value.__notes__[0] == "A state takes about 0 MB, and 0 MB are free."
    assert steps == []
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - free - 1, free + 1))
    train(tmp_path / "other", on_step=steps.append)
    assert len(steps) == 9


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_read_only_is_found_before_the_images_are_looked_at(tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(WritingError, match="run cannot be written: the file system is read-only"):
            check_run_folder(disk / "run", tiny.recipe(), resume=False)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


# --- what a killed process leaves ----------------------------------------------------------------------


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path) -> None:
    (tmp_path / ".recipe.yaml.a1b2c3d4.tmp").write_text("half")
    (tmp_path / ".model.abcdefgh.tmp").mkdir()
    (tmp_path / ".model.abcdefgh.tmp" / "weights").write_text("half")
    mine = [tmp_path / ".mine.tmp", tmp_path / "a.tmp", tmp_path / ".vimrc.swp", tmp_path / ".notes.ABCDEFGH.tmp"]
    for path in mine:
        path.write_text("a user's own")
    with replaced_file(tmp_path / "living") as temporary:
        temporary.write_text("new")
        remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*mine, tmp_path / "living"])


def test_a_folder_with_leftovers_of_a_killed_run_can_be_used(tmp_path) -> None:
    """As a kill leaves it while the first file is written, and while a state is."""
    out = tmp_path / "run"
    (out / "state" / ".step-00000003.aaaaaaaa.tmp").mkdir(parents=True)
    (out / "state" / ".step-00000003.aaaaaaaa.tmp" / "tensors.safetensors").write_bytes(b"half")
    out.joinpath("state").rename(tmp_path / "state")
    (out / ".recipe.yaml.bbbbbbbb.tmp").write_text("half")
    (tmp_path / ".run.cccccccc.tmp").mkdir()
    (tmp_path / "..run.dddddddd.tmp.eeeeeeee.tmp").mkdir()
    train(out)
    assert not list(tmp_path.glob(".*run.*"))
    assert not list(out.glob(".recipe*"))
    (tmp_path / "state" / ".step-00000003.aaaaaaaa.tmp").rename(out / "state" / ".step-00000003.aaaaaaaa.tmp")
    train(out, resume=True)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_trainings_that_are_killed_or_starved_go_on_to_the_same_bits() -> None:
    """A short version of the script, which says more."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.train.disk_and_death", "--kills", "3", "--full", "4", "--blank-curves"],
        capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=300,
        env={
            **os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}", "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        },
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = [[cell.strip() for cell in line.split("|")] for line in ran.stdout.splitlines()[1:]]
    table = {(title, what): int(count) for title, what, count in rows}
    assert table["kill -9", "same bits"] == table["kill -9", "went on to the end"] >= 1
    assert table["disk full", "exit 2, 1 line(s), the place named"] == 4
    assert table["disk full", "same bits"] == 4
    assert table["kill -9", "leftovers"] == table["disk full", "leftovers"] == 0
