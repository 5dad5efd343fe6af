"""Claims units of work among processes and machines that share a folder, by files that one of them can create."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

# Without a sign of life for so long, the claim of a process on another machine is void. Network file systems may show
# a change of a file a minute late.
LEASE_SECONDS = 300.0
_BEATS = 10  # signs of life within a lease

CLAIMS_NAME = "_claims"


class Claims:
    """The claims of one process on names.

    A claim is a file `NAME.GENERATION` with the owner: process, machine, and when the process was started. A claim of
    this machine is void when its process has ended. One of another machine is void when its file was not touched for a
    lease. A process that takes over a void claim creates the next generation, which only one process can. The work must
    stay right even if two processes do it: a claim saves work, and guards nothing.

    Args:
        folder: The folder of the claims; it is made.
        lease: Seconds, see `LEASE_SECONDS`.
    """

    def __init__(self, folder: Path, *, lease: float = LEASE_SECONDS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._lease = folder, lease
        self._held: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, name: str) -> bool:
        """Claims a name. Returns False if another process has it, or took it at the same moment."""
        former = self._generations(name)
        if former and self._lives(former[-1][1]):
            return False
        number = former[-1][0] + 1 if former else 0
        path = self._folder / f"{name}.{number}"
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(_me(), file)
        except BaseException:  # a full disk, a signal: a claim that names no owner would last for a lease
            path.unlink(missing_ok=True)
            raise
        with self._lock:
            self._held[name] = path
        for _, old in former:
            old.unlink(missing_ok=True)
        self._start()
        return True

    def release(self, name: str) -> None:
        """Gives a name back."""
        with self._lock:
            path = self._held.pop(name, None)
        if path is not None:
            path.unlink(missing_ok=True)

    def owner(self, name: str) -> str:
        """Returns who has a name, for messages; empty if nobody has."""
        found = self._generations(name)
        values = _read(found[-1][1]) if found else None
        return "" if values is None else f"process {values.get('process')} on {values.get('machine')}"

    def forget(self, name: str) -> None:
        """Removes the claims on a name whose work is done."""
        for _, path in self._generations(name):
            path.unlink(missing_ok=True)

    def names(self) -> set[str]:
        """Returns the names that are claimed, by whomever, living or not."""
        names = (name.rpartition(".") for name in os.listdir(self._folder) if not name.startswith("."))
        return {stem for stem, _, number in names if number.isdigit()}

    def close(self) -> None:
        """Gives everything back."""
        self._ended.set()
        for name in list(self._held):
            self.release(name)

    def _generations(self, name: str) -> list[tuple[int, Path]]:
        found = []
        for entry in os.listdir(self._folder):
            stem, _, number = entry.rpartition(".")
            if stem == name and number.isdigit():
                found.append((int(number), self._folder / entry))
        return sorted(found)

    def _lives(self, path: Path) -> bool:
        values = _read(path)
        if values is not None and values.get("where") == _where():
            return _started(values.get("process")) == values.get("started")
        try:
            return self._now() - path.stat().st_mtime < self._lease
        except FileNotFoundError:
            return False

    def _now(self) -> float:
        """Returns the time of the file system, whose clock may differ from that of this machine."""
        with tempfile.NamedTemporaryFile(prefix=".clock.", dir=self._folder) as file:
            return os.stat(file.name).st_mtime

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="deit-claims", daemon=True)
            self._thread.start()

    def _live(self) -> None:
        """Touches the claims while this process is at work; in a thread."""
        while not self._ended.wait(self._lease / _BEATS):
            with self._lock:
                held = list(self._held.values())
            for path in held:
                with suppress(OSError):  # given back meanwhile; or the next one succeeds
                    os.utime(path)


def _me() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "machine": socket.gethostname(),
        "where": _where(),
        "started": _started(os.getpid()),
    }


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the content of a claim; None while it is being written, or when it is gone."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _where() -> str:
    """Returns what the number of a process is unique in: this start of this machine, and of it this container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(process: Any) -> str:
    """Returns when a process of this machine was started, "running" where that is unknown; empty if it has ended."""
    if not isinstance(process, int) or process <= 0:
        return ""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
