"""Counts the threads that a computation on the CPU may use, and keeps waiting threads from using the processor."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from deit.core.processing.batches import usable_cores

# Lets waiting threads of OpenMP sleep soon: of all runtimes, of GCC (for PyTorch on Linux), of LLVM and Intel.
# GCC's spin 1,000 times first, for about 20 microseconds, as long as the gap between two operations of a small model.
# Without the spinning, small models train a third slower (docs/results.md, "Threads that wait").
_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}

_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def prepare_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets, for a process that has loaded no OpenMP yet, how its threads wait and how many there are.

    A waiting thread of OpenMP spins for milliseconds by default: it keeps a core busy that it does nothing with. Beside
    another busy process, that makes PyTorch several times slower. Prepared, it spins for microseconds. A CPU quota of a
    container is unknown to OpenMP, which starts a thread for each core; they then share the quota, and all stop when it
    is used up.

    Variables that are set already stay as they are. Has no effect once PyTorch has been imported.

    Args:
        environment: Variables of the process.
    """
    if not any(name in environment for name in _ASLEEP):
        environment.update(_ASLEEP)
    quota = cpu_quota()
    if quota is not None and quota < usable_cores() and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(usable_threads())


def inference_threads() -> int:
    """Returns the number of threads for a model on the CPU: every engine asks here.

    It is PyTorch's number, which follows OMP_NUM_THREADS and `torch.set_num_threads`, but at most `usable_threads`.
    """
    import torch

    return max(min(torch.get_num_threads(), usable_threads()), 1)


def usable_threads() -> int:
    """Returns how many threads can compute at once: the cores of this process, at most its CPU quota, rounded up."""
    quota = cpu_quota()
    return usable_cores() if quota is None else max(min(usable_cores(), math.ceil(quota)), 1)


def cpu_quota(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """Returns how many cores' time the control groups of this process allow (Linux), or None without a limit.

    Containers and job schedulers set it (`docker run --cpus`, limits of Kubernetes, CPUQuota of systemd). The smallest
    limit of the group and those above it counts.

    Args:
        cgroups: Where control groups are mounted.
        membership: The file that says to which this process belongs.
    """
    if not sys.platform.startswith("linux"):
        return None
    limits = []
    for folder in _group_folders(cgroups, membership):
        limits += [limit for limit in (_limit_of_2(folder), _limit_of_1(folder)) if limit is not None]
    return min(limits, default=None)


def _group_folders(cgroups: Path, membership: Path) -> list[Path]:
    """Returns the folders of the process's control groups and of those above them, of both versions."""
    folders = [cgroups, cgroups / "cpu", cgroups / "cpu,cpuacct"]
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return folders
    for line in lines:
        number, _, rest = line.partition(":")
        kinds, _, group = rest.partition(":")
        if number == "0" and not kinds:
            root = cgroups
        elif "cpu" in kinds.split(","):
            root = cgroups / kinds
        else:
            continue
        place = root / group.strip("/")
        if ".." not in place.parts:  # outside of what this process can see
            folders += [place, *(parent for parent in place.parents if root in parent.parents)]
    return folders


def _limit_of_2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else _share(float(quota), float(period))
    except (OSError, ValueError):
        return None


def _limit_of_1(folder: Path) -> float | None:
    try:
        quota = float((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        return _share(quota, float((folder / "cpu.cfs_period_us").read_text(encoding="ascii")))
    except (OSError, ValueError):
        return None


def _share(quota: float, period: float) -> float | None:
    return quota / period if quota > 0 and period > 0 else None
