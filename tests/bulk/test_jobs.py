"""Bulk jobs by the command: what they write, how they go on, what they refuse, and what the audit finds."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deit.bulk import units as units_module
from deit.bulk.identity import UNIT_IMAGES, settled_engine
from deit.cli.prediction.classify import classify
from deit.core.files import sha256_of_file
from deit.data.storage.contents import content_hash
from deit.explain.maps import explain_image
from deit.inference.engines.auto_engine import AutoEngine
from deit.inference.predictor import Predictor
from tests.bulk.conftest import COUNT, parts, rows
from tests.cli.conftest import deit, is_refused, succeeds
from tests.data.pictures import truncated_jpeg


def finished(result) -> None:
    assert (result.exit_code, result.exception) == (0, None), result.output


@pytest.mark.parametrize("kind", ["folder", "parquet", "shards"])
def test_every_image_has_one_row_with_the_answer_of_the_predictor(kind, sources, files, model, bulk, tmp_path):
    out = tmp_path / "predictions"
    result = bulk(sources[kind], "--out", f"{out}/")
    finished(result)
    assert result.stdout == f"Predictions of {COUNT} images: {out}\n"
    found = rows(out)
    ordered = sorted(files)
    names = {
        "folder": [f"{sources[kind]}/{name}" for name in ordered],
        "parquet": [f"{sources[kind]} row {i}" for i in range(COUNT)],
        "shards": [f"{sources[kind]}/{i // 12}.tar: {i:03d}.png" for i in range(COUNT)],
    }
    assert [row["image"] for row in found] == names[kind]
    expected = Predictor.open(model).classify([files[name] for name in ordered], top_k=3)
    for row, name, predictions in zip(found, ordered, expected, strict=True):
        assert row["error"] is None
        assert row["hash"] == content_hash(files[name])
        assert [row[f"label_{k}"] for k in (1, 2, 3)] == [p.label for p in predictions]
        np.testing.assert_allclose([row[f"score_{k}"] for k in (1, 2, 3)], [p.score for p in predictions], atol=1e-6)
    per_unit: dict[int, list[int]] = {}
    for row in found:
        per_unit.setdefault(row["unit"], []).append(row["index"])
    assert all(indices == list(range(len(indices))) for indices in per_unit.values())
    assert len(per_unit) == {"folder": 6, "parquet": 6, "shards": 6}[kind] == len(parts(out))
    audited = succeeds("classify", "--audit-contents", out)
    assert audited.stdout == (
        f"{COUNT} of {COUNT} inputs are there exactly once, in 6 units; {COUNT} are the same as when they were read.\n"
    )
    assert pq.read_table(out).num_rows == COUNT  # the other files are not taken for tables


def test_the_same_job_gives_the_same_bytes(sources, bulk, tmp_path):
    for name in "ab":
        finished(bulk(sources["folder"], "--out", f"{tmp_path / name}/"))
    assert parts(tmp_path / "a") == parts(tmp_path / "b")


def test_a_killed_job_goes_on_to_the_same_bytes(sources, model, tmp_path):
    words = [sys.executable, "-m", "deit", "classify", model, sources["folder"], "--unit-images", 1, "--resume"]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    for kill in range(2):
        process = subprocess.Popen([*map(str, words), "--out", f"{out}/"], stderr=subprocess.PIPE, text=True)
        goal = len(parts(out)) + 3 * kill + 1
        while process.poll() is None and len(list(out.glob("part-*"))) < goal:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = parts(out)
    assert 3 <= len(done) < COUNT
    times = {name: (out / name).stat().st_mtime_ns for name in done}
    (out / f".part-{COUNT - 1:08d}.parquet.abcdefgh.tmp").write_bytes(b"half")
    finished(deit(*map(str, words[3:]), "--out", f"{out}/"))
    finished(deit(*map(str, words[3:]), "--out", f"{whole}/"))
    assert parts(out) == parts(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in done} == times  # nothing was done twice
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
    assert os.listdir(out / "_claims") == []
    succeeds("classify", "--audit", out)


def test_a_finished_job_is_resumed_without_reading_an_image(sources, bulk, tmp_path, monkeypatch):
    out = f"{tmp_path}/predictions/"
    finished(bulk(sources["folder"], "--out", out))
    monkeypatch.setattr(units_module, "read_content", lambda *_: pytest.fail("an image was read"))
    finished(bulk(sources["folder"], "--out", out, "--resume"))


def test_a_job_goes_on_from_another_folder_and_its_names_stay(folder, bulk, tmp_path, monkeypatch):
    monkeypatch.chdir(folder / "0")
    finished(bulk("../1", "--out", "../../predictions/"))
    out = tmp_path / "predictions"
    before = parts(out)
    (out / "part-00000001.parquet").unlink()
    monkeypatch.chdir(tmp_path)
    (folder / "1" / "notes.txt").write_text("no image")  # so that the folder is listed again
    finished(bulk("pictures/1", "--out", "predictions", "--resume"))
    assert parts(out) == before
    assert rows(out)[0]["image"].startswith("../1/")


def test_the_engine_of_a_job_is_settled_when_it_begins(sources, bulk, model, tmp_path, monkeypatch):
    monkeypatch.delenv("DEIT_ENGINE")
    out = tmp_path / "predictions"
    finished(bulk(sources["folder"], "--out", f"{out}/"))  # a short job: measuring engines would take longer
    engine = json.loads((out / "_manifest.json").read_text())["identity"]["engine"]
    assert engine == {"name": "torch", "precision": "fp32", "device": "cpu"}
    for arguments in ([], ["--engine", "torch"], ["--device", "cpu"]):
        finished(bulk(sources["folder"], "--out", f"{out}/", "--resume", *arguments))
    other = bulk(sources["folder"], "--out", f"{out}/", "--resume", "--engine", "torch-compiled")
    is_refused(other, "engine.name: torch before, torch-compiled now")


def test_a_long_job_measures_engines_until_one_is_decided(model, monkeypatch):
    predictor = Predictor.open(model, engine="auto")
    engine = AutoEngine(predictor.engine)  # the environment of the tests pins torch
    predictor.engine = engine
    asked = []
    monkeypatch.setattr(AutoEngine, "is_decided", property(lambda self: len(asked) > 3))
    monkeypatch.setattr(AutoEngine, "__call__", lambda self, pixels: (asked.append(len(pixels)), time.sleep(0.01)))
    batches = [np.zeros((2, 3, 16, 16), np.float32)] * 2
    assert settled_engine(predictor, batches, 10**9) == (engine.name, engine.precision)
    assert asked == [2, 2, 2, 2]
    asked.clear()
    assert settled_engine(predictor, batches, 10) == ("torch", "fp32")
    assert len(asked) == 1


def test_what_changed_is_listed_when_a_job_is_resumed(folder, bulk, model, tmp_path):
    out = f"{tmp_path}/predictions/"
    finished(bulk(folder, "--out", out))
    refused = bulk(folder, "--out", out, "--resume", "--top-k", 2, "--embedding")
    is_refused(refused, "options.top_k: 3 before, 2 now", "options.embedding: False before, True now")
    other = Path(shutil.copytree(model, tmp_path / "other"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    is_refused(deit("classify", other, folder, "--out", out, "--resume"), "model.weights: ")
    is_refused(bulk(folder / "0", "--out", out, "--resume"), f"inputs: {folder} before, {folder}/0 now")
    (folder / "notes.txt").write_text("no image")  # changes the folder, not the inputs
    finished(bulk(folder, "--out", out, "--resume"))
    shutil.copy(folder / "0" / "000.png", folder / "1" / "new.png")
    is_refused(bulk(folder, "--out", out, "--resume"), f"1 file new, such as {folder}/1/new.png")
    os.replace(folder / "1" / "new.png", folder / "2" / "002.png")
    is_refused(bulk(folder, "--out", out, "--resume"), f"input {folder}/2/002.png: changed since the job began")
    assert "has changed since it was predicted" not in deit("classify", "--audit", out).stderr
    changed = deit("classify", "--audit-contents", out)
    assert (changed.exit_code, f"{folder}/2/002.png has changed since it was predicted" in changed.stderr) == (3, True)


def test_an_existing_job_and_other_files_are_left_alone(sources, folder, bulk, tmp_path):
    out = tmp_path / "predictions"
    finished(bulk(folder, "--out", f"{out}/"))
    before = {path: sha256_of_file(path) for path in out.iterdir() if path.is_file()}
    is_refused(bulk(folder, "--out", f"{out}/"), "holds a bulk job: 6 of 6 units are done", "--resume")
    is_refused(bulk(sources["parquet"], "--out", out, "--resume"), "began differently", "inputs: ")
    assert {path: sha256_of_file(path) for path in out.iterdir() if path.is_file()} == before
    is_refused(bulk(folder, "--out", tmp_path), "holds files of something else")
    is_refused(bulk(folder, "--out", f"{folder}/out/"), "lies in the input")
    is_refused(bulk(folder, "--out", f"{sources['parquet']}/"), "is a file")
    is_refused(deit("classify", "--audit", folder), "holds no bulk job")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FOLDER", "FOLDER/0"], "which is an input too"),
        (["FOLDER", "FOLDER"], "are the same input"),
        (["FOLDER", "PARQUET"], "several kinds: files, parquet"),
        (["FOLDER", "--image-column", "x"], "--image-column is for Parquet files and shards"),
        (["PARQUET", "--image-column", "x"], "has no column 'x'"),
        (["FOLDER", "--json"], "--json is for predictions on the screen"),
        (["FOLDER", "--on", "spark"], "must be local, ray or ray:ADDRESS"),
        (["FOLDER", "--workers", "0"], "workers must be at least 1"),
        (["FOLDER", "--explain", "magic"], "magic"),
        (["-"], "reads files and folders that are here"),
        (["https://a/b.tar"], "reads files and folders that are here"),
        (["nowhere.parquet"], "There is no file nowhere.parquet"),
    ],
)
def test_a_job_that_cannot_be_is_refused_and_leaves_nothing(arguments, message, sources, bulk, tmp_path):
    places = {"FOLDER": str(sources["folder"]), "PARQUET": str(sources["parquet"])}
    words = [places.get(word, word.replace("FOLDER", places["FOLDER"])) for word in arguments]
    is_refused(bulk(*words, "--out", f"{tmp_path}/predictions/"), message)
    assert not list(tmp_path.glob("predictions/*.parquet"))
    assert not (tmp_path / "predictions" / "_manifest.json").exists()


def test_options_of_bulk_jobs_are_refused_elsewhere(sources, model):
    is_refused(deit("classify", model, sources["folder"], "--resume", "--workers", 2), "--resume, --workers: only for")


def test_a_broken_image_is_a_row_with_its_error(folder, bulk, tmp_path):
    (folder / "1" / "004.png").write_bytes(truncated_jpeg())
    (folder / "1" / "a name.jpg").write_text("a letter")
    out = tmp_path / "predictions"
    result = bulk(folder, "--out", f"{out}/")
    assert result.exit_code == 3
    assert "2 images cannot be read; the rows say why." in result.stderr
    broken = {row["image"]: row["error"] for row in rows(out) if row["error"]}
    assert list(broken) == [f"{folder}/1/004.png", f"{folder}/1/a name.jpg"]
    assert all(error.startswith(name) for name, error in broken.items())
    audited = succeeds("classify", "--audit", out)
    assert audited.stdout == (
        f"{COUNT + 1} of {COUNT + 1} inputs are there exactly once, in 6 units; 2 of them could not be read.\n"
    )
    assert bulk(folder, "--out", f"{out}/", "--resume").exit_code == 3


def test_a_unit_that_cannot_be_read_is_reported_and_the_others_go_on(sources, bulk, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(sources["parquet"], data / "a.parquet")
    (data / "b.parquet").write_bytes(b"PAR1 is not all")
    damaged = bytearray(sources["parquet"].read_bytes())
    start = pq.read_metadata(sources["parquet"]).row_group(2).column(0).data_page_offset
    damaged[start : start + 40] = bytes(40)
    (data / "c.parquet").write_bytes(damaged)
    out = tmp_path / "predictions"
    for arguments in ([], ["--resume"]):
        result = bulk(data, "--out", f"{out}/", *arguments)
        assert result.exit_code == 3, result.output
        assert "Unit 6 cannot be read: " in result.stderr
        assert "2 units without predictions" in result.stderr
    assert sorted(os.listdir(out / "_failed")) == ["00000006.json", "00000009.json"]
    told = json.loads((out / "_failed" / "00000009.json").read_text())
    assert (told["unit"], told["images"], told["file"]) == (9, 4, str(data / "c.parquet"))
    assert len(rows(out)) == 2 * COUNT - 4
    audited = deit("classify", "--audit", out)
    assert audited.exit_code == 3
    assert "Unit 9 (4 inputs) has no predictions: " in audited.stderr


def test_a_truncated_shard_gives_its_whole_samples_and_code_3(sources, bulk, tmp_path):
    data = Path(shutil.copytree(sources["shards"], tmp_path / "shards"))
    content = (data / "1.tar").read_bytes()
    (data / "1.tar").write_bytes(content[: len(content) // 2])
    (data / "2.tar").write_bytes(b"nothing")
    out = tmp_path / "predictions"
    result = bulk(data, "--out", f"{out}/")
    assert result.exit_code == 3
    assert "2 damaged shards" in result.stderr
    assert 12 < len(rows(out)) < COUNT
    told = [json.loads(line) for line in (out / "_left_out.jsonl").read_text().splitlines()]
    assert {each["kind"] for each in told} == {"damaged shards"}


def test_the_audit_finds_what_is_missing_there_twice_or_swapped(sources, bulk, tmp_path):
    out = tmp_path / "predictions"
    finished(bulk(sources["folder"], "--out", f"{out}/"))
    shutil.copy(out / "part-00000001.parquet", out / "part-00000001 (copy).parquet")
    shutil.copy(out / "part-00000001.parquet", out / "part-00000006.parquet")
    shutil.copy(out / "part-00000001.parquet", out / "part-00000002.parquet")
    (out / "part-00000003.parquet").unlink()
    table = pq.read_table(out / "part-00000004.parquet")
    pq.write_table(table.slice(0, 3), out / "part-00000004.parquet")
    (out / "part-00000005.parquet").write_bytes(b"PAR1")
    is_refused(bulk(sources["folder"], "--out", out, "--resume"), "part-00000005.parquet is damaged", "Remove it")
    (out / "part-00000003.parquet").unlink()  # the job wrote it anew
    result = deit("classify", "--audit", out)
    assert result.exit_code == 3
    assert result.stdout.startswith(f"11 of {COUNT} inputs are there exactly once")
    for part in (
        "part-00000001 (copy).parquet is not a part of the job",
        "part-00000006.parquet is not a part of the job",
        "part-00000002.parquet: row 0 is of unit 1, index 0",
        "Unit 3 (4 inputs) has no predictions: it is not done",
        "part-00000004.parquet: it has 3 rows, the unit has 4 inputs",
        "part-00000005.parquet: it cannot be compared",
    ):
        assert part in result.stderr
    (out / "_units.jsonl").write_bytes((out / "_units.jsonl").read_bytes().replace(b"000.png", b"001.png"))
    is_refused(deit("classify", "--audit", out), "is not the list that _manifest.json was written with")


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("_manifest.json", '"threads": ', '"threads": -', "its threads must be a whole number from 1"),
        ("_manifest.json", '"kind": "files"', '"kind": "folder"', "its kind must be a known text"),
        ("_manifest.json", '"device": "cpu"', '"device": 3', "its device must be a known text"),
        ("_manifest.json", '"engine": {', '"motor": {', "its engine must be a table"),
        ("_inputs.jsonl", "[", "", "_inputs.jsonl is damaged or is not a list of inputs"),
        ("_units.jsonl", '{"images":', '{"images":x', "_units.jsonl is damaged in line 1"),
    ],
)
def test_a_job_with_a_damaged_file_is_refused(file, old, new, told, sources, bulk, tmp_path):
    out = tmp_path / "predictions"
    finished(bulk(sources["folder"], "--out", f"{out}/"))
    (out / file).write_text((out / file).read_text().replace(old, new, 1))
    is_refused(bulk(sources["folder"], "--out", f"{out}/", "--resume"), told)


def test_embeddings_are_what_the_class_head_is_given(sources, files, model, bulk, tmp_path):
    out = tmp_path / "predictions"
    finished(bulk(sources["parquet"], "--out", f"{out}/", "--embedding"))
    predictor = Predictor.open(model, engine="torch")
    first = [files[name] for name in sorted(files)[:4]]
    (told, *_) = predictor.answers(first, 4, with_features=True)
    np.testing.assert_allclose([row["embedding"] for row in rows(out)[:4]], told.outputs["features"], atol=1e-5)


def test_explanations_are_the_maps_of_the_answer(sources, files, model, bulk, tmp_path):
    out = tmp_path / "predictions"
    finished(bulk(sources["shards"], "--out", f"{out}/", "--explain", "relevance", "--embedding"))
    predictor = Predictor.open(model, engine="torch")
    first = next(iter(predictor.answers([files[sorted(files)[0]]], 1))).batch.pixels
    expected = explain_image(predictor.engine.model, first, method="relevance").heads["both"].overall
    np.testing.assert_allclose(rows(out)[0]["explanation"], expected, atol=1e-5)
    other = Predictor.open(model, engine="torch")
    assert [row["label_1"] for row in rows(out)] == [
        p[0].label for p in other.classify([files[name] for name in sorted(files)])
    ]


def test_the_command_makes_units_of_the_same_size_as_the_library():
    parameters = inspect.signature(inspect.unwrap(classify)).parameters
    assert parameters["unit_images"].default == UNIT_IMAGES
