"""The files of the page: complete, with the headers that keep it safe, and without a way to other files."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import pytest

pytest.importorskip("starlette", reason='the server is not installed: pip install "deit[serve]"')

import httpx2

from deit.core.errors import UserError
from deit.serve.app import make_app
from deit.serve.http.authorization import Token
from deit.serve.refusals import Refusal
from deit.serve.routes.page import find_examples
from deit.serve.settings import ServeSettings
from deit.serve.state import SERVING
from tests.serve.page.conftest import picture

pytestmark = pytest.mark.anyio


class NoModels:
    """A server that holds no models: its page is asked for, and nothing else."""

    def borrow(self, name: str | None = None, version: str | None = None) -> NoReturn:
        raise Refusal(404, "unknown_model", "There is no such model or version.")

    def sources(self) -> list[Any]:
        return []

    def troubles(self) -> dict[str, str]:
        return {}

    async def start(self) -> None: ...

    async def close(self) -> None: ...


HOSTILE = "<b>&'\"%2e%2e.png"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    (root / "examples" / "sub").mkdir(parents=True)
    for name in ("b.png", "a.JPG", HOSTILE, "sub/c.png", ".hidden.png", "secret.txt.png", "large.bmp"):
        picture(1, (200, 80, 40)).save(root / "examples" / name)
    (root / "examples" / "notes.txt").write_text("secret")
    (root / "outside.png").write_text("secret")
    return root


@pytest.fixture
def client(folder: Path) -> Any:
    def of(token: str = "", **settings: Any) -> httpx2.AsyncClient:
        values = {"examples": str(folder / "examples"), "max_image_bytes": 20_000} | settings
        app = make_app(NoModels(), ServeSettings(**values), token=Token(token) if token else None)
        app.state.deit.phase = SERVING
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here")

    return of


async def test_the_page_and_all_that_it_names_are_there(client) -> None:
    async with client() as http:
        page = await http.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
        assert {"page/app.js", "page/style.css", "page/icon.svg"} <= set(named)
        waiting, seen = [name for name in named if name.startswith("page/")], set()
        while waiting:
            name = waiting.pop()
            seen.add(name)
            found = await http.get(f"/{name}")
            assert found.status_code == 200, name
            waiting += [f"page/{n}" for n in re.findall(r'from "\./([\w.]+)"', found.text) if f"page/{n}" not in seen]
        assert "page/words.js" in seen
        assert all(re.match(r"(?!https?:|//)", name) for name in named)  # nothing from another site


async def test_headers_forbid_all_but_the_page_itself(client) -> None:
    async with client() as http:
        for address in ("/", "/page/app.js"):
            headers = (await http.get(address)).headers
            policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["img-src"] == "'self' blob: data:"
            assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "camera=(self)" in headers["permissions-policy"]
            assert "geolocation=()" in headers["permissions-policy"]


async def test_a_browser_asks_each_time_and_gets_the_file_only_if_it_changed(client) -> None:
    async with client() as http:
        first = await http.get("/page/app.js")
        assert first.headers["cache-control"] == "no-cache"
        for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
            again = await http.get("/page/app.js", headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
            assert "content-security-policy" in again.headers
        assert (await http.get("/page/app.js", headers={"If-None-Match": '"other"'})).status_code == 200
        head = await http.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert (await http.post("/")).status_code == 405


async def test_examples_are_the_pictures_of_the_folder_itself(client) -> None:
    async with client() as http:
        names = (await http.get("/v1/examples")).json()["examples"]
        assert names == [HOSTILE, "a.JPG", "b.png", "secret.txt.png"]  # no subfolder, hidden, too large or other file
        for name in names:
            found = await http.get(f"/v1/examples/{quote(name, safe='')}")
            assert found.status_code == 200
            assert found.headers["content-type"] in ("image/png", "image/jpeg")
            assert found.headers["content-security-policy"] == "default-src 'none'; sandbox"


@pytest.mark.parametrize(
    "name",
    ["../outside.png", "..%2Foutside.png", "%2e%2e%2foutside.png", "sub/c.png", "sub%2Fc.png", ".hidden.png",
     "notes.txt", "%00b.png", "b.png%00", "/etc/passwd", "large.bmp", "B.PNG"],
)  # fmt: skip
async def test_no_other_name_leads_to_a_file(client, name) -> None:
    async with client() as http:
        for base in ("/v1/examples/", "/page/"):
            found = await http.get(base + name)
            assert found.status_code == 404, found.text
            assert "secret" not in found.text
            assert found.json()["error"]["status"] == 404


async def test_an_example_that_disappears_is_no_fault_of_the_server(client, folder) -> None:
    path = folder / "examples" / "gone.png"
    picture(2, (1, 2, 3)).save(path)
    async with client() as http:
        path.unlink()
        found = await http.get("/v1/examples/gone.png")
        assert found.status_code == 404
        assert str(folder) not in found.text


async def test_the_page_needs_no_token_and_examples_do(client) -> None:
    secret = "a-secret-of-the-test"
    async with client(secret) as http:
        for address in ("/", "/page/app.js"):
            assert (await http.get(address)).status_code == 200
        for address in ("/v1/examples", "/v1/examples/b.png"):
            assert (await http.get(address)).status_code == 401
            assert (await http.get(address, headers={"Authorization": f"Bearer {secret}"})).status_code == 200


async def test_without_examples_there_are_none(client) -> None:
    async with client(examples="") as http:
        assert (await http.get("/v1/examples")).json() == {"examples": []}


def test_a_folder_without_examples_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="holds no image of at most 1,000 bytes"):
        find_examples(tmp_path, 1000)
    with pytest.raises(FileNotFoundError, match="The folder of examples is not there"):
        find_examples(tmp_path / "missing", 1000)


def test_of_many_examples_the_first_24_are_shown(tmp_path, caplog) -> None:
    for number in range(30):
        picture(1, (1, 2, 3), width=8, height=8).save(tmp_path / f"{number:02}.png")
    assert list(find_examples(tmp_path, 1000)) == [f"{number:02}.png" for number in range(24)]
    assert "the first 24 of 30 examples" in caplog.text


def test_the_wheel_has_the_page(tmp_path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    root = Path(__file__).parents[3]
    (built,) = builder.WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    inside = zipfile.ZipFile(built).namelist()
    there = {file.name for file in (root / "src" / "deit" / "serve" / "page").iterdir()}
    assert {name.removeprefix("deit/serve/page/") for name in inside if name.startswith("deit/serve/page/")} == there
    assert not [name for name in inside if "axe" in name]
