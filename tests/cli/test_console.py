"""Printing: one-line errors, tables, the list of files left out, the progress bar."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from rich.console import Console

from deit.cli.terminal import console
from deit.cli.terminal.console import _Once, print_table, progress_bar, report_skipped, reports_errors
from deit.core.errors import UserError, WrongTypeError
from deit.data.sources import SkippedFile
from deit.data.storage.image_search import NOT_IMAGES
from deit.train.run.ending import NonFiniteLossError

COMMANDS = sorted(Path(console.__file__).parent.glob("*.py"))


@pytest.mark.parametrize(
    "error", [UserError, WrongTypeError, FileNotFoundError, NonFiniteLossError, ModuleNotFoundError]
)
def test_an_error_of_the_library_becomes_one_line(error, capsys):
    @reports_errors
    def command() -> None:
        raise error("first line\n   second line")

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == "Error: first line second line\n"


@pytest.mark.parametrize(
    ("package", "extra"), [("torch", "train"), ("sklearn", "demo"), ("pyarrow", "parquet"), ("datasets", "datasets")]
)
def test_a_missing_package_comes_with_the_command_that_installs_it(package, extra, capsys):
    @reports_errors
    def command() -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    with pytest.raises(typer.Exit):
        command()
    expected = f'Error: This command needs the {package!r} package. Install it with: pip install "deit[{extra}]"\n'
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("error", [AssertionError, ValueError, TypeError, ArithmeticError, RuntimeError])
def test_a_mistake_of_our_own_is_not_hidden(error):
    @reports_errors
    def command() -> None:
        raise error

    with pytest.raises(error):
        command()


def test_a_table_shows_brackets_as_they_are(capsys):
    print_table("on [data]", ("image", "1."), [("photo[red].png", "ant [/] 10.0 %")])
    text = capsys.readouterr().out
    assert "on [data]" in text
    assert "photo[red].png" in text
    assert "ant [/] 10.0 %" in text


@pytest.mark.parametrize(("count", "lines"), [(0, 0), (1, 2), (5, 6), (6, 7), (20, 7)])
def test_at_most_five_files_are_named(capsys, count, lines):
    report_skipped([SkippedFile(path=f"{i}.png", reason="is broken.") for i in range(count)])
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == lines
    if count:
        assert shown[:2] == [f"Left out {count} file(s) that cannot be used:", "  0.png: is broken."]
    if count > 5:
        assert shown[-1] == f"  ... and {count - 5} more"


def test_progress_shows_count_and_text_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "ERR", Console(file=screen, force_terminal=True, width=120))
    with progress_bar("Training") as update:
        update(3, 10, "12 images/s, loss 0.693")
    text = screen.getvalue()
    assert "Training" in text
    assert "3/10" in text
    assert "12 images/s, loss 0.693" in text


def test_files_that_are_no_images_take_one_line_and_hide_no_broken_one(capsys):
    notes = [SkippedFile(path=f"{i}.txt", reason="it is a note.", kind=NOT_IMAGES) for i in range(9)]
    report_skipped([*notes, SkippedFile(path="a.png", reason="is broken.")])
    assert capsys.readouterr().err.splitlines() == [
        "Left out 1 file(s) that cannot be used:",
        "  a.png: is broken.",
        "Left out 9 file(s) that are not images; the first is 0.txt: it is a note.",
    ]


def test_short_work_is_silent_where_nobody_watches(capsys):
    with progress_bar("Training") as update:
        update(3, 10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("hours", "least", "most"), [(1 / 60, 1, 1), (1, 40, 70), (24, 150, 260)])
def test_long_work_tells_of_itself_in_whole_lines_that_become_seldom(capsys, monkeypatch, hours, least, most):
    clock = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    total = round(hours * 3600)
    with progress_bar("Checking [images]") as update:
        for second in range(total + 1):
            clock[0] = 1000.0 + second
            update(50 + second, 50 + total, "loss 0.7\x1b")
    out, err = capsys.readouterr()
    assert (out, "\r" in err) == ("", False)
    lines = err.splitlines()
    assert least <= len(lines) <= most
    left = console.duration(total - 30)
    assert lines[0] == f"Checking [images]: 80 of {50 + total}, about {left} left, loss 0.7\\x1b"


def test_progress_of_other_processes_is_not_shown(capsys, monkeypatch):
    monkeypatch.setattr(console, "_LINE_SECONDS", 0.0)
    with progress_bar("Training", shown=False) as update:
        update(3, 10)
        update(4, 10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (29, "29 s"), (31, "1 min"), (3599, "1 h 0 min"), (90000, "25 h 0 min")]
)
def test_the_time_left_is_told_roughly(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    "file", [f for f in COMMANDS if f.name not in ("console.py", "__init__.py")], ids=lambda file: file.name
)
def test_a_command_prints_by_the_functions_that_make_everything_visible(file):
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)}
    assert not called & {"print", "typer.echo", "typer.secho", "OUT.print", "ERR.print", "sys.stdout.write"}


@contextlib.contextmanager
def no_handlers():
    """As in a new process: pytest has handlers of its own, and beside others a command adds none."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = handlers


