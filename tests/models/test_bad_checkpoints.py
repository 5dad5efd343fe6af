"""A corpus of damaged and hostile files: each is refused with a clear error before a model is built or changed."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch

import deit

Model = deit.DeiTForImageClassificationWithTeacher


@pytest.fixture
def folder(tiny_config, redraw, tmp_path) -> Path:
    redraw(Model(tiny_config())).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shards(tiny_config, redraw, tmp_path) -> Path:
    redraw(Model(tiny_config())).save_pretrained(tmp_path / "model", max_shard_size="40KB")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def no_model_is_built(monkeypatch, request):
    """Files are judged before anything is built."""

    def refuse(self, *args, **kwargs):
        raise AssertionError("a model was built")

    yield_to_corpus = [name for name in ("folder", "shards") if name in request.fixturenames]
    for name in yield_to_corpus:
        request.getfixturevalue(name)
    monkeypatch.setattr(Model, "__init__", refuse)


def is_refused(path: Path, message: str, **arguments: object) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Model.from_pretrained(path, **arguments)
    assert len(str(error.value).splitlines()) == 1


# --- safetensors --------------------------------------------------------------------------------------


def header_of(data: bytes) -> tuple[dict, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.5, 0.999])
def test_a_truncated_file(folder, share):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    is_refused(folder, r"model\.safetensors cannot be read as safetensors .*truncated")


def test_a_file_with_something_behind_its_tensors(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    is_refused(folder, "cannot be read as safetensors .*should have .* bytes")


def test_a_header_that_claims_to_be_huge(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    is_refused(folder, "the header is longer than the file")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F31"},
        {"shape": [1, 1, -32]},
        {"shape": [1, 1, 31]},
        {"shape": [1.0, 1, 32]},
        {"shape": None},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [-128, 0]},
        {"data_offsets": [64, 192]},
        {"data_offsets": "0"},
    ],
    ids=str,
)
def test_a_header_that_lies(folder, change):
    file = folder / "model.safetensors"
    header, body = header_of(file.read_bytes())
    header["deit.embeddings.cls_token"].update(change)
    file.write_bytes(with_header(header, body))
    is_refused(folder, "cannot be read as safetensors")


@pytest.mark.parametrize("header", [[], 3, None, {"a": 1}, {"a": {}}], ids=str)
def test_a_header_that_is_none(folder, header):
    (folder / "model.safetensors").write_bytes(with_header(header, b""))
    is_refused(folder, "cannot be read as safetensors")


def test_a_header_nested_without_end(folder):
    text = b"[" * 100_000
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    is_refused(folder, "cannot be read as safetensors")


def test_a_file_of_another_format(folder):
    (folder / "model.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    is_refused(folder, "cannot be read as safetensors")


# --- an index -----------------------------------------------------------------------------------------


def change_index(folder: Path, name: str) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    tensor = sorted(index["weight_map"])[0]
    index["weight_map"][tensor] = name
    file.write_text(json.dumps(index))


def test_an_index_that_names_a_missing_file(shards):
    (shards / "model-00002-of-00004.safetensors").unlink(missing_ok=True)
    change_index(shards, "model-00009-of-00009.safetensors")
    is_refused(shards, r"index\.json names the file .*, which is missing")


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "a/../../outside.safetensors", "{absolute}", "sub/x.safetensors", "..", "", "a\\b"],
)
def test_an_index_that_leads_out_of_its_folder(shards, name):
    outside = shards.parent / "outside.safetensors"
    outside.write_bytes(sorted(shards.glob("*.safetensors"))[0].read_bytes())
    change_index(shards, name.replace("{absolute}", str(outside)))
    is_refused(shards, "Only names of files beside the index are accepted")


def test_a_link_that_leads_out_of_its_folder(shards):
    first = sorted(shards.glob("*.safetensors"))[0]
    outside = shards.parent / "outside.safetensors"
    first.rename(outside)
    first.symlink_to(outside)
    is_refused(shards, "outside the folder")


def test_an_index_that_says_a_tensor_is_in_another_file(shards):
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    tensor = next(t for t, f in index["weight_map"].items() if f != files[0])
    change_to = {**index, "weight_map": {**index["weight_map"], tensor: files[0]}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(change_to))
    is_refused(shards, "which does not hold it")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}']
)
def test_an_index_that_is_none(shards, text):
    (shards / "model.safetensors.index.json").write_text(text)
    is_refused(shards, r"model\.safetensors\.index\.json")


def test_a_truncated_file_among_several(shards):
    last = sorted(shards.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    is_refused(shards, f"{last.name} cannot be read as safetensors")


# --- pickles ------------------------------------------------------------------------------------------


class Bomb:
    """Runs code when it is unpickled in the ordinary way."""

    def __reduce__(self):
        return (os.mkdir, ("bomb-went-off",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "checkpoint.pth", "checkpoint.pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_the_code_not_run(folder, monkeypatch, name, zipped):
    monkeypatch.chdir(folder.parent)
    (folder / "model.safetensors").unlink()
    torch.save({"model": {"cls_token": Bomb()}}, folder / name, _use_new_zipfile_serialization=zipped)
    is_refused(
        folder / name if name != "pytorch_model.bin" else folder, "holds more than tensors: reading it would run"
    )
    assert not Path("bomb-went-off").exists()


def test_a_plain_pickle_with_code_in_it_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    is_refused(folder, r"pytorch_model\.bin")
    assert not Path("bomb-went-off").exists()


def test_a_pickle_with_an_object_in_it_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"cls_token": torch.zeros(1), "config": deit.DeiTConfig()}, folder / "pytorch_model.bin")
    is_refused(folder, "holds more than tensors")


@pytest.mark.parametrize("value", [[1, 2], {"a": 3}, {"model": [1]}, {3: 4}, "text"], ids=str)
def test_a_pickle_of_something_else_than_tensors_is_refused(folder, value):
    (folder / "model.safetensors").unlink()
    torch.save(value, folder / "pytorch_model.bin")
    is_refused(folder, "must hold a dict of tensors")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_pickle_is_refused(folder, share, zipped):
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save({"cls_token": torch.zeros(1000)}, file, _use_new_zipfile_serialization=zipped)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    is_refused(folder, r"pytorch_model\.bin (is damaged|cannot be read)")


# --- configurations of timm's and the original's files -------------------------------------------------


def state(**others: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "cls_token": torch.zeros(1, 1, 64),
        "dist_token": torch.zeros(1, 1, 64),
        "pos_embed": torch.zeros(1, 6, 64),
        "patch_embed.proj.weight": torch.zeros(64, 3, 4, 4),
        "blocks.0.mlp.fc1.weight": torch.zeros(8, 64),
        **others,
    }


@pytest.mark.parametrize("name", ["reg_token", "fc_norm.weight", "blocks.0.attn.q_norm.weight", "head.fc.weight"])
def test_another_architecture_of_timm_is_refused(tmp_path, name):
    torch.save({"model": state(**{name: torch.zeros(1)})}, tmp_path / "a.pth")
    is_refused(tmp_path / "a.pth", "is not a DeiT or ViT of this package")


def test_a_file_without_positions_is_refused(tmp_path):
    tensors = state()
    del tensors["pos_embed"]
    torch.save(tensors, tmp_path / "a.pth")
    is_refused(tmp_path / "a.pth", "it lacks 'pos_embed'")


def test_positions_of_no_square_image_are_refused(tmp_path):
    torch.save(state(pos_embed=torch.zeros(1, 8, 64)), tmp_path / "a.pth")
    is_refused(tmp_path / "a.pth", "8 positions, which do not form a square image. Pass config=")


def test_a_number_of_heads_that_cannot_be_told_is_asked_for(tmp_path):
    narrow = {name: tensor[..., :40] if tensor.shape[-1] == 64 else tensor for name, tensor in state().items()}
    torch.save(narrow, tmp_path / "a.pth")
    is_refused(tmp_path / "a.pth", "width 40 is not a multiple of 64. Pass config=")


def test_a_model_without_distillation_is_not_taken_for_one_with(tmp_path):
    tensors = state(pos_embed=torch.zeros(1, 5, 64))
    del tensors["dist_token"]
    torch.save(tensors, tmp_path / "a.pth")
    is_refused(tmp_path / "a.pth", "holds a model of type 'vit', DeiTConfig needs 'deit'")
