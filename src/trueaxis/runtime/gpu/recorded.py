"""Recorded: launches that are made again and again, told to the device once.

    1st time   launches, kernels compile and statuses are looked at
    2nd time   launches are recorded as a graph
    from then  one call replays it

A model whose weights stay coded decodes the same blocks to the same places for every token; telling a device of each
launch anew takes as long as the decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Recorded:
    """Calls launches, from the third time on as one graph.

    Args:
        launches: To be made on the current stream, in this order; what they read and write stays where it is.
        pool: Memory that all graphs of a decoder use in turn, so that no two of them may run at once; None where
            launches cannot be recorded.

    Attributes:
        is_queued: The work is the device's: a call returns before it is done.
    """

    is_queued = True

    def __init__(self, launches: Sequence[Callable[[], None]], pool: Any) -> None:
        self._launches, self._pool = launches, pool
        self._is_warm = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._graph is None and self._is_warm and self._pool is not None:
            self._graph = self._record(self._pool)
        if self._graph is not None:
            self._graph.replay()
            return
        self._launch()
        self._is_warm = True

    def _record(self, pool: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # other threads may go on meanwhile
        try:
            self._launch()
        finally:
            graph.capture_end()
        return graph

    def _launch(self) -> None:
        for launch in self._launches:
            launch()
