"""Streams: a model whose weights stay coded in memory and are decoded block by block while it runs.

    block i runs            its weights are views of one of two buffers
    block i + 1 decodes     on another thread, or by a GPU on another stream, into the other buffer
    anywhere else           a weight is a `Deferred`: shape and dtype, no memory

Blocks are the members of the model's topmost lists of modules, and every embedding or linear layer outside of them that
has coded weights. Which block follows which is learned while they run. Results are those of the dense model, bit for
bit; memory is that of the file, of what is small or stored exactly, and of two blocks.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trueaxis.runtime.deferred import Decoded, Deferred, Source, Step, sources, value
from trueaxis.runtime.held import HeldDecoder
from trueaxis.types import TrueaxisError

ALIGNMENT = 64  # bytes


@dataclass(eq=False)
class Block:
    """What is decoded together.

    Attributes:
        name: Of its module.
        places: (module, attribute, weight) of every coded weight. Modules know the streams, which must not keep them
            alive in turn: memory is to go with the last reference to a model.
        follower: The block that ran after it the last time.
    """

    name: str
    places: list[tuple[weakref.ref[nn.Module], str, Deferred]]
    follower: Block | None = field(default=None, repr=False)

    def layout(self) -> list[tuple[Deferred, int]]:
        """Every weight once, and where its bytes begin."""
        starts, end = {}, 0
        for _, _, weight in self.places:
            if id(weight.origin) not in starts:
                starts[id(weight.origin)] = (weight, end)
                end += -(-weight.numel() * weight.element_size() // ALIGNMENT) * ALIGNMENT
        return list(starts.values())

    def put(self, weights: Mapping[int, torch.Tensor]) -> None:
        """Gives its modules their weights, by origin; without one, they are coded again."""
        for module, attribute, weight in self.places:
            owner = module()
            if owner is not None:
                owner._parameters[attribute] = weights.get(id(weight.origin), weight)  # type: ignore[assignment]

    @property
    def size_bytes(self) -> int:
        """Of its decoded weights."""
        weight, start = self.layout()[-1]
        return start + -(-weight.numel() * weight.element_size() // ALIGNMENT) * ALIGNMENT


@dataclass(eq=False)
class Decoding:
    """Weights of a block in one of the buffers.

    Attributes:
        weights: By their origin.
        made: Those that the loader's own operations make, and of what.
        read: Decodes the others.
    """

    weights: dict[int, torch.Tensor]
    made: list[tuple[Step, torch.Tensor]]
    read: Any

    @property
    def is_queued(self) -> bool:
        """Whether the device does it all, so that nothing is won by another thread."""
        return self.read.is_queued and not self.made


class _Here(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        found: Future[Any] = Future()
        try:
            found.set_result(fn(*args, **kwargs))
        except BaseException as error:
            found.set_exception(error)
        return found


@dataclass(eq=False)
class Slot:
    """One of the two buffers, and what is, or is being, decoded into it.

    Attributes:
        left: Mark of the decoder: the block before has run.
        block: Whose weights they are.
        decoded: The weights by their origin, and the mark of when they are there.
        decodings: Of every block that was in it.
    """

    buffer: torch.Tensor
    left: Any
    block: Block | None = None
    decoded: Future[tuple[dict[int, torch.Tensor], Any]] | None = None
    decodings: dict[Block, Decoding] = field(default_factory=dict)


class Streams(nn.Module):
    """Part of a model with coded weights: feeds its blocks, and refuses what such a model cannot do.

    Args:
        model: Whose coded weights are `Deferred`.
        decoder: Of their file.
        dtype: In which tensors are decoded before the loader's own operations.
    """

    def __init__(self, model: nn.Module, decoder: HeldDecoder, dtype: torch.dtype) -> None:
        super().__init__()
        self._decoder, self._dtype = decoder, dtype
        self._blocks = list(_blocks(model))
        for block, follower in zip(self._blocks, self._blocks[1:] + self._blocks[:1], strict=True):
            block.follower = follower
        size = max((block.size_bytes for block in self._blocks), default=0)
        with torch.inference_mode(False):  # the other thread fills them outside of that mode
            buffers = [torch.empty(size, dtype=torch.uint8, device=decoder.device) for _ in range(2)]
        self._slots = [Slot(buffer, decoder.mark()) for buffer in buffers]
        self._worker = ThreadPoolExecutor(1, "trueaxis-decode")
        self._lock = threading.RLock()
        self._call: object = None  # of the block that runs
        self._running: Block | None = None
        self._latest: Block | None = None
        self._in_state: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the coded weights and of the two buffers."""
        return {"coded": self._decoder.held_bytes, "buffers": sum(slot.buffer.numel() for slot in self._slots)}

    def attach(self, model: nn.Module) -> None:
        """Lets the model's blocks ask for their weights."""
        modules = dict(model.named_modules())
        for block in self._blocks:
            module = modules[block.name]
            module.forward = _fed(self, block, module)
            for owner in dict.fromkeys(owner() for owner, _, _ in block.places):
                if owner is not None:
                    owner.register_state_dict_post_hook(_in_state(self))
        model._modules = {"streams": self, **model._modules}  # first: refuses before anything has changed

    def enter(self, block: Block, call: object, arguments: Any) -> None:
        """Before a call of a block: its weights are there, and the next one's are on their way."""
        with self._lock:
            self._enter(block, call, arguments)

    def _enter(self, block: Block, call: object, arguments: Any) -> None:
        if self._running is not None:
            raise TrueaxisError(
                f"{block.name}: {self._running.name} still runs; coded weights serve one pass at a time"
            )
        if torch.is_grad_enabled() and any(one.requires_grad for one in arguments if isinstance(one, torch.Tensor)):
            raise TrueaxisError(f"{block.name}: coded weights have no gradients; load with resident='dense' to train")
        slot = self._slot_of(block)
        assert slot.decoded is not None
        try:
            weights, ready = slot.decoded.result()
        except BaseException:
            slot.block = None
            raise
        self._decoder.join(ready)
        block.put(weights)
        if self._latest is not None:
            self._latest.follower = block
        self._call, self._running, self._latest = call, block, block
        if block.follower is not None:
            self._slot_of(block.follower)

    def leave(self, block: Block, call: object) -> None:
        """After a call that ended, or failed, or was refused because another one runs."""
        with self._lock:
            if self._call is call:
                self._call = self._running = None
                self._slot_of(block).left = self._decoder.mark()
                block.put({})

    def _slot_of(self, block: Block) -> Slot:
        """Where a block is decoded, or will be: the buffer of neither the one that runs nor the one that ran last."""
        for slot in self._slots:
            if slot.block is block:
                return slot
        kept = (self._running, self._latest)
        slot = next((slot for slot in self._slots if slot.block is None or slot.block not in kept), self._slots[0])
        slot.block, slot.decoded = block, self._executor(block, slot).submit(self._decode, block, slot, slot.left)
        return slot

    def _executor(self, block: Block, slot: Slot) -> Executor:
        """Who decodes: the other thread, or, where a device only has to be told, this one, once the other is done."""
        if block not in slot.decodings or not slot.decodings[block].is_queued:
            return self._worker
        wait([one.decoded for one in self._slots if one.decoded is not None])
        return _Here()

    def _decode(self, block: Block, slot: Slot, after: Any) -> tuple[dict[int, torch.Tensor], Any]:
        """Weights of a block by their origin, and the mark of when they are there."""
        with self._decoder.ahead(after):
            if block not in slot.decodings:
                slot.decodings[block] = self._decoding(block, slot.buffer)
            decoding = slot.decodings[block]
            for origin, view in decoding.made:
                view.copy_(self._value(origin))
            decoding.read()
            return decoding.weights, self._decoder.mark()

    def _decoding(self, block: Block, buffer: torch.Tensor) -> Decoding:
        weights, wanted, made = {}, [], []
        for weight, start in block.layout():
            end = start + weight.numel() * weight.element_size()
            view = weights[id(weight.origin)] = buffer[start:end].view(weight.dtype).view(weight.shape)
            if isinstance(weight.origin, Source):
                wanted.append((weight.origin.name, view))
            else:
                made.append((weight.origin, view))
        return Decoding(weights, made, self._decoder.filling(wanted))

    def _value(self, origin: Source | Step) -> torch.Tensor:
        read: dict[str, torch.Tensor] = {}  # one that is split is decoded once

        def tensor(name: str) -> torch.Tensor:
            if name not in read:
                read[name] = self._decoder.tensor(name, self._dtype)
            return read[name]

        return value(origin, tensor)

    def into_state(self, module: nn.Module, state: dict[str, Any], prefix: str) -> None:
        """Puts decoded weights into a state_dict; tied ones share memory there too."""
        for attribute in module._parameters:
            found = state.get(prefix + attribute)
            if isinstance(found, Deferred):
                decoded = self._in_state.get(id(found.origin))
                if decoded is None:
                    decoded = self._in_state[id(found.origin)] = self._value(found.origin)
                state[prefix + attribute] = decoded

    def train(self, mode: bool = True) -> Streams:
        """Evaluation mode only."""
        if mode:
            raise TrueaxisError("coded weights serve inference; load with resident='dense' to train")
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Streams:
        """What `to`, `half` and their like call on every module."""
        probe = torch.empty(0, dtype=self._dtype, device=self._decoder.device)
        changed = fn(probe)
        if (changed.dtype, changed.device) != (probe.dtype, probe.device):
            raise TrueaxisError(
                f"coded weights stay {self._dtype} on {probe.device}, not {changed.dtype} on {changed.device}; "
                "load with that dtype and device, or with resident='dense'"
            )
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TrueaxisError("a model with coded weights is not copied or pickled; load it again from its directory")


