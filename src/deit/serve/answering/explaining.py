"""Explains answers on request, in a thread of its own, so that classification does not wait for it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from deit.core.errors import UserError
from deit.inference.contract import Array
from deit.inference.engines.auto_engine import AutoEngine
from deit.inference.engines.engine import Engine
from deit.inference.engines.torch_engine import TorchEngine
from deit.serve.answering.admission import Room
from deit.serve.refusals import Refusal

_DIGITS = 3  # of the values of maps, which are shown as colors


class Explainer:
    """Explains the answers of one model.

    Args:
        engine: Of the model. Explanations need the network in PyTorch.
        limit: Images that wait or are explained at most.
        status: Of the refusal when there are more.
    """

    def __init__(self, engine: Engine, limit: int, status: int) -> None:
        self._engine = engine
        self._limit = limit
        self.room = Room(limit, status, "explain_full")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deit-explain")

    def check(self, method: str, images: int) -> None:
        """Checks that images can be explained.

        Raises:
            Refusal: There is no such method, the model cannot be explained, or there are too many images.
        """
        from deit.explain.maps import check_method

        try:
            check_method(method)
        except UserError as error:
            raise Refusal(400, "bad_option", str(error)) from error
        if images > self._limit:
            text = f"At most {self._limit} images of a request can be explained. Received: {images}."
            raise Refusal(413, "too_many_images", text)
        _network(self._engine)

    async def explain(self, pixels: Array, method: str, *, scored: bool) -> dict[str, Any]:
        """Returns an explanation as JSON values.

        Args:
            pixels: (1, 3, H, W).
            method: See `deit.explain.maps.explain_image`.
            scored: Whether each overall map gets its score, which takes many passes through the model.

        Raises:
            Refusal: The model cannot be explained.
        """
        work = partial(_explained, self._engine, pixels, method, scored)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except UserError as error:
            raise Refusal(422, "cannot_explain", str(error)) from error

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _network(engine: Engine) -> Any:
    """Returns the network in PyTorch, to be read only.

    Raises:
        Refusal: There is none.
    """
    if isinstance(engine, AutoEngine):
        return engine.unchanged_model
    if isinstance(engine, TorchEngine):
        return engine.model
    text = f"A model in the engine {engine.name} cannot be explained. Serve its model directory with --engine auto."
    raise Refusal(422, "cannot_explain", text)


def _explained(engine: Engine, pixels: Array, method: str, scored: bool) -> dict[str, Any]:
    from deit.explain.maps import explain_image
    from deit.explain.network import Network
    from deit.explain.score import score_explanation

    network = _network(engine)
    found = explain_image(network, pixels, method=method)
    values: dict[str, Any] = {
        "method": method,
        "target": found.label,
        "grid": list(found.grid),
        "maps": {name: [_rounded(block) for block in head.blocks] for name, head in found.heads.items()},
        "overall": {name: _rounded(head.overall) for name, head in found.heads.items()},
    }
    if found.notes:
        values["notes"] = list(found.notes)
    if scored:
        scores = score_explanation(Network(network), pixels, found)
        values["score"] = {name: {**score.to_dict(), "description": score.describe()} for name, score in scores.items()}
    return values


def _rounded(values: Array) -> list[float]:
    return [round(float(value), _DIGITS) for value in values.flatten()]
