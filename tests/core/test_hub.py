"""Names on the model hub, against a hub that is served on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants

from deit.core import hub as hub_module
from deit.core.hub import HubOptions, is_hub_name, local_path, upload_folder
from deit.core.published import VARIANTS
from tests.core.hub_on_loopback import COMMITS, Hub, serve, use_hub

NAME = "facebook/deit-tiny-patch16-224"
FILES = {
    "config.json": b'{"model_type": "vit"}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": b"new weights",
    "pytorch_model.bin": b"pickle",
    "README.md": b"read me",
    "tf_model.h5": b"other",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serve() as server:
        use_hub(server, monkeypatch, tmp_path / "cache")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        server.files[NAME] = {"main": dict(FILES), "old": {**FILES, "model.safetensors": b"old weights"}}
        yield server


def read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- which strings are names --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, "timm/deit3_small_patch16_224.fb_in1k", "deit-tiny-patch16-224", "me/my-model"])
def test_names_are_told_from_paths(name):
    assert is_hub_name(name)


@pytest.mark.parametrize(
    "path", ["./a/b", "/a/b", "~/a", "a/b/c", "a", "a\\b", "../a", "a/b.pth", "a/model.safetensors", "", Path("a/b")]
)
def test_paths_are_told_from_names(path):
    assert not is_hub_name(path)


def test_what_is_on_this_machine_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert local_path(NAME) == Path(NAME)
    (tmp_path / "deit-tiny-patch16-224").mkdir()
    assert local_path("deit-tiny-patch16-224") == Path("deit-tiny-patch16-224")


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No model directory at .*nowhere\.$"):
        local_path(str(tmp_path / "nowhere"))


def test_a_typo_in_a_short_name_suggests_the_nearest_one():
    with pytest.raises(FileNotFoundError, match=r"Did you mean the published model 'deit-tiny-patch16-224'\? See deit"):
        local_path("deit-tinny-patch16-224")


def test_a_variant_without_published_weights_says_so():
    with pytest.raises(FileNotFoundError, match="No weights of 'deit-digits-distilled-patch8-32' were published"):
        local_path("deit-digits-distilled-patch8-32")


# --- downloads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, "deit-tiny-patch16-224"])
def test_a_name_is_downloaded_without_what_is_not_needed(hub, name):
    assert read(local_path(name)) == {
        "config.json": FILES["config.json"],
        "preprocessor_config.json": b"{}",
        "model.safetensors": b"new weights",
    }
    assert sorted(hub.downloads()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert VARIANTS["deit-tiny-patch16-224"].source == NAME


def test_a_second_call_downloads_nothing(hub):
    first = local_path(NAME)
    hub.requests.clear()
    assert local_path(NAME) == first
    assert hub.downloads() == []
    local_path(NAME, options=HubOptions(force_download=True))
    assert "model.safetensors" in hub.downloads()


def test_only_what_is_asked_for_is_downloaded(hub):
    assert set(read(local_path(NAME, need="config"))) == {"config.json"}
    assert set(read(local_path(NAME, need="processor"))) == {"config.json", "preprocessor_config.json"}


def test_pickles_are_fetched_only_when_there_is_nothing_else(hub):
    del hub.files[NAME]["main"]["model.safetensors"]
    assert "pytorch_model.bin" in read(local_path(NAME))
    hub.requests.clear()
    assert "pytorch_model.bin" not in hub.downloads()


def test_pickles_can_be_refused_or_asked_for(hub, tmp_path):
    options = HubOptions(cache_dir=tmp_path / "other")
    files = read(local_path(NAME, use_safetensors=False, options=options))
    assert "pytorch_model.bin" in files
    assert "model.safetensors" not in files
    del hub.files[NAME]["main"]["model.safetensors"]
    assert "pytorch_model.bin" not in read(local_path(NAME, use_safetensors=True))


def test_a_model_in_several_files_and_a_variant_are_fetched_whole(hub):
    hub.files[NAME]["main"] = {
        "config.json": b"{}",
        "model.safetensors.index.json": b"{}",
        "model-00001-of-00002.safetensors": b"1",
        "model-00002-of-00002.safetensors": b"2",
        "model.fp16.safetensors": b"16",
        "sub/model.safetensors": b"sub",
    }
    assert set(read(local_path(NAME))) == {
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert "model.fp16.safetensors" in read(local_path(NAME, variant="fp16"))
    assert read(local_path(NAME, subfolder="sub")) == {"model.safetensors": b"sub"}


def test_a_revision_is_a_branch_or_a_commit(hub):
    for revision in ("old", COMMITS["old"]):
        folder = local_path(NAME, options=HubOptions(revision=revision))
        assert (folder / "model.safetensors").read_bytes() == b"old weights"
    assert (local_path(NAME) / "model.safetensors").read_bytes() == b"new weights"
    with pytest.raises(FileNotFoundError, match=f"The model '{NAME}' has no revision 'odd'"):
        local_path(NAME, options=HubOptions(revision="odd"))


def test_a_token_is_sent_and_opens_a_private_model(hub):
    hub.private[NAME] = "secret"
    with pytest.raises(FileNotFoundError, match=r"no model .* on the hub, or it is private. .*pass token="):
        local_path(NAME, options=HubOptions(token=False))
    assert {token for _, _, token in hub.requests} == {None}
    hub.requests.clear()
    assert (local_path(NAME, options=HubOptions(token="secret")) / "model.safetensors").is_file()
    assert {token for _, _, token in hub.requests} == {"Bearer secret"}


def test_a_gated_model_says_that_access_must_be_granted(hub):
    hub.gated.add(NAME)
    with pytest.raises(PermissionError, match="must be granted first"):
        local_path(NAME)


def test_a_model_that_is_not_there_is_named(hub):
    with pytest.raises(FileNotFoundError, match="There is no model 'facebook/deit-gigantic' on the hub"):
        local_path("facebook/deit-gigantic")


# --- without a network --------------------------------------------------------------------------------


def test_the_cache_is_enough_without_a_network(hub, monkeypatch):
    folder = local_path(NAME)
    hub.requests.clear()
    assert local_path(NAME, options=HubOptions(local_files_only=True)) == folder
    assert hub.requests == []
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert local_path(NAME) == folder


@pytest.mark.parametrize(("local_only", "reason"), [(True, "local_files_only=True"), (False, "hub cannot be reached")])
def test_without_a_network_one_sentence_says_what_to_do(hub, monkeypatch, local_only, reason):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ConnectionError, match=f"'{NAME}' is not in the local cache and .*{reason}.*pass its path"
    ) as info:
        local_path(NAME, options=HubOptions(local_files_only=local_only))
    assert "\n" not in str(info.value)


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "deit\[hub\]". Or pass the path of a local copy'):
        local_path(NAME)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "deit\[hub\]"'):
        upload_folder(Path(), "me/x", files=["config.json"])


IN_A_NEW_PROCESS = """
import sys
from deit.core.hub import local_path
print(local_path(sys.argv[1]))
"""


def run_in_new_process(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, NAME]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


def test_the_environment_says_where_the_hub_and_its_cache_are(hub, tmp_path):
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.address}
    offline = run_in_new_process(**home, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids to download it" in offline.stderr
    assert hub.requests == []
    online = run_in_new_process(**home)
    assert online.stdout.startswith(str(tmp_path / "home")), online.stderr
    hub.requests.clear()
    assert run_in_new_process(**home, HF_HUB_OFFLINE="1").stdout == online.stdout
    assert hub.requests == []


# --- arguments ----------------------------------------------------------------------------------------


def test_options_are_taken_out_of_keywords():
    kwargs = {"revision": "x", "use_auth_token": "t", "cache_dir": "c", "num_labels": 3}
    assert HubOptions.take_from(kwargs) == HubOptions(revision="x", token="t", cache_dir="c")
    assert kwargs == {"num_labels": 3}


def test_proxies_are_not_used_and_this_is_said():
    with pytest.warns(UserWarning, match="HTTPS_PROXY"):
        HubOptions.take_from({"proxies": {"https": "http://proxy"}})


# --- models -------------------------------------------------------------------------------------------


def test_a_model_opens_by_its_name_and_its_short_name(hub, tiny_vit_config, redraw, tmp_path):
    torch = pytest.importorskip("torch")
    import deit

    model = redraw(deit.ViTForImageClassification(tiny_vit_config()))
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    hub.files[NAME] = {"main": {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}}
    for name in (NAME, "deit-tiny-patch16-224"):
        again = deit.ViTForImageClassification.from_pretrained(name, token=False)
        for key, tensor in again.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key])
    assert deit.ViTForImageClassification.from_pretrained(NAME, local_files_only=True, revision="main") is not None


def test_a_configuration_opens_by_its_name(hub):
    from deit.core.config.config import ViTConfig

    hub.files[NAME]["old"]["config.json"] = b'{"model_type": "vit", "hidden_size": 24}'
    config, unused = ViTConfig.from_pretrained(NAME, revision="old", odd=1, return_unused_kwargs=True)
    assert (config.hidden_size, unused) == (24, {"odd": 1})
    assert hub.downloads() == ["config.json"]


# --- uploads ------------------------------------------------------------------------------------------


@pytest.fixture
def uploads(monkeypatch) -> list[dict]:
    """Replaces the two functions of huggingface_hub that write."""
    import huggingface_hub

    calls: list[dict] = []

    class Repository:
        repo_id = "me/x"

    def create_repo(name: str, **arguments: object) -> Repository:
        calls.append({"created": name, **arguments})
        return Repository()

    def upload(**arguments: object) -> str:
        files = sorted(os.listdir(arguments["folder_path"]))
        calls.append({**arguments, "files": files})
        return "https://hub/me/x/commit/1"

    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    return calls


def test_a_repository_is_made_on_the_hub(hub: Hub, monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda **arguments: arguments["repo_id"])
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.address)
    upload_folder(tmp_path, "me/x", files=["config.json"], token="secret", private=True)
    assert hub.created[0]["name"] == "x"
    assert hub.requests[-1] == ("POST", "/api/repos/create", "Bearer secret")


def test_a_model_is_pushed_with_its_configuration_and_weights(uploads, tiny_config):
    pytest.importorskip("torch")
    import deit

    model = deit.DeiTModel(tiny_config())
    address = model.push_to_hub("x", commit_message="First", private=True, token="t", max_shard_size="30KB")
    assert address == "https://hub/me/x/commit/1"
    assert uploads[0] == {"created": "x", "private": True, "token": "t", "exist_ok": True}
    assert uploads[1]["repo_id"] == "me/x"
    assert uploads[1]["commit_message"] == "First"
    assert "model.safetensors.index.json" in uploads[1]["files"]
    assert not Path(uploads[1]["folder_path"]).exists()


def test_saving_can_push_as_well(uploads, tiny_config, tmp_path):
    pytest.importorskip("torch")
    import deit

    model = deit.DeiTModel(tiny_config())
    model.save_pretrained(tmp_path / "my-model", push_to_hub=True, token="t")
    assert uploads[0]["created"] == "my-model"
    assert uploads[1]["files"] == ["config.json", "model.safetensors"]
    model.save_pretrained(tmp_path / "my-model", push_to_hub=True, repo_id="me/other")
    assert uploads[2]["created"] == "me/other"


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [(401, PermissionError, "hf auth login"), (403, PermissionError, "403"), (500, ConnectionError, "error 500")],
)
def test_a_hub_that_refuses_an_upload_is_told(hub: Hub, monkeypatch, tmp_path, status, error, words):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.address)
    hub.creation_status = status
    with pytest.raises(error, match=words) as caught:
        upload_folder(tmp_path, "me/x", files=["config.json"], token="secret")
    assert "me/x" in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="Nothing was uploaded to 'me/x'"):
        upload_folder(tmp_path, "me/x", files=["config.json"], token="secret")


def test_a_name_that_no_repository_can_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="such as 'me/my-deit'"):
        upload_folder(tmp_path, "my own/deit!", files=["config.json"], token="secret")


def test_the_only_network_code_is_this_module():
    source = Path(hub_module.__file__).parents[1]
    users = [p.name for p in source.rglob("*.py") if "import huggingface_hub" in p.read_text(encoding="utf-8")]
    assert users == ["hub.py"]
