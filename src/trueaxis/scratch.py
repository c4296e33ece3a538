"""Scratch: where a run puts arrays that it will need again, in memory while there is room, else on disk.

    array ─▶ hold ─┬─▶ the same array, while arrays that are held take less than their share of the memory
                   └─▶ the same values in a file without a name, mapped into memory ─▶ gone with the last who reads it

Mapped pages are the system's to drop and read again, so that memory follows what is being worked on, not what is held.
Values do not depend on where they lie, and neither does anything made of them.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueaxis.types import Array, Metric, TrueaxisError

if TYPE_CHECKING:
    import torch

SHARE = 0.25  # of the memory that held arrays may take; what is worked on takes the rest
SMALLEST = 1 << 16  # bytes below which an array is not worth a file
SUFFIX = ".partial"  # what is left of a killed run in a journal goes when it is resumed
LARGE = 1 << 20  # bytes of an array that goes back to the system when it is freed
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt in glibc's malloc.h
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class NoScratch:
    """Holds everything in memory."""

    def hold(self, array: Array) -> Array:
        """The same values, to be read and written like the array that was given and in its stead."""
        return array

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more would be held in memory."""
        return True

    def tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `hold`, of a tensor on the CPU whose dtype NumPy has; any other is left alone."""
        return tensor

    def buffer(self, data: bytes) -> Any:
        """As `hold`, of bytes; a view of them that is as good as bytes to whoever measures, hashes or writes it."""
        array = np.frombuffer(data, np.uint8)
        found: Any = self.hold(array)
        return data if found is array else memoryview(found)


NO_SCRATCH = NoScratch()


class Scratch(NoScratch):
    """Holds arrays in a share of the memory, and in files beyond that.

    Args:
        folder: For the files; exists.
        memory_bytes: That the whole run may take.

    Example:
        >>> scratch = Scratch(Path("."), 0)
        >>> bool((scratch.hold(np.arange(10**5)) == np.arange(10**5)).all())
        True
    """

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        self._folder, self._room = folder, int(memory_bytes * SHARE)
        self._lock = threading.RLock()  # a finalizer may run inside
        self._known: dict[int, int] = {}  # id of an array that is held → its bytes in memory
        self._moved: dict[int, weakref.ref[Array]] = {}  # id of an array that was given → what is held in its stead
        self.spilled_bytes = 0  # that went to files so far

    def hold(self, array: Array) -> Array:
        """The same values, in the same layout; what is held is itself when it is given again.

        Raises:
            TrueaxisError: The disk is full.
        """
        if array.nbytes < SMALLEST:
            return array
        with self._lock:
            if id(array) in self._known:
                return array
            if (before := self._moved.get(id(array), _nothing)()) is not None:
                return before
            kept = array.nbytes <= self._room
            if kept:
                self._remember(array, array.nbytes)
        if kept:
            return array
        transposed = array.flags.f_contiguous and not array.flags.c_contiguous
        mapped = self._mapped(np.ascontiguousarray(array.T if transposed else array))
        found = mapped.T if transposed else mapped
        with self._lock:
            self._remember(found, 0)
            self._moved[id(array)] = weakref.ref(found)
            weakref.finalize(array, self._moved.pop, id(array), None).atexit = False
            self.spilled_bytes += found.nbytes
        return found

    def has_room(self, size: int) -> bool:
        return size <= self._room

    def tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.float64):
            return tensor
        return torch.from_numpy(self.hold(tensor.detach().numpy()))

    def _remember(self, array: Array, size: int) -> None:
        self._known[id(array)] = size
        self._room -= size
        weakref.finalize(array, self._forget, id(array)).atexit = False

    def _forget(self, key: int) -> None:
        with self._lock:
            self._room += self._known.pop(key, 0)

    def _mapped(self, array: Array) -> Array:
        import torch  # maps a file without keeping it open: there may be more arrays than files a process may open

        name = ""
        try:
            handle, name = tempfile.mkstemp(prefix=".scratch-", suffix=SUFFIX, dir=self._folder)
            with open(handle, "wb") as file:
                array.tofile(file)
            values: Any = torch.from_file(name, shared=True, size=array.nbytes, dtype=torch.uint8).numpy()
        except (OSError, RuntimeError) as error:
            raise TrueaxisError(
                f"{self._folder}: no room for {array.nbytes} bytes of scratch: {error}; make room, or allow more memory"
            ) from error
        finally:
            if name:
                Path(name).unlink()
        return values.view(array.dtype).reshape(array.shape)


def _nothing() -> None:
    """A reference to nothing."""


def held(scratch: NoScratch, metric: Metric) -> Metric:
    """A metric whose moments are held in scratch."""
    moments = {name: getattr(metric, name) for name in ("second_moment", "embedding_moment")}
    return replace(metric, **{name: scratch.hold(one) for name, one in moments.items() if one is not None})


def keep_no_freed_memory() -> None:
    """From now on this process gives large arrays back to the system when they are freed.

    glibc raises the size from which it does so up to 32 MB as it sees large arrays come and go, and keeps what is
    smaller in one heap per thread, which took as much again as all that was in use. Costs time for pages that are
    zeroed once more; nothing happens under another C library.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for setting, value in ((_M_MMAP_THRESHOLD, LARGE), (_M_TRIM_THRESHOLD, LARGE), (_M_ARENA_MAX, 2)):
            library.mallopt(setting, value)


def available_memory() -> int:
    """Bytes of memory of this machine, or of this container where that has less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return physical


def scratch_beside(out: Path, memory_bytes: int | None) -> Scratch:
    """Scratch in the nearest folder around an output that exists.

    Args:
        out: Directory that is to be made.
        memory_bytes: That the run may take; None for all there is.
    """
    return scratch_in(next(folder for folder in out.absolute().parents if folder.is_dir()), memory_bytes)


def scratch_in(folder: Path, memory_bytes: int | None) -> Scratch:
    """As `scratch_beside`, in a folder that exists."""
    if memory_bytes is not None:
        keep_no_freed_memory()
    return Scratch(folder, available_memory() if memory_bytes is None else memory_bytes)
