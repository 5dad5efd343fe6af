"""Escapes text from outside before it is printed: control characters, invisible ones, bidirectional overrides."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Collection

FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet runs as a formula
MOST_CHARACTERS = 2000  # of one line that is shown: what a person may read of it

# Letters of Persian, of the languages of India and of composed emoji are joined and kept apart with these two.
_JOINERS = "\u200c\u200d"
# Controls, formats (bidirectional overrides, characters without width, tags), lone surrogates, ends of lines.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: object, most: int = MOST_CHARACTERS) -> str:
    r"""Returns one line with control characters escaped: an escape becomes `\x1b`, the end of a line `\n`.

    Names of classes and files, cells of tables, answers of servers and messages of parsers may hold control sequences
    of terminals. Every text for people passes through this function or `printable_lines`.

    Args:
        text: Any value; converted with `str`.
        most: Maximum length; the middle of a longer text is left out.
    """
    line = str(text)
    cut = len(line) > most
    if cut:  # first, so that a name of a gigabyte costs nothing
        line = _middle_left_out(line, most)
    if not line.isascii() or not line.isprintable():
        line = "".join(_seen(character) for character in line)
    return line if len(line) <= most else _middle_left_out(line, most)


def printable_lines(text: str) -> str:
    """Applies `printable` to each line of a text."""
    return "\n".join(printable(line) for line in text.split("\n"))


def counted(number: float, what: str, plural: str = "") -> str:
    """Returns a number with its noun: "1 epoch", "0.5 epochs", "2 classes" (of "class" and "classes")."""
    shown = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{shown} {what if number == 1 else plural or what + 's'}"


def some_of(names: Collection[str], most: int = 10) -> str:
    """Returns names as a list for a message: "a, b, c", or "a, b and 998 more"."""
    shown = ", ".join(itertools.islice(names, most))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would run a cell as a formula. Names of classes and files are not trusted."""
    if not text.startswith(FORMULA_SIGNS):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def not_computed(text: str) -> str:
    """Returns text that no spreadsheet takes for a formula: one gets an apostrophe in front."""
    return f"'{text}" if is_formula(text) else text


def as_unicode(name: str) -> str:
    r"""Returns a text that can be encoded: a byte of a file name that is not UTF-8 becomes `\udcNN`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def markdown_code(text: object, most: int = 100) -> str:
    """Returns a text as inline code in Markdown. Not for cells of tables."""
    line = printable(text, most)
    if not line.strip():
        line = f'"{line}"'
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith(("`", " ")) or line.endswith(("`", " ")) else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def markdown_text(text: object, most: int = 100) -> str:
    """Returns a text escaped for Markdown: it makes no link, tag, address or heading."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", printable(text, most))


def _middle_left_out(line: str, most: int) -> str:
    note = f" ... ({len(line) - most:,} characters) ... "
    if most <= 2 * len(note):
        return line[: most - 3] + "..."
    half = (most - len(note)) // 2
    return line[:half] + note + line[-half:]


def _seen(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in _UNSEEN:
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is no UTF-8, as Python keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
