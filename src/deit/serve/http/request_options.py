"""Turns the options of a request into what is wanted, strictly: an unknown or wrong one is an error."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from deit.core.errors import UserError, shown
from deit.core.printable import printable
from deit.core.scores.conformal import Coverage
from deit.serve.answers import Wants
from deit.serve.refusals import Refusal

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
_KNOWN = (
    "model",
    "version",
    "top_k",
    "coverage",
    "sets",
    "per_class",
    "abstain",
    "heads",
    "embedding",
    "explain",
    "explain_score",
)


def wants_of(options: Mapping[str, Any]) -> Wants:
    """Returns what the options ask for.

    Raises:
        Refusal: An option is unknown or has a wrong value.
    """
    if unknown := sorted(options.keys() - set(_KNOWN)):
        raise Refusal(
            400, "unknown_option", f"Unknown option {printable(unknown[0], 100)}. Known: {', '.join(_KNOWN)}."
        )
    percent = _number(options, "coverage")
    sets, per_class = text_of(options, "sets"), _flag(options, "per_class")
    if percent is None and (sets or per_class):
        raise Refusal(400, "bad_option", "sets and per_class say how sets are made. Send a coverage with them.")
    try:
        wanted = None if percent is None else Coverage(percent=percent, sets=sets or "lac", per_class=per_class)
    except UserError as error:
        raise Refusal(400, "bad_option", str(error)) from error
    top_k = _number(options, "top_k")
    if top_k is not None and (top_k < 1 or top_k != int(top_k)):
        raise Refusal(400, "bad_option", f"top_k must be a whole number of at least 1. Received: {top_k:g}.")
    explain, scored = text_of(options, "explain") or "", _flag(options, "explain_score")
    if scored and not explain:
        raise Refusal(400, "bad_option", "explain_score needs a method: send explain=relevance with it.")
    return Wants(
        top_k=5 if top_k is None else int(top_k),
        coverage=wanted,
        abstain=_flag(options, "abstain"),
        heads=_flag(options, "heads"),
        embedding=_flag(options, "embedding"),
        explain=explain,
        explain_score=scored,
    )


def deadline_of(header: str | None) -> float | None:
    """Returns the time of `time.monotonic` that an `X-Deadline-Ms` header means; None without one.

    Raises:
        Refusal: It is no positive number.
    """
    if header is None:
        return None
    try:
        milliseconds = float(header)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise Refusal(
            400, "bad_deadline", f"X-Deadline-Ms must be milliseconds from now, more than 0. Received: {shown(header)}."
        )
    return time.monotonic() + milliseconds / 1000


def text_of(options: Mapping[str, Any], name: str) -> str | None:
    """Returns an option that is a text; None without it.

    Raises:
        Refusal: It is no text.
    """
    value = options.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(400, "bad_option", f"{name} must be a text. Received: {printable(shown(value), 200)}.")
    return value or None


def _flag(options: Mapping[str, Any], name: str) -> bool:
    value = options.get(name, False)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in (*_TRUE, *_FALSE):
        return value.lower() in _TRUE
    raise Refusal(400, "bad_option", f"{name} must be true or false. Received: {printable(shown(value), 200)}.")


def _number(options: Mapping[str, Any], name: str) -> float | None:
    value = options.get(name)
    if value is None:
        return None
    number = math.nan
    plain = not isinstance(value, str) or (value.isascii() and "_" not in value)  # Python takes 1_000 and other digits
    if isinstance(value, (int, float, str)) and not isinstance(value, bool) and plain:
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise Refusal(400, "bad_option", f"{name} must be a number. Received: {printable(shown(value), 200)}.")
    return number
