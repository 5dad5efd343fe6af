"""`deit push`, and the model card that comes with a model: what its blocks of code do."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from tests.cli.conftest import deit, is_refused, succeeds


@pytest.fixture
def uploaded(monkeypatch) -> dict:
    """Replaces the two functions of huggingface_hub that write; its own filter says which files would go."""
    seen: dict = {}

    class Repository:
        repo_id = "me/colours"

    def create_repo(name: str, **arguments: object) -> Repository:
        seen.update(name=name, **arguments)
        return Repository()

    def upload(folder_path: Path, ignore_patterns: list[str], **arguments: object) -> str:
        files = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
        seen.update(arguments, files=sorted(filter_repo_objects(files, ignore_patterns=ignore_patterns)))
        return "https://hub/me/colours/commit/1"

    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    return seen


def test_a_model_is_uploaded_without_its_training_states(student, uploaded):
    result = succeeds("push", student, "colours", "--private", "--message", "First", "--branch", "new", "--propose")
    assert uploaded["files"] == [
        "README.md", "config.json", "curves.png", "metrics.csv", "metrics.jsonl", "model.safetensors",
        "preprocessor_config.json", "recipe.yaml", "training.json",
    ]  # fmt: skip
    assert (uploaded["name"], uploaded["repo_id"], uploaded["private"]) == ("colours", "me/colours", True)
    assert (uploaded["commit_message"], uploaded["revision"], uploaded["create_pr"]) == ("First", "new", True)
    assert result.stdout == f"{student} is on the hub: https://hub/me/colours/commit/1\n"


def test_what_is_no_model_is_not_uploaded(photos, uploaded):
    is_refused(deit("push", photos, "me/colours"), "is no model directory", str(photos))
    assert not uploaded


def test_without_a_hub_one_sentence_is_printed(student, monkeypatch):
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    is_refused(deit("push", student, "me/colours"), "Nothing was uploaded to 'me/colours'")


@pytest.mark.parametrize("kind", ["student", "teacher"])
@pytest.mark.parametrize("library", ["deit", "transformers"])
def test_the_code_of_a_card_runs(request, photos, kind, library, monkeypatch, tmp_path, capsys):
    folder = request.getfixturevalue(kind)
    blocks = re.findall(r"```(\w+)\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    os.symlink(folder, tmp_path / folder.name)
    os.symlink(sorted((photos / "val").rglob("*.png"))[0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    assert [kind for kind, _ in blocks] == (["bash"] if kind == "teacher" else ["bash", "python"])
    for language, code in blocks:
        if language == "bash":
            succeeds(*shlex.split(code)[1:])
        else:
            exec(code.replace("from deit import", f"from {library} import"), {})
            assert "'score'" in capsys.readouterr().out
