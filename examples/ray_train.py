"""Trains a classifier with Ray Train, which starts the processes on the machines of a cluster, and again if one dies.

    pip install "deit[train]" "ray[train]"
    python examples/ray_train.py --data photos --out /shared/run --workers 2

Every process calls `fit`, which finds the process group that Ray has opened. A run that is in the folder goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def train(settings: dict[str, Any]) -> None:
    """What each process does; Ray passes the settings."""
    from deit import build_student, build_task, fit, open_data
    from deit.runtime.processes import current_processes
    from deit.train.recipes.catalog import open_recipe

    recipe = open_recipe(settings["recipe"]).with_settings(settings["set"])
    images = open_data(settings["data"], val_fraction=recipe.data.val_fraction, seed=recipe.data.split_seed)
    student = build_student(None, images.train.classes, recipe)
    resume = current_processes().on_first((Path(settings["out"]) / "recipe.yaml").is_file)
    result = fit(
        build_task(recipe, student), images, recipe, out=settings["out"], device=settings["device"], resume=resume
    )
    print(f"top-1 {next(iter(result.scores.values())).top1:.1f} %")


def main() -> None:
    """Starts the trainer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="Folder with one sub-folder per class, on all machines.")
    parser.add_argument("--out", required=True, help="Folder of the run, which all machines share.")
    parser.add_argument("--recipe", default="deit-tiny")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    places = {name: str(Path(getattr(arguments, name)).resolve()) for name in ("data", "out")}
    settings = {**vars(arguments), **places, "set": dict(text.split("=", 1) for text in arguments.set)}
    on_gpu = arguments.device == "cuda"
    TorchTrainer(
        train,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=on_gpu),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=3)),
    ).fit()


if __name__ == "__main__":
    main()
