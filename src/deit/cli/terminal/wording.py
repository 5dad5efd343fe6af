"""Rewrites messages of the library for the command line: arguments become options, settings become --set.

The library's messages are for Python ("Pass device='cpu'."). On the command line the same thing has another name. This
module knows both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection

# Whole sentences, or parts, that only a program could follow.
_PHRASES = (
    (re.compile(r"[Pp]ass another token=\."), "Log in with `hf auth login`, or set HF_TOKEN to another token."),
    (re.compile(r"Then pass token=\."), "Then log in with `hf auth login`, or set HF_TOKEN."),
    (re.compile(r", or pass token=\."), ", or log in with `hf auth login` (or set HF_TOKEN)."),
    (re.compile(r"Pass config=, which says the image size\."), "Pass a model directory with a config.json that does."),
    (re.compile(r"Pass config=\."), "Pass a model directory with a config.json that does."),
    (re.compile(r" ?Pass ignore_mismatched_sizes=True to start them anew\."), ""),
    (re.compile(r"; strict is on\."), "; --strict is on."),
)
_VALUE = r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s,;()'\"]*[^\s,;()'\".])?"
_NAMED = re.compile(rf"(?<![\w./=-])(?P<before>--set )?(?P<name>[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)?)=(?!=){_VALUE}")
_BARE = re.compile(r"(?<![\w./='\"-])(?P<name>[a-z]+(?:_[a-z0-9]+)+)(?![\w.=(/'\"-])")
_SUBJECT = re.compile(r"^(?P<name>[a-z][a-z0-9_.]*)(?= must )")
_UNKNOWN = re.compile(r"(?P<start>Unknown setting '(?P<name>[^']+)'\.).*$")
# Settings that are options of another name.
_OWN_OPTIONS = {"schedule.epochs": "epochs"}


def in_options(message: str, parameters: Collection[str]) -> str:
    """Returns a message with the names of the command line.

    Args:
        message: The library's message.
        parameters: Python names of the command's options. "set_" among them: it takes settings of a recipe.

    Examples:
        >>> in_options("The device 'x' cannot be used. Pass device='cpu'.", ["device"])
        "The device 'x' cannot be used. Pass --device cpu."
    """
    for pattern, words in _PHRASES:
        if words != "; --strict is on." or "strict" in parameters:
            message = pattern.sub(words, message)
    settings = _settings() if "set_" in parameters else {}

    message = _UNKNOWN.sub(lambda found: _not_a_setting(found, parameters), message)

    def option(name: str) -> str | None:
        name = _OWN_OPTIONS.get(name, name)
        return "--" + name.replace("_", "-") if name in parameters else None

    def named(match: re.Match[str]) -> str:
        name, value = match["name"], _as_word(match["value"] or "")
        if match["before"]:
            return match[0]
        if (found := option(name)) is not None:
            return f"{found} {value}".rstrip()
        return f"--set {settings[name]}={value}" if name in settings else match[0]

    def bare(match: re.Match[str]) -> str:
        return option(match["name"]) or settings.get(match["name"], match[0])

    def subject(match: re.Match[str]) -> str:
        return option(match["name"]) or match[0]

    replacements: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
        (_SUBJECT, subject), (_NAMED, named), (_BARE, bare),
    )  # fmt: skip
    for words_of, replace in replacements:
        message = words_of.sub(replace, message)
    return message


def _not_a_setting(found: re.Match[str], parameters: Collection[str]) -> str:
    name = found["name"].replace("-", "_")
    return f"{found['start']} Pass the option --{name.replace('_', '-')}." if name in parameters else found[0]


def _as_word(value: str) -> str:
    """Returns a Python value as written on the command line."""
    if value in ("True", "False"):
        return value.lower()
    return value[1:-1] if value[:1] in ("'", '"') else value


@functools.cache
def _settings() -> dict[str, str]:
    """Returns the dotted name of each setting of a recipe, by itself and by its last part if that is unique."""
    from deit.train.recipes.recipe import Recipe
    from deit.train.recipes.values import flat

    names = list(flat(Recipe().to_dict()))
    last = [name.rpartition(".")[2] for name in names]
    found = {part: name for part, name in zip(last, names, strict=True) if last.count(part) == 1}
    return found | {name: name for name in names}
