"""Files of a model that are written into while it is served: the answers stay, and the process too."""

from __future__ import annotations

import json
import os
from functools import partial

import pytest

from deit.inference.predictor import Predictor
from tests.inference.conftest import deit_directory as deit_directory
from tests.serve.live_server import live_server, solid

IMAGE = solid((200, 90, 10), (18, 18))


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_weights_that_are_written_over_change_no_answer(deit_directory, engine):
    folder = deit_directory()
    weights = folder / "model.safetensors"
    with live_server((f"birds={folder}",), partial(Predictor.open, engine=engine)) as server:
        headers = {"Content-Type": "image/png"}
        before = json.loads(server.ask("POST", "/v1/classify", IMAGE, headers)[2])["results"]
        with weights.open("r+b") as file:
            file.write(bytes(weights.stat().st_size))
        assert json.loads(server.ask("POST", "/v1/classify", IMAGE, headers)[2])["results"] == before
        os.truncate(weights, 0)
        assert json.loads(server.ask("POST", "/v1/classify", IMAGE, headers)[2])["results"] == before
        server.run(server.models.look())
        warnings = json.loads(server.ask("GET", "/readyz")[2])["warnings"]
        assert "has changed" in warnings["birds"]
        status, answer = server.ask_json("POST", "/v2/repository/models/birds/load")
        assert (status, "keeps answering" in answer["error"]) == (409, True)
        assert json.loads(server.ask("POST", "/v1/classify", IMAGE, headers)[2])["results"] == before
