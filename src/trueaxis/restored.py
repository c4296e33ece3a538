"""Restored: results of other commands back from the JSON that those printed, each value checked against its type.

{"value": 0.1, "interval": [0.0, 0.2], …}, Finding ─▶ Finding(value=0.1, interval=(0.0, 0.2), …)
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def restored(kind: Any, value: Any, where: str = "") -> Any:
    """A value of a type, from what JSON makes of it.

    Args:
        kind: A dataclass, str, int, float, bool, None, Any, or tuple, dict, Literal or union of such.
        value: From `json.loads`.
        where: Its place, for messages; "" for the whole.

    Returns:
        The value; lists are tuples again, objects dataclasses.

    Raises:
        ValueError: It does not fit; says where, what was expected, and what was found.

    Example:
        >>> restored(tuple[float, float] | None, [0, 1.5])
        (0.0, 1.5)
    """
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if (restore := _RESTORERS.get(get_origin(kind))) is not None:
        return restore(kind, value, where)
    if kind is Any or (value is None and kind is type(None)):
        return value
    if kind is float and type(value) is int and abs(value) < 1 << 1023:
        return float(value)
    if type(value) is kind:
        return value
    raise _unfit(getattr(kind, "__name__", str(kind)), value, where)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    hints, known = get_type_hints(kind), fields(kind)
    needed = {field.name for field in known if field.default is MISSING and field.default_factory is MISSING}
    if not isinstance(value, Mapping):
        raise _unfit("an object", value, where)
    if missing := needed - value.keys():
        raise ValueError(f"{where or 'it'} lacks {sorted(missing)[0]!r}")
    if unknown := value.keys() - {field.name for field in known}:
        raise ValueError(f"{where or 'it'} has {sorted(unknown)[0]!r}, which is unknown")
    return kind(**{name: restored(hints[name], part, f"{where}.{name}".lstrip(".")) for name, part in value.items()})


def _union(kind: Any, value: Any, where: str) -> Any:
    if value is None and type(None) in get_args(kind):
        return None
    (kept,) = [one for one in get_args(kind) if one is not type(None)]
    return restored(kept, value, where)


def _tuple(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    parts = get_args(kind)
    if not isinstance(value, list) or (parts[-1] is not ... and len(value) != len(parts)):
        raise _unfit("a list" if parts[-1] is ... else f"a list of {len(parts)}", value, where)
    kinds = [parts[0]] * len(value) if parts[-1] is ... else parts
    return tuple(restored(one, part, f"{where}[{n}]") for n, (one, part) in enumerate(zip(kinds, value, strict=True)))


def _dict(kind: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unfit("an object", value, where)
    return {name: restored(get_args(kind)[1], part, f"{where}.{name}") for name, part in value.items()}


def _literal(kind: Any, value: Any, where: str) -> Any:
    if value not in get_args(kind):
        raise _unfit(f"one of {list(get_args(kind))}", value, where)
    return value


def _unfit(expected: str, value: Any, where: str) -> ValueError:
    return ValueError(f"{where or 'it'}: expected {expected}, found {str(value)[:80]!r}")


_RESTORERS: dict[Any, Callable[[Any, Any, str], Any]] = {
    tuple: _tuple,
    dict: _dict,
    Literal: _literal,
    Union: _union,
    types.UnionType: _union,
}
