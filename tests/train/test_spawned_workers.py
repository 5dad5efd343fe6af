"""A script that trains, where worker processes are spawned and import it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import multiprocessing
import sys
from deit.data.augment import Augmentation
from deit.train.loop import fit
from deit.train.recipes.sections import Schedule
from deit.train.tasks.classification import ClassificationTask
from tests.train import tiny

def main():
    multiprocessing.set_start_method("spawn", force=True)
    recipe = tiny.recipe(num_workers=1, schedule=Schedule(epochs=1, warmup_epochs=0))
    task = ClassificationTask(tiny.student(), tiny.processor())
    print(fit(task, tiny.data(), recipe, out=sys.argv[1], device="cpu").scores["both"].images)

"""
GUARDS = {"guarded": 'if __name__ == "__main__":\n    main()\n', "not guarded": "main()\n"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GUARDS)
def test_a_script_runs_with_a_guard_and_says_what_it_lacks_without(kind, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + GUARDS[kind])
    result = subprocess.run(
        [sys.executable, script, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )  # fmt: skip
    if kind == "guarded":
        assert result.returncode == 0, result.stderr[-3000:]
        assert int(result.stdout) > 0
    else:
        assert result.returncode != 0
        assert "A worker process imports this script and started the training again. Put the code" in result.stderr
