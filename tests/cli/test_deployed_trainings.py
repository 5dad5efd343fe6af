"""Files of deploy/ for clusters: torchrun and `deit train` take their command lines; what can go on is requeued."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser
from typer.main import get_command

from deit.cli.app import app
from deit.cli.terminal.settings import open_named_recipe

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRIPT = DEPLOY / "slurm" / "train.sbatch"
TRAIN = get_command(app).commands["train"]  # type: ignore[attr-defined]


def manifest(name: str) -> Any:
    return yaml.safe_load((DEPLOY / "kubeflow" / name).read_text(encoding="utf-8"))


def commands() -> dict[str, list[str]]:
    """The words after `deit` of each file."""
    (line,) = re.findall(r"exec python -m deit (.+)", SCRIPT.read_text(encoding="utf-8"))
    worker = manifest("pytorch_job.yaml")["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    found = {"slurm": ["deit", *shlex.split(line)]}
    found |= {"pytorch": worker["command"], "train": manifest("train_job.yaml")["spec"]["trainer"]["command"]}
    return found


def test_every_command_line_is_taken_and_goes_on_by_itself():
    assert len(commands()) == 3
    for kind, words in commands().items():
        if kind != "slurm":
            taken = get_args_parser().parse_args(words[1:])
            assert (words[0], taken.module, taken.training_script) == ("torchrun", True, "deit")
            words = [taken.training_script, *taken.training_script_args]
            if kind == "train":
                assert int(taken.max_restarts) == 10
        assert words[:2] == ["deit", "train"]
        context = TRAIN.make_context("train", words[2:])
        assert context.params["auto_resume"]
        recipe = open_named_recipe(context.params["recipe"], "train")
        settings = dict(text.split("=") for text in context.params["set_"])
        assert recipe.with_settings({**settings, "batch_size": context.params["batch_size"]}).batch_multiple(8)


def test_processes_and_gpus_of_a_machine_are_as_many():
    job, trained = manifest("pytorch_job.yaml")["spec"], manifest("train_job.yaml")["spec"]["trainer"]
    worker = job["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert job["nprocPerNode"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert worker["replicas"] == job["elasticPolicy"]["minReplicas"] == job["elasticPolicy"]["maxReplicas"]
    assert str(trained["numProcPerNode"]) == trained["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"].startswith("USR1@")


@pytest.mark.parametrize(("code", "again"), [(138, True), (143, True), (137, True), (0, False), (1, False), (2, False)])
def test_slurm_starts_the_job_again_where_it_can_go_on(tmp_path, code, again):
    """With stand-ins for Slurm's commands and for Python, which notes its words and its place."""
    scripts = {
        "scontrol": 'if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >> "$NOTES"; fi',
        "srun": 'shift; SLURM_PROCID=5 SLURM_LOCALID=1 exec "$@"',
        "python": f'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $@" >> "$NOTES"; exit {code}',
    }
    for name, content in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{content}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes"), "DATA": "photos",
        "OUT": "a run", "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "4",
    }  # fmt: skip
    ran = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (code, "")
    asked, *more = (tmp_path / "notes").read_text().splitlines()
    assert asked.startswith("5 1 8 node7 -m deit train photos --out a run --recipe")
    assert more == (["requeue 41"] if again else [])
