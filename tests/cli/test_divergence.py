"""`deit train` with a recipe that diverges: what is said, the exit code, and what lies on the disk afterwards."""

from pathlib import Path

import torch

from deit.train.recipes.recipe import Recipe
from deit.train.run.state import load_state
from tests.cli.conftest import VARIANT, deit, is_refused

SETTINGS = {
    "batch_size": 4, "schedule.epochs": 3, "schedule.warmup_epochs": 0, "schedule.min_lr": 0, "precision": "fp32",
    "num_workers": 0, "optimizer.reference_batch_size": 0,
}  # fmt: skip


def test_a_recipe_that_diverges_ends_with_one_line_and_no_bad_number_on_the_disk(photos: Path, tmp_path: Path) -> None:
    """Six steps in an epoch. The first rate diverges at once; the warm-up of the other in its second epoch."""
    for name, settings, said in (
        ("at once", {"optimizer.lr": 1e30}, "No good state was saved before."),
        ("late", {"optimizer.lr": 1e30, "schedule.warmup_epochs": 3, "schedule.updates": "epoch"}, "step-00000006."),
    ):
        file, out = tmp_path / f"{name}.yaml", tmp_path / name
        Recipe().with_settings({**SETTINGS, **settings}).save(file)
        command = ("train", photos, "--student", VARIANT, "--recipe", file, "--out", out)
        ended = deit(*command)
        assert ended.exit_code == 2
        (line,) = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
        assert line.startswith("Error: The loss or a gradient was infinite or NaN, in ")
        assert said in line
        assert not (out / "model.safetensors").exists()
        state = load_state(out / "state")
        assert state is None or all(bool(torch.isfinite(tensor).all()) for tensor in state.tensors.values())
        named = deit(*command, "--resume", "--detect-anomaly")
        assert "arose in the forward pass of deit." in named.stderr
        again = deit(*command, "--resume")
        assert (again.exit_code, again.stderr.splitlines()[-1]) == (2, line)
    healthy = deit(*command, "--resume", "--set", "optimizer.lr=0.001")
    is_refused(healthy, "The run in", "has other settings: optimizer.lr")