def settle_deferred(
    model: nn.Module,
    decoder: HeldDecoder,
    dtype: torch.dtype,
    streamed: Callable[[str], bool],
    read: Callable[[str], torch.Tensor] | None = None,
) -> None:
    """Names the coded weights of a model, and decodes the others: those that no module waits for (outside of the
    topmost lists, only embeddings and linear layers do), and those made of tensors that do not stay coded.

    Args:
        model: Whose weights are `Deferred`.
        decoder, dtype: As for `Streams`.
        streamed: Whether a tensor of the file stays coded.
        read: Gives tensors of the file, by default decoding them.
    """
    members = tuple(f"{name}." for name in _members(model))
    decoded = Decoded(read or (lambda source: decoder.tensor(source, dtype)))
    for name, module in model.named_modules():
        waits = f"{name}.".startswith(members) or isinstance(module, nn.Embedding | nn.Linear)
        for attribute, weight in list(module._parameters.items()):
            if not isinstance(weight, Deferred):
                continue
            if waits and all(map(streamed, sources(weight.origin))):
                weight.coded = f"{name}.{attribute}"
                continue
            module._parameters[attribute] = decoded(weight)


def _members(model: nn.Module) -> list[str]:
    """Names of the members of the topmost lists."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not f"{name}.".startswith(tuple(found)):
            found += [f"{name}.{place}." for place in range(len(module))]
    return [name[:-1] for name in found]


def _blocks(model: nn.Module) -> Iterator[Block]:
    """Members of the topmost lists, and other modules with coded weights, in the order of the model."""
    members = _members(model)
    inside = tuple(f"{name}." for name in members)
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        places = [
            (weakref.ref(owner), attribute, weight)
            for owner in (module.modules() if name in members else [module])
            for attribute, weight in owner._parameters.items()
            if isinstance(weight, Deferred)
        ]
        if places:
            yield Block(name, places)


def _fed(streams: Streams, block: Block, module: nn.Module) -> Callable[..., Any]:
    """Forward of a module whose weights are there meanwhile; hooks would not see a pass that Ctrl-C ends."""
    forward, owner = type(module).forward, weakref.ref(module)  # bound, it would keep the module alive

    @torch.compiler.disable(recursive=False)
    def fed(*arguments: Any, **options: Any) -> Any:
        call = object()
        try:
            streams.enter(block, call, (*arguments, *options.values()))
            return forward(owner(), *arguments, **options)
        finally:
            streams.leave(block, call)

    return fed


def _in_state(streams: Streams) -> Any:
    def hook(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        streams.into_state(module, state, prefix)

    return hook
