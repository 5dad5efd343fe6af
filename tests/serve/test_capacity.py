"""deploy/capacity.py against a simulation of the server, event by event."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "capacity.py"


@pytest.fixture(scope="module")
def capacity() -> Any:
    spec = importlib.util.spec_from_file_location("capacity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["capacity"] = module  # where a dataclass looks for its module
    spec.loader.exec_module(module)
    return module


def simulated(server: Any, rate: float, images: int) -> tuple[float, float, int]:
    """Returns throughput, mean latency and refusals of random arrivals: batches of what waits, one after the other."""
    chance = random.Random(0)
    arrivals, now = [], 0.0
    for _ in range(images):
        now += chance.expovariate(rate)
        arrivals.append(now)
    waiting: list[float] = []
    latencies: list[float] = []
    refused = 0
    free = 0.0  # when the model ends its batch
    index = 0
    while index < len(arrivals) or waiting:
        if not waiting:
            free = max(free, arrivals[index] + server.wait)
        while index < len(arrivals) and arrivals[index] <= free:
            if len(waiting) < server.queue:
                waiting.append(arrivals[index])
            else:
                refused += 1
            index += 1
        batch, waiting = waiting[: server.batch], waiting[server.batch :]
        end = free + server.seconds(len(batch))
        latencies += [end - begin for begin in batch]
        free = end
    return len(latencies) / free, sum(latencies) / len(latencies), refused


@pytest.fixture
def server(capacity: Any) -> Any:
    return capacity.Server(fixed=0.012, per_image=0.023, decode=0.004, cores=2)


def test_the_capacity_is_what_a_simulation_answers_when_overloaded(server: Any) -> None:
    throughput, latency, refused = simulated(server, 2 * server.capacity, 20_000)
    assert throughput == pytest.approx(server.capacity, rel=0.01)
    assert refused == pytest.approx(10_000, rel=0.05)
    assert latency <= server.worst_latency()
    assert latency == pytest.approx(server.worst_latency(), rel=0.15)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.8])
def test_the_mean_latency_is_that_of_a_simulation(server: Any, share: float) -> None:
    rate = share * server.capacity
    _, latency, refused = simulated(server, rate, 40_000)
    assert refused == 0
    assert server.mean_latency(rate) - server.decode == pytest.approx(latency, rel=0.05)


def test_with_the_longest_queue_the_worst_case_keeps_the_deadline(capacity: Any, server: Any) -> None:
    longest = server.longest_queue(2.0)
    inside = capacity.Server(fixed=0.012, per_image=0.023, decode=0.004, cores=2, queue=longest)
    beyond = capacity.Server(fixed=0.012, per_image=0.023, decode=0.004, cores=2, queue=longest + 1)
    assert inside.worst_latency() <= 2.0 < beyond.worst_latency()


def test_clients_and_their_latency_follow_littles_law(server: Any) -> None:
    assert server.throughput_of(64) == server.capacity
    assert server.latency_of(64) == pytest.approx(64 / server.capacity)
    assert server.throughput_of(1) == pytest.approx(1 / server.seconds(1))


def test_the_parts_of_a_batch_are_found_by_least_squares(capacity: Any) -> None:
    assert capacity.fitted({1: 0.035, 16: 0.38}) == (pytest.approx(0.012), pytest.approx(0.023))
    assert capacity.fitted({8: 0.4}) == (0.0, 0.05)


def test_the_script_prints_a_plan() -> None:
    options = ["--batch-ms", "1:35", "--batch-ms", "16:400", "--decode-ms", "5", "--cores", "2", "--rate", "60"]
    told = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=True)
    assert "servers for 60 images/s       3" in told.stdout
