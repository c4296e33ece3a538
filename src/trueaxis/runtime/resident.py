"""Resident: in what form the weights of a loaded model are kept in memory.

directory ─▶ decoder ─▶ state (tensors for transformers' loader) ─▶ model ─▶ settled

dense         an ordinary model
compressed    coded in memory, decoded block by block while the model runs: streams.py
int8          linear layers on 8-bit integers, the rest dense: int8.py
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trueaxis.runtime.decode import Decoder
from trueaxis.scratch import NoScratch
from trueaxis.types import TrueaxisError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from trueaxis.runtime.held import HeldDecoder

SMALL = 1 << 16  # entries of a tensor stored exactly below which decoding it again and again would not pay


class Residence(Protocol):
    """A form of weights in memory."""

    def open(self, path: Path, base: str | Path | None, device: torch.device) -> Decoder:
        """The decoder of a directory."""
        ...

    def state(self, decoder: Decoder, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What transformers builds the model from."""
        ...

    def settle(self, model: PreTrainedModel, decoder: Decoder, dtype: torch.dtype) -> None:
        """Finishes the model that was built."""
        ...


class Dense:
    """Every weight decoded by the CPU."""

    def open(self, path: Path, base: str | Path | None, device: torch.device) -> Decoder:
        """A decoder that reads what it is asked for."""
        return Decoder(path, base=base)

    def state(self, decoder: Decoder, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """All tensors."""
        return decoder.tensors(dtype)

    def settle(self, model: PreTrainedModel, decoder: Decoder, dtype: torch.dtype) -> None:
        """There is nothing left to do."""


class InScratch(Dense):
    """Every weight decoded, one at a time, into scratch.

    Args:
        scratch: Holds them.
        rounded: Dtype whose values they take first; None for that of the model.
    """

    def __init__(self, scratch: NoScratch, rounded: torch.dtype | None = None) -> None:
        self._scratch, self._rounded = scratch, rounded

    def state(self, decoder: Decoder, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """All tensors."""
        targets = {name: decoder.alias(name) or name for name in decoder.names()}
        own = {name: self._held(decoder, name, dtype) for name in dict.fromkeys(targets.values())}
        return {name: own[target] for name, target in targets.items()}

    def _held(self, decoder: Decoder, name: str, dtype: torch.dtype) -> torch.Tensor:
        return self._scratch.tensor(decoder.tensor(name, self._rounded or dtype).to(dtype))


class Compressed:
    """Matrices coded in memory."""

    def open(self, path: Path, base: str | Path | None, device: torch.device) -> Decoder:
        """A decoder that holds what is coded, on the device where that can decode."""
        return held_decoder(path, base, device)

    def state(self, decoder: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Deferred matrices; vectors, small exact tensors, and a head made of another tensor decoded, or deferred too
        where they go to another device than the loader's."""
        from trueaxis.runtime.deferred import deferred

        found: dict[str, torch.Tensor] = {}
        targets = {name: decoder.alias(name) or name for name in decoder.names()}
        for name in dict.fromkeys(targets.values()):
            shape = decoder.container.tensors[name].shape
            if decoder.device.type != "cpu" or is_streamed(decoder, name):
                found[name] = deferred(name, shape, _loaded_as(decoder, name, dtype), decoder.device)
            else:
                found[name] = decoder.tensor(name, dtype)
        return {name: found[target] for name, target in targets.items()}

    def settle(self, model: PreTrainedModel, decoder: Any, dtype: torch.dtype) -> None:
        """Connects blocks to the decoder; a weight that no block can wait for is decoded once and for all."""
        from trueaxis.runtime.streams import Streams, settle_deferred

        settle_deferred(model, decoder, dtype, lambda name: is_streamed(decoder, name))
        model.requires_grad_(False)
        Streams(model, decoder, dtype).attach(model)


class DenseThere(Compressed):
    """Every weight decoded on a device, by as few launches as its memory allows."""

    def settle(self, model: PreTrainedModel, decoder: Any, dtype: torch.dtype) -> None:
        """Decodes everything; the coded weights are forgotten."""
        from trueaxis.runtime.streams import settle_deferred

        found = decoder.tensors(dtype)
        settle_deferred(model, decoder, dtype, lambda name: False, found.__getitem__)
        for parameter in model.parameters():  # an ordinary model, which may be trained
            parameter.requires_grad_(parameter.is_floating_point())


class Int8(Compressed):
    """Linear layers in 8 bits; `model.int8` tells which ones are not, and why."""

    def settle(self, model: PreTrainedModel, decoder: Any, dtype: torch.dtype) -> None:
        """Decodes every matrix once, to integers where it can be."""
        from trueaxis.runtime.int8 import settle_int8

        model.int8 = settle_int8(model, decoder, dtype)  # type: ignore[assignment]
        model.requires_grad_(False)


RESIDENCES: dict[str, type[Residence]] = {"dense": Dense, "compressed": Compressed, "int8": Int8}


def residence_of(name: str, device: torch.device) -> Residence:
    """The form of this name.

    Raises:
        TrueaxisError: There is none.
    """
    if name not in RESIDENCES:
        raise TrueaxisError(f"resident {name!r} is not one of: {', '.join(RESIDENCES)}")
    if name == "dense" and device.type != "cpu":
        return DenseThere()
    return RESIDENCES[name]()


def held_decoder(path: Path, base: str | Path | None, device: torch.device) -> HeldDecoder:
    """What decodes for a device: a GPU for itself where Triton is installed, else the CPU."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from trueaxis.runtime.gpu.decoder import GpuDecoder

        return GpuDecoder(path, base=base, device=device)
    from trueaxis.runtime.held import HeldDecoder

    return HeldDecoder(path, base=base, device=device)


def _loaded_as(decoder: Decoder, name: str, dtype: torch.dtype) -> torch.dtype:
    """Dtype that a tensor is decoded in: numbers that are no floats stay what they are."""
    own = decoder.dtype(name)
    return dtype if own.is_floating_point else own


def is_streamed(decoder: Any, name: str) -> bool:
    """Whether a tensor stays coded: a matrix, or several, not made of another tensor, and large where it is exact."""
    info = decoder.container.tensors[name]
    if len(info.shape) < 2 or not decoder.dtype(name).is_floating_point or decoder.source(name) is not None:
        return False
    return decoder.is_quantized(name) or info.size >= SMALL
