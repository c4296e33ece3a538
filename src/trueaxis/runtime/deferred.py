"""Deferred tensors: what transformers builds a model from when its weights are to stay coded.

    name of a tensor ─▶ Deferred ─▶ whatever the loader does to it (rename, cast, stack, split) ─▶ Deferred
                                                                                                     │ value(read)
                                                                                                     ▼
                                                                                        the weight, when it is needed

A deferred tensor has shape, dtype and device and no memory. Operations on it are noted, not done, so that a weight of
the running model is known as a function of tensors of the file, however the loader maps one onto the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from trueaxis.types import TrueaxisError

ATEN = torch.ops.aten
SAME = (ATEN.detach.default, ATEN.alias.default, ATEN._to_copy.default)  # where nothing but the object changes


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor of the file."""

    name: str


@dataclass(frozen=True, eq=False)
class Step:
    """An operation on deferred tensors; `place` is that among several results, or None."""

    operation: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    place: int | None


class Deferred(torch.Tensor):
    """A tensor without memory that knows where its values come from.

    Attributes:
        origin: A tensor of the file, or an operation. The same object means the same values.
        coded: Once it stands in a model, its name there; from then on operations on it are refused.
    """

    origin: Source | Step
    coded: str | None

    @staticmethod
    def __new__(cls, like: torch.Tensor, origin: Source | Step, device: torch.device) -> Deferred:
        """Of the shape, strides and dtype of `like`; its values will be on a device."""
        with torch.inference_mode(False):  # a weight may be asked for in that mode and used outside of it
            made = torch.Tensor._make_wrapper_subclass(
                cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
            )
        made.origin, made.coded = origin, None
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Deferred({self.coded or self.origin}, {list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in SAME:
            _refuse_coded(args)
        found = func(*tree_map(_shadow, args), **tree_map(_shadow, {**kwargs, **_on_meta(kwargs)}))
        first = args[0] if args else None
        if func in SAME and isinstance(first, Deferred) and _alike(found, first):
            made = cls(found, first.origin, first.device)
            made.coded = first.coded
            return made
        _refuse_coded(args)
        device = next(one.device for one in tree_leaves((args, kwargs)) if isinstance(one, Deferred))
        if isinstance(found, torch.Tensor):
            return cls(found, Step(func, args, kwargs, None), device)
        return type(found)(cls(one, Step(func, args, kwargs, place), device) for place, one in enumerate(found))


def deferred(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Deferred:
    """Stands for a tensor of the file.

    Example:
        >>> halves = deferred("w", (4, 2), torch.float32).chunk(2)
        >>> value(halves[1].origin, lambda name: torch.arange(8.0).reshape(4, 2)).tolist()
        [[4.0, 5.0], [6.0, 7.0]]
    """
    return Deferred(torch.empty(shape, dtype=dtype, device="meta"), Source(name), torch.device(device))


def sources(origin: Source | Step) -> Iterator[str]:
    """Names of the tensors of the file that an origin is made of."""
    if isinstance(origin, Source):
        yield origin.name
        return
    for argument in tree_leaves((origin.arguments, origin.options)):
        if isinstance(argument, Deferred):
            yield from sources(argument.origin)


def value(origin: Source | Step, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """What an origin stands for.

    Args:
        origin: Of a deferred tensor.
        read: Gives the tensors of the file by name.
    """
    if isinstance(origin, Source):
        return read(origin.name)

    def known(argument: Any) -> Any:
        return value(argument.origin, read) if isinstance(argument, Deferred) else argument

    found = origin.operation(*tree_map(known, origin.arguments), **tree_map(known, origin.options))
    return found if origin.place is None else found[origin.place]


class Decoded:
    """Parameters of deferred weights that are decoded once and for all; the same origin gives the same parameter."""

    def __init__(self, read: Callable[[str], torch.Tensor]) -> None:
        self._read = read
        self._known: dict[int, torch.nn.Parameter] = {}

    def __call__(self, weight: Deferred) -> torch.nn.Parameter:
        """The parameter that a weight becomes."""
        if id(weight.origin) not in self._known:
            found = value(weight.origin, self._read)
            self._known[id(weight.origin)] = torch.nn.Parameter(found, requires_grad=False)
        return self._known[id(weight.origin)]


def _refuse_coded(arguments: Any) -> None:
    for argument in tree_leaves(arguments):
        if isinstance(argument, Deferred) and argument.coded:
            raise TrueaxisError(
                f"{argument.coded}: is coded in memory, and decoded while its own block runs; take it from "
                "state_dict(), or load with resident='dense'"
            )


def _shadow(argument: Any) -> Any:
    """Deferred tensors as tensors on the meta device, which have no memory either."""
    if isinstance(argument, Deferred):
        return torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype, device="meta")
    return argument


def _on_meta(options: dict[str, Any]) -> dict[str, Any]:
    return {"device": torch.device("meta")} if options.get("device") is not None else {}


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
