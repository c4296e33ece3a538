"""Low rank: a linear layer as the product of two factors, both coded like any other matrix.

    ρ^½ W C = U S Vᵀ (H = C Cᵀ) ─▶ left ρ^−½ U [m, r], right S Vᵀ C⁻¹ [r, n] ─▶ two plans, one product when decoding

In the metric, ρ the row weights, the left factor has orthonormal columns, so an error E of the right one costs
tr(E H Eᵀ), and one of the left costs tr(ρ E S² Eᵀ): each has a metric of its own in units of the layer's D, and one
water level serves all. The rank is where another pair of vectors would cost more bits, at that level, than the
distortion it takes away is worth.

References: SVD-LLM (arXiv:2403.07378), truncation-aware whitening; docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from trueaxis.align.estimate import DAMPING, ERRORS, SLOPE, STEP_ENERGY
from trueaxis.align.network import LARGEST_OCTAVES, Network
from trueaxis.function.none import no_function
from trueaxis.metric.metric import damped_cholesky
from trueaxis.runtime.factors import smallest_rank
from trueaxis.stages import LowRank, NoFunction, Selected
from trueaxis.types import Aligned, Array, Coded, Metric, Weight

HALVINGS = 50


class Factors:
    """Call it with a matrix for its two factors; other matrices than linear layers stay whole.

    Args:
        network: Its target sets the water level, and with that all ranks.
    """

    def __init__(self, network: Network) -> None:
        linear = [weight for weight in network.weights if weight.role == "linear"]
        whole = [weight for weight in network.weights if weight.role not in ("linear", "exact")]
        energies: Mapping[Weight, Array] = {}
        for weight in linear:
            metric = network.metric(weight)
            matrix = network.checkpoint.matrix(weight).double().numpy()
            values = np.linalg.svd(matrix @ _root(metric, weight.shape[1]), compute_uv=False)
            energies[weight] = metric.sensitivity * np.square(values)

        def bits(water: float) -> float:
            found = sum(_pair_bits(energy, _sides(weight), water) for weight, energy in energies.items())
            return found + network.estimated_bits(whole, water)

        self._water = _level(bits, network.target_bits, max((float(one[0]) for one in energies.values()), default=1.0))

    def __call__(self, weight: Weight, aligned: Aligned) -> tuple[Coded, ...]:
        if weight.role != "linear":
            return (Coded(weight, aligned.weight, aligned.metric),)
        root, rows = _root(aligned.metric, weight.shape[1]), aligned.metric.row_weights
        scales = np.ones((weight.shape[0], 1)) if rows is None else np.sqrt(rows)[:, None]
        left, values, right = np.linalg.svd(scales * aligned.weight @ root, full_matrices=False)
        rank = kept_rank(aligned.metric.sensitivity * np.square(values), _sides(weight), self._water)
        right = np.linalg.solve(root.T, (values[:rank, None] * right[:rank]).T).T
        inner = Metric(np.diag(np.square(values[:rank])), rows, aligned.metric.sensitivity)
        named = replace(weight, stored=weight.tensor)
        return tuple(
            Coded(
                replace(named, name=f"{weight.name}#{side}", factor=side, shape=values.shape, **apart),
                np.ascontiguousarray(values, np.float32),
                metric,
            )
            for side, values, metric, apart in (
                ("left", (left / scales)[:, :rank], inner, {"space": None}),
                ("right", right, replace(aligned.metric, row_weights=None), {}),
            )
        )


def low_rank(stage: LowRank, network: Network) -> Factors:
    """Both factors of every linear layer."""
    return Factors(network)


FUNCTIONS = {NoFunction: no_function, LowRank: low_rank, Selected: no_function}


def kept_rank(energies: Array, shape: tuple[int, int], water: float) -> int:
    """Pairs of singular vectors that are worth their bits, and at least as many as the format asks for.

    Args:
        energies: g·s² of each pair, descending.
        shape: [m, n].
        water: Step² per unit of g·D.
    """
    return max(
        smallest_rank(*shape), int(np.count_nonzero(_pair_cost(energies, shape, water) < SLOPE * energies / water))
    )


def _pair_bits(energies: Array, shape: tuple[int, int], water: float) -> float:
    rank = kept_rank(energies, shape, water)
    return sum(float(size * 0.5 * np.log2(1 + STEP_ENERGY * energies[:rank] / (size * water)).sum()) for size in shape)


def _pair_cost(energies: Array, shape: tuple[int, int], water: float) -> Array:
    """Bits + λ·D of each pair: m entries of the left and n of the right, each with an equal share of the energy."""
    total = np.zeros_like(energies)
    for size in shape:
        steps = energies / (size * water)
        total += size * (0.5 * np.log2(1 + STEP_ENERGY * steps) + SLOPE * steps / (1 + ERRORS * steps))
    return total


def _level(bits: Callable[[float], float], target: float, largest: float) -> float:
    """Water level at which all takes the target."""
    high = float(np.log2(max(largest, 1e-30))) + 10
    low = high - LARGEST_OCTAVES
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if bits(2.0**middle) > target else (low, middle)
    return 2.0**high


def _sides(weight: Weight) -> tuple[int, int]:
    rows, columns = weight.shape
    return rows, columns


def _root(metric: Metric, columns: int) -> Array:
    """C [n, n] of the damped metric."""
    return np.eye(columns) if metric.second_moment is None else damped_cholesky(metric.second_moment, DAMPING)[0]
