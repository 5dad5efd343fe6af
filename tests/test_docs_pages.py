"""Every code block of every page of docs/ runs, in a folder with what it names: photos and tiny models."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deit
from tests.cli.conftest import VARIANT, deit as run_deit, succeeds

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
KERAS_PAGES = ("keras.md", "tutorials/keras.md")
BLOCKS = {
    page: re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for page, text in PAGES.items()
    if "```" in text
}
# What the pages leave open -> what it is here.
NAMES = {
    "DATA": "photos",
    "IMAGES": "photos",
    "OUT": "OUT",
    "TEACHER": "teacher",
    "VARIANT": VARIANT,
    "A": VARIANT,
    "B": VARIANT,
    "FOLDER": "photos",
    "facebook/deit-tiny-distilled-patch16-224": "student",
    "deit-tiny-distilled-patch16-224": VARIANT,
    "timm/resnet10t": "timm/test_resnet",
    "timm/deit_tiny_distilled_patch16_224.fb_in1k": "student",
    "1%": "50%",
}
# What a recipe fetches from the model hub -> the option that names a model of this machine in its place.
FETCHED = {"fine-tune": ["--init", "student"], "deit-tiny-distilled": ["--teacher", "teacher"]}
QUICK = ["--epochs", "1", "--batch-size", "4", "--image-size", "32", "--device", "cpu"]


def save_model(folder: Path, *, side: int, classes: list[str]) -> None:
    config = deit.DeiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=side,
        patch_size=side // 4, encoder_stride=side // 4, id2label=dict(enumerate(classes)),
    )  # fmt: skip
    deit.DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    deit.DeiTImageProcessor(size=side, crop_size=side).save_pretrained(folder)


@torch.no_grad()
def give_several_answers(folder: Path, images: Path) -> None:
    """Shifts the logits of a model with random weights, so that each class is the answer to half of some images."""
    model = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    processor = deit.DeiTImageProcessor.from_pretrained(folder)
    pixels = processor([Image.open(path) for path in sorted(images.iterdir())], return_tensors="pt")["pixel_values"]
    told = model(pixels)
    for head, logits in (
        (model.cls_classifier, told.cls_logits), (model.distillation_classifier, told.distillation_logits)
    ):  # fmt: skip
        head.bias -= logits.median(dim=0).values
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos of cats and dogs, and models that know them."""
    tmp_path = tmp_path_factory.mktemp("furnished")
    random = np.random.default_rng(0)
    for name, color in (("cat", (200, 120, 40)), ("dog", (60, 120, 200))):
        for i in range(8):
            picture = Image.fromarray(np.clip(random.normal(color, 30, (40, 48, 3)), 0, 255).astype(np.uint8))
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "photos" / name / f"{i}.png")
        picture.save(tmp_path / f"{name}.jpg")
        for i in range(30):
            picture = Image.fromarray(np.clip(random.normal(color, 30, (40, 48, 3)), 0, 255).astype(np.uint8))
            (tmp_path / "held-out" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "held-out" / name / f"{i}.png")
    (tmp_path / "varied").mkdir()
    for i in range(100):
        levels = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(levels).resize((48, 40), Image.Resampling.NEAREST).save(tmp_path / "varied" / f"{i}.png")
    (tmp_path / "new").mkdir()
    picture.save(tmp_path / "new" / "1.png")
    for name, side in (("student", 32), ("teacher", 32), ("runs/distilled", 32), ("path/to/model", 32)):
        save_model(tmp_path / name, side=side, classes=["cat", "dog"])
    give_several_answers(tmp_path / "path/to/model", tmp_path / "varied")
    save_model(tmp_path / "my-model", side=224, classes=["cat", "dog"])
    return tmp_path


