"""Gauge: the network in other coordinates, computing the same function. Zero bytes, zero runtime.

    Network ─▶ symmetries, each in its axes ─▶ checked on the model itself ─▶ Alignment

The check runs the original and the gauged model in float32 on tokens drawn as the calibration text draws them; a
symmetry that moves the output by 10⁻⁶ nats or more is named and left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from trueaxis.align.network import Alignment, Change, Network, Product
from trueaxis.align.part import Part, join
from trueaxis.align.symmetry import SYMMETRIES
from trueaxis.metric.running import forward, load_model, untie
from trueaxis.metric.sensitivity import Output, Reference
from trueaxis.model.architecture import locate, parameter
from trueaxis.model.graph import route
from trueaxis.parallel import ordered_map
from trueaxis.stages import Gauge, Identity
from trueaxis.types import Array

LARGEST_KL_NATS = 1e-6
CHECK_TOKENS = (1, 64)  # sequences, length


def identity(stage: Identity, network: Network) -> Alignment:
    """The checkpoint's own axes: the baseline of every other coordinate system, and free."""
    return Alignment()


def gauge(stage: Gauge, network: Network) -> Alignment:
    """Every symmetry of the network in its best axes, each of them exact.

    Args:
        stage: Axes per symmetry: a name of `basis.AXES`, "best", or "off".
        network: Checkpoint and statistics.
    """
    used, notes, checked = _checked_parts(stage, network)
    return replace(aligned_by(used, notes), checked=checked)


def aligned_by(used: Sequence[Part], notes: Sequence[str]) -> Alignment:
    """What these symmetries make of a network."""
    spaces = tuple(space for part in used for space in part.spaces)
    return Alignment(joined(used), tuple(notes), products(used), spaces)


def exact_parts(stage: Gauge, network: Network) -> tuple[list[Part], tuple[str, ...]]:
    """The symmetries that stay exact, those left alone included, and a note on each that was asked for."""
    used, notes, _ = _checked_parts(stage, network)
    return used, notes


def _checked_parts(stage: Gauge, network: Network) -> tuple[list[Part], tuple[str, ...], Mapping[str, Array]]:
    """As `exact_parts`, and the matrices that all of these make, where they were checked together."""
    wanted = asdict(stage)
    parts = [symmetry(network, wanted[name]) for name, symmetry in SYMMETRIES.items() if wanted[name] != "off"]
    left_out: dict[str, float] = {}
    checked: Mapping[str, Array] = {}
    if any(part.changes for part in parts):
        nats, checked = _check(network, joined(parts), products(parts))
        if nats >= LARGEST_KL_NATS:
            moved = {part.name: moved_nats(network, part.changes, part.products) for part in parts if part.changes}
            left_out, checked = {name: kl for name, kl in moved.items() if kl >= LARGEST_KL_NATS}, {}
    notes = tuple(f"{part.name}: {_told(part, left_out)}" for part in parts)
    return [part for part in parts if part.name not in left_out], notes, checked


def _told(part: Part, left_out: dict[str, float]) -> str:
    return f"left out, it moves the output by {left_out[part.name]:.1e} nats" if part.name in left_out else part.choice


def joined(parts: Sequence[Part]) -> dict[str, Change]:
    """All changes of several symmetries."""
    changes: dict[str, Change] = {}
    for part in parts:
        for name, change in part.changes.items():
            join(changes, name, change)
    return changes


def products(parts: Sequence[Part]) -> tuple[Product, ...]:
    """Tensors that only the loaded model has."""
    return tuple(product for part in parts for product in part.products)


def moved_nats(network: Network, changes: Mapping[str, Change], products: Sequence[Product] = ()) -> float:
    """KL(original ‖ gauged) per token; relative squared error of the output where that is no distribution."""
    return _check(network, changes, products)[0]


def _check(
    network: Network, changes: Mapping[str, Change], products: Sequence[Product]
) -> tuple[float, dict[str, Array]]:
    """`moved_nats`, and the matrices of the gauged model."""
    import torch

    counts = network.statistics.token_counts.astype(np.float64) + 0.5
    generator = np.random.default_rng(network.seed)
    ids = torch.from_numpy(generator.choice(counts.size, CHECK_TOKENS, p=counts / counts.sum()))
    with torch.inference_mode():
        model = load_model(network.checkpoint)
        expected = Reference(Output.of(model, forward(model, ids)), [], ids.numel())
        moved = _move(network, model, changes, products)
        return expected.change(Output.of(model, forward(model, ids))) / ids.numel(), moved


def gauged_model(network: Network, changes: Mapping[str, Change], products: Sequence[Product] = ()) -> Any:
    """The running model with its parameters in new coordinates, float32."""
    model = load_model(network.checkpoint)
    _move(network, model, changes, products)
    return model


def _move(network: Network, model: Any, changes: Mapping[str, Change], products: Sequence[Product]) -> dict[str, Array]:
    """Takes the parameters of the running model to new coordinates, in place.

    Returns:
        The quantized matrices among them, as they are in the file: not reflected.
    """
    import torch

    if products:
        untie(model, route(network.checkpoint))
    places = {weight.name: locate(model, weight.place) for weight in network.weights if weight.place is not None}
    biases = {
        weight.bias: parameter(model, f"{weight.place.module}.bias")
        for weight in network.weights
        if weight.bias is not None and weight.place is not None
    }

    quantized = {weight.name for weight in network.weights if weight.role != "exact"}
    moved: dict[str, Array] = {}

    def move(name: str) -> None:
        found = places.get(name, biases.get(name))
        found = parameter(model, name) if found is None else found
        tensor = changes[name].tensor(found.numpy())
        if name in quantized:
            moved[name] = network.checkpoint.scratch.hold(tensor)
        with torch.inference_mode():  # of this thread
            found.copy_(torch.from_numpy(changes[name].loaded(tensor)))

    ordered_map(move, changes, network.threads)
    for product in products:
        source = places[product.source].double().numpy()
        parameter(model, product.name).copy_(torch.from_numpy(product.loaded(source)))
    return moved
