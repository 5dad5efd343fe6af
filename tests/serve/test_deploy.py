"""The files of deploy/ name paths, ports, options and metrics that the server has, read from its code."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("starlette")

import yaml
from starlette.routing import Route
from typer.main import get_command

from deit.cli.app import app
from deit.client import budget, options
from deit.serve.hosting.sources import read_sources
from deit.serve.http.authorization import VARIABLE
from deit.serve.metrics import Metrics
from deit.serve.settings import ServeSettings
from tests.serve.live_server import live_server

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = [
    (path, document)
    for path in sorted(DEPLOY.rglob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
SERVE = get_command(app).commands["serve"]  # type: ignore[attr-defined]


def of_kind(kind: str) -> list[Any]:
    return [document for _, document in MANIFESTS if document.get("kind") == kind]


def containers() -> list[Any]:
    pods = [document["spec"]["template"]["spec"] for document in of_kind("Deployment")]
    pods += [document["spec"]["predictor"] for document in of_kind("InferenceService")]
    return [container for pod in pods for container in pod["containers"]]


def compose() -> Any:
    return next(document for path, document in MANIFESTS if path.name == "compose.yaml")["services"]["deit"]


def command_lines() -> list[list[str]]:
    (entry,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    return [yaml.safe_load(entry), compose()["command"], *(container["args"] for container in containers())]


@pytest.fixture(scope="module")
def paths() -> set[str]:
    with live_server() as server:
        return {route.path for route in server.app.routes if isinstance(route, Route)}


def test_every_command_line_is_one_that_deit_serve_takes():
    assert len(command_lines()) == 4
    for words in command_lines():
        context = SERVE.make_context("serve", list(words))
        assert context.params["port"] == 8080
        assert context.params["host"] == "0.0.0.0"
        (source,) = read_sources([str(model) for model in context.params["models"]])
        assert source.path.startswith(("/models/", "/mnt/models"))


def test_every_probe_asks_a_path_and_port_of_the_server(paths):
    probes = [container[name] for container in containers() for name in container if name.endswith("Probe")]
    assert len(probes) == 5
    for probe in probes:
        assert probe["httpGet"]["path"] in paths
        assert probe["httpGet"]["port"] in ("http", 8080)
    for container in containers():
        assert [port["containerPort"] for port in container["ports"]] == [8080]
    (check,) = re.findall(r"urlopen\('http://127.0.0.1:(\d+)(/\w+)'", DOCKERFILE)
    assert check[0] == re.search(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)[1] == str(ServeSettings().port)
    assert check[1] in paths


def test_probes_wait_for_longer_than_the_server_takes_to_say_that_it_is_not_ready():
    for container in containers():
        assert container["readinessProbe"]["timeoutSeconds"] > ServeSettings().ready_seconds
    seconds = float(re.search(r"/readyz', timeout=(\d+)", DOCKERFILE)[1])
    assert seconds > ServeSettings().ready_seconds


def test_the_end_is_given_longer_than_the_server_takes():
    drain = ServeSettings().drain_seconds
    (pod,) = [document["spec"]["template"]["spec"] for document in of_kind("Deployment")]
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + drain
    assert float(compose()["stop_grace_period"].removesuffix("s")) > drain


def test_scraped_paths_and_scaled_metrics_exist(paths):
    (pod,) = [document["spec"]["template"] for document in of_kind("Deployment")]
    assert pod["metadata"]["annotations"]["prometheus.io/path"] in paths
    (scaler,) = of_kind("HorizontalPodAutoscaler")
    metrics = Metrics()
    metrics.know("birds")
    shown, _ = metrics.text()
    for rule in scaler["spec"]["metrics"]:
        assert f"\n{rule['pods']['metric']['name']}{{".encode() in shown


def test_names_that_refer_to_each_other_agree():
    (deployment,) = of_kind("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    for document in of_kind("Service"):
        assert document["spec"]["selector"] == labels
    (scaler,) = of_kind("HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (kustomization,) = of_kind("Kustomization")
    for name in kustomization["resources"]:
        assert (DEPLOY / "kubernetes" / name).is_file()
    variables = [entry["name"] for container in containers() for entry in container["env"]]
    assert {*variables, *compose()["environment"]} <= {VARIABLE, "STORAGE_URI"}


def test_nothing_runs_as_root_or_may_become_it():
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert int(user) > 0
    for container in containers():
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    assert compose()["cap_drop"] == ["ALL"]


def test_the_dockerfile_copies_what_is_there_and_installs_extras_that_exist():
    copied = [
        word for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.MULTILINE) for word in shlex.split(line)[:-1]
    ]
    assert all((ROOT / word).exists() for word in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert {f"!{word.removeprefix('./')}" for word in copied} <= set(ignored)
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)


def test_the_client_asks_the_paths_and_headers_of_the_server(paths):
    assert {options.CLASSIFY_PATH, options.MODELS_PATH, options.READY_PATH} <= paths
    source = (ROOT / "src" / "deit" / "serve" / "routes" / "classify.py").read_text()
    assert budget.DEADLINE_HEADER.lower() in source.lower()