@pytest.fixture
def place(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of a page alone: a copy of that folder."""
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(block: str) -> list[list[str]]:
    """The words of each command of a shell block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


SERVERS: dict[int, subprocess.Popen[bytes]] = {}  # by port


def start_server(words: list[str], cwd: Path | None = None) -> None:
    """Starts `deit serve` on a free port in place of the one on the page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    SERVERS[port] = subprocess.Popen([sys.executable, "-m", "deit", *words, "--port", str(port)], cwd=cwd)


def stop_servers() -> None:
    """Ends the servers that were started."""
    while SERVERS:
        _, server = SERVERS.popitem()
        server.kill()
        server.wait()


def ask_server(words: list[str], cwd: Path = Path()) -> None:
    """Sends a file as curl does, and expects the classes of the models here."""
    assert words[1::2][:2] == ["--data-binary", "-H"], words
    (port,) = SERVERS
    name, _, value = words[4].partition(": ")
    body = (cwd / words[2].removeprefix("@")).read_bytes()
    request = urllib.request.Request(words[5].replace(":8080/", f":{port}/"), body, {name: value})
    for _ in range(300):
        try:
            answer = urllib.request.urlopen(request, timeout=30)
            break
        except urllib.error.URLError:  # it is still starting
            time.sleep(0.2)
    with answer:
        (result,) = json.load(answer)["results"]
    assert {told["label"] for told in result["predictions"]} == {"cat", "dog"}


def run_command(words: list[str]) -> None:
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {name for found in re.findall(r"deit\[([\w,]+)\]", " ".join(words)) for name in found.split(",")} <= set(
            extras
        )
        return
    if words[0] == "export":
        assert words[1] in ("KERAS_BACKEND=tensorflow", "KERAS_BACKEND=jax", "KERAS_BACKEND=torch")
        return
    if words[0] == "curl":
        ask_server(words)
        return
    if words[:2] == ["deit", "serve"] and words[-1] == "&":
        start_server(words[1:-1])
        return
    if words[0] == "python":  # hours of a benchmark: see that it is there and knows the options
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words if word.startswith("--"))
        return
    if words[0] == "torchrun":  # tests/cli starts several processes
        words = ["deit", *words[words.index("deit") + 1 :]]
    assert words[0] == "deit", words
    if words[1] == "demo":  # minutes: see that it knows the options
        assert {"--out", "--seed"} >= {word for word in words if word.startswith("--")}
        assert "--seed" in succeeds("demo", "--help").output
        return
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], words[-1]
    words = [NAMES.get(word, word.replace("photos/new", "new")) for word in words[1:]]
    if words[0] == "quantize":  # the models here have random weights, and know nothing that could be kept
        words = [*words[: words.index("--calibrate") + 1], "varied", *words[words.index("--out") :]]
        words += ["--agreement", "50", "--allow-slower"]
    if words[0] == "benchmark":
        words += ["--engines", "torch", "--batch-sizes", "1", "--seconds", "0.3"]
    if words[0] in ("train", "pretrain"):
        recipe = words[words.index("--recipe") + 1] if "--recipe" in words else ""
        words += [] if "--teacher" in words else FETCHED.get(recipe, [])
        if "--minutes" in words:  # it would take all of them; test_readme.py trains
            words += [] if "--plan" in words else ["--plan"]
        words += QUICK[2:] if "--minutes" in words else QUICK
        words += [] if "--student" in words or "--init" in words else ["--student", VARIANT]
        words += ["--set", "masking.patch=8"] if words[0] == "pretrain" else []
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)  # of a command before, an alternative
        if "my.yaml" in words:
            words += ["--set", "teacher="]
    if any(word.startswith(("https://host/", "s3://bucket/")) for word in words):  # nobody has these shards
        failed = run_deit(*words)
        assert (failed.exit_code, failed.output.count("\n")) == (2, 1), failed.output
        assert re.match(r"Error: (https://host/\S+ cannot be read|.*deit\[s3\])", failed.output), failed.output
        return
    result = succeeds(*words)
    if target is not None:
        Path(target).write_text(result.stdout, encoding="utf-8")


def test_every_page_with_a_block_is_tested() -> None:
    assert {language for blocks in BLOCKS.values() for language, _ in blocks} == {"bash", "python", ""}
    plain = {page for page, blocks in BLOCKS.items() for language, _ in blocks if not language}
    # folders, printed lines, files of examples/, and what clients run that cannot be installed here
    assert plain == {
        "architecture.md",
        "bulk.md",
        "export.md",
        "inspect.md",
        "serving-protocols.md",
        "serving.md",
        "tutorials/photos_on_a_laptop.md",
    }
    assert len(BLOCKS) >= 14


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in BLOCKS if page not in ("architecture.md", *KERAS_PAGES)])
def test_every_code_block_runs(page: str, place: Path) -> None:
    titles = iter(re.findall(r"^```\w+ title=\"(.*)\"$", PAGES[page], re.MULTILINE))
    try:
        for language, block in BLOCKS[page]:
            if language == "bash":
                for words in commands(block):
                    run_command(words)
            elif "__main__" in block and (title := next(titles, None)):
                Path(title).write_text(block, encoding="utf-8")
            elif language:
                exec(compile(block.replace("seconds=5", "seconds=0.3"), page, "exec"), {})
    finally:
        stop_servers()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("keras") is None or find_spec("tensorflow") is None, reason="TensorFlow is not installed")
@pytest.mark.parametrize("name", KERAS_PAGES)
def test_the_blocks_of_a_page_on_keras_run_as_they_are_written(name: str, place: Path) -> None:
    """In a process of their own, one after the other: TensorFlow and torchvision in one abort."""
    page = BLOCKS[name]
    for words in (words for language, block in page if language == "bash" for words in commands(block)):
        run_command(words)
    deit.DeiTImageProcessor(size=32, crop_size=32).save_pretrained(place / "out")  # of the folder that is served
    program = "\n".join(block for language, block in page if language == "python")
    environment: dict[str, Any] = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr[-5000:]
    assert (place / "served" / "1" / "saved_model.pb").is_file()
