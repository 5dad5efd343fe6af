"""What Prometheus reads: every phase apart, bounded labels, several workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deit.serve.metrics import FOLDER_VARIABLE, Metrics, counting_workers, forget_worker


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Returns the values that Prometheus's own parser finds."""
    families = text_string_to_metric_families(text.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics.text()[0]).get((name, frozenset(labels.items())))


@pytest.fixture
def metrics() -> Metrics:
    counted = Metrics()
    counted.know("birds")
    counted.know("birds@2")
    return counted


@pytest.mark.parametrize("phase", ["decode", "queue", "compute"])
def test_each_phase_has_a_histogram_of_its_own(metrics, phase):
    record = {"decode": metrics.decoded, "queue": metrics.queued, "compute": metrics.computed}[phase]
    record("birds@2", 0.004)
    record("birds@2", 0.3)
    labels = {"model": "birds", "version": "2"}
    name = f"deit_{phase}_seconds"
    assert value(metrics, f"{name}_count", **labels) == 2
    assert value(metrics, f"{name}_sum", **labels) == pytest.approx(0.304)
    assert value(metrics, f"{name}_bucket", le="0.0025", **labels) == 0
    assert value(metrics, f"{name}_bucket", le="0.005", **labels) == 1
    others = {"decode", "queue", "compute"} - {phase}
    assert all(value(metrics, f"deit_{other}_seconds_count", **labels) is None for other in others)


def test_batches_are_counted_in_images_and_in_seconds(metrics):
    metrics.batched("birds", 3, 0.002)
    metrics.batched("birds", 8, 0.004)
    labels = {"model": "birds", "version": "1"}
    assert value(metrics, "deit_batch_images_sum", **labels) == 11
    assert value(metrics, "deit_batch_images_bucket", le="4.0", **labels) == 1
    assert value(metrics, "deit_batch_assembly_seconds_count", **labels) == 2


def test_the_queue_and_the_ready_models_are_gauges(metrics):
    assert value(metrics, "deit_queue_images", model="birds", version="2") == 0
    metrics.waiting("birds@2", 17)
    metrics.ready(2)
    assert value(metrics, "deit_queue_images", model="birds", version="2") == 17
    assert value(metrics, "deit_models_ready") == 2


def test_a_name_that_a_client_invents_is_no_label(metrics):
    for number in range(1000):
        metrics.refused(f"guess-{number}", "unknown_model")
    metrics.refused("birds", "queue_full")
    text = metrics.text()[0]
    assert b"guess" not in text
    assert value(metrics, "deit_refusals_total", model="unknown", version="", reason="unknown_model") == 1000
    assert value(metrics, "deit_refusals_total", model="birds", version="1", reason="queue_full") == 1


def test_reasons_and_routes_end_too(metrics):
    for number in range(1000):
        metrics.refused("birds", f"reason-{number}")
        metrics.answered(f"/guess/{number}", 404 if number % 2 else 99999, 0.001)
    found = samples(metrics.text()[0])
    assert len([key for key in found if key[0] == "deit_refusals_total"]) == 65
    assert len([key for key in found if key[0] == "deit_answers_total"]) <= 2 * 65
    assert ("deit_refusals_total", frozenset({"model": "birds", "version": "1", "reason": "other"}.items())) in found


def test_answers_are_counted_by_route_and_status(metrics):
    metrics.answered("/v1/classify", 200, 0.02)
    metrics.answered("/v1/classify", 429, 0.001)
    assert value(metrics, "deit_answers_total", route="/v1/classify", status="429") == 1
    assert value(metrics, "deit_request_seconds_count", route="/v1/classify") == 2


def test_two_applications_count_apart(metrics):
    other = Metrics()
    other.know("birds")
    metrics.computed("birds", 1)
    assert value(other, "deit_compute_seconds_count", model="birds", version="1") is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells the memory of processes")
def test_the_memory_of_the_process_is_there(metrics):
    assert 2**20 < value(metrics, "process_resident_memory_bytes") < 2**40


def test_openmetrics_is_spoken_to_those_who_ask(metrics):
    content, kind = metrics.text("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert content.endswith(b"# EOF\n")
    assert metrics.text("text/html")[1].startswith("text/plain")


WORKER = """
import sys
from deit.serve.metrics import Metrics
metrics = Metrics()
metrics.know("birds")
metrics.computed("birds", 0.01)
metrics.waiting("birds", 5)
metrics.ready(int(sys.argv[1]))
print(metrics.text()[0].decode(), flush=True)
print("# ready", flush=True)
sys.stdin.readline()
print(metrics.text()[0].decode(), flush=True)
"""


def test_workers_answer_for_each_other():
    with counting_workers() as folder:
        assert os.environ[FOLDER_VARIABLE] == str(folder)
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, ready], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for ready in "12"
        ]
        for worker in workers:
            while worker.stdout.readline() != "# ready\n":
                assert worker.poll() is None
        found = samples(workers[0].communicate("\n")[0].encode())
        birds = frozenset({"model": "birds", "version": "1"}.items())
        assert found["deit_compute_seconds_count", birds] == 2
        assert found["deit_queue_images", birds] == 10
        assert found["deit_models_ready", frozenset()] == 1
        if Path("/proc/self/statm").exists():
            assert found["deit_workers", frozenset()] == 2
            assert found["process_resident_memory_bytes", frozenset()] > 2**20
        forget_worker(workers[0].pid, folder)
        found = samples(workers[1].communicate("\n")[0].encode())
        assert found["deit_compute_seconds_count", birds] == 2
        assert found["deit_queue_images", birds] == 5
        assert found["deit_models_ready", frozenset()] == 2
        assert [worker.wait() for worker in workers] == [0, 0]
    assert FOLDER_VARIABLE not in os.environ
    assert not folder.exists()


EMPTY_FILE = """
import os, pathlib, threading
from deit.serve.metrics import Metrics
metrics = Metrics()
made = pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]) / "counter_1.db"  # of another worker, which is making it
made.touch()
threading.Timer(0.05, made.unlink).start()
print("deit_models_ready" in metrics.text()[0].decode())
"""


def test_a_worker_that_is_making_its_file_is_waited_for():
    with counting_workers():
        told = subprocess.run([sys.executable, "-c", EMPTY_FILE], capture_output=True, text=True, check=True)
    assert told.stdout == "True\n"


def test_a_folder_that_comes_too_late_is_no_silent_loss(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(RuntimeError, match="before it was set"):
        Metrics()
