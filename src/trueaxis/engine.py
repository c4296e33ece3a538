"""Engines: where the rounding of a matrix or a chunk of text runs, in this process or on a cluster of Ray.

    function, plan, the rest ─▶ call ─▶ its result; whoever calls waits, so that threads of `ordered_map` keep order

A call is a pure function of what it is sent and runs on one processor, so that its bits do not depend on where it runs.
Ray schedules calls, runs them again where a worker or node is lost, and keeps a plan once it was sent. Every machine
needs the same version of trueaxis.

References: Moritz et al. 2018 (Ray).
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from trueaxis.parallel import one_thread
from trueaxis.types import TrueaxisError

R = TypeVar("R")

ENGINES = ("local", "ray")
RETRIES = 16  # of a call whose worker or node was lost


class Local:
    """Calls run where they are made."""

    def call(self, function: Callable[..., R], plan: Any, *rest: Any) -> R:
        """`function(plan, *rest)`."""
        return function(plan, *rest)

    def side_by_side(self, threads: int) -> int:
        """Calls that are worth making at once."""
        return threads

    def forget(self, plan: Any) -> None:
        """A plan that no call needs any more."""


class OnRay(Local):
    """Calls run on a cluster that this process is connected to."""

    def __init__(self) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        self._ray, self._lock = ray, threading.Lock()
        self._task = ray.remote(num_cpus=1, max_retries=RETRIES)(_on_one_processor)
        self._sent: dict[int, tuple[Any, Any]] = {}

    def call(self, function: Callable[..., R], plan: Any, *rest: Any) -> R:
        with self._lock:
            if id(plan) not in self._sent:  # kept with its reference: its id stays its own
                self._sent[id(plan)] = (plan, self._ray.put(_bare(plan)))
            sent = self._sent[id(plan)][1]
        lost, from_call = self._ray.exceptions.RayError, self._ray.exceptions.RayTaskError
        try:
            return self._ray.get(self._task.remote(function, sent, *map(_bare, rest)))
        except from_call:  # what the call itself raised
            raise
        except lost as error:
            raise TrueaxisError(
                f"the Ray cluster lost a call, and {RETRIES} repetitions of it: {str(error).splitlines()[0]}; see "
                "whether its workers have memory enough, and go on with --resume, or without --engine ray"
            ) from error

    def forget(self, plan: Any) -> None:
        with self._lock:
            self._sent.pop(id(plan), None)

    def side_by_side(self, threads: int) -> int:
        return max(threads, int(self._ray.cluster_resources().get("CPU", 1)))


LOCAL = Local()


@contextmanager
def engine_of(name: str, address: str | None = None) -> Iterator[Local]:
    """The engine of this name; one of Ray is connected while the context lasts.

    Args:
        name: "local" or "ray".
        address: Of a Ray cluster, such as "10.0.0.1:6379" or "auto"; without it, Ray starts on this machine. A
            connection that the caller has is used and left as it is.

    Raises:
        TrueaxisError: The name is unknown, Ray is missing, or there is no cluster at the address.

    Example:
        >>> with engine_of("local") as engine:
        ...     engine.call(pow, 2, 10)
        1024
    """
    if name not in ENGINES:
        raise TrueaxisError(f"engine {name!r} is not one of: {', '.join(ENGINES)}")
    if name == "local":
        if address is not None:
            raise TrueaxisError(f"the Ray address {address} goes with the engine ray")
        yield LOCAL
        return
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise TrueaxisError("the engine ray needs ray; install it with: pip install 'trueaxis[ray]'") from error
    if ray.is_initialized():
        yield OnRay()
        return
    try:
        ray.init(address=address or "local", log_to_driver=False, include_dashboard=None if address else False)
    except Exception as error:  # a node that is late is a plain Exception
        where = "Ray does not start on this machine" if address is None else f"{address}: no Ray cluster answers there"
        raise TrueaxisError(f"{where}: {error}") from error
    try:
        yield OnRay()
    finally:
        ray.shutdown()


def _on_one_processor(function: Callable[..., R], plan: Any, *rest: Any) -> R:
    with one_thread():
        return function(plan, *rest)


def _bare(value: Any) -> Any:
    """A dataclass without what it has cached of itself, which may belong to this process."""
    return dataclasses.replace(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
