"""The OpenAPI document: valid, with the routes of the server; its answers are as it says, its page loads nothing."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

import deit
from deit.serve.routes.openapi import document
from tests.serve.live_server import live_server, solid

IMAGE = base64.b64encode(solid((200, 10, 10))).decode()
TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [IMAGE]}


@pytest.fixture(scope="module")
def server():
    with live_server() as running:
        yield running


def test_the_document_is_openapi():
    OpenAPIV31SpecValidator(document()).validate()
    assert document()["info"]["version"] == deit.__version__


def test_it_names_every_route_and_no_other(server):
    there = {
        (route.path, method)
        for route in server.app.routes
        if isinstance(route, Route) and route.path != "/" and not route.path.startswith("/page")
        for method in route.methods - {"HEAD"}
    }
    named = {(path, method.upper()) for path, methods in document()["paths"].items() for method in methods}
    assert named == there


def example_of(path: str) -> str:
    """An address of a route; the model and the version are there."""
    return re.sub(r"{(\w+)}", lambda found: {"model": "colors", "version": "1"}.get(found[1], "x"), path)


def test_other_methods_are_refused_with_those_that_are_allowed(server):
    wrong = []
    for path, methods in document()["paths"].items():
        allowed = {method.upper() for method in methods} | ({"HEAD"} if "get" in methods else set())
        for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} - allowed:
            status, headers, content = server.ask(method, example_of(path))
            body_is_right = content == b"" if method == "HEAD" else b"method_not_allowed" in content
            if status != 405 or not body_is_right or headers.get("allow") != ", ".join(sorted(allowed)):
                wrong.append((method, path, status, headers.get("allow"), content))
    assert wrong == []
    assert server.ask("GET", "/")[0] == 200
    assert server.ask("POST", "/")[1]["allow"] == "GET, HEAD"
    for method in ("GET", "POST", "OPTIONS"):
        status, headers, _ = server.ask(method, "/nowhere")
        assert (status, "allow" in headers) == (404, False)


def test_it_says_which_addresses_need_the_token():
    with live_server(token="of-the-test-server") as server:
        for path, methods in document()["paths"].items():
            for method, operation in methods.items():
                status = server.ask(method.upper(), example_of(path))[0]
                assert (status == 401) == (operation.get("security") != []), (method, path, status)
        assert server.ask("GET", "/")[0] == server.ask("GET", "/page/app.js")[0] == 200
        assert server.ask("GET", "/nowhere")[0] == 401  # which addresses there are is nobody's business
        assert server.ask("GET", "/docs?access_token=of-the-test-server")[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "address", "body", "status"),
    [
        ("post", "/v1/classify", None, {"images": [{"data": IMAGE}]}, 200),
        ("post", "/v1/classify", "/v1/classify?top_k=x", {"images": [{"data": IMAGE}]}, 400),
        ("post", "/v1/classify", None, {"images": [{"data": "bm8="}]}, 422),
        ("get", "/v1/models", None, None, 200),
        ("get", "/openapi.json", None, None, 200),
        ("get", "/v2", None, None, 200),
        ("get", "/v2/health/live", None, None, 200),
        ("get", "/v2/health/ready", None, None, 200),
        ("get", "/v2/models/{model}", "/v2/models/colors", None, 200),
        ("get", "/v2/models/{model}", "/v2/models/birds", None, 404),
        ("get", "/v2/models/{model}/versions/{version}/ready", "/v2/models/colors/versions/1/ready", None, 200),
        ("post", "/v2/models/{model}/infer", "/v2/models/colors/infer", {"id": "1", "inputs": [TENSOR]}, 200),
        ("post", "/v2/models/{model}/infer", "/v2/models/colors/infer", {"inputs": []}, 400),
        ("post", "/v2/repository/index", None, {}, 200),
        ("post", "/v2/repository/models/{model}/unload", "/v2/repository/models/colors/unload", {}, 403),
    ],
)
def test_answers_are_as_it_says(server, method, path, address, body, status):
    described = document()
    found, answer = server.ask_json(method.upper(), address or path, body, **{"Content-Type": "application/json"})
    assert found == status, answer
    operation = described["paths"][path][method]
    if body is not None and status == 200:
        check(operation["requestBody"]["content"]["application/json"]["schema"], body, described)
    told = operation["responses"][str(status)]
    if "$ref" in told:
        told = described["components"]["responses"][told["$ref"].rpartition("/")[2]]
    check(told["content"]["application/json"]["schema"], answer, described)


def check(schema: dict, value: object, described: dict) -> None:
    closed = json.loads(json.dumps(described["components"]["schemas"]))
    for each in closed.values():  # a key that no schema names is a forgotten one
        each.setdefault("additionalProperties", False)
    jsonschema.validate(value, {**schema, "components": {"schemas": closed}}, jsonschema.Draft202012Validator)


class Loads(HTMLParser):
    """Collects what a page loads, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_every_route_and_loads_nothing(server):
    status, headers, content = server.ask("GET", "/docs")
    assert status == 200
    page = Loads()
    page.feed(content.decode())
    assert page.loads == ["openapi.json"]
    assert not page.tags & {"script", "img", "iframe", "link", "object", "form"}
    assert not re.search(r"url\(|@import|https?://", content.decode().replace("https://json-schema.org", ""))
    for path, methods in document()["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in page.text
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
