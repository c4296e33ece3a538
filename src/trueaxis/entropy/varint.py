"""Small unsigned integers in as few bytes as they need: LEB128, at most 9 bytes (63 bits)."""

from __future__ import annotations

LONGEST = 9


def pack_varint(value: int) -> bytes:
    """LEB128 bytes of 0 ≤ value < 2^63.

    Example:
        >>> pack_varint(300).hex()
        'ac02'
    """
    if not 0 <= value < 1 << 63:
        raise ValueError(f"varint: {value} is outside 0 to 2^63 - 1")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def unpack_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """(value, position after it).

    Raises:
        ValueError: The data ends first, or the number is longer than 63 bits or than it needs to be.
    """
    value = 0
    for index in range(LONGEST):
        if position + index >= len(data):
            raise ValueError("data ends inside a number")
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte == 0 and index:
            raise ValueError("a number is longer than it needs to be")
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("a number is longer than 63 bits")
