"""Map over units of work with a local pool of threads.

Work units are whole tensors; NumPy, torch and the C++ core release the interpreter lock inside them. Linear algebra
is single-threaded inside a unit, so that results do not depend on the number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def default_threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(work: Callable[[T], R], units: Iterable[T], threads: int) -> list[R]:
    """Results of `work` on every unit, in order; the first exception is raised."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # the setting belongs to a thread: workers that lack it would share the processors badly
        with ThreadPoolExecutor(max(1, threads), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, units))
    finally:
        torch.set_num_threads(before)
