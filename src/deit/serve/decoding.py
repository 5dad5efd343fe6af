"""Decodes images in a bounded pool of threads, outside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from deit.core.processing.batches import usable_cores

Result = TypeVar("Result")


class DecodingPool:
    """Runs short work of requests in threads: reading images, parsing bodies, judging answers.

    Args:
        threads: At most so many; 0 for one for each core.
    """

    def __init__(self, threads: int = 0) -> None:
        self.threads = threads or usable_cores()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="deit-decode")

    async def run(self, work: Callable[[], Result]) -> Result:
        """Returns the result of a function that runs in the pool. Work that is canceled before it began never runs."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Ends the threads once they have done what they began."""
        self._pool.shutdown(wait=False, cancel_futures=True)
