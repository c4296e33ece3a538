"""Map over units of work with a local pool of threads.

    units ─▶ pool, linear algebra on one thread inside each ─▶ results in the order of the units

Work units are whole tensors or fixed chunks of text; NumPy, torch and the C++ core release the interpreter lock inside
them. A unit computes the same bits wherever it runs, and results are put together in order, so that nothing depends on
the number of workers or processors.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def default_threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """While the context lasts, linear algebra of this thread runs on one processor, that of torch and that of NumPy.

    How many share a product decides in which order it is summed, and so its last bits.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def ordered_map(work: Callable[[T], R], units: Iterable[T], threads: int) -> list[R]:
    """Results of `work` on every unit, in order; the first exception is raised."""
    import torch

    before, known = torch.get_num_threads(), list(units)
    try:
        if min(threads, len(known)) <= 1:
            torch.set_num_threads(1)
            return [work(unit) for unit in known]
        with _pool(threads) as pool:
            return list(pool.map(work, known))
    finally:
        torch.set_num_threads(before)


def ordered_stream(work: Callable[[T], R], units: Iterable[T], threads: int) -> Iterator[R]:
    """As `ordered_map`, each result as soon as it is its turn; no more than `threads` wait for one that is late."""
    import torch

    before, begun = torch.get_num_threads(), deque[Future[R]]()
    try:
        with _pool(threads) as pool:
            for unit in units:
                begun.append(pool.submit(work, unit))
                if len(begun) > threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
        torch.set_num_threads(before)


def _pool(threads: int) -> ThreadPoolExecutor:
    import torch

    torch.set_num_threads(1)
    # the setting belongs to a thread: workers that lack it would share the processors badly
    return ThreadPoolExecutor(max(1, threads), initializer=torch.set_num_threads, initargs=(1,))
