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
CHUNK_PAIRS = 1 << 15
FEWEST_BITS, MOST_BITS = 2, 12  # of an angle
FIRST_BITS = 5  # taken for granted until there is a pair to tell
TRIED = (1.0, 0.7, 0.4)  # of the angle that makes weights, or inputs, of a pair uncorrelated
WORTH = 1.25  # of what they cost, that the pairs of a round must save together


class Pairs(NamedTuple):
    """Axes i and j [p] of each pair, the angle that is best, and the bits that saves."""

    first: Array
    second: Array
    angles: Array
    saved: Array

    def at(self, places: Array) -> Pairs:
        """Some of them."""
        return Pairs(*(values[places] for values in self))


class Seen(NamedTuple):
    """What pairs are judged by, [p] each: the axis that is visited first, then the other.

    Attributes:
        weights: S_ii, S_ij, S_jj.
        inputs: What the metric charges the pair after the axes before it, in the same order.
        volume: Determinant of `inputs`.
        back: What targets of both take up.
    """

    weights: tuple[Array, Array, Array]
    inputs: tuple[Array, Array, Array]
    volume: Array
    back: tuple[Array, Array]

    def own(self) -> Array:
        """Bits of a row as it is."""
        (one, _, other), first = self.weights, self.inputs[0]
        return cost_bits(one * first + self.back[0]) + cost_bits(other * self.volume / first + self.back[1])

    def least(self) -> Array:
        """Bits of a row that no angle comes below: the axes of the weights and those of the inputs cannot be better
        than the same ones."""
        largest = _largest(self.weights) * _largest(self.inputs)
        smallest = np.maximum(self.weights[0] * self.weights[2] - self.weights[1] ** 2, 0) * self.volume / largest
        back = np.minimum(*self.back)
        return cost_bits(largest + back) + cost_bits(smallest + back)

    def turned(self, angles: Array) -> Array:
        """Bits of a row in turned axes."""
        one, other = _turned(self.weights, angles)
        first, second = _turned(self.inputs, angles)
        first = np.where(first >= second, first, self.volume / second)  # the larger one is visited first
        return cost_bits(one * first + self.back[0]) + cost_bits(other * self.volume / first + self.back[1])


def planes(described: Described) -> list[Planes]:
    """The product of rotations in planes that pay; none where no pair does."""
    size, bits, listed = described.size, None, []
    axis = Axis(COLUMNS, size)
    for _ in range(ROUNDS):
        price = 1.5 * np.log2(size) + (bits or FIRST_BITS) + 1
        chosen = _disjoint(_pairs(described, price))
        if not chosen.saved.size:
            break
        bits = bits or resolution(float(chosen.saved.sum()), chosen.angles)
        codes = np.rint(np.tan(chosen.angles / 2) * (1 << bits)).astype(np.int64)
        turns = list(zip(chosen.first.tolist(), chosen.second.tolist(), codes.tolist(), strict=True))
        found = described.moved(sparse(axis, bits, turns))
        if described.bits - found.bits < WORTH * len(turns) * price:
            break
        described, listed = found, [*listed, *turns]
    # undone in the order found, so decoded in reverse
    return [sparse(axis, bits, listed[::-1])] if bits and listed else []


def resolution(saved: float, angles: Array) -> int:
    """Bits of each of the angles that save so many bits together: where one bit more gains what it costs.

    Near its best angle θ a pair loses saved · δ²/θ² to an error δ, which is 4^−bits / 3 in the mean.
    """
    worth = max(saved, TINY) / max(float(np.square(angles).sum()), TINY)
    return int(np.clip(np.rint(0.5 * np.log2(2 / 3 * np.log(2) * worth)), FEWEST_BITS, MOST_BITS))


def _disjoint(pairs: Pairs) -> Pairs:
    """The best pairs, no axis twice, i < j."""
    used, places = set(), []
    for place in np.argsort(-pairs.saved).tolist():
        pair = int(pairs.first[place]), int(pairs.second[place])
        if not used.intersection(pair):
            used.update(pair)
            places.append(place)
    found = pairs.at(np.array(places, np.int64))
    signs = np.where(found.first < found.second, 1.0, -1.0)
    first, second = np.minimum(found.first, found.second), np.maximum(found.first, found.second)
    return Pairs(first, second, signs * found.angles, found.saved)


def _pairs(described: Described, price: float) -> Pairs:
    """Pairs that save more than `price` bits each."""
    order, lower = described.visited
    covariance = described.covariance[np.ix_(order, order)]
    fed_back = described.fed_back(np.diag(covariance), lower)
    covariance, lower, fed_back = (values.astype(np.float32) for values in (covariance, lower, fed_back))
    found = []
    step = max(1, CHUNK_PAIRS // described.size)
    for begin in range(0, described.size, step):  # as many at once as stay in a cache
        later, earlier = np.nonzero(np.tri(min(step, described.size - begin), described.size, begin - 1, bool))
        later += begin
        seen = _seen(covariance, lower, fed_back, earlier, later)
        own = seen.own()
        (close,) = np.nonzero(described.rows * (own - seen.least()) > price)
        later, earlier = later[close], earlier[close]
        angles, saved = _best_angles(_seen(covariance, lower, fed_back, earlier, later), own[close])
        found.append(Pairs(order[earlier], order[later], angles, described.rows * saved))
    pairs = Pairs(*(np.concatenate(values) for values in zip(*found, strict=True)))
    return pairs.at(pairs.saved > price)


def _seen(covariance: Array, lower: Array, fed_back: Array, earlier: Array, later: Array) -> Seen:
    energies, diagonal = np.maximum(np.diag(covariance), TINY), np.diag(lower)
    cross, first, second = lower[later, earlier], diagonal[earlier], diagonal[later]
    return Seen(
        (energies[earlier], covariance[later, earlier], energies[later]),
        (np.square(first), first * cross, np.square(second) + np.square(cross)),
        np.square(first * second),
        (fed_back[earlier], fed_back[later]),
    )


def _best_angles(seen: Seen, own: Array) -> tuple[Array, Array]:
    """Angle of each pair, and the bits of a row that it saves."""
    best, angles = np.zeros_like(own), np.zeros_like(own)
    for parts in (seen.weights, seen.inputs):
        whole = 0.5 * np.arctan2(2 * parts[1], parts[0] - parts[2])
        whole = np.where(np.abs(whole) > np.pi / 4, whole - np.sign(whole) * np.pi / 2, whole)
        for share in TRIED:
            saved = own - seen.turned(share * whole)
            angles = np.where(saved > best, share * whole, angles)
            best = np.maximum(best, saved)
    return angles, best


def _turned(parts: tuple[Array, Array, Array], angle: Array) -> tuple[Array, Array]:
    """Diagonal of [[a, b], [b, d]] along axes turned by an angle."""
    cosine, sine = np.cos(angle), np.sin(angle)
    mixed = 2 * cosine * sine * parts[1]
    squares = cosine**2, sine**2
    return squares[0] * parts[0] + mixed + squares[1] * parts[2], squares[1] * parts[0] - mixed + squares[0] * parts[2]


def _largest(parts: tuple[Array, Array, Array]) -> Array:
    """The larger eigenvalue of [[a, b], [b, d]]."""
    return 0.5 * (parts[0] + parts[2]) + np.hypot(0.5 * (parts[0] - parts[2]), parts[1])
