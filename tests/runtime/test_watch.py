"""When one of several processes is killed, the others end within ten seconds, and one line says which."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.ranks import ROOT


def test_the_others_end_soon_wherever_they_are_and_one_of_them_tells() -> None:
    """While they wait for it by gloo, are at work by themselves, or its connections live on in a worker of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.runtime.lost_process"],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    ended = {case: (codes, float(seconds)) for case, codes, seconds in re.findall(r"(.+): (\[.+\]) (.+)", ran.stdout)}
    assert {case: codes for case, (codes, _) in ended.items()} == {
        "in a collective": "[3, -9]",  # 3: it could end by itself
        "in the patient group": "[-9, 3]",
        "at work": "[137, 137, -9]",
        "with a worker that lives on": "[137, -9]",
    }
    assert max(seconds for _, seconds in ended.values()) < 10
    told = re.findall(r"^Process (\d) of (\d) \(process \d+ on .+\) ended without a word", ran.stderr, re.MULTILINE)
    assert told == [("1", "2"), ("0", "2"), ("2", "3"), ("1", "2")]
