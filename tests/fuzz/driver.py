"""What all targets share: what an input may do, and files and JSON to change.

A target takes bytes and gives them to the code that reads them. It may return, or raise what a user causes: a
`UserError` or an `OSError`, after which the command ends with one line and exit code 2. Anything else is a failure:
another exception, more than `MOST_SECONDS`, or more than `MOST_BYTES` of memory with Python and PyTorch included.
"""

from __future__ import annotations

import atexit
import logging
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deit.core.errors import UserError

MOST_SECONDS = 10.0  # of the processor
MOST_BYTES = 10**9
CORPUS = Path(__file__).parent / "corpus"
_HEADING = b"=== "


class Failure(AssertionError):  # noqa: N818  # it is what a fuzzer finds, not what a caller did wrong
    """An input did what no input may do.

    Attributes:
        signature: What it did and where, as a part of a file name; the same for the same mechanism.
    """

    def __init__(self, signature: str, told: str) -> None:
        super().__init__(told)
        self.signature = signature


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of input.

    Attributes:
        name: Of its folder in `corpus/`.
        read: Gives bytes to the code that reads them. Gets an empty folder, which is removed afterwards.
        change: Returns a changed input. Gets a source of chance, such as `random.Random`, and all inputs of the corpus.
        seeds: Returns good inputs by name.
        prepare: Builds what all inputs share; called once.
    """

    name: str
    read: Callable[[bytes, Path], object]
    change: Callable[..., bytes]
    seeds: Callable[[], Mapping[str, bytes]]
    prepare: Callable[[], object] = lambda: None

    @property
    def corpus(self) -> dict[str, bytes]:
        """The inputs in the repository: good ones, and those that once failed."""
        return {path.name: path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())}


def check(target: Target, data: bytes) -> str:
    """Gives one input to a target, and returns what it said: the text of the error, or "" for a success.

    Raises:
        Failure: The input did what no input may do.
    """
    started, said = time.process_time(), ""
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            target.read(data, Path(folder))
        except (UserError, OSError) as error:
            said = f"{type(error).__name__}: {error}"
        except Exception as error:
            raise Failure(_where(error), "".join(traceback.format_exception(error))) from error
        finally:
            logging.disable(before)
    seconds = time.process_time() - started
    if seconds > MOST_SECONDS:
        raise Failure("slow", f"It took {seconds:.1f} s.")
    if peak() > MOST_BYTES:
        raise Failure("memory", f"The process has taken {peak() / 1e6:.0f} MB.")
    return said


def peak() -> int:
    """Returns the largest resident set of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _where(error: Exception) -> str:
    """Returns the type of an error and the last place of the package that it passed."""
    places = [each for each in traceback.extract_tb(error.__traceback__) if "/deit/" in each.filename]
    place = f"{Path(places[-1].filename).stem}-{places[-1].lineno}" if places else "elsewhere"
    return f"{type(error).__name__}-{place}"


def lasting_folder(name: str) -> Path:
    """Returns a new folder that stays until the process ends."""
    folder = tempfile.mkdtemp(prefix=f"fuzz-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


# --- several files in one input --------------------------------------------------------------------------


def joined(files: Mapping[str, bytes]) -> bytes:
    """Returns files as one input: each under a heading with its name."""
    return b"".join(_HEADING + name.encode() + b"\n" + content + b"\n" for name, content in files.items())


def separated(data: bytes) -> dict[str, bytes]:
    """Returns the files of an input; what has no heading is left out."""
    files = {}
    for part in (b"\n" + data).split(b"\n" + _HEADING)[1:]:
        name, _, content = part.partition(b"\n")
        files[name.decode("latin-1")] = content.removesuffix(b"\n")
    return files


def write_files(data: bytes, folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Writes those files of an input that have one of some names, and returns them."""
    files = {name: content for name, content in separated(data).items() if name in names}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files
