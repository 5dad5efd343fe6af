"""`deit push`, and the model card that comes with a model: what its blocks of code do."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from deit.core.model_directory import PUBLISHED_FILES
from tests.cli.conftest import deit, is_refused, succeeds

OF_OTHERS = ("processor_config.json", "pytorch_model.bin", "LICENSE")  # what other programs write, or the author


@pytest.fixture
def uploaded(monkeypatch) -> dict:
    """Replaces the two functions of huggingface_hub that write; its own filter says which files would go."""
    seen: dict = {}

    class Repository:
        repo_id = "me/colours"

    def create_repo(name: str, **arguments: object) -> Repository:
        seen.update(name=name, **arguments)
        return Repository()

    def upload(folder_path: Path, allow_patterns: list[str], **arguments: object) -> str:
        files = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
        seen.update(arguments, files=sorted(filter_repo_objects(files, allow_patterns=allow_patterns)))
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
    first, second, third = result.stdout.splitlines()
    assert first == "Uploaded 9 files: " + ", ".join(uploaded["files"])
    assert second.startswith("Left out, as no part of a model directory: ")
    assert "state/" in second
    assert third == f"{student} is on the hub: https://hub/me/colours/commit/1"


def test_what_lies_beside_a_model_is_not_uploaded(student, copied, uploaded, tmp_path):
    model = copied(student)
    secret = tmp_path / "secret"
    secret.write_text("token")
    (model / ".env").write_text("HF_TOKEN=secret")
    (model / "notes.txt").write_text("mine")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("url = https://token@host")
    (model / "sub").mkdir()
    (model / "sub" / "config.json").write_text("{}")
    (model / "model.extra.safetensors").symlink_to(secret)  # a name that is listed, a content that is not
    (model / "recipe.yaml").unlink()
    (model / "recipe.yaml").symlink_to("/etc/hostname")
    (model / "LICENSE").symlink_to("README.md")  # inside
    (model / "curves.png").unlink()
    (model / "curves.png").mkdir()
    result = succeeds("push", model, "colours")
    assert uploaded["files"] == [
        "LICENSE", "README.md", "config.json", "metrics.csv", "metrics.jsonl", "model.safetensors",
        "preprocessor_config.json", "training.json",
    ]  # fmt: skip
    for name in (".env", ".git/", "notes.txt", "sub/", f"(a link to {secret})", "curves.png/", "state/"):
        assert name in result.stdout


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_model_whose_files_lie_elsewhere_is_refused(student, copied, uploaded, tmp_path, file):
    model = copied(student)
    (model / file).rename(tmp_path / "elsewhere")
    (model / file).symlink_to(tmp_path / "elsewhere")
    is_refused(deit("push", model, "colours"), "leads out of it", file)
    assert not uploaded


def test_saving_uploads_no_more_than_pushing(student, copied, uploaded):
    import deit as package

    model = copied(student)
    (model / ".env").write_text("HF_TOKEN=secret")
    package.DeiTForImageClassificationWithTeacher.from_pretrained(model).save_pretrained(model, push_to_hub=True)
    assert ".env" not in uploaded["files"]
    assert not [name for name in uploaded["files"] if name.startswith("state")]
    assert {"config.json", "model.safetensors", "README.md"} <= set(uploaded["files"])


def test_what_is_uploaded_is_what_the_documentation_lists():
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    listed = page.partition("## The model directory")[2].split("```")[1]
    for name in PUBLISHED_FILES:
        if "*" not in name and name not in OF_OTHERS:
            assert name in listed


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
