"""Remote: a compressed directory read where it lies, by ranges of bytes.

"hf://owner/name" ─▶ RemotePath ─▶ what `Container` asks of a directory: sizes, and the bytes of one tensor's records

Any address that fsspec knows serves; that of the Hub comes with huggingface_hub.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast


class RemotePath:
    """A file or directory behind fsspec: the part of `pathlib.Path` that reading a container needs.

    Example:
        >>> folder = RemotePath.of("memory://folder")
        >>> (folder / "model.safetensors").is_file()
        False
    """

    def __init__(self, system: Any, path: str) -> None:
        self._system, self._path = system, path

    @classmethod
    def of(cls, address: str) -> RemotePath:
        """The directory at an address with a scheme.

        Raises:
            ImportError, ValueError: fsspec knows no such scheme, or what it needs for it is not installed.
        """
        from fsspec.core import url_to_fs

        system, path = url_to_fs(address)
        return cls(system, path.rstrip("/"))

    def __str__(self) -> str:
        return self._system.unstrip_protocol(self._path)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self._system, f"{self._path}/{name}")

    def __lt__(self, other: RemotePath) -> bool:
        return self._path < other._path

    @property
    def name(self) -> str:
        """The last part."""
        return self._path.rpartition("/")[2]

    def is_file(self) -> bool:
        """Whether there is such a file."""
        return self._system.isfile(self._path)

    def stat(self) -> SimpleNamespace:
        """Its size, `st_size`.

        Raises:
            OSError: There is no such file, or its server does not answer.
        """
        return SimpleNamespace(st_size=int(self._system.info(self._path)["size"]))

    def glob(self, pattern: str) -> list[RemotePath]:
        """Files in it whose names fit."""
        return [RemotePath(self._system, found) for found in self._system.glob(f"{self._path}/{pattern}")]

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file, of which nothing but what is asked for is fetched."""
        return self._system.open(self._path, mode, cache_type="none")

    def read_bytes(self) -> bytes:
        """All of it."""
        with self.open() as stream:
            return stream.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of it, as text."""
        return self.read_bytes().decode(encoding)


def place(path: str | Path) -> Path:
    """A directory on disk or, at an address with a scheme, what stands for one where a container is read."""
    if isinstance(path, str) and "://" in path:
        return cast(Path, RemotePath.of(path))
    return Path(path)
