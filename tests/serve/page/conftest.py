"""A server with tiny models, and a Chromium that watches what the page does."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serve.page.canned import replies

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
TOKEN = "secret-of-the-test"
COLORS = ((200, 120, 40), (60, 120, 200), (190, 60, 50), (120, 120, 120), (60, 150, 80), (90, 60, 30))


def picture(seed: int, color: tuple[int, int, int], *, width: int = 96, height: int = 72) -> Image.Image:
    """Returns a blob of a color on a background of noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    middle = random.uniform(0.3, 0.7, 2) * (height, width)
    near = np.exp(-((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2) / (2 * (height / 5) ** 2))[..., None]
    levels = near * np.array(color) + (1 - near) * random.normal(110, 25, (height, width, 1))
    return Image.fromarray(np.clip(levels + random.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has the page and nothing else: tests put canned answers in place of the rest."""
    uvicorn = pytest.importorskip("uvicorn", reason='the server is not installed: pip install "deit[serve]"')
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from deit.serve.routes.page import routes as page_routes

    settings = SimpleNamespace(examples="", max_image_bytes=1_000_000)
    routes = page_routes(SimpleNamespace(settings=settings))
    app = Starlette(routes=[*routes, Mount("/birds", routes=routes)])  # the second as a proxy with a prefix shows it
    taken = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{taken.getsockname()[1]}/"
    server.should_exit = True
    thread.join(5)
    taken.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with random weights, of which the first is calibrated, and a folder of examples."""
    pytest.importorskip("torch")
    import torch

    import deit

    root = tmp_path_factory.mktemp("models")
    held_out, training = root / "held-out", root / "training"
    for folder, count, seed in ((held_out, 10, 0), (training, 20, 1000)):
        for number, color in enumerate(COLORS):
            (folder / str(number)).mkdir(parents=True)
            for i in range(count):
                picture(seed + 100 * number + i, color).save(folder / str(number) / f"{i}.png")
    (root / "examples").mkdir()
    for number, color in enumerate(COLORS[:3]):
        picture(number, color).save(root / "examples" / f"{number}.png")
    for name, classes in (("colors", [str(number) for number in range(len(COLORS))]), ("plain", ["yes", "no"])):
        config = deit.DeiTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32,
            patch_size=4, encoder_stride=4, id2label=dict(enumerate(classes)),
        )  # fmt: skip
        torch.manual_seed(3)
        model = deit.DeiTForImageClassificationWithTeacher(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.15)
        model.save_pretrained(root / name)
        deit.DeiTImageProcessor(size={"shortest_edge": 36}, crop_size=32).save_pretrained(root / name)
    deit.calibrate(root / "colors", held_out, training_images=training)
    return root


def _served(root: Path, *arguments: str, token: str = "") -> Iterator[str]:
    from deit.inference.predictor import Predictor
    from tests.serve.live_server import live_server

    with live_server(arguments, Predictor.open, token=token, examples=str(root / "examples"), max_batch=2) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
def server(models: Path, browser: Any) -> Iterator[str]:
    """The address of a server of both models."""
    yield from _served(models, f"colors={models / 'colors'}", f"plain={models / 'plain'}")


@pytest.fixture
def with_token(models: Path, browser: Any) -> Iterator[str]:
    """The address of a server that wants `TOKEN`."""
    yield from _served(models, f"colors={models / 'colors'}", token=TOKEN)


@pytest.fixture(
    scope="module"
)  # no longer: while it is open, an event loop runs, and tests of other files need their own
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason='Playwright is not installed: pip install "deit[dev]"')
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    options = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--no-sandbox")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=options)
        yield chromium
        chromium.close()


@dataclass
class Watched:
    """What a page did: its requests, and what the browser complained of."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages; afterwards, none has asked another origin or broken its Content-Security-Policy."""
    opened: list[tuple[str, Any, Watched]] = []

    def open_page(
        url: str, *, viewport: dict[str, int] = DESKTOP, scheme: str = "light", canned: Any = None, **options: Any
    ) -> Any:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce", **options)
        page, watched = context.new_page(), Watched()
        opened.append((url, context, watched))
        page.set_default_timeout(8000)
        page.on("request", lambda request: watched.requests.append(request.url))
        page.on("pageerror", lambda error: watched.complaints.append(f"script: {error}"))
        page.on("console", lambda message: watched.complaints.append(message.text) if _is_bad(message) else None)
        page.on("dialog", lambda dialog: (watched.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        for path, given in (canned or {}).items():
            page.asked = replies(page, path, *given)
        page.goto(url)
        return page

    yield open_page
    for url, context, watched in opened:
        context.close()
        assert watched.complaints == []
        assert [asked for asked in watched.requests if not asked.startswith((url, f"blob:{url}", "data:"))] == []


def _is_bad(message: Any) -> bool:
    """Whether a console message is more than a status of 400 or above, or a server that is away."""
    return message.type in ("error", "warning") and "Failed to load resource" not in message.text


def until(page: Any, expression: str) -> None:
    """Waits until JavaScript is true. Playwright's own `wait_for_function` needs eval, which the page forbids."""
    for _ in range(160):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")
