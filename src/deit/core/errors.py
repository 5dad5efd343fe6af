"""Defines the errors that users cause, and reads files that may be damaged or hostile.

Everything that this package raises because of its input is a `UserError` or one of Python's `OSError`s (a missing file,
a full disk, a lost connection). Every other exception that leaves it is a bug.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The largest JSON here, a configuration of 21,000 class names, has 2 MiB. Parsed, hostile JSON takes 25 times its size.
MOST_JSON_BYTES = 16 * 2**20

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple = 2, 3, 4, 4


class UserError(ValueError):
    """The input cannot be used. The `deit` command prints it as one line and exits with code 2."""


class WrongTypeError(UserError, TypeError):
    """An argument has the wrong type or is unknown."""


class WrongStateError(UserError, RuntimeError):
    """The operation is not possible in the current state of the process or model."""


class MissingPackageError(ImportError, UserError):
    """An optional package is not installed. `name` is that of the package."""


class DamagedFileError(UserError):
    """A file is truncated, damaged, hostile or of another format."""


class DamagedConfigurationError(DamagedFileError, OSError):
    """A `config.json` is damaged. Also an OSError, which is what transformers raises."""


class ShapeError(UserError, RuntimeError):
    """Tensors have other names or shapes than the model's. Also a RuntimeError, as PyTorch and transformers raise."""


def shown(value: object) -> str:
    """Returns `repr(value)`, shortened to a few hundred characters for a message.

    Examples:
        >>> shown("a" * 1000)
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    return _SHORT.repr(value)[:300]


class ImageError(UserError):
    """A file or its bytes cannot be read as an image."""


class ValueRangeError(ImageError):
    """The range of an image's values is unknown. Set `value_range`."""


class UnreachableError(UserError):
    """Where images are cannot be reached. Not an OSError: the images are not broken, so none of them is left out."""


@contextmanager
def parsing(path: Path, kind: str) -> Iterator[None]:
    """Converts every error of a parser to `DamagedFileError`. The block must do nothing but parse.

    Args:
        path: File that is parsed.
        kind: What it should be, with its article: "a training state".

    Raises:
        DamagedFileError: The block raised an error. A missing or forbidden file keeps its own error.
    """
    try:
        yield
    except (UserError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # parsers of hostile bytes raise nearly every type
        reason = str(error).partition("\n")[0][:200]
        reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        raise DamagedFileError(f"{path} is damaged or is not {kind} ({reason}).") from error


def read_bytes(path: Path, kind: str, most: int) -> bytes:
    """Reads a small file whole. Rejects pipes and devices, which may block or never end.

    Args:
        path: The file.
        kind: What it should be, with its article, for the message.
        most: Maximum size in bytes.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It has more bytes, or is no file.
    """
    with parsing(path, kind):
        size = path.stat().st_size
        if not path.is_file():
            raise DamagedFileError(f"{path} is not {kind}: it is a folder, a pipe or a device.")
        if size <= most:
            with path.open("rb") as file:
                content = file.read(most + 1)
            size = len(content)
        if size > most:
            raise DamagedFileError(f"{path} is not {kind}: it has {size} bytes, more than {most}.")
    return content


def read_json(path: Path, kind: str, most: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: The file.
        kind: What it should be, with its article, for the message.
        most: Maximum size in bytes.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It is larger, not JSON, nested too deeply, or not an object.
    """
    content = read_bytes(path, kind, most)
    with parsing(path, kind):
        values = json.loads(content.decode("utf-8"))
    if not isinstance(values, dict):
        raise DamagedFileError(f"{path} is not {kind}: it holds a {type(values).__name__}, not a JSON object.")
    return values
