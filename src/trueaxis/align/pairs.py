"""Pairs: a product of rotations in planes, from the pair that saves most on, while a pair saves more than it costs.

    S, M ─▶ what every pair of axes would save by itself ─▶ the best pairs without a common axis ─▶ turned ─▶ again

Of a pair only its own two columns are looked at: their energies, and what the metric charges for them after the axes
before them in the visiting order. That is exact for neighbours in the order, and the whole estimate judges every round.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trueaxis.align.described import TINY, Described, cost_bits
from trueaxis.runtime.orthogonal import COLUMNS, Axis, Planes, sparse
from trueaxis.types import Array

ROUNDS = 40
MOST_PAIRS = 1 << 19  # looked at closely in a round
ANGLE_BITS = (3, 5, 7)
TRIED = np.array([1.0, 0.7, 0.4])  # of the angle that makes weights, or inputs, of a pair uncorrelated
KEPT = 0.5  # of what pairs promise, that all of a round together must hold


class Pairs(NamedTuple):
    """Axes i and j [p] of each pair, the angle that is best, and the bits that saves."""

    first: Array
    second: Array
    angles: Array
    saved: Array


def planes(described: Described) -> list[Planes]:
    """Products of rotations in planes, at several resolutions of their angles; none where no pair pays."""
    return [built for bits in ANGLE_BITS if (built := _built(described, bits)) is not None]


def _built(described: Described, bits: int) -> Planes | None:
    size, listed = described.size, []
    axis, price = Axis(COLUMNS, size), 1.5 * np.log2(size) + bits + 1
    for _ in range(ROUNDS):
        chosen = _disjoint(_pairs(described, price), bits)
        while chosen:
            found = described.moved(sparse(axis, bits, [pair[:3] for pair in chosen]))
            paid = len(chosen) * price + KEPT * sum(pair[3] - price for pair in chosen)
            if described.bits - found.bits > paid:
                break
            chosen = chosen[: len(chosen) // 2]
        if not chosen:
            break
        described, listed = found, [*listed, *(pair[:3] for pair in chosen)]
    return sparse(axis, bits, listed[::-1]) if listed else None  # undone in the order found, so decoded in reverse


def _disjoint(pairs: Pairs, bits: int) -> list[tuple[int, int, int, float]]:
    """(i, j, code, bits saved) of the best pairs, no axis twice."""
    used, found = set(), []
    for place in np.argsort(-pairs.saved):
        i, j = int(pairs.first[place]), int(pairs.second[place])
        code = round(float(np.tan(pairs.angles[place] / 2)) * (1 << bits))
        if code and not used & {i, j}:
            used |= {i, j}
            found.append((i, j, code, float(pairs.saved[place])) if i < j else (j, i, -code, float(pairs.saved[place])))
    return found


def _pairs(described: Described, price: float) -> Pairs:
    """Pairs that save more than `price` bits each."""
    order, lower = described.visited
    covariance = described.covariance[np.ix_(order, order)]
    energies, worth = np.maximum(np.diag(covariance), TINY), np.square(np.diag(lower))
    fed_back = described.fed_back(energies, lower)
    shared = np.square(covariance) / np.outer(energies, energies)
    explained = np.square(lower) / (worth[:, None] + np.square(lower))
    least = min(2 * np.log(2) * price / described.rows / 1.5, 0.5)
    closeness = np.tril(np.maximum(shared, explained), -1)
    later, earlier = np.nonzero(closeness > least)
    if later.size > MOST_PAIRS:
        closest = np.argpartition(-closeness[later, earlier], MOST_PAIRS)[:MOST_PAIRS]
        later, earlier = later[closest], earlier[closest]
    weights = (energies[earlier], covariance[later, earlier], energies[later])
    cross = lower[later, earlier]
    inputs = (worth[earlier], np.diag(lower)[earlier] * cross, worth[later] + np.square(cross))
    volume, back = worth[earlier] * worth[later], (fed_back[earlier], fed_back[later])
    own = cost_bits(energies[earlier] * worth[earlier] + back[0]) + cost_bits(energies[later] * worth[later] + back[1])
    best, angles = np.zeros(later.size), np.zeros(later.size)
    for parts in (weights, inputs):
        whole = 0.5 * np.arctan2(2 * parts[1], parts[0] - parts[2])
        whole = np.where(np.abs(whole) > np.pi / 4, whole - np.sign(whole) * np.pi / 2, whole)
        for share in TRIED:
            angle = share * whole
            one, other = _turned(weights, angle)
            first, second = _turned(inputs, angle)
            first, second = (
                np.where(first >= second, first, volume / second),
                np.where(first >= second, volume / first, second),
            )
            saved = described.rows * (own - cost_bits(one * first + back[0]) - cost_bits(other * second + back[1]))
            angles = np.where(saved > best, angle, angles)
            best = np.maximum(best, saved)
    (kept,) = np.nonzero(best > price)
    return Pairs(order[earlier[kept]], order[later[kept]], angles[kept], best[kept])


def _turned(parts: tuple[Array, Array, Array], angle: Array) -> tuple[Array, Array]:
    """Diagonal of [[a, b], [b, d]] along axes turned by an angle."""
    cosine, sine = np.cos(angle), np.sin(angle)
    mixed = 2 * cosine * sine * parts[1]
    squares = cosine**2, sine**2
    return squares[0] * parts[0] + mixed + squares[1] * parts[2], squares[1] * parts[0] - mixed + squares[0] * parts[2]
