"""The engine "auto": answers with plain PyTorch at once, and with a faster engine as soon as one has proved itself."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from typing import Any
from weakref import WeakSet

import numpy as np

from deit.core.errors import UserError
from deit.inference.contract import Array, Contract
from deit.inference.engines.candidates import PACKAGES, Candidate, candidates, why_none
from deit.inference.engines.choice import (
    LEAST_IMAGES,
    LEAST_ROUNDS,
    TRIAL_SECONDS,
    EngineChoice,
    Trial,
    Verdict,
    best_of,
    remember,
    remembered,
    verdict_key,
)
from deit.inference.engines.engine import Engine
from deit.inference.engines.torch_engine import TorchEngine
from deit.runtime.devices import gpu_name

LOOK_AFTER = 0.2  # seconds of computing after which a process looks for what an earlier one found out
# Seconds of computing after which engines are measured. Opening one costs about as much, so a process that ends right
# after it has computed at most twice as long as it had to.
MEASURE_AFTER = 2.0

_FEWEST_IMAGES = 8  # that must have been compared when time is up
_HOPELESS = 0.5  # of the speed of PyTorch, in one batch
_PATIENCE = 10.0  # seconds that the end of a process waits for an engine that is being opened

_WATCHING, _PREPARING, _TRYING, _DECIDED = "watching", "preparing", "trying", "decided"

logger = logging.getLogger(__name__)

_threads: WeakSet[threading.Thread] = WeakSet()
_ending = threading.Event()


class AutoEngine:
    """Runs a model with the fastest engine whose answers agree with those of plain PyTorch.

    Plain PyTorch answers first. After two seconds of computing, a thread opens the other engines (OpenVINO, or ONNX
    Runtime; on a GPU of CUDA, the engine "cuda") while PyTorch goes on answering. Then each batch of the caller is also
    given to them, after it has been answered, until 32 images and three batches have shown their speed and that they
    agree: that is what the images, the batches and the load of the machine are like. The answer is kept in the cache
    folder, so the next process with the same weights, machine, versions and threads opens the engine after its first
    batch, and compares one batch only.

    A call is answered by one engine; `held` keeps it for several calls. An engine that fails later is given up for
    PyTorch, with a warning.

    Args:
        plain: Plain PyTorch with the model; what answers are compared with.
        precision: "auto" allows bf16 where that is 1.2 x as fast as all else; "fp32" and "bf16" allow that alone.

    Attributes:
        contract: See `Engine`.
        device: See `Engine`.
    """

    def __init__(self, plain: TorchEngine, precision: str = "auto") -> None:
        self.contract: Contract = plain.contract
        self.device = plain.device
        self._plain, self._asked = plain, precision
        self._used: Engine = plain
        self._process = os.getpid()
        self._lock = threading.Lock()  # of what follows
        self._stage = _WATCHING
        self._calls, self._images, self._seconds = 0, 0, 0.0
        self._key: dict[str, Any] | None = None
        self._found: Verdict | None = None
        self._trials: list[tuple[Trial, Engine]] = []
        self._choice = self._waiting()
        if reason := why_none(plain):
            self._stay(reason, "rule")

    # --- what it is at the moment --------------------------------------------------------------------

    @property
    def choice(self) -> EngineChoice:
        """The engine at the moment, and why."""
        return self._choice

    @property
    def name(self) -> str:
        """Name of the engine that answers at the moment."""
        return self._used.name

    @property
    def precision(self) -> str:
        """Precision of the engine that answers at the moment."""
        return self._used.precision

    @property
    def reason(self) -> str:
        """Why it is this engine, in a few words."""
        return self._choice.reason

    def describe(self) -> str:
        """Returns one line, such as "Engine: openvino, bf16 (2.1 x as fast as torch, measured on 64 images)."."""
        return self._choice.describe()

    @property
    def is_decided(self) -> bool:
        """Whether the engine stays as it is."""
        return self._stage == _DECIDED

    @property
    def model(self) -> Any:
        """The model in PyTorch. Whoever asks for it may change it, so PyTorch answers from then on."""
        with self._lock:
            if self._used is not self._plain or self._stage != _DECIDED:
                self._stay("the model was handed out, and may have been changed", "rule")
        return self._plain.model

    @property
    def unchanged_model(self) -> Any:
        """The model in PyTorch, for who only reads it: the engine stays free to choose."""
        return self._plain.model

    # --- answers -------------------------------------------------------------------------------------

    def __call__(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits (B, K) of each head; the first one is the answer of the model.

        Args:
            pixels: (B, C, H, W), float32.
        """
        return self._answer(self._used, pixels, False)

    def with_features(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits of each head, and as `FEATURES` what the class head is given, (B, D).

        Args:
            pixels: (B, C, H, W), float32.
        """
        return self._answer(self._used, pixels, True)

    def held(self) -> HeldEngine:
        """Returns the engine that answers at the moment, which stays so: for answers that are compared."""
        return HeldEngine(self, self._used)

    def _answer(self, engine: Engine, pixels: Array, features: bool) -> dict[str, Array]:
        if self._stage == _DECIDED or os.getpid() != self._process:
            return self._guarded(engine, pixels, features)
        if self._stage == _WATCHING and self._calls:
            self._begin()
        started = time.perf_counter()
        answers = _ask(self._plain, pixels, features)
        seconds = time.perf_counter() - started
        self._calls, self._images, self._seconds = self._calls + 1, self._images + len(pixels), self._seconds + seconds
        if self._stage == _TRYING and self._lock.acquire(blocking=False):  # else another thread tries them
            try:
                if self._stage == _TRYING:
                    self._try(pixels, features, answers, seconds)
            finally:
                self._lock.release()
        return answers

    def _guarded(self, engine: Engine, pixels: Array, features: bool) -> dict[str, Array]:
        """Asks an engine, and plain PyTorch in its place if that fails."""
        if engine is self._plain or (features and not getattr(engine, "gives_features", True)):
            return _ask(self._plain, pixels, features)
        try:
            answers = _ask(engine, pixels, features)
            problem = "" if np.isfinite(answers[self.contract.head_names[0]]).all() else "NaN or infinite answers"
        except Exception as error:  # noqa: BLE001  # whatever an engine raises, PyTorch has an answer
            problem = _first_line(error)
        if not problem:
            return answers
        answers = _ask(self._plain, pixels, features)  # raises for pixels that the model cannot take
        if np.isfinite(answers[self.contract.head_names[0]]).all():  # else the model itself has no answer
            logger.warning("%s failed (%s). PyTorch answers from now on.", engine.name, problem)
            self._stay(f"{engine.name} failed: {problem}", "rule")
        return answers

    # --- the decision --------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Starts a thread for the next step, once enough was computed."""
        if self._seconds < (LOOK_AFTER if self._key is None else MEASURE_AFTER) or _ending.is_set():
            return
        with self._lock:
            if self._stage != _WATCHING:
                return
            self._stage = _PREPARING
        if not _threads:
            atexit.register(_end)
        thread = threading.Thread(target=self._prepare, name="deit-engine", daemon=True)
        _threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter ends
            self._stay(f"no thread could be started: {_first_line(error)}", "rule")

    def _prepare(self) -> None:
        """Opens what may answer; in a thread."""
        try:
            if self._key is None:
                key = verdict_key(self.contract, self._asked, PACKAGES, gpu_name(self._plain.placement.device))
                self._found = remembered(key)
                self._key = key
                if self._found is None:
                    self._go_on([], _WATCHING)
                    return
                chosen = [Candidate(self._found.engine, self._found.precision)]
            else:
                chosen = candidates(self._plain, self._asked)
            if self._found is not None and chosen == [Candidate(self._plain.name, self._plain.precision)]:
                self._settle("no other engine is faster, measured earlier", "remembered")
                return
            opened: list[tuple[Trial, Engine]] = []
            for each in chosen:
                if _ending.is_set():
                    return
                opened.append((Trial(engine=each.engine, precision=each.precision), each.open(self._plain)))
            if opened:
                self._go_on(opened, _TRYING)
            else:
                self._settle(f"no other engine computes in {self._asked}", "rule")
        except Exception as error:  # noqa: BLE001  # a thread must not break the answers of the others
            logger.warning("No other engine could be opened (%s). PyTorch answers.", _first_line(error))
            self._settle(f"no other engine could be opened: {_first_line(error)}", "rule")

    def _go_on(self, opened: list[tuple[Trial, Engine]], stage: str) -> None:
        with self._lock:
            if self._stage == _PREPARING:  # else the model was handed out
                self._trials, self._stage = opened, stage

    def _settle(self, reason: str, source: str) -> None:
        with self._lock:
            if self._stage == _PREPARING:
                self._stay(reason, source)

    def _try(self, pixels: Array, features: bool, expected: dict[str, Array], seconds: float) -> None:
        """Gives a batch that PyTorch has answered to the others too, and decides when enough is known."""
        if self._found is not None:  # its speed is known
            pixels = pixels[:_FEWEST_IMAGES]
            expected = {name: values[:_FEWEST_IMAGES] for name, values in expected.items()}
        for trial, engine in self._trials:
            if trial.objection or (trial.ratios and trial.ratios[0] < _HOPELESS):
                continue
            if features and not getattr(engine, "gives_features", True):
                trial.objection = "it gives no features"
                continue
            try:
                started = time.perf_counter()
                found = _ask(engine, pixels, features)
                trial.note_time(len(pixels), seconds, time.perf_counter() - started)
                trial.compare(expected, found, self.contract)
            except Exception as error:  # noqa: BLE001  # the batch has its answer
                trial.objection = f"it failed: {_first_line(error)}"
            if trial.objection:
                logger.warning("%s in %s is not taken: %s.", trial.engine, trial.precision, trial.objection)
        trials = [trial for trial, _ in self._trials]
        if self._found is not None:
            self._take_remembered(trials[0])
            return
        running = [t for t in trials if not t.objection and not (t.ratios and t.ratios[0] < _HOPELESS)]
        enough = all(t.images >= LEAST_IMAGES and len(t.ratios) >= LEAST_ROUNDS for t in running)
        if enough or sum(t.seconds for t in trials) > TRIAL_SECONDS:
            self._decide(trials)

    def _take_remembered(self, trial: Trial) -> None:
        assert self._found is not None
        if trial.objection:
            self._stay(f"{trial.engine} was faster earlier, but {trial.objection}", "measured")
        elif trial.images:
            reason = f"{self._found.speedup:.1f} x as fast as torch, measured earlier on {self._found.images} images"
            self._take(trial, reason, "remembered", self._found.speedup)

    def _decide(self, trials: list[Trial]) -> None:
        best = best_of([t for t in trials if t.images >= _FEWEST_IMAGES])
        images = max((t.images for t in trials), default=0)
        if best is None:
            told = [f"{t.engine} in {t.precision}: {t.objection or f'{t.speedup:.2f} x as fast'}" for t in trials]
            self._stay(f"no other engine is better; {'; '.join(told)}", "measured")
        else:
            self._take(
                best, f"{best.speedup:.1f} x as fast as torch, measured on {images} images", "measured", best.speedup
            )
        if self._key is not None and not any(t.objection for t in trials) and all(t.ratios for t in trials):
            chosen = best or Trial(engine=self._plain.name, precision=self._plain.precision)
            verdict = Verdict(
                engine=chosen.engine,
                precision=chosen.precision,
                speedup=float(chosen.speedup),
                difference=float(chosen.difference),
                images=images,
            )
            remember(self._key, verdict)

    def _take(self, trial: Trial, reason: str, source: str, speedup: float) -> None:
        engine = next(engine for each, engine in self._trials if each is trial)
        if trial.difference:
            reason += f", largest difference of a score {trial.difference:.1g}"
        self._choice = EngineChoice(
            engine=trial.engine,
            precision=trial.precision,
            reason=reason,
            source=source,
            speedup=round(speedup, 3),
            difference=trial.difference,
            since=self._images,
        )
        self._used, self._trials, self._stage = engine, [], _DECIDED
        logger.info("%s", self._choice.describe())

    def _stay(self, reason: str, source: str) -> None:
        """Lets PyTorch answer from now on."""
        self._choice = EngineChoice(
            engine=self._plain.name, precision=self._plain.precision, reason=reason, source=source
        )
        self._used, self._trials, self._stage = self._plain, [], _DECIDED
        logger.info("%s", self._choice.describe())

    def _waiting(self) -> EngineChoice:
        return EngineChoice(
            engine=self._plain.name,
            precision=self._plain.precision,
            reason="until enough images have shown whether another engine is faster",
            source="waiting",
        )


class HeldEngine:
    """The engine that an `AutoEngine` answered with at some moment; see `AutoEngine.held`."""

    def __init__(self, auto: AutoEngine, engine: Engine) -> None:
        self._auto, self._engine = auto, engine
        self.contract, self.device = auto.contract, auto.device
        self.name, self.precision = engine.name, engine.precision

    def __call__(self, pixels: Array, /) -> dict[str, Array]:
        """See `AutoEngine`."""
        return self._auto._answer(self._engine, pixels, False)

    def with_features(self, pixels: Array, /) -> dict[str, Array]:
        """See `AutoEngine`."""
        return self._auto._answer(self._engine, pixels, True)


def held(engine: Engine) -> Engine:
    """Returns an engine that stays the same: for all but `AutoEngine`, the engine itself."""
    return engine.held() if isinstance(engine, AutoEngine) else engine


def _ask(engine: Any, pixels: Array, features: bool) -> dict[str, Array]:
    answers: dict[str, Array] = (engine.with_features if features else engine)(pixels)
    return answers


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0][:200]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _end() -> None:
    """Lets no thread be inside of an engine while Python takes itself apart, which would end in a crash."""
    _ending.set()
    for thread in list(_threads):
        if thread.is_alive():
            thread.join(_PATIENCE)
