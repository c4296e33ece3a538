"""Planes: tensors that are kept bit for bit, each in the shortest of four ways.

    mode 0  the bytes of the tensor
    mode 1  the one value that all entries have
    mode 2  the upper 16 bits of every entry through the side coder, then the lower ones, or none if they are all zero
    mode 3  planes of bits through rANS, alone or beside a base; see bitplanes.py

Entries that agree in size agree in the upper bits of their exponents, which is what mode 2 saves: norms and biases take
about half their bytes. Mode 3 is for whole checkpoints that must come back: it alone may hold NaN and infinities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trueaxis import _core
from trueaxis.entropy.side import INTEGERS_PER_BYTE
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.runtime.bitplanes import unpack_bitplanes
from trueaxis.types import Array

if TYPE_CHECKING:
    import torch

CONSTANT_LIMIT = 1 << 22  # entries of a tensor that a few bytes stand for
RAW, CONSTANT, CODED, BITPLANES = range(4)
UPPER = 2  # bytes
MAGNITUDE = 0x7FFF


def bits_of(tensor: torch.Tensor) -> Array:
    """uint8 [entries, bytes of each], little-endian."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().reshape(tensor.numel(), tensor.itemsize)


def pack_planes(entries: Array) -> bytes:
    """Payload of a `planes` record.

    Args:
        entries: uint8 [entries, bytes of each], little-endian.

    Example:
        >>> pack_planes(np.array([[0, 63], [0, 63]], np.uint8)).hex()
        '01003f'
    """
    choices = [bytes([RAW]) + entries.tobytes()]
    if 1 < len(entries) <= CONSTANT_LIMIT:
        choices.append(bytes([CODED]) + _coded(entries))
        if bool((entries == entries[0]).all()):
            choices.append(bytes([CONSTANT]) + entries[0].tobytes())
    return min(choices, key=len)


def unpack_planes(payload: bytes, count: int, width: int, base: Array | None = None) -> Array:
    """Inverse of `pack_planes`, and mode 3: uint8 [count, width]; a constant's rows are views of one.

    Args:
        payload: Of the record.
        count: Entries of the tensor.
        width: Bytes of each.
        base: uint8 [count * width], where the record goes beside a base.

    Raises:
        ValueError: The payload is damaged.
    """
    if payload[:1] == bytes([BITPLANES]) and count > 0:
        return unpack_bitplanes(memoryview(payload)[1:], count, width).entries(count, width, base).reshape(count, width)
    mode, body = payload[:1], payload[1:]
    if mode == bytes([RAW]) and len(body) == count * width:
        return np.frombuffer(body, np.uint8).reshape(count, width)
    if mode == bytes([CONSTANT]) and len(body) == width and 0 < count <= CONSTANT_LIMIT:
        return np.broadcast_to(np.frombuffer(body, np.uint8), (count, width))
    if mode == bytes([CODED]) and 0 < count <= CONSTANT_LIMIT:
        return _decoded(body, count, width)
    raise ValueError(f"planes record of {len(payload)} bytes, mode {mode.hex()}, for {count} entries of {width} bytes")


def _coded(entries: Array) -> bytes:
    upper = np.ascontiguousarray(entries[:, -UPPER:]).view("<u2").reshape(-1).astype(np.int32)
    magnitudes = upper & MAGNITUDE
    median = np.sort(magnitudes)[magnitudes.size // 2]
    numbers = np.stack([upper >> 15, magnitudes - median], axis=1).reshape(-1)
    coded = _core.encode_integers(np.concatenate([[median], numbers]).astype(np.int32), _contexts(len(entries)))
    lower = entries[:, :-UPPER]
    return pack_varint(len(coded)) + coded + (lower.tobytes() if lower.any() else b"")


def _decoded(body: bytes, count: int, width: int) -> Array:
    length, start = unpack_varint(body, 0)
    coded, lower = body[start : start + length], body[start + length :]
    if len(coded) != length or len(lower) not in (0, count * (width - UPPER)):
        raise ValueError(f"planes record of {len(body) + 1} bytes does not fit {count} entries of {width} bytes")
    if 2 * count + 1 > (length + 8) * INTEGERS_PER_BYTE:
        raise ValueError(f"{length} bytes are too few for {count} entries")
    numbers = _core.decode_integers(coded, _contexts(count)).astype(np.int64)
    signs, magnitudes = numbers[1::2], numbers[2::2] + numbers[0]
    if signs.min() < 0 or signs.max() > 1 or magnitudes.min() < 0 or magnitudes.max() > MAGNITUDE:
        raise ValueError("the upper bits of an entry are out of range")
    entries = np.zeros((count, width), np.uint8)
    entries[:, -UPPER:] = (signs << 15 | magnitudes).astype("<u2").view(np.uint8).reshape(count, UPPER)
    if lower:
        entries[:, :-UPPER] = np.frombuffer(lower, np.uint8).reshape(count, width - UPPER)
    return entries


def _contexts(count: int) -> Array:
    """Of the median (0), and of sign (1) and magnitude (2) of every entry."""
    return np.concatenate([[0], np.tile([1, 2], count)]).astype(np.uint8)
