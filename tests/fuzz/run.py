"""Fuzzes the targets, two at a time, each in a process of its own with a limit of memory.

    python -m tests.fuzz.run                          # 10 minutes each
    python -m tests.fuzz.run --minutes 1 images       # some targets
    python -m tests.fuzz.run --list

The engine is atheris (coverage of the package's code; extra `fuzz`), else hypothesis. A process that dies of an input
is started again for the rest of its time. OUT/TARGET/crashers holds the inputs that failed. Exits with 1 if any did.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.fuzz.driver import MOST_BYTES
from tests.fuzz.targets import TARGETS

_ADDRESS_SPACE = 16 * 2**30  # so that an input that asks for everything fails, and the machine goes on
_PATIENCE = 600.0  # seconds; a measurement that needs a quiet machine may stop the process for some minutes
_COVERAGE = re.compile(r"cov: (\d+).*")
_LAST = "last-input"


def main() -> int:
    """Runs the targets that were asked for and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="Names; all without.")
    parser.add_argument("--minutes", type=float, default=10.0, help="Of each target; 10 by default.")
    parser.add_argument("--at-once", type=int, default=2, help="Processes; 2 by default.")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="Folder of what is found.")
    parser.add_argument("--list", action="store_true", help="Only print the names.")
    given = parser.parse_args()
    names = given.targets or list(TARGETS)
    if given.list or set(names) - set(TARGETS):
        print("\n".join(TARGETS))
        return 0 if given.list else 2
    print("| target | engine | executions | read | coverage | peak MB | failures |\n|---|---|---:|---:|---|---:|---|")
    with ThreadPoolExecutor(given.at_once) as pool:
        failed = [bool(found) for found in pool.map(lambda name: _fuzz(name, given.minutes, given.out / name), names)]
    print(f"\n{len(names)} targets, {sum(failed)} with failures. What failed is in {given.out}/TARGET/crashers.")
    return 1 if any(failed) else 0


def _fuzz(name: str, minutes: float, out: Path) -> list[str]:
    """Fuzzes one target and prints its row; returns its failures."""
    shutil.rmtree(out / "crashers", ignore_errors=True)
    (out / "figures.json").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    end, log = time.monotonic() + 60 * minutes, out / "log.txt"
    log.unlink(missing_ok=True)
    died = 0
    while (left := round(end - time.monotonic())) > 0:
        code = _process(name, left, out, log)
        last = out / "crashers" / _LAST
        if code and last.exists() and time.monotonic() < end - 1:
            died += 1
            last.rename(out / "crashers" / f"died-{died}-code-{code}")
        elif code and not last.exists():  # before the first input
            died += 1
            break
    figures = json.loads((out / "figures.json").read_text()) if (out / "figures.json").exists() else {}
    failures = sorted(p.name for p in (out / "crashers").glob("*") if p.suffix != ".txt" and p.name != _LAST)
    failures += ["it does not start"] * (died > 0 and not failures)
    print(_row(name, figures, failures, log.read_text(errors="replace")), flush=True)
    return failures


def _process(name: str, seconds: int, out: Path, log: Path) -> int:
    """Runs the process of a target, and returns its exit code."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))

    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.process", name, str(seconds), str(out)]
    with log.open("ab") as file, tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": folder, "DEIT_CACHE": f"{folder}/cache"}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, preexec_fn=limit)
        try:
            return process.wait(seconds + _PATIENCE)
        except subprocess.TimeoutExpired:  # it waits for something
            process.kill()
            return process.wait()


def _row(name: str, figures: dict[str, Any], failures: list[str], log: str) -> str:
    reached = [int(number) for number in _COVERAGE.findall(log)]
    coverage = f"{reached[0]} to {max(reached)}" if reached else "unknown"
    engine = "atheris" if reached else "hypothesis"
    counts = f"{figures.get('executions', 0):,} | {figures.get('read', 0):,} | {coverage} | {figures.get('peak_mb', 0)}"
    return f"| {name} | {engine} | {counts} of {MOST_BYTES // 10**6} | {', '.join(failures) or 'none'} |"


if __name__ == "__main__":
    sys.exit(main())
