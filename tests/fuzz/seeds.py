"""Writes the good inputs of each target into `corpus/`; those that once failed ("found-...") stay.

python -m tests.fuzz.seeds [TARGET...]
"""

from __future__ import annotations

import sys

from tests.fuzz.driver import CORPUS, check
from tests.fuzz.targets import TARGETS

FOUND = "found-"


def main(names: list[str]) -> None:
    """Writes the inputs and prints their sizes."""
    for name in names or TARGETS:
        target = TARGETS[name]
        target.prepare()
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.name.startswith(FOUND):
                old.unlink()
        for seed, data in target.seeds().items():
            (folder / seed).write_bytes(data)
            print(f"{name}/{seed}: {len(data)} bytes; {check(target, data)[:200] or 'read'}")


if __name__ == "__main__":
    main(sys.argv[1:])
