"""Decides what the precision "auto" stands for: by measurement, or by a rule where nothing may be measured."""

from __future__ import annotations

import os
import platform
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit.core.errors import UserError
from deit.runtime.cache_folder import digest_of, keep, recall
from deit.runtime.devices import AUTO, bf16_instructions, cpu_features, multiplies_bf16

if TYPE_CHECKING:
    import torch

TRAINING, INFERENCE = "training", "inference"  # what a precision is chosen for
VARIABLE = "DEIT_AUTO_PRECISION"
RULE = "rule"
LEAST_SPEEDUP = 1.2  # bf16 rounds more, so it must be worth it

_MOST = 1000.0  # a larger ratio or number of seconds is no measurement
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # what makes PyTorch leave instructions out

_measured: dict[str, PrecisionChoice] = {}  # what this process knows, also where the cache cannot be written
_measuring = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """What a precision stands for on this machine, and why.

    Attributes:
        precision: "fp32", "bf16" or "fp16".
        reason: Why, in a few words.
        source: "asked" (not "auto"), "measured", "remembered" (measured earlier), "rule", "variable" (of the
            environment) or "run" (a resumed run keeps what it began with).
        speedup: Time in fp32 divided by the time in bf16; None if nothing was measured.
        seconds: Duration of the measurement.
    """

    precision: str
    reason: str
    source: str
    speedup: float | None = None
    seconds: float | None = None

    def describe(self) -> str:
        """Returns one line, such as "Precision: bf16 (2.9 x as fast as fp32, measured in 0.4 s)."."""
        began = ", with which the run began" if self.source == "run" else ""
        return f"Precision: {self.precision}{began} ({self.reason})."

    @property
    def note(self) -> str:
        """One line for the file of a recipe with "auto"; empty where the recipe itself names the precision."""
        if self.source == "asked":
            return ""
        return f"precision: {AUTO} stands for {self.precision} in this run ({self.reason})."

    def record(self) -> dict[str, Any]:
        """Returns plain values, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def choose_precision(precision: str, device: torch.device, purpose: str) -> PrecisionChoice:
    """Returns what a precision stands for; every part that offers "auto" asks here.

    On a CPU, "auto" measures a transformer block in both (about half a second) and takes bf16 if it is at least 1.2 x
    as fast. The cache keeps the result for the same CPU, instructions, number of threads, version of PyTorch and
    purpose. On other devices, and while PyTorch traces or compiles, a rule decides: see `multiplies_bf16`. The
    environment variable DEIT_AUTO_PRECISION takes the place of the measurement: "fp32" or "bf16" is what "auto" stands
    for, "rule" decides by the rule.

    Processes that work together must take the answer of the first one: `processes.on_first(lambda: ...)`.

    Args:
        precision: "auto", or the answer itself.
        device: Where the work will be done.
        purpose: "training" or "inference".

    Raises:
        UserError: DEIT_AUTO_PRECISION has another value.
    """
    if precision != AUTO:
        return PrecisionChoice(precision=precision, reason="as requested", source="asked")
    pinned = os.environ.get(VARIABLE, "")
    if pinned not in ("", "fp32", "bf16", RULE):
        raise UserError(f"{VARIABLE} must be fp32, bf16 or {RULE}. Received: {pinned!r}.")
    if pinned in ("fp32", "bf16"):
        return PrecisionChoice(precision=pinned, reason=f"{VARIABLE}={pinned}", source="variable")
    if pinned == RULE or device.type != "cpu" or _is_traced():
        return _by_rule(device)
    with _measuring:  # threads that measure at once would slow each other
        return _measured_choice(purpose)


def _is_traced() -> bool:
    """Whether PyTorch records the operations that Python does now, instead of only doing them."""
    import torch

    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _by_rule(device: torch.device) -> PrecisionChoice:
    fast = multiplies_bf16(device)
    if device.type == "cpu":
        found = bf16_instructions()
        reason = f"the CPU has {found}" if found else "the CPU has no instructions for bf16"
    else:
        reason = f"the device {device.type} multiplies bf16 in hardware" if fast else f"the device is {device.type}"
    return PrecisionChoice(precision="bf16" if fast else "fp32", reason=reason, source="rule")


def _measured_choice(purpose: str) -> PrecisionChoice:
    key = _key(purpose)
    name = digest_of(key)
    if name in _measured:
        return _measured[name]
    choice = _remembered(recall("precision", key, name=f"{purpose}-"))
    if choice is None:
        from deit.runtime.precision_speed import measure_speedup

        started = time.perf_counter()
        speedup = measure_speedup(trains=purpose == TRAINING)
        seconds = time.perf_counter() - started
        choice = _choice(speedup, seconds, "measured")
        keep("precision", key, {"speedup": speedup, "seconds": seconds}, name=f"{purpose}-")
    _measured[name] = choice
    return choice


def _choice(speedup: float, seconds: float, source: str) -> PrecisionChoice:
    fast = speedup >= LEAST_SPEEDUP
    ratio = f"{speedup:.1f} x as fast as fp32" if fast else f"bf16 is only {speedup:.2f} x as fast"
    if speedup < 1:
        ratio = f"bf16 takes {1 / speedup:.1f} x as long"
    when = f"measured in {seconds:.1f} s" if source == "measured" else "measured earlier"
    return PrecisionChoice(
        precision="bf16" if fast else "fp32",
        reason=f"{ratio}, {when}",
        source=source,
        speedup=round(speedup, 3),
        seconds=round(seconds, 2),
    )


# --- what is remembered -------------------------------------------------------------------------------


def _key(purpose: str) -> dict[str, Any]:
    return {"purpose": purpose, **machine_facts(), "rule": 1}  # a change of what is measured takes the next number


def machine_facts() -> dict[str, Any]:
    """Returns what a measured speed depends on: CPU, instructions, number of threads, version of PyTorch."""
    import torch

    return {
        "cpu": _cpu_model(),
        "features": sorted(cpu_features()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "limits": {name: os.environ[name] for name in _LIMITS if name in os.environ},
    }


def _cpu_model() -> str:
    """Returns the model of the CPU, as exactly as the system names it."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        lines = [line.partition(":") for line in first.splitlines()]
        fields = {name.strip(): value.strip() for name, _, value in lines}
        names = ("vendor_id", "cpu family", "model", "model name", "stepping", "CPU implementer", "CPU part")
        model = ", ".join(fields[name] for name in names if name in fields)
        if model:
            return model
    return f"{platform.machine()} {platform.processor()}"


def _remembered(values: dict[str, Any] | None) -> PrecisionChoice | None:
    speedup, seconds = (values or {}).get("speedup"), (values or {}).get("seconds")
    if not (isinstance(speedup, float) and isinstance(seconds, float)):
        return None
    is_sane = 0 < speedup < _MOST and 0 < seconds < _MOST
    return _choice(speedup, seconds, "remembered") if is_sane else None
