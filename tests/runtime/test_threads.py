"""Threads: as many as this process may use, and asleep while they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deit.runtime import threads


def control_groups(tmp_path, files, membership):
    """Writes control groups as Linux shows them, and returns their quota."""
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    (tmp_path / "self").write_text(membership)
    return threads.cpu_quota(tmp_path / "cgroup", tmp_path / "self")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),  # a container of version 2
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, "0::/a/b\n", 2.0),  # of a group above
        ({"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "200000 100000\n"}, "0::/a/b\n", 0.5),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", 3.0),  # of version 1
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", None),
        (
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/x\n",
            2.5,
        ),
        ({"cpu.max": "nonsense"}, "0::/../other\nnonsense\n", None),
        ({}, "", None),
    ],
)
def test_the_quota_of_control_groups_is_read(tmp_path, files, membership, expected):
    assert control_groups(tmp_path, files, membership) == expected


def test_a_missing_membership_is_no_quota(tmp_path):
    assert threads.cpu_quota(tmp_path, tmp_path / "nowhere") is None


def test_inference_takes_no_more_threads_than_pytorch_the_cores_and_the_quota(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(threads, "usable_cores", lambda: 6)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    assert threads.inference_threads() == 6
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2.5)
    assert threads.inference_threads() == 3
    monkeypatch.setattr(threads, "cpu_quota", lambda: 0.2)
    assert threads.inference_threads() == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "cpu_quota", lambda: 4.0)
    assert threads.inference_threads() == 2


def test_a_process_is_prepared_unless_its_user_has_decided(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    monkeypatch.setattr(threads, "cpu_quota", lambda: 1.5)
    asleep = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
    for given, expected in [
        ({}, {**asleep, "OMP_NUM_THREADS": "2"}),
        ({"OMP_NUM_THREADS": "8"}, {**asleep, "OMP_NUM_THREADS": "8"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "2"}),
        ({"KMP_BLOCKTIME": "200"}, {"KMP_BLOCKTIME": "200", "OMP_NUM_THREADS": "2"}),
    ]:
        environment = dict(given)
        threads.prepare_threads(environment)
        assert environment == expected
    monkeypatch.setattr(threads, "cpu_quota", lambda: 8.0)  # as many as there are
    environment = {}
    threads.prepare_threads(environment)
    assert environment == asleep


def test_the_command_prepares_its_threads_before_anything_loads_openmp():
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    script = (
        "import atexit, os, sys\n"
        "from deit.cli import command\n"
        f"show = lambda: print(*(os.environ.get(n) for n in {names}), flush=True)\n"
        "sys.argv = ['deit', '--version']\n"
        "try:\n    command()\nexcept SystemExit:\n    show()\n    raise\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in names}
    for given, expected in [({}, "PASSIVE 1000 0"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None None")]:
        found = subprocess.run([sys.executable, "-c", script], env={**clean, **given}, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        assert found.stdout.splitlines()[-1] == expected
