"""Random changes of inputs: of bytes, of JSON and YAML values, of one of several files.

Each takes a source of chance with the methods of `random.Random`: atheris and the runs with hypothesis give different
ones.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz.driver import joined, separated

Change = Callable[[Random, bytes, Sequence[bytes]], bytes]

_BYTES = (
    b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff" * 8, b"\n", b'"',
    b"[" * 200, b"{", b"}", b"1e999", b"-1", b"..", b"/", b"\\u0000", b"=", b",", b";", b"\xc3\xa9", b"\xed\xa0\x80",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 255, 256, 65_536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63),
    10**30, 10**400, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, math.inf, -math.inf, math.nan, "", "0", "1", "-1", "1e999",
    "nan", "true", "a" * 300, "\0", "\ud800", "../..", "/dev/zero", "cpu", "\u202e", [], [0], [1, 2], [[]], ["a"],
    [None], {}, {"a": 1}, {"0": "a"},
)  # fmt: skip


def of_bytes(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Changes one to eight places."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        place = random.randrange(len(found) + 1)
        count = random.choice((1, 1, 2, 4, 8, 64))
        kind = random.randrange(7)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            known = random.choice(_BYTES)
            found[place : place + len(known)] = known
        elif kind == 2:
            found[place:place] = random.choice(_BYTES)
        elif kind == 3:
            del found[place : place + count]
        elif kind == 4:
            found[place:place] = found[place : place + count] * random.choice((1, 2, 50))
        elif kind == 5 and others:
            other = random.choice(list(others))
            start = random.randrange(len(other) + 1)
            found[place : place + count] = other[start : start + count]
        else:
            found[place : place + count] = bytes(random.randrange(256) for _ in range(min(count, 8)))
        if random.randrange(40) == 0:
            del found[random.randrange(len(found) + 1) :]
    return bytes(found)


def of_values(random: Random, values: Any) -> Any:
    """Changes one to four places of nested plain values."""
    changed = copy.deepcopy(values)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        place = _place(random, changed)
        if place is None:
            return random.choice(VALUES)
        _change(random, *place)
    return changed


def _change(random: Random, holder: Any, key: Any) -> None:
    kind, value = random.randrange(10), holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[random.choice(("", "a", "\0", "0", "model_type", "label2id", str(key) * 2))] = value
    elif kind == 1:
        holder.insert(key, value)
    elif kind == 2:
        holder[key] = [value, value]
    elif kind == 3 and isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**60:
        holder[key] = random.choice((value + 1, value - 1, -value, value * 2, value * 1000, float(value), str(value)))
    elif kind == 4:
        holder[key] = {str(value)[:20]: value}
    elif kind == 5:
        holder[key] = copy.deepcopy(
            holder[random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))]
        )
    else:
        holder[key] = copy.deepcopy(random.choice(VALUES))


def _place(random: Random, values: Any) -> tuple[Any, Any] | None:
    """Chooses a place in nested values, at any depth alike: what holds it, and its key. None if there is none."""
    keys = list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    if not keys:
        return None
    key = random.choice(keys)
    inside = _place(random, values[key]) if random.randrange(2) else None
    return (values, key) if inside is None else inside


def of_json(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Changes values of JSON, or bytes where it is none or by chance."""
    if random.randrange(5):
        try:
            return json.dumps(of_values(random, json.loads(data))).encode()
        except (ValueError, RecursionError):
            pass
    return of_bytes(random, data, others)


def of_one_file(**changes: Change) -> Change:
    """Changes one file of an input, by the change of its ending, such as json=of_json; else its bytes."""

    def change(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
        files = separated(data)
        if not files or random.randrange(12) == 0:
            return of_bytes(random, data, others)
        name = random.choice(sorted(files))
        of_it = changes.get(name.rpartition(".")[2], of_bytes)
        files[name] = of_it(random, files[name], [separated(each).get(name, b"") for each in others])
        return joined(files)

    return change
