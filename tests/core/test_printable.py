"""Text from outside, made visible."""

from __future__ import annotations

import unicodedata

import pytest

from deit.core.printable import MOST_CHARACTERS, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat", "a cat"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),  # one byte that begins an escape
        ("two\nlines\r\n", "two\\nlines\\r\\n"),
        ("cat\u2028dog\u2029\x85", "cat\\u2028dog\\u2029\\x85"),
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),  # read from the right
        ("\u2066\u200f\u061c", "\\u2066\\u200f\\u061c"),
        ("c\u200bat\ufeff", "c\\u200bat\\ufeff"),  # without width
        ("cat\U000e0041", "cat\\U000e0041"),
        (b"\xff.jpg".decode("utf-8", "surrogateescape"), "\\xff.jpg"),
        ("\ud800", "\\ud800"),
        ("Käfer, 猫, קוף, نمر, 👩\u200d🚀, क्\u200dष", "Käfer, 猫, קוף, نمر, 👩\u200d🚀, क्\u200dष"),
        ("tab\there\x00\x7f", "tab\\there\\x00\\x7f"),
        (3, "3"),
    ],
)
def test_what_is_not_seen_is_shown(text, shown):
    assert printable(text) == shown


def test_nothing_that_a_terminal_obeys_is_left_of_all_characters():
    everything = "".join(map(chr, range(0x110000)))
    for start in range(0, len(everything), 500):
        shown = printable(everything[start : start + 500], most=10**6)
        assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
        assert {c for c in shown if unicodedata.category(c) == "Cf"} <= set("\u200c\u200d")
        shown.encode("utf-8")


@pytest.mark.parametrize("text", ["x" * 10**6, "\x1b" * 10**6, "\x1b" * 1500])
def test_a_long_line_loses_its_middle(text):
    shown = printable(text)
    assert len(shown) <= MOST_CHARACTERS
    assert " ... (" in shown
    assert len(printable(text, 20)) == 20


def test_lines_stay_lines():
    assert printable_lines("a\x1b\nb\n") == "a\\x1b\nb\n"
