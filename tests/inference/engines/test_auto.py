"""The engine "auto": PyTorch answers at once; another engine takes over once it is proved faster and equal."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deit.core.errors import UserError
from deit.inference.contract import Contract
from deit.inference.engines import auto_engine, candidates, choice
from deit.inference.engines.auto_engine import AutoEngine
from deit.inference.engines.choice import EngineChoice, Trial, Verdict, best_of
from deit.inference.engines.opening import open_engine
from deit.inference.engines.torch_engine import TorchEngine, open_torch_engine
from deit.inference.predictor import Predictor
from tests.inference.conftest import NAMES, PROCESSOR
from tests.inference.engines.test_engines import PIXELS, photos

clock = [0.0]  # seconds, as the engine reads them: PyTorch takes one for a batch


class Other:
    """A candidate: answers as PyTorch does, in so many seconds, plus an error."""

    engine, precision, name, device = "other", "fp32", "other", "cpu"

    def __init__(self, seconds=0.5, error=0.0, precision="fp32", fails_to_open=False, features=True):
        self.seconds, self.error, self.precision = seconds, error, precision
        self.fails_to_open, self.gives_features = fails_to_open, features
        self.fails, self.calls = False, 0

    def open(self, plain):
        if self.fails_to_open:
            raise RuntimeError("no memory\nand more")
        self.contract, self.model = plain.contract, TorchEngine(plain.model, plain.contract)
        return self

    def _changed(self, answers):
        if self.fails:
            raise RuntimeError("it broke")
        self.calls += 1
        clock[0] += self.seconds
        return {name: values + np.float32(self.error) * np.arange(values.shape[1]) for name, values in answers.items()}

    def __call__(self, pixels):
        return self._changed(PLAIN_CALL(self.model, pixels))

    def with_features(self, pixels):
        began = clock[0]
        answers = PLAIN_FEATURES(self.model, pixels)
        clock[0] = began
        features = answers.pop("features")
        return {**self._changed(answers), **({"features": features} if self.gives_features else {})}


PLAIN_CALL, PLAIN_FEATURES = TorchEngine.__call__, TorchEngine.with_features


@pytest.fixture
def auto(deit_directory, monkeypatch, tmp_path):
    """Opens the engine "auto" of one model, with the candidates that are given; begins at once."""
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEIT_ENGINE", raising=False)
    monkeypatch.delenv("DEIT_AUTO_PRECISION", raising=False)
    monkeypatch.setattr(auto_engine, "LOOK_AFTER", 0.0)
    monkeypatch.setattr(auto_engine, "MEASURE_AFTER", 0.0)

    def timed(self, pixels):
        clock[0] += 1.0
        return PLAIN_CALL(self, pixels)

    monkeypatch.setattr(TorchEngine, "__call__", timed)
    monkeypatch.setattr(auto_engine, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    folder = deit_directory()
    remembered = {}

    def open_with(*others, precision="auto"):
        asked = []
        remembered.update({(o.engine, o.precision): o for o in others})

        def listed(plain, precision):
            asked.append(precision)
            return [o for o in others if precision in ("auto", o.precision)]

        monkeypatch.setattr(auto_engine, "candidates", listed)
        monkeypatch.setattr(auto_engine, "Candidate", lambda *key: remembered.get(key, key))
        opened = open_engine(folder, engine="auto", precision=precision)
        opened.asked, opened.folder = asked, folder
        return opened

    return open_with


def ask_until_decided(engine, *, batch=PIXELS, features=False, most=60):
    """Asks until the engine is chosen. Returns the names of the engines that answered."""
    names = []
    for _ in range(most):
        names.append(engine.name)
        (engine.with_features if features else engine)(batch)
        if engine.is_decided:
            return names
        for thread in threading.enumerate():
            if thread.name == "deit-engine":
                thread.join(30)
    raise AssertionError(f"not decided: {engine._stage}")


def verdicts(tmp_path):
    return sorted((tmp_path / "cache" / "engines").glob("*.json"))


def test_pytorch_answers_until_another_engine_is_proved_faster(auto, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="deit")
    other = Other()
    engine = auto(other)
    expected = open_torch_engine(engine.folder)(PIXELS)
    assert engine.choice.source == "waiting"
    assert engine.describe().startswith("Engine: torch, fp32 (until enough images have shown")
    first = engine(PIXELS)
    assert threading.active_count() == 1 or not any(t.name == "deit-engine" for t in threading.enumerate())
    names = ask_until_decided(engine)
    assert set(names) == {"torch"}
    assert other.calls >= 7  # 32 images in batches of 5
    assert (engine.name, engine.precision, engine.choice.source) == ("other", "fp32", "measured")
    assert engine.choice.speedup == 2.0
    assert engine.choice.since == 5 * (len(names) + 1)
    assert f"Engine: other, fp32, from image {engine.choice.since + 1} on (" in caplog.text
    calls = other.calls
    for head, logits in engine(PIXELS).items():
        np.testing.assert_array_equal(first[head], expected[head])
        np.testing.assert_allclose(logits, expected[head], atol=1e-6)
    assert other.calls == calls + 1
    assert json.loads(verdicts(tmp_path)[0].read_text())["engine"] == "other"


def test_a_later_process_takes_what_was_remembered_after_one_batch(auto, tmp_path):
    ask_until_decided(auto(Other()))
    other = Other()
    engine = auto(other)
    names = ask_until_decided(engine)
    assert engine.asked == []  # nothing was measured
    assert other.calls == 1
    assert (engine.name, engine.choice.source) == ("other", "remembered")
    assert "measured earlier on 3" in engine.reason
    assert len(names) <= 4


def test_what_was_remembered_is_compared_again(auto, caplog):
    ask_until_decided(auto(Other()))
    engine = auto(Other(error=0.5))
    ask_until_decided(engine)
    assert engine.name == "torch"
    assert "was faster earlier, but its answers differ" in engine.reason
    assert "other in fp32 is not taken" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "foreign", "typed"])
def test_a_damaged_or_foreign_entry_is_made_anew(auto, tmp_path, content):
    ask_until_decided(auto(Other()))
    (file,) = verdicts(tmp_path)
    values = json.loads(file.read_text())
    if content == "foreign":
        content = json.dumps({**values, "key": {**values["key"], "weights": "0" * 64}})
    if content == "typed":
        content = json.dumps({**values, "speedup": "fast"})
    file.write_text(content)
    engine = auto(Other())
    ask_until_decided(engine)
    assert (engine.name, engine.choice.source, engine.asked) == ("other", "measured", ["auto"])
    assert json.loads(file.read_text())["key"] == values["key"]


def test_other_weights_threads_and_questions_have_entries_of_their_own(auto, tmp_path, monkeypatch):
    ask_until_decided(auto(Other()))
    ask_until_decided(auto(Other(), precision="fp32"))
    assert len(verdicts(tmp_path)) == 2
    monkeypatch.setattr(choice, "machine_facts", lambda: {"cpu": "another"})
    ask_until_decided(auto(Other()))
    assert len(verdicts(tmp_path)) == 3
    engine = auto(Other())
    (engine.folder / "model.safetensors").touch()
    weights = bytearray((engine.folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (engine.folder / "model.safetensors").write_bytes(weights)
    ask_until_decided(auto(Other()))
    assert len(verdicts(tmp_path)) == 4


def test_a_cache_that_cannot_be_written_is_no_obstacle(auto, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "file" / "cache"))
    engine = auto(Other())
    ask_until_decided(engine)
    assert engine.name == "other"


def test_a_slower_engine_is_not_taken_and_that_is_remembered(auto, tmp_path):
    engine = auto(Other(seconds=1.25))
    ask_until_decided(engine)
    assert (engine.name, engine.choice.source) == ("torch", "measured")
    assert "other in fp32: 0.80 x as fast" in engine.reason
    assert json.loads(verdicts(tmp_path)[0].read_text())["engine"] == "torch"
    again = auto(Other())
    ask_until_decided(again)
    assert (again.name, again.choice.source, again.asked) == ("torch", "remembered", [])


def test_an_engine_with_other_answers_is_not_taken_nor_remembered(auto, tmp_path, caplog):
    engine = auto(Other(error=0.05))
    ask_until_decided(engine)
    assert engine.name == "torch"
    assert "its answers differ by" in engine.reason
    assert caplog.text.count("is not taken") == 1
    assert verdicts(tmp_path) == []


def test_bf16_may_differ_more_but_must_be_asked_for(auto):
    for asked, expected in (("auto", "bf16"), ("fp32", "fp32"), (None, "bf16")):
        engine = auto(Other(seconds=0.8), Other(error=0.005, precision="bf16"), precision=asked)
        assert engine.precision == "fp32"  # PyTorch, at first
        ask_until_decided(engine)
        assert engine.precision == expected
    assert engine.choice.difference > 1e-3


def test_the_environment_may_forbid_bf16(auto, monkeypatch):
    monkeypatch.setenv("DEIT_AUTO_PRECISION", "fp32")
    engine = auto(Other(error=0.005, precision="bf16"))
    ask_until_decided(engine)
    assert (engine.name, engine.precision) == ("torch", "fp32")
    assert engine.asked == ["fp32"]


def test_an_engine_that_cannot_be_opened_changes_no_answer(auto, caplog):
    engine = auto(Other(fails_to_open=True))
    expected = engine(PIXELS)
    ask_until_decided(engine)
    assert caplog.text.count("No other engine could be opened (RuntimeError: no memory). PyTorch answers.") == 1
    np.testing.assert_array_equal(engine(PIXELS)["both"], expected["both"])
    assert engine.reason == "no other engine could be opened: RuntimeError: no memory"


def test_an_engine_that_fails_on_trial_changes_no_answer(auto):
    other = Other()
    other.fails = True
    engine = auto(other)
    expected = engine(PIXELS)
    ask_until_decided(engine)
    assert "it failed: RuntimeError: it broke" in engine.reason
    np.testing.assert_array_equal(engine(PIXELS)["both"], expected["both"])


@pytest.mark.parametrize("fault", ["error", "nan"])
def test_an_engine_that_fails_later_is_given_up_for_pytorch(auto, caplog, fault):
    other = Other()
    engine = auto(other)
    expected = engine(PIXELS)
    ask_until_decided(engine)
    assert engine.name == "other"
    other.fails, other.error = fault == "error", np.nan
    for _ in range(2):
        np.testing.assert_array_equal(engine(PIXELS)["both"], expected["both"])
    assert engine.name == "torch"
    assert caplog.text.count("PyTorch answers from now on") == 1


def test_wrong_pixels_are_the_callers_error_and_cost_no_engine(auto):
    other = Other()
    engine = auto(other)
    ask_until_decided(engine)
    with pytest.raises(ValueError, match="20"):
        engine(np.zeros((1, 3, 20, 20), np.float32))
    assert engine.name == "other"


def test_features_come_from_the_engine_or_else_all_answers_from_pytorch(auto):
    expected = auto(Other()).with_features(PIXELS)
    for gives, name in ((True, "other"), (False, "torch")):
        engine = auto(Other(features=gives), precision="fp32" if gives else "auto")
        ask_until_decided(engine, features=True)
        assert engine.name == name
        np.testing.assert_allclose(engine.with_features(PIXELS)["features"], expected["features"], atol=1e-6)
    engine = auto(Other(features=False), precision="fp32")  # remembered from the first one, now asked without features
    ask_until_decided(engine)
    assert engine.name == "other"
    np.testing.assert_array_equal(engine.with_features(PIXELS)["both"], expected["both"])


def test_one_call_of_classify_is_answered_by_one_engine(auto, monkeypatch):
    other = Other(error=1e-6)
    engine = auto(other)
    plain = Predictor(open_torch_engine(engine.folder)).classify(photos(5) * 12, batch_size=5)
    predictor = Predictor(engine)
    original = AutoEngine._answer

    def wait(self, *arguments):
        for thread in threading.enumerate():
            if thread.name == "deit-engine":
                thread.join(30)
        return original(self, *arguments)

    monkeypatch.setattr(AutoEngine, "_answer", wait)
    results = predictor.classify(photos(5) * 12, batch_size=5)
    assert engine.name == "other"  # chosen meanwhile
    assert results == plain
    assert predictor.classify(photos(5)) != plain[:5]


def test_many_threads_may_ask(auto):
    engine = auto(Other())
    expected = engine(PIXELS)["both"]
    faults = []

    def work():
        for _ in range(30):
            if not np.allclose(engine(PIXELS)["both"], expected, atol=1e-6):
                faults.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults
    assert engine.is_decided  # the clock of this test runs for all threads


def test_a_model_that_was_handed_out_stays_with_pytorch(auto):
    for early in (True, False):
        other = Other()
        engine = auto(other)
        if not early:
            ask_until_decided(engine)
        with torch.no_grad():
            engine.model.cls_classifier.bias += 1.0
        calls = other.calls
        expected = PLAIN_CALL(engine._plain, PIXELS)
        for _ in range(4):
            np.testing.assert_array_equal(engine(PIXELS)["class"], expected["class"])
        assert (engine.name, other.calls) == ("torch", calls)
        assert "handed out" in engine.reason


def test_one_batch_starts_no_thread_and_few_are_not_measured(auto, monkeypatch):
    monkeypatch.setattr(auto_engine, "MEASURE_AFTER", 60.0)
    engine = auto(Other())
    engine(PIXELS)
    assert engine._key is None
    for _ in range(4):
        engine(PIXELS)
        time.sleep(0.02)
    assert (engine.name, engine.asked, engine.choice.source) == ("torch", [], "waiting")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_answers(auto):
    engine = auto(Other())
    expected = engine(PIXELS)["both"]
    engine._lock.acquire()  # as another thread may have done
    engine._stage = "preparing"  # by a thread that the child does not have
    child = os.fork()
    if not child:
        os._exit(0 if all(np.array_equal(engine(PIXELS)["both"], expected) for _ in range(3)) else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- the real candidates ------------------------------------------------------------------------------


def test_openvino_is_the_candidate_where_it_is_installed(deit_directory, monkeypatch):
    plain = open_torch_engine(deit_directory())
    for bf16, asked, expected in [
        (True, "auto", ["fp32", "bf16"]),
        (False, "auto", ["fp32"]),  # a CPU without AVX-512
        (True, "fp32", ["fp32"]),
        (True, "bf16", ["bf16"]),
        (False, "bf16", []),
    ]:
        monkeypatch.setattr(candidates, "computes_in_bf16", lambda bf16=bf16: bf16)
        found = candidates.candidates(plain, asked)
        assert [(c.engine, c.precision) for c in found] == [("openvino", kind) for kind in expected]


@pytest.mark.parametrize(("installed", "expected"), [(["onnxruntime"], ["onnxruntime fp32", "torch bf16"]), ([], [])])
def test_without_openvino_there_is_onnx_runtime(deit_directory, monkeypatch, installed, expected):
    plain = open_torch_engine(deit_directory())
    monkeypatch.setattr(candidates, "find_spec", lambda name: name in installed or None)
    monkeypatch.setattr(candidates, "bf16_instructions", lambda: "AMX" if installed else "")
    assert [f"{c.engine} {c.precision}" for c in candidates.candidates(plain, "auto")] == expected
    assert ('pip install "deit[openvino]"' in candidates.why_none(plain)) == (not installed)


def test_where_pytorch_has_no_rival_it_stays(timm_directory, deit_directory, monkeypatch):
    monkeypatch.delenv("DEIT_ENGINE", raising=False)
    engine = open_engine(timm_directory(), engine="auto")
    assert (engine.name, engine.is_decided, engine.choice.source) == ("torch", True, "rule")
    assert "the model cannot be rewritten" in engine.reason
    contract = Contract(processor=PROCESSOR, label_names=NAMES, folder=deit_directory())
    elsewhere = SimpleNamespace(placement=SimpleNamespace(device=torch.device("mps")), device="mps", contract=contract)
    assert candidates.why_none(elsewhere) == "the others run on the CPU and on GPUs of CUDA, and the device is mps"


def test_on_a_gpu_the_rival_is_the_engine_for_it(deit_directory, monkeypatch):
    opened = open_torch_engine(deit_directory())
    on_gpu = SimpleNamespace(
        placement=SimpleNamespace(device=torch.device("cuda")), contract=opened.contract, model=opened.model
    )
    for installed, precision, expected in [
        (True, "auto", ["cuda fp32", "cuda bf16"]),
        (True, "bf16", ["cuda bf16"]),
        (False, "auto", []),
    ]:
        monkeypatch.setattr(candidates, "find_spec", lambda name, there=installed: there or None)
        reason = candidates.why_none(on_gpu)
        found = [] if reason else [f"{c.engine} {c.precision}" for c in candidates.candidates(on_gpu, precision)]
        assert found == expected
        assert ("Triton is not installed" in reason) == (not installed)


SCRIPT = """
import sys, time
import numpy as np
from deit.inference.engines import auto_engine
from deit.inference.engines.opening import open_engine
auto_engine.LOOK_AFTER = auto_engine.MEASURE_AFTER = 0.0
engine = open_engine(sys.argv[1], engine="auto")
pixels = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
expected = engine(pixels)["both"]
for _ in range(int(sys.argv[2])):
    assert np.allclose(engine(pixels)["both"], expected, atol=1e-4)
    if engine.is_decided:
        break
    time.sleep(0.01)
