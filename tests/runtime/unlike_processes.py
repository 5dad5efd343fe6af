"""Two processes of which one differs in one way after another; prints what each is told. See test_alike.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import deit.runtime.processes
from deit.core.errors import UserError
from deit.data.sources import Data
from deit.runtime.processes import process_group
from deit.train.loop import fit
from deit.train.recipes.sections import Optimizer
from deit.train.tasks.classification import ClassificationTask
from tests.train import tiny


def told(act: Callable[[], object]) -> str:
    try:
        act()
    except UserError as error:
        return f"{type(error).__name__} {error}"
    return "nothing"


def train(out: Path, data: Data | None = None, seed: int = 0, resume: bool = False, **settings: object) -> None:
    task = ClassificationTask(tiny.student(seed=seed), tiny.processor())
    fit(task, data or tiny.data(), tiny.recipe(**settings), out=out, device="cpu", resume=resume)


def join() -> None:
    with process_group("cpu"):
        pass


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    usual = deit.runtime.processes.versions
    with process_group("cpu") as processes:
        other = not processes.is_first
        found = {
            "images": told(lambda: train(folder / "images", tiny.data(13) if other else None)),
            "recipe": told(lambda: train(folder / "recipe", optimizer=Optimizer(weight_decay=0.3 if other else 0.05))),
            "weights": told(lambda: train(folder / "weights", seed=int(other))),
        }
        train(folder / "run")
        (folder / "empty").mkdir(exist_ok=True)
        if other:  # as a machine that does not share the folder
            for name in ("recipe.yaml", "training.json"):
                (folder / "empty" / name).write_bytes((folder / "run" / name).read_bytes())
        processes.barrier()
        found["state"] = told(lambda: train(folder / ("empty" if other else "run"), resume=True))
    deit.runtime.processes.versions = lambda: {**usual(), **({"torch": "1.0"} if other else {})}
    found["libraries"] = told(join)
    time.sleep(0.2 * other)  # each writes its lines at once
    print("\n".join(f"{int(other)} {name}: {text}" for name, text in found.items()), flush=True)
