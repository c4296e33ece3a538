"""Base model: the checkpoint beside which tensors of another one are stored.

    name in the header ─▶ directory next to the compressed one, or the one given ─▶ bits of a tensor, hash checked

The base is a plain checkpoint or a compressed one; what a tensor needs of it is proved by the hash in its `base`
record, so that any repacking of the base serves and no other model does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.container import Container, is_compressed
from trueaxis.header import HASH_BYTES, TensorInfo
from trueaxis.runtime.members import root_above
from trueaxis.runtime.planes import bits_of
from trueaxis.types import Array, FormatError, TrueaxisError

if TYPE_CHECKING:
    import torch


def find_base(container: Container, given: str | Path | None) -> Path:
    """Directory of the base.

    Args:
        container: What goes beside it.
        given: Where the user says it is; by default it lies, by its name, in the root of the family that the compressed
            directory is a member of, or next to it.

    Raises:
        TrueaxisError: There is no such directory.
    """
    name = container.header.get("base")
    if given is None and name is None:
        raise FormatError(f"{container.path}: tensors go beside a base that the header does not name; it is damaged")
    if given is None and not isinstance(container.path, Path):
        raise TrueaxisError(f"{container.path}: was compressed beside the base {name!r}; give its directory as base")
    path = Path(given) if given is not None else root_above(container.path) / str(name)
    if not path.is_dir():
        raise TrueaxisError(
            f"{container.path}: was compressed beside the base {name!r}, and {path} is no directory; give the base's "
            "with --base DIR (in Python base=DIR), or put it there"
        )
    return path


class BaseModel:
    """Tensors of a base.

    Args:
        path: Directory of a checkpoint, plain or compressed.

    Raises:
        TrueaxisError: It is neither, or goes beside a base itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if is_compressed(path):
            from trueaxis.runtime.decode import Decoder

            decoder = Decoder(path)
            if "base" in decoder.container.header:
                raise TrueaxisError(f"{path}: a base must not go beside a base itself; unpack it first")
            self._read = decoder.tensor
            infos = decoder.container.tensors.items()
        else:
            from trueaxis.model.checkpoint import Checkpoint

            checkpoint = Checkpoint.open_all(path)
            self._read = checkpoint.tensor
            infos = checkpoint.entries.items()
        self._kinds = {name: (tuple(info.shape), info.dtype) for name, info in infos}

    def has(self, name: str, shape: tuple[int, ...], dtype: str) -> bool:
        """Whether it holds a tensor of this name, shape and dtype."""
        return self._kinds.get(name) == (shape, dtype)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor that it has, in its own dtype."""
        return self._read(name)

    def bits(self, name: str) -> Array:
        """uint8 [bytes] of a tensor that it has."""
        return bits_of(self._read(name)).reshape(-1)

    def difference(self, other: BaseModel) -> str | None:
        """Name of a tensor in which two differ, or None."""
        for name in {**self._kinds, **other._kinds}:
            if self._kinds.get(name) != other._kinds.get(name) or not np.array_equal(self.bits(name), other.bits(name)):
                return name
        return None

    def entries(self, info: TensorInfo, expected: bytes) -> Array:
        """The bits of a tensor's counterpart.

        Args:
            info: Of the tensor that goes beside it.
            expected: `fingerprint` of what it went beside.

        Raises:
            FormatError: The base is another one.
        """
        if not self.has(info.name, info.shape, info.dtype):
            raise FormatError(
                f"{info.name}: expected {info.dtype} {list(info.shape)} in the base {self.path}, found "
                f"{self._kinds.get(info.name, 'none')}; give the base that this was compressed beside"
            )
        found = self.bits(info.name)
        if fingerprint(found) != expected:
            raise FormatError(
                f"{info.name}: the base {self.path} holds other values than those that this was compressed beside; "
                "give the very checkpoint"
            )
        return found


def fingerprint(bits: Array) -> bytes:
    """Hash of a tensor's bits, 16 bytes of BLAKE2b."""
    return hashlib.blake2b(bits.data, digest_size=HASH_BYTES).digest()
