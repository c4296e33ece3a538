"""Response: gradients that come back to what modules put out, summed matrix by matrix.

    module reads x, puts out y ─▶ hook ─▶ g = ∂/∂y on the way back ─┬─▶ Σ g gᵀ over tokens
                          └─▶ C⁻¹ x (whitening.py) ─────────────────┴─▶ Σ over sequences of |Σ_t g_t (C⁻¹ x_t)ᵀ|²

Several threads may run batches at once: what each batch heard is added in the order of batches, so that sums are the
same to the last bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

from trueaxis.metric.listening import Sum
from trueaxis.metric.metric import embedding_key, head_key
from trueaxis.metric.whitening import Whitening, energy
from trueaxis.model.architecture import submodule
from trueaxis.model.graph import Route
from trueaxis.parallel import ordered_map
from trueaxis.scratch import NoScratch
from trueaxis.types import Array, Weight

LARGEST_RATIO = 10.0


class Listener(NamedTuple):
    """A module whose output gradients are those of a matrix, and which part (which, of how many) of them."""

    key: str
    weight: Weight
    use: Literal["embedding", "head", "linear"]
    module: str
    part: tuple[int, int]


def listeners_of(weights: Sequence[Weight], places: Route) -> list[Listener]:
    """Modules to listen to, for every use of a matrix that the model calls as a module."""
    found = []
    for weight in weights:
        if weight.role in ("embedding", "tied"):
            key = embedding_key(weight.name) if weight.role == "tied" else weight.name
            found.append(Listener(key, weight, "embedding", str(places.embedding), (0, 1)))
        if weight.role in ("head", "tied"):
            key = head_key(weight.name) if weight.role == "tied" else weight.name
            found.append(Listener(key, weight, "head", str(places.head), (0, 1)))
        if weight.role == "linear" and weight.place is not None and weight.place.expert is None:
            found.append(Listener(weight.name, weight, "linear", weight.place.module, weight.place.part))
    return found


class _Gradient(NamedTuple):
    """Of one call of a module: gradients of what it puts out, and what it reads, whitened, both [sequences, T, ·]; the
    latter None where it is not asked for."""

    outputs: torch.Tensor
    inputs: torch.Tensor | None


class Heard:
    """Gradients of what modules put out: what batches heard is added in their order, matrices side by side.

    Attributes:
        sums: Key → Σ g gᵀ over all batches so far, of all matrices but a head.
        energies: Key → Σ over sequences of |Σ g xᵀ|², x whitened.
    """

    def __init__(self, batches: Sequence[torch.Tensor], scratch: NoScratch, threads: int) -> None:
        self.sums: dict[str, Sum] = {}
        self.energies: dict[str, float] = {}
        self._batches, self._scratch, self._threads = batches, scratch, threads
        self._now = threading.local()
        self._added: dict[str, None] = {}

    def over(self, work: Callable[[int], Any], *, side_by_side: bool = True) -> list[Any]:
        """As `Batches` of backward.py."""

        def run(number: int) -> tuple[Any, dict[Listener, list[_Gradient]]]:
            self._now.heard, self._now.sequences = {}, len(self._batches[number])
            with torch.enable_grad():  # of this thread
                return work(number), self._now.heard

        results, threads = [], self._threads if side_by_side else 1
        for start in range(0, len(self._batches), threads):
            found = ordered_map(run, range(start, min(start + threads, len(self._batches))), threads)
            results += [result for result, _ in found]
            self._add([heard for _, heard in found])
        return results

    def hook(self, listener: Listener, whitening: Whitening) -> Callable[..., torch.Tensor | None]:
        """Of a module's forward pass: hears the gradients of what it puts out, together with what it reads."""

        def keep(_module: Any, args: tuple[Any, ...], output: Any) -> torch.Tensor | None:
            if not isinstance(output, torch.Tensor) or not torch.is_grad_enabled():
                return None
            heard = getattr(self._now, "heard", {})  # on a GPU the backward pass is another thread's
            sequences = getattr(self._now, "sequences", 1)
            inputs = whitening.read(listener.weight, args[0], output) if args else None
            which, parts = listener.part

            def add(gradient: torch.Tensor) -> None:
                width = gradient.shape[-1] // parts
                own = gradient[..., which * width : (which + 1) * width]
                read = None if inputs is None else _by_sequences(inputs, sequences)
                heard.setdefault(listener, []).append(_Gradient(_by_sequences(own, sequences), read))

            leaf = None if output.requires_grad else output.requires_grad_()
            output.register_hook(add)
            return leaf

        return keep

    def news(self) -> tuple[dict[str, Array], dict[str, float]]:
        """Sums and energies of all keys that were added to since this was last asked."""
        keys, self._added = self._added, {}
        sums = {key: self.sums[key].outer.cpu().numpy() for key in keys if key in self.sums}
        return sums, {key: self.energies[key] for key in keys}

    def restore(self, sums: Mapping[str, Array], energies: Mapping[str, float]) -> None:
        """Put in place what `news` gave."""
        for key, outer in sums.items():
            self.sums[key] = Sum(self._scratch)
            self.sums[key].outer = self._scratch.tensor(torch.from_numpy(outer))
        self.energies |= energies

    def _add(self, found: Sequence[dict[Listener, list[_Gradient]]]) -> None:
        listeners = list(dict.fromkeys(one for heard in found for one in heard))
        self._added |= dict.fromkeys(one.key for one in listeners)
        for one in listeners:
            self.energies.setdefault(one.key, 0.0)
            if one.use != "head":
                self.sums.setdefault(one.key, Sum(self._scratch))

        def add(one: Listener) -> None:
            for calls in (heard[one] for heard in found if one in heard):
                self.energies[one.key] += _energy(calls)
                for call in calls if one.key in self.sums else ():
                    self.sums[one.key].add(_bounded(call.outputs))

        ordered_map(add, listeners, self._threads)


@contextmanager
def listening_back(model: Any, listeners: Sequence[Listener], whitening: Whitening, heard: Heard) -> Iterator[None]:
    """While the context lasts, every backward pass hears the gradients of what modules put out.

    The output of the embedding is where differentiation begins.
    """
    handles = [submodule(model, one.module).register_forward_hook(heard.hook(one, whitening)) for one in listeners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _energy(calls: Sequence[_Gradient]) -> float:
    """|Σ g xᵀ|² of sequences over all calls of a module in one batch; 0 where what it reads is not asked for."""
    inputs = [call.inputs for call in calls if call.inputs is not None]
    if len(inputs) < len(calls):
        return 0.0
    return energy(torch.cat([call.outputs for call in calls], dim=1), torch.cat(inputs, dim=1))


def _by_sequences(rows: torch.Tensor, sequences: int) -> torch.Tensor:
    """Rows [..., n] of a batch as [sequences, T, n]; as one sequence [1, rows, n] where these are not apart, since sums
    over several have the same mean square."""
    if rows.ndim == 3 and len(rows) == sequences:
        return rows
    return rows.reshape(1, -1, rows.shape[-1])


def _bounded(gradient: torch.Tensor) -> torch.Tensor:
    """Gradients [..., m] of at most `LARGEST_RATIO` times the median length.

    Where a norm reads a vector close to zero, such as that of a padding token, its derivative is as large as 1/√ε and
    holds for no error of any size that occurs; one such token would outweigh all others.
    """
    lengths = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    limit = LARGEST_RATIO * lengths.median()
    return gradient * (limit / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)).clamp(max=1)
