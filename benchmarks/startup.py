"""Measures `import deit` and `deit --help` as whole processes.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import compare, report, take_turns

COMMANDS = {
    "python alone": [sys.executable, "-c", "pass"],
    "import deit": [sys.executable, "-c", "import deit"],
    "deit --help": [str(Path(sys.executable).with_name("deit")), "--help"],
}


def main() -> None:
    functions = {
        name: lambda command=command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name, command in COMMANDS.items()
    }
    row = compare(take_turns(functions, rounds=15), ours="python alone")
    row["import deit, without python, ms"] = row["import deit ms"] - row["python alone ms"]
    report("startup", [row])


if __name__ == "__main__":
    main()
