"""The pool: order, exceptions, and one thread of linear algebra per unit."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from trueaxis.parallel import default_threads, one_thread, ordered_map, ordered_stream


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order(threads: int) -> None:
    def work(n: int) -> int:
        time.sleep(0.002 * (n % 3))
        return n * n

    assert ordered_map(work, iter(range(20)), threads) == [n * n for n in range(20)]
    assert ordered_map(work, [], threads) == []


def test_units_run_side_by_side() -> None:
    meet = threading.Barrier(3, timeout=10)
    ordered_map(lambda _: meet.wait(), range(3), 3)


def test_linear_algebra_is_single_threaded_inside_and_as_before_outside() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert ordered_map(lambda _: torch.get_num_threads(), range(4), 2) == [1] * 4
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError, match="third"):
            ordered_map(lambda n: {0: 0, 1: 1}[n] if n < 2 else {}["third"], range(3), 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_stream_is_in_order_and_never_far_ahead() -> None:
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        time.sleep(0.002 * (n % 3))
        return n * n

    found = []
    for result in ordered_stream(work, range(20), 2):
        found.append(result)
        time.sleep(0.002)
        assert len(begun) <= len(found) + 3
    assert found == [n * n for n in range(20)]
    with pytest.raises(KeyError, match="first"):
        list(ordered_stream(lambda n: {}["first"], range(20), 2))
    assert threading.active_count() < 20


def test_one_thread_of_torch_and_of_numpy() -> None:
    from threadpoolctl import threadpool_info

    def blas() -> set[int]:
        return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}

    before = torch.get_num_threads(), blas()
    with one_thread():
        assert torch.get_num_threads() == 1
        assert blas() <= {1}
    assert (torch.get_num_threads(), blas()) == before


def test_default_is_the_processors_of_this_process() -> None:
    assert default_threads() >= 1
