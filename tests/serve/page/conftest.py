"""A server with tiny models, and a Chromium that watches what the page does."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serve.page.canned import replies

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
CLASSES = [
    "tabby cat",
    "<img src=x onerror=alert(1)>",
    "red & \"quoted\" 'fox'",
    "great grey owl",
    "a b " * 30,
    "otter",
]
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

    from deit.serve.routes.page import routes as page_routes

    settings = SimpleNamespace(examples="", max_image_bytes=1_000_000)
    app = Starlette(routes=page_routes(SimpleNamespace(settings=settings)))
    taken = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{taken.getsockname()[1]}/"
    server.should_exit = True
    thread.join(5)
    taken.close()


@pytest.fixture(scope="session")
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
