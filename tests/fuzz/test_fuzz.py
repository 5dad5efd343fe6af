"""Every input of the corpus, and a few changed ones that are the same in every run; `run.py` has no end of others."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")
pytest.importorskip("starlette")
pytest.importorskip("pillow_heif")
pytest.importorskip("hypothesis")

import hypothesis

from tests.fuzz import seeds
from tests.fuzz.driver import CORPUS, check
from tests.fuzz.process import inputs
from tests.fuzz.targets import TARGETS

_MOST_CORPUS_BYTES = 300_000
_SLOW = {"states": 3, "bulk_jobs": 6}  # targets that take a tenth of a second -> examples

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of inputs that are damaged on purpose
    pytest.mark.parametrize("name", TARGETS),
]


@pytest.fixture(autouse=True)
def without_limit_of_memory(monkeypatch):
    """The process of the tests has taken its peak with other tests; `run.py` has a process for each target."""
    monkeypatch.setattr("tests.fuzz.driver.MOST_BYTES", 10**12)


def test_the_corpus_is_small(name) -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < _MOST_CORPUS_BYTES
    assert (CORPUS / name).is_dir()


def test_every_input_of_the_corpus_is_read_or_refused(name) -> None:
    target = TARGETS[name]
    target.prepare()
    said = {file: check(target, data) for file, data in target.corpus.items()}
    assert "" in said.values()  # a target that reads nothing finds nothing
    assert set(target.seeds()) <= set(said)
    assert all(file in target.seeds() or file.startswith(seeds.FOUND) for file in said)


def test_changed_inputs_are_read_or_refused(name) -> None:
    target = TARGETS[name]
    target.prepare()

    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=_SLOW.get(name, 25), database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(inputs(target))
    def is_read_or_refused(data: bytes) -> None:
        check(target, data)

    is_read_or_refused()


def test_a_change_may_change_everything(name) -> None:
    """The changes reach further than one byte: of 20, some differ from every input of the corpus."""
    target = TARGETS[name]
    corpus = list(target.corpus.values())
    changed = {target.change(random.Random(seed), corpus[0], corpus) for seed in range(20)}
    assert len(changed - set(corpus)) > 5
