"""Tangent: directions of a family, of which a member's tensors take θ each before what is their own.

    tensor = base + Σ θ_j · J_j + its matrices        J_j: the tensor of the same name in ROOT/tangent/j, θ: its record

A direction is a compressed directory of some tensors that goes beside nothing itself, so that reading one ends. Which
directions a file was coded with is proved by their fingerprints in its header.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trueaxis import _core
from trueaxis.container import Container
from trueaxis.runtime.members import TANGENT, is_family, root_above
from trueaxis.types import Array, FormatError

if TYPE_CHECKING:
    import torch

    from trueaxis.runtime.decode import Decoder

FINEST = 30  # bits of θ below one
LARGEST = 1 << 24  # a float32 holds it exactly


def pack_weights(weights: Sequence[float], bits: int) -> bytes:
    """Payload of a tensor's record: θ in steps of 2^-bits."""
    found = np.rint(np.ldexp(np.asarray(weights, np.float64), bits))
    numbers = np.clip(found, -LARGEST, LARGEST).astype(np.int32)
    return bytes([bits]) + _core.encode_integers(numbers, np.zeros(numbers.size, np.uint8))


def read_weights(name: str, payload: bytes, count: int) -> Array:
    """θ, float64 [directions].

    Args:
        name: Of the tensor, for messages.
        payload: Of its record.
        count: Directions that the header lists.

    Raises:
        FormatError: It is damaged.
    """
    try:
        if not count or not payload or payload[0] > FINEST:
            raise ValueError(f"shares of {count} directions")
        numbers = _core.decode_integers(payload[1:], np.zeros(count, np.uint8)).astype(np.int64)
        if np.abs(numbers).max() > LARGEST:
            raise ValueError("a share of a direction is out of range")
    except (ValueError, IndexError) as error:
        raise FormatError(f"{name}: {error}; the file is damaged") from error
    return np.ldexp(numbers.astype(np.float64), -payload[0])


class Directions:
    """Directions of a family.

    Args:
        decoders: Of their directories, in their order.
    """

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self.decoders = decoders

    @classmethod
    def of(cls, container: Container, base: Path) -> Directions:
        """Those that a file was coded with.

        Args:
            container: The file.
            base: Directory of its base, beside which they lie if the file is no member of a family.

        Raises:
            FormatError: One is missing, or another one.
        """
        path, found = container.path, []
        root = root_above(path) if isinstance(path, Path) else None
        folder = (root if root is not None and is_family(root) else base.absolute().parent) / TANGENT
        for number, expected in enumerate(container.header.get("tangent", [])):
            place = folder / str(number + 1)
            if not place.is_dir():
                raise FormatError(f"{path}: was coded with a direction that should lie in {place}; put it there")
            found.append(open_direction(place))
            if found[-1].container.fingerprint != expected:
                raise FormatError(f"{path}: was coded with another direction than {place}; give the very family")
        return cls(found)

    @property
    def fingerprints(self) -> list[str]:
        """Of their files."""
        return [decoder.container.fingerprint for decoder in self.decoders]

    def holders(self, name: str, shape: tuple[int, ...]) -> list[bool]:
        """Which ones hold a tensor of this name and shape, in float32."""
        found = [decoder.container.tensors.get(name) for decoder in self.decoders]
        return [info is not None and (info.shape, info.dtype) == (shape, "F32") for info in found]

    def added(self, name: str, shape: tuple[int, ...], payload: bytes) -> torch.Tensor:
        """Σ θ_j · J_j of a tensor, float32: products and sums in float64, rounded once.

        Args:
            name, shape: Of the tensor.
            payload: Of its record.

        Raises:
            FormatError: The record is damaged, or a direction that it takes a share of lacks the tensor.
        """
        import torch

        total = np.zeros(shape)  # by NumPy: torch may have another device as its default
        held = self.holders(name, shape)
        for number, weight in enumerate(read_weights(name, payload, len(self.decoders)).tolist()):
            if not weight:
                continue
            if not held[number]:
                place = self.decoders[number].container.path
                raise FormatError(
                    f"{name}: takes a share of the direction {place}, which has it not as F32 {list(shape)}"
                )
            total += weight * self.decoders[number].tensor(name).numpy().astype(np.float64)
        return torch.from_numpy(np.asarray(total, np.float32))


def open_direction(path: Path) -> Decoder:
    """The decoder of a direction.

    Raises:
        FormatError: It is damaged, or goes beside something itself.
    """
    from trueaxis.runtime.decode import Decoder

    found = Decoder(path)
    if {"base", "tangent"} & found.container.header.keys():
        raise FormatError(f"{path}: a direction must not go beside anything itself; the file is damaged")
    return found
