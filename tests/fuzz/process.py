"""Fuzzes one target until its time is up: with atheris where it is installed, else with hypothesis.

    python -m tests.fuzz.process TARGET SECONDS FOLDER

`run.py` starts it, with a limit of memory. Inputs that fail go into FOLDER/crashers, one for each mechanism; inputs
that reached new code (atheris) into FOLDER/corpus, from which the next run goes on; figures into FOLDER/figures.json.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz.driver import MOST_BYTES, Failure, Target, check, peak

_MOST_SECONDS = 60.0  # of the processor, after which an input has no end
_MOST_INPUT = 64 * 1024  # bytes; seeds have at most half of it


class Run:
    """A target that is fuzzed, and what came of it.

    Args:
        target: The target.
        folder: Of the crashers and figures.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.crashers = target, folder / "crashers"
        self.figures_file = folder / "figures.json"
        self.crashers.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(self.figures_file.read_text()) if self.figures_file.exists() else {}
        self.executions, self.read = earlier.get("executions", 0), earlier.get("read", 0)
        self.seconds = earlier.get("seconds", 0.0)
        self._began = self._written = time.monotonic()

    def one(self, data: bytes) -> None:
        """Checks one input; writes it down first, so that the last one is there if the process dies."""
        self.executions += 1
        last = self.crashers / "last-input"
        last.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, _MOST_SECONDS)  # ends the process
        try:
            self.read += not check(self.target, data)
        except Failure as failure:
            path = self.crashers / failure.signature
            if not path.exists():
                path.write_bytes(data)
                path.with_suffix(".txt").write_text(str(failure), errors="backslashreplace")
                print(f"NEW FAILURE of {self.target.name}: {failure.signature}", flush=True)
            if failure.signature == "memory":  # the peak never falls: every further input would fail
                self.write()
                sys.exit(1)
        if time.monotonic() - self._written > 5:
            self.write()

    def write(self) -> None:
        """Writes the figures."""
        now = time.monotonic()
        self.seconds, self._began, self._written = self.seconds + now - self._began, now, now
        found = [p.name for p in self.crashers.iterdir() if p.suffix != ".txt" and p.name != "last-input"]
        values = {"executions": self.executions, "read": self.read, "seconds": round(self.seconds, 1),
                  "peak_mb": round(peak() / 1e6), "failures": sorted(found)}  # fmt: skip
        self.figures_file.write_text(json.dumps(values))


def with_atheris(name: str, seconds: int, folder: Path) -> None:
    """Fuzzes by coverage of the lines of the package; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["deit"], enable_loader_override=False):
        from tests.fuzz.targets import TARGETS

        target = TARGETS[name]
        target.prepare()
        for data in target.corpus.values():  # imports what is imported when it is first used
            with contextlib.suppress(Failure):
                check(target, data)
    run = Run(target, folder)
    seeds = list(target.corpus.values())

    def changed(data: bytes, most: int, seed: int) -> bytes:
        source = random.Random(seed)
        if source.randrange(8):
            with contextlib.suppress(Exception):  # an error here would leave a process that neither works nor ends
                return target.change(source, data or source.choice(seeds), seeds)[:most]
        return bytes(atheris.Mutate(data, most))

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    options = {
        "max_total_time": seconds,
        "rss_limit_mb": MOST_BYTES // 10**6,
        "max_len": _MOST_INPUT,
        "artifact_prefix": f"{run.crashers}/",
        "print_final_stats": 1,
        "len_control": 0,
        "detect_leaks": 0,
        "timeout": 10**6,  # of the clock, which a stopped process is over; `Run.one` counts that of the processor
        "report_slow_units": 10**6,
    }
    places = [str(corpus), str(Path(__file__).parent / "corpus" / name)]
    atheris.Setup(
        [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), *places],
        run.one,
        custom_mutator=changed,
    )
    atheris.Fuzz()


def with_hypothesis(name: str, seconds: int, folder: Path) -> None:
    """Fuzzes with examples that hypothesis draws."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    target.prepare()
    run, end, number = Run(target, folder), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1

        @seed(number)
        @settings(
            max_examples=100,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs(target))
        def examples(data: bytes) -> None:
            if time.monotonic() < end:
                run.one(data)

        examples()
    run.write()


def inputs(target: Target) -> Any:
    """Returns the strategy of hypothesis for the inputs of a target: changes of its corpus, up to three times."""
    from hypothesis import strategies

    corpus = list(target.corpus.values())

    @strategies.composite
    def changed(draw: Any) -> bytes:
        data = draw(strategies.sampled_from(corpus))
        source = draw(strategies.randoms(use_true_random=False, note_method_calls=False))
        for _ in range(draw(strategies.integers(1, 3))):
            data = target.change(source, data, corpus)
        return bytes(data[:_MOST_INPUT])

    return changed()


def main(name: str, seconds: str, folder: str) -> None:
    """Chooses the engine."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        with_hypothesis(name, int(seconds), Path(folder))
    else:
        with_atheris(name, int(seconds), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
