"""Says how much memory there is, and how much this process has had."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path


def free_memory() -> int:
    """Returns the bytes of main memory that can be had, or 0 where the system does not say."""
    limits = [_cgroup_memory()]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return min((limit for limit in limits if limit > 0), default=0)


def _cgroup_memory() -> int:
    """Returns the bytes that a container leaves, or 0 where it sets no limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        return max(limit - int((folder / "memory.current").read_text(encoding="ascii")), 1)
    except (OSError, ValueError):  # no such file; "max"
        return 0


def peak_memory() -> int:
    """Returns the most bytes that this process has had, or 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    # Linux hands this value on to a new program, so there it can be that of the process that started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
