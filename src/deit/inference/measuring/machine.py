"""Describes the machine that a measurement ran on, and how busy other processes kept it."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deit.core.processing.batches import usable_cores
from deit.runtime.packages import installed_versions

PACKAGES = ("deit", "torch", "openvino", "onnxruntime", "timm", "numpy")
BUSY_SHARE = 0.1  # of the cores: from here on figures are not those of a quiet machine

_IDLE = slice(3, 5)  # the columns idle and iowait of /proc/stat
_VIRTUAL = slice(8, 10)  # guest and guest_nice, which user and nice hold already


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What ran a measurement.

    Attributes:
        cpu: Name of the processor.
        cores: Cores that the process may use.
        threads: Threads of each engine.
        system: Operating system and architecture.
        python: Version of Python.
        versions: Versions of the installed packages that matter.
    """

    cpu: str
    cores: int
    threads: int
    system: str
    python: str
    versions: dict[str, str]

    def describe(self) -> str:
        """Returns one line."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.cpu}, {self.cores} core(s), {self.threads} thread(s); Python {self.python}, {versions}"


def this_machine(threads: int) -> Machine:
    """Describes this machine.

    Args:
        threads: Threads of each engine.
    """
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        threads=threads,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=installed_versions(PACKAGES),
    )


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


class OtherWork:
    """Counts the cores that other processes use while it exists.

    Its own process, and the child processes that have ended by the time of the question, do not count.
    """

    def __init__(self) -> None:
        self._before = _busy_seconds()
        self._own = _own_seconds()
        self._began = time.monotonic()

    def cores(self) -> float | None:
        """Returns how many cores other processes used on average; None where the system does not tell."""
        now = _busy_seconds()
        if self._before is None or now is None:
            return None
        passed = max(time.monotonic() - self._began, 1e-9)
        return max(now - self._before - (_own_seconds() - self._own), 0.0) / passed


def _busy_seconds() -> float | None:
    """Returns the seconds that all cores together have worked since the start of the machine."""
    with suppress(OSError, ValueError, AttributeError):
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
        ticks = [int(each) for each in first.split()[1:]]
        return (sum(ticks) - sum(ticks[_IDLE]) - sum(ticks[_VIRTUAL])) / os.sysconf("SC_CLK_TCK")
    return None


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
