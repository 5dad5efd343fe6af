"""Malformed requests of all kinds, from a seed, while good ones go on: benchmarks/serving_faults.py in short."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("psutil")

from deit.inference.predictor import Predictor
from tests.serve.conftest import MeanEngine, serving

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Any]:
    """Lets tests import the benchmarks."""
    sys.path.insert(0, str(BENCHMARKS))
    import serving as measured
    import serving_fault_kinds
    import serving_faults

    yield serving_faults, serving_fault_kinds, measured
    sys.path.remove(str(BENCHMARKS))


def plan_of(folder: Path, images: list[bytes], predictor: Predictor, port: int) -> dict[str, Any]:
    files = []
    for number, image in enumerate(images):
        path = folder / f"{number}.jpg"
        path.write_bytes(image)
        files.append(str(path))
    expected = [{p.label: p.score for p in told} for told in predictor.classify(images)]
    shared = {"host": "127.0.0.1", "port": port, "path": "/v1/classify", "kind": "image/jpeg"}
    return {**shared, "files": files, "expected": expected}


@pytest.mark.parametrize("max_batch", [1, 4])
def test_malformed_requests_are_answered_with_a_reason_and_disturb_no_others(benchmarks, tmp_path, max_batch):
    faults, kinds, measured = benchmarks
    images = measured.photos(8, size=(32, 24))
    predictor = Predictor(MeanEngine())
    with serving(predictor, max_batch=max_batch, header_seconds=1.0, body_seconds=1.0) as running:
        plan = plan_of(tmp_path, images, Predictor(MeanEngine()), running.port)
        sent = kinds.faults(240, seed=max_batch, images=images)
        assert {fault.name for fault in sent} == {*kinds.KINDS, "too_slow"}
        before = threading.active_count()
        outcomes, wrong, tally = asyncio.run(faults.with_good_requests(sent, plan))
        assert running.ask("GET", "/readyz").status == 200
        metrics = running.ask("GET", "/metrics").body.decode()
        assert threading.active_count() <= before + 4
    assert wrong == []
    assert (tally["wrong"], tally["lost"]) == ([], {})
    assert tally["milliseconds"]
    assert sum(sum(counts.values()) for counts in outcomes.values()) == 240
    assert faults.largest_batches(metrics, max_batch) == 0
    assert max(predictor.engine.batches) <= max_batch
    assert 'deit_queue_images{model="model",version="1"} 0.0' in metrics


def test_the_faults_of_a_seed_are_always_the_same(benchmarks):
    _, kinds, _ = benchmarks
    first, again, other = (kinds.faults(100, seed, [b"an image " * 30]) for seed in (1, 1, 2))
    assert first == again
    assert first != other
