"""Describes the server: an OpenAPI 3.1 document, and a page of it that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

import deit
from deit.serve.state import State

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { border-bottom: 1px solid; }
code, pre { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; padding: 0.5rem; border: 1px solid; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.5rem; border-bottom: 1px solid; }
"""


def routes(state: State) -> list[BaseRoute]:
    """Returns /openapi.json and /docs, which are the same for every server of this version."""
    described = document()
    page = documentation_page(described)
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"

    async def answer_document(request: Request) -> Response:
        return JSONResponse(described)

    async def answer_page(request: Request) -> Response:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    return [
        Route("/openapi.json", answer_document, methods=["GET"], name="openapi"),
        Route("/docs", answer_page, methods=["GET"], name="docs"),
    ]


def document() -> dict[str, Any]:
    """Returns the OpenAPI document with the version of this package."""
    read: dict[str, Any] = json.loads(files("deit.serve.routes").joinpath("openapi.json").read_text(encoding="utf-8"))
    read["info"]["version"] = deit.__version__
    return read


def documentation_page(described: Mapping[str, Any]) -> str:
    """Returns an OpenAPI document as an HTML page without scripts, pictures and fonts."""
    info = described["info"]
    parts = [f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>", f"<p>{escape(info['summary'])}.</p>"]
    for tag in described["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2>")
        if "description" in tag:
            parts.append(f"<p>{escape(tag['description'])}</p>")
        for path, methods in described["paths"].items():
            for method, operation in methods.items():
                if operation["tags"] == [tag["name"]]:
                    parts += _operation(method, path, operation, described)
    parts.append('<h2>Schemas</h2><p>The whole document: <a href="openapi.json">openapi.json</a>.</p>')
    for name, schema in described["components"]["schemas"].items():
        shown = escape(json.dumps(schema, indent=2, ensure_ascii=False))
        parts.append(f'<h3 id="{escape(name)}">{escape(name)}</h3><pre>{shown}</pre>')
    title = escape(info["title"])
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    head += f"<style>{_STYLE}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{body}</main></body></html>'


def _operation(method: str, path: str, operation: Mapping[str, Any], described: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(operation['summary'])}.</p>"
    if "description" in operation:
        yield f"<p>{escape(operation['description'])}</p>"
    parameters = [_resolved(parameter, described) for parameter in operation.get("parameters", ())]
    if parameters:
        cells = [(each["name"], each["in"], each["description"]) for each in parameters]
        yield _table(("Parameter", "In", "Meaning"), cells)
    if "requestBody" in operation:
        yield _table(("Body", "Holds"), list(_content(operation["requestBody"])))
    answers = ((code, _resolved(answer, described)) for code, answer in operation["responses"].items())
    rows = [(code, answer["description"], ", ".join(kind for kind, _ in _content(answer))) for code, answer in answers]
    yield _table(("Status", "Meaning", "Content"), rows)


def _content(holder: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind, content in holder.get("content", {}).items():
        schema = content["schema"]
        yield kind, schema.get("$ref", "").rpartition("/")[2] or schema.get("description") or schema.get("type", "")


def _resolved(part: Mapping[str, Any], described: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in part:
        return part
    _, _, kind, name = part["$ref"].split("/")
    found: Mapping[str, Any] = described["components"][kind][name]
    return found


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"
