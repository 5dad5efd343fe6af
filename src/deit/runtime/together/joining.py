"""Lets the processes of one start find each other, and none of an earlier start.

When torchrun starts its processes again, PyTorch's store still holds the addresses of those that have ended
(`TORCHELASTIC_USE_AGENT_STORE`), and the new ones would try to reach them. The number of the start is no way out: each
machine counts its own. So the first process makes up a name, and hands it to each of those that ask it now.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

_LOOK_SECONDS = 0.02


def name_of_start(store: Any, rank: int, world_size: int) -> str:
    """Returns a name that the processes of this start share, and no earlier start had. All of them must ask.

    Args:
        store: One of PyTorch's that all can reach.
        rank: Number of this process.
        world_size: Number of processes.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"deit/asks/{rank}", own)
        while True:
            asked, _, name = _read(store, f"deit/is told/{rank}").partition(" ")
            if asked == own:
                store.set(f"deit/knows/{rank}", name)
                return name
            time.sleep(_LOOK_SECONDS)
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if _read(store, f"deit/knows/{other}") == own:
                missing.discard(other)
            elif asks := _read(store, f"deit/asks/{other}"):  # perhaps one that has ended: then another will ask
                store.set(f"deit/is told/{other}", f"{asks} {own}")
        time.sleep(_LOOK_SECONDS)
    return own


def _read(store: Any, key: str) -> str:
    found: bytes = store.get(key) if store.check([key]) else b""
    return found.decode()