print(engine.describe())
"""


def test_processes_that_fill_the_cache_together_and_one_that_ends_early(deit_directory, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("DEIT_ENGINE", "DEIT_AUTO_PRECISION")}
    environment["DEIT_CACHE"] = str(tmp_path / "cache")
    folder = str(deit_directory())
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, folder, calls],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for calls in ("2000", "2000", "3")
    ]
    for run, whole in zip(runs, (True, True, False), strict=True):
        out, err = run.communicate(timeout=120)
        assert (run.returncode, err) == (0, "")
        assert not whole or "until enough images" not in out
    for file in (tmp_path / "cache" / "engines").iterdir():
        assert json.loads(file.read_text())["engine"] in ("openvino", "torch")


# --- the comparison -----------------------------------------------------------------------------------


def compared(expected, found, precision="fp32", problem_type="single_label_classification"):
    contract = Contract(processor=PROCESSOR, label_names=NAMES, problem_type=problem_type)
    trial = Trial(engine="other", precision=precision)
    trial.compare({"class": np.float32(expected)}, {"class": np.float32(found)}, contract)
    return trial


def test_answers_agree_within_a_tolerance():
    logits = [[4.0, 1.0, 0.0], [0.0, 2.0, 1.0]]
    assert compared(logits, logits).objection == ""
    assert compared(logits, logits).images == 2
    near = np.array(logits) + 0.003 * np.array([[1, -1, 0], [0, 1, -1]])
    assert compared(logits, near).objection.startswith("its answers differ by 0.0012, more than 0.001")
    assert compared(logits, near, "bf16").objection == ""
    assert compared(logits, near, "bf16").difference == pytest.approx(0.00116, abs=1e-5)  # softmax by hand
    assert "NaN" in compared(logits, [[4.0, np.nan, 0.0], [0.0, 2.0, 1.0]], "bf16").objection


def test_a_tie_may_be_decided_otherwise_but_no_clear_answer():
    assert compared([[1.0, 1.001, -3.0]], [[1.001, 1.0, -3.0]], "bf16").objection == ""
    assert compared([[1.0, 1.2, -3.0]], [[1.2, 1.0, -3.0]], "bf16").objection.startswith("its answers differ")


def test_a_fault_among_a_thousand_unlikely_classes_is_seen():
    random = np.random.default_rng(0)
    logits = random.normal(0, 0.01, (2, 1000))  # no probability differs by more than 0.0001
    assert "of their range" in compared(logits, random.normal(0, 0.01, (2, 1000))).objection


def test_images_without_an_answer_do_not_count():
    trial = compared([[np.nan, np.nan], [1.0, 2.0]], [[0.0, 9.0], [1.0, 2.0]])
    assert (trial.images, trial.objection) == (1, "")


def test_regressions_compare_values_and_several_labels_their_probabilities():
    assert compared([[100.0]], [[100.05]], problem_type="regression").objection == ""
    assert compared([[100.0]], [[101.0]], problem_type="regression").objection != ""
    assert compared([[0.0, 3.0]], [[0.001, 3.0]], problem_type="multi_label_classification").objection == ""
    assert compared([[0.0, 3.0]], [[0.5, 3.0]], problem_type="multi_label_classification").objection != ""


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({"fp32": 1.04}, None),
        ({"fp32": 1.06}, "fp32"),
        ({"fp32": 1.5, "bf16": 1.7}, "fp32"),  # bf16 must be worth it
        ({"fp32": 1.5, "bf16": 1.9}, "bf16"),
        ({"fp32": 0.8, "bf16": 1.1}, None),
        ({"fp32": 0.8, "bf16": 1.3}, "bf16"),
        ({}, None),
    ],
)
def test_the_fastest_engine_is_taken_if_that_is_worth_it(speeds, expected):
    trials = [Trial(engine="other", precision=kind, ratios=[speed]) for kind, speed in speeds.items()]
    best = best_of(trials)
    assert (None if best is None else best.precision) == expected
    for trial in trials:
        trial.objection = "it names other classes"
    assert best_of(trials) is None


def test_times_of_the_first_batch_of_a_size_do_not_count():
    trial = Trial(engine="other", precision="fp32")
    for size, plain, seconds in [(8, 9.0, 1.0), (8, 3.0, 1.0), (1, 9.0, 1.0), (1, 1.0, 1.0), (8, 2.0, 1.0)]:
        trial.note_time(size, plain, seconds)
    assert trial.ratios == [3.0, 1.0, 2.0]
    assert trial.speedup == 2.0
    assert trial.seconds == 5.0


def test_a_verdict_that_makes_no_sense_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path))
    key = {"weights": "a"}
    fine = Verdict(engine="openvino", precision="fp32", speedup=1.5, difference=0.0, images=32)
    choice.remember(key, fine)
    assert choice.remembered(key) == fine
    for field, value in [("speedup", -1.0), ("speedup", 1e9), ("precision", "int8"), ("difference", -0.5)]:
        choice.remember(key, Verdict(**{**vars(fine), field: value}))
        assert choice.remembered(key) is None


# --- what "auto" stands for ---------------------------------------------------------------------------


def test_the_environment_pins_what_auto_stands_for(deit_directory, monkeypatch):
    folder = deit_directory()
    monkeypatch.setenv("DEIT_ENGINE", "openvino")
    assert Predictor.open(folder).engine.name == "openvino"
    assert Predictor.open(folder, engine="torch").engine.name == "torch"
    monkeypatch.setenv("DEIT_ENGINE", "fast")
    with pytest.raises(
        UserError, match="DEIT_ENGINE must be one of auto, torch, torch-compiled, cuda, openvino, onnxruntime"
    ):
        Predictor.open(folder)
    monkeypatch.delenv("DEIT_ENGINE")
    assert isinstance(Predictor.open(folder).engine, AutoEngine)


def test_a_choice_describes_itself():
    told = EngineChoice(
        engine="openvino", precision="bf16", reason="2.1 x as fast as torch", source="measured", since=64
    )
    assert told.describe() == "Engine: openvino, bf16, from image 65 on (2.1 x as fast as torch)."


def test_what_must_be_the_same_in_every_run_names_pytorch():
    sources = {path: path.read_text() for path in (Path(auto_engine.__file__).parents[2]).rglob("*.py")}
    for part in ("evaluate", "inspection", "train", "planning", "demo", "export"):
        for path, text in sources.items():
            if path.parent.name == part and "Predictor.open(" in text.replace("`Predictor.open`", ""):
                calls = [line for line in text.splitlines() if "Predictor.open(" in line]
                assert all('engine="torch"' in call or call.rstrip().endswith("(") for call in calls), path
