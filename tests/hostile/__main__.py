"""Gives every hostile input to the real command and prints what it took.

    python -m tests.hostile                     # all, a table; exits with 1 where one is over a limit
    python -m tests.hostile "tar: a size"       # those whose name contains a text
    python -m tests.hostile --show "tar: a"     # with all that they print
    python -m tests.hostile --list
    python -m tests.hostile --markdown          # the table as Markdown

Each input goes to a process of its own. Memory is its largest resident set, Python and PyTorch (about 400 MB without
any input) included; time is that of the processor, as other work on the machine is none of the input's doing, and a
process that waits for ever is stopped after a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.hostile.cases import CASES
from tests.hostile.kit import prepare
from tests.hostile.measuring import Measured, measure


def main() -> int:
    """Runs the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="Texts in the names of the cases to run; all without.")
    parser.add_argument("--list", action="store_true", help="Only print the names.")
    parser.add_argument("--show", action="store_true", help="Print what the commands print.")
    parser.add_argument("--markdown", action="store_true", help="Print the table as Markdown.")
    given = parser.parse_args()
    names = [name for name in CASES if not given.parts or any(part in name for part in given.parts)]
    if given.list:
        print("\n".join(names))
        return 0
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        good = Path(folder) / "good"
        prepare(good)
        if given.markdown:
            print("| input | peak MB | seconds | exit code |\n|---|---:|---:|---:|")
        results = []
        for name in names:
            result = measure(name, CASES[name], good, Path(folder) / "case")
            results.append(result)
            _tell(result, markdown=given.markdown, show=given.show)
    failed = [result for result in results if result.problem]
    print(f"\n{len(results)} inputs, {len(failed)} of them not as it should be.")
    for result in failed:
        print(f"  {result.name}: {result.problem}")
    return 1 if failed else 0


def _tell(result: Measured, *, markdown: bool, show: bool) -> None:
    if markdown:
        print(f"| {result.name} | {result.megabytes} | {result.seconds:.1f} | {result.code} |", flush=True)
    else:
        line = f"{result.name:60} {result.megabytes:6} MB {result.seconds:6.1f} s  {result.code:4}  {result.problem}"
        print(line.rstrip(), flush=True)
    if show:
        print(result.output[:2000], flush=True)


if __name__ == "__main__":
    sys.exit(main())
