"""Answers in the format of the server, for what a real one says only when overloaded, hostile or of another kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

HOSTILE = "<img src=x onerror=alert(1)>"


def model(**changes: Any) -> dict[str, Any]:
    return {
        "name": "birds",
        "version": "1",
        "classes": ["owl", "kite", HOSTILE],
        "image_size": [224, 224],
        "heads": ["class", "distillation"],
        "calibrated": True,
        "problem_type": "single_label_classification",
        "preprocessing": {"resize": {"shortest_edge": 256}, "crop": [224, 224]},
    } | changes


def models(*served: dict[str, Any], **limits: Any) -> dict[str, Any]:
    return {"models": list(served) or [model()], "limits": {"max_image_bytes": 1_000_000} | limits}


def result(**changes: Any) -> dict[str, Any]:
    return {
        "image": "a.jpg",
        "predictions": [{"label": "owl", "score": 0.9996}, {"label": HOSTILE, "score": 0.0003}],
        "calibrated": True,
        "set": ["owl", HOSTILE],
        "outlier_score": 0.4,
        "is_outlier": False,
        "heads": {
            "class": [{"label": "owl", "score": 0.7}, {"label": "kite", "score": 0.3}],
            "distillation": [{"label": "kite", "score": 0.6}, {"label": "owl", "score": 0.4}],
        },
        "explanation": {
            "method": "relevance",
            "grid": [2, 2],
            "target": "owl",
            "maps": {"class": [[1, 0, 0, 0], [0, 1, 0, 0]], "distillation": [[0, 0, 1, 0]] * 2},
            "overall": {"class": [0, 0, 0, 1], "distillation": [0, 0, 1, 0]},
        },
    } | changes


SCORES = {
    "class": {"score": 0.2, "verdict": "better", "description": "Better than random: +0.200."},
    "distillation": {"score": 0.01, "verdict": "no better", "description": f"No better than random: {HOSTILE}."},
}


def scored() -> dict[str, Any]:
    """An answer whose maps have scores."""
    return answer(explanation=result()["explanation"] | {"score": SCORES})


def answer(**changes: Any) -> dict[str, Any]:
    timing = {"decode": 3.1, "queue": 0.4, "compute": 20.2, "total": 24.0}
    return {"model": "birds", "version": "1", "results": [result(**changes)], "timing_ms": timing}


def error(status: int, reason: str, message: str) -> dict[str, Any]:
    return {"error": {"status": status, "reason": reason, "message": message}}


Reply = tuple[int, Any, dict[str, str]]


def replies(page: Any, path: str, *given: Reply | Callable[[Any], Reply]) -> list[Any]:
    """Answers requests of the page in the server's place, one reply after the other, the last one for good.

    Returns the requests so far.
    """
    asked: list[Any] = []

    def fulfill(route: Any) -> None:
        reply = given[min(len(asked), len(given) - 1)]
        asked.append(route.request)
        status, body, headers = reply(route.request) if callable(reply) else reply
        text = body if isinstance(body, str) else json.dumps(body)
        route.fulfill(status=status, body=text, headers={"Content-Type": "application/json"} | headers)

    page.route(path, fulfill)
    return asked


CLASSIFY, MODELS = "**/v1/classify*", "**/v1/models"
