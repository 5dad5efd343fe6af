"""A model hub served on this machine: the few addresses that huggingface_hub asks for, uploads included."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants

from tests.loopback import answering

COMMITS = {"main": "a" * 40, "old": "b" * 40}


@dataclass
class Hub:
    """What is on the hub, and what was asked.

    `files` is repository -> revision -> path -> content.
    """

    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)
    creation_status: int = 200
    address: str = ""

    def revision(self, name: str, asked: str) -> str | None:
        by_commit = {commit: revision for revision, commit in COMMITS.items()}
        revision = by_commit.get(asked, asked)
        return revision if revision in self.files.get(name, {}) else None

    def downloads(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


def use_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Lets huggingface_hub of this process ask a hub of ours, whenever it was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


def handler_for(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            headers.setdefault("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def refused(self, name: str) -> bool:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if name in hub.gated:
                self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="ask first")
            elif name not in hub.files:
                self.answer(401 if not token else 404, X_Error_Code="RepoNotFound", X_Error_Message="not found")
            elif hub.private.get(name, token) != token:
                self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="not found")
            else:
                return False
            return True

        def do_GET(self) -> None:
            path = unquote(urlparse(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Authorization")))
            if path == "/api/whoami-v2":
                self.answer_json({"name": "me", "type": "user", "auth": {}})
            elif path.startswith("/api/models/"):
                self.about(path.removeprefix("/api/models/"))
            elif "/resolve/" in path:
                name, _, rest = path[1:].partition("/resolve/")
                asked, _, file = rest.partition("/")
                self.file(name, asked, file)
            else:
                self.answer(404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def about(self, rest: str) -> None:
            for word in ("/revision/", "/tree/"):
                name, found, asked = rest.partition(word)
                if found:
                    break
            if self.refused(name):
                return
            revision = hub.revision(name, asked.partition("/")[0] or "main")
            if revision is None:
                self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="no such revision")
                return
            files = hub.files[name][revision]
            if word == "/tree/":
                self.answer_json([
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in files.items()
                ])  # fmt: skip
            else:
                siblings = [{"rfilename": path} for path in files]
                self.answer_json({"id": name, "modelId": name, "sha": COMMITS[revision], "siblings": siblings})

        def file(self, name: str, asked: str, file: str) -> None:
            if self.refused(name):
                return
            revision = hub.revision(name, asked)
            if revision is None or file not in hub.files[name][revision]:
                self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="no such file")
                return
            content = hub.files[name][revision][file]
            etag = hashlib.sha1(content).hexdigest()
            self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMITS[revision])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append((self.command, self.path, self.headers.get("Authorization")))
            if self.path == "/api/repos/create" and hub.creation_status != 200:
                self.answer(hub.creation_status)
            elif self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                self.answer_json({"url": f"{hub.address}/{hub.created[-1].get('organization', 'me')}/x"})
            elif self.path == "/api/validate-yaml":
                self.answer_json({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                taken = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
                self.answer_json({"files": taken})
            elif "/commit/" in self.path:
                self.commit(*self.path.removeprefix("/api/models/").split("/commit/"), body)
            else:
                self.answer(404)

        def commit(self, name: str, revision: str, body: bytes) -> None:
            files = hub.files.setdefault(name, {}).setdefault(revision, {})
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            oid = COMMITS[revision]
            url = f"{hub.address}/{name}/commit/{oid}"
            self.answer_json({"commitUrl": url, "commitOid": oid, "pullRequestUrl": None})

    return Handler


@contextmanager
def serve() -> Iterator[Hub]:
    """Serves an empty hub until the block ends."""
    hub = Hub()
    with answering(handler_for(hub)) as hub.address:
        yield hub
