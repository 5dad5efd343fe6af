"""Keeps OpenVINO and NNCF from reporting their use to their makers."""

from __future__ import annotations

import sys
from typing import Any


def refuse_telemetry() -> None:
    """Makes OpenVINO and NNCF do without `openvino_telemetry`; call it before they are imported.

    `import openvino` reports itself over the network by default, from a process that it forks in a thread, which can
    crash a process with several threads. Both packages work without the module. One that is imported already stays.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # its import fails from now on