def test_notes_and_warnings_are_one_visible_line(capsys):
    @reports_errors
    def command() -> None:
        logging.getLogger("deit.x").warning("a\x1b[31m\nb")
        print(warnings.formatwarning("two\n lines\x1b", UserWarning, "file.py", 1), end="", file=sys.stderr)

    with no_handlers():
        command()
    assert capsys.readouterr().err == "Note: a\\x1b[31m\\nb\nNote: two lines\\x1b\n"


def test_lines_go_to_standard_output_while_a_bar_is_shown_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr(console, "ERR", Console(file=io.StringIO(), force_terminal=True, width=120))
    with progress_bar("Training") as update:
        update(3, 10, "[red]\x1b[31m")
        console.say("epoch 1")
    assert capsys.readouterr().out == "epoch 1\n"
    assert "[red]\\x1b[31m" in console.ERR.file.getvalue()


@pytest.mark.parametrize(
    "words", [["no\x1bcommand"], ["classify", "--\x1b[31m"], ["classify"], ["--version"]], ids=repr
)
def test_the_command_line_itself_is_quoted_plainly(words):
    done = subprocess.run([sys.executable, "-m", "deit", *words], capture_output=True, text=True)
    assert "\x1b" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if words[0] == "--version" else 2)


def test_no_cell_of_a_table_is_cut_and_elsewhere_than_on_a_terminal_a_row_is_a_line(monkeypatch, capsys):
    name = "folder/" + "x" * 150 + ".png"
    print_table("", ("image", "1."), [(name, "ant 10.0 %")])
    assert [line for line in capsys.readouterr().out.splitlines() if name in line and "ant 10.0 %" in line]
    screen = io.StringIO()
    monkeypatch.setattr(console, "OUT", Console(file=screen, force_terminal=True, width=80, no_color=True))
    print_table("", ("image", "1."), [(name, "ant 10.0 %")])
    assert screen.getvalue().count("x") == 150
    assert "…" not in screen.getvalue()


def test_a_line_is_broken_between_words_on_a_terminal_only(monkeypatch, capsys):
    path = "/" + "p" * 100
    line = f"  words before {path} and {'words ' * 20}after"
    console.say(line)
    assert capsys.readouterr().out == line + "\n"
    monkeypatch.setattr(console, "OUT", Console(force_terminal=True, width=80))
    console.say(line)
    shown = capsys.readouterr().out.splitlines()
    assert f"  {path}" in shown
    assert all(len(each) <= 80 for each in shown if path not in each)
    assert " ".join(" ".join(shown).split()) == " ".join(line.split())


def test_a_note_that_two_steps_of_a_command_give_is_shown_once():
    once = _Once()
    records = [logging.makeLogRecord({"msg": "%s holds more", "args": (name,)}) for name in ("a", "a", "b", "a")]
    assert [once.filter(record) for record in records] == [True, False, True, False]


def test_a_note_is_printed_where_errors_go_when_it_comes(capsys):
    """A progress bar puts a stream of its own in place of standard error, which prints above the bar."""

    @reports_errors
    def command() -> None:
        with contextlib.redirect_stderr(io.StringIO()) as above_the_bar:
            logging.getLogger("deit.z").warning("a note")
        assert above_the_bar.getvalue() == "Note: a note\n"

    with no_handlers():
        command()
    assert capsys.readouterr().err == ""


def test_a_number_and_its_percent_sign_stay_on_a_line():
    terminal = Console(force_terminal=True, width=18)
    assert console._broken_to_fit("The score is 34.51 % of all", terminal) == "The score is\n34.51 % of all"
