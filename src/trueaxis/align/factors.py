"""Factors: orthogonal matrices of few numbers that might suit a matrix, rounded as a file would hold them.

S, M of a matrix ─▶ every kind of factor ─▶ candidates, rounded ─▶ judged by what uses them

planes     pairs of axes, the best first: pairs.py
tied       one small rotation for all parts of a Kronecker axis
blocks     principal axes of every group of neighbours: channels lie sorted by energy
mirrors    one Householder reflection, from eigenvectors, then by descent
hadamard   Walsh–Hadamard with the signs that the covariances between its axes suggest
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from trueaxis.align.basis import joint
from trueaxis.align.described import Described
from trueaxis.align.estimate import STEP_ENERGY, Term
from trueaxis.align.pairs import planes, resolution
from trueaxis.runtime.orthogonal import COLUMNS, MOST_BITS, Axis, Hadamard, Mirrors, Orthogonal, Planes
from trueaxis.types import Array

ENTRY_BITS = range(3, 12)
LARGEST_TIED = 64
BLOCKS = (2, 4, 8, 16, 32)
PRICE = 4.0  # bits of an angle at least
LEAST = 200.0  # bits that are worth a closer look
EIGENVECTORS, MATCHES = 128, 4  # mirrors tried: eigenvectors, and axes of each
STARTING = 0.4  # of what a mirror costs, that its start must save
DESCENTS = ((16, 50), (4, 150))  # so many mirrors, the best, descend so many steps
RATE = 0.05  # of the descent
TRIED = 3  # ways to lay the columns out
Factors = tuple[Orthogonal, ...]
Candidate = Callable[[Described], Sequence[Factors]]
"""A matrix ─▶ factors of its columns that might pay together, or none."""


def tied(described: Described) -> list[Factors]:
    """Rotations of one of two axes that the columns may be laid out on, or of both: a Kronecker product."""
    size, axes = described.size, []
    for side in range(2, size // 2 + 1):
        if size % side == 0:
            outer, inner = Axis(COLUMNS, side, size // side), Axis(COLUMNS, side)
            axes += [(outer,), (inner,)] * (side <= LARGEST_TIED) + [(outer, Axis(COLUMNS, size // side))]
    axes = [choice for choice in axes if sum(map(_angle_bits, choice)) < described.most]
    promised = {choice: _promise(described, choice) for choice in axes}
    best = sorted(axes, key=lambda choice: -promised[choice])[:TRIED]
    return [_tied(described, choice) for choice in best if promised[choice] > LEAST]


def _tied(described: Described, axes: Sequence[Axis]) -> Factors:
    """The best rotation of each axis, after those before it."""
    found = []
    for axis in axes:
        parts = _parts(described.covariance, axis)
        worth = _parts_of_diagonal(_conditional(described), axis)
        levels = np.exp(np.log(worth).mean(axis=1))
        terms = [Term(part, described.rows, None, float(one)) for part, one in zip(parts, levels, strict=True)]
        axes_there = _nearest(joint(terms, 1.0, 0))[None]
        then = described.moved(_as_planes(axis, axes_there, MOST_BITS))
        bits = resolution(described.bits - then.bits, _angles(axes_there))
        found.append(_as_planes(axis, axes_there, bits))
        described = then
    return tuple(found)


def blocks(described: Described) -> list[Factors]:
    """Principal axes of the weights in groups of neighbours, for every size of a group."""
    found = []
    for side in BLOCKS:
        if described.size % side or side == described.size:
            continue
        axis = Axis(COLUMNS, side)
        parts = _parts(described.covariance, axis)
        axes = np.stack([_nearest(one) for one in np.linalg.eigh(parts)[1].swapaxes(1, 2)])
        saved = described.rows * _log_energies(parts, axes)
        if saved > PRICE * len(parts) * side * (side - 1) / 2:
            bits = resolution(saved, _angles(axes))
            found.append((_as_planes(replace(axis, size=described.size), axes, bits),))
    return found


def mirrors(described: Described) -> list[Factors]:
    """The Householder reflection that saves most, its entries rounded to so many bits.

    An eigenvector of P Λ P is P e = e − 2 (v·e) v: eigenvector less axis is along v for the right pair of them.
    """
    size, covariance = described.size, described.covariance
    vectors = np.linalg.eigh(covariance.astype(np.float32))[1].T[::-1][:EIGENVECTORS].astype(np.float64)
    places = np.argsort(-np.abs(vectors), axis=1)[:, :MATCHES]
    starts = [sign * vectors[:, None] - np.eye(size)[places] for sign in (-1.0, 1.0)]
    found = np.concatenate(starts).reshape(-1, size)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    worth = float(np.exp(np.log(_conditional(described)).mean()))
    bits = _mirrored_bits(covariance, found, worth)
    own = float(np.log2(1 + STEP_ENERGY * worth * np.diag(covariance)).sum())
    if 0.5 * described.rows * (own - bits.min()) < STARTING * PRICE * size:
        return []
    for count, steps in DESCENTS:
        found = _descended(covariance, found[np.argsort(bits)[:count]], worth, steps)
        bits = _mirrored_bits(covariance, found, worth)
    scaled = found[bits.argmin()] / np.abs(found[bits.argmin()]).max()
    rounded = [np.rint(scaled * (1 << bits)).astype(np.int64)[None] for bits in ENTRY_BITS]
    kept = _mirrored_bits(covariance, np.concatenate([one / np.linalg.norm(one) for one in rounded]), worth)
    tried = [Mirrors(Axis(COLUMNS, size), one) for one in rounded]
    paid = 0.5 * described.rows * kept + [8 * len(one.payload) for one in tried]
    return [(tried[int(paid.argmin())],)]


def hadamard(described: Described) -> list[Factors]:
    """Walsh–Hadamard of all columns, or of blocks of the power of two in their number.

    If W = Λ·H·D with signs D, the covariance of i and i ⊕ k is dᵢ dᵢ⊕ₖ times a number that depends on k alone.
    """
    size = described.size & -described.size
    if size < 2:
        return []
    mean = _parts(described.covariance, Axis(COLUMNS, size)).mean(axis=0)
    negative = np.zeros(1, bool)
    while negative.size < size:
        half = negative.size
        across = np.diagonal(mean[:half, half : 2 * half]) < 0
        negative = np.concatenate([negative, negative ^ across])
    return [(Hadamard(Axis(COLUMNS, size), negative),)]


def pairs(described: Described) -> list[Factors]:
    """Products of rotations in planes."""
    return [(found,) for found in planes(described)]


CANDIDATES: dict[str, Candidate] = {
    "planes": pairs, "tied": tied, "blocks": blocks, "mirrors": mirrors, "hadamard": hadamard,
}  # fmt: skip


def _parts(matrix: Array, axis: Axis) -> Array:
    """Blocks [copies, size, size] of a matrix [n, n] along an axis."""
    outer = len(matrix) // (axis.size * axis.inner)
    laid = matrix.reshape(outer, axis.size, axis.inner, outer, axis.size, axis.inner)
    return np.einsum("asbatb->abst", laid).reshape(-1, axis.size, axis.size)


def _parts_of_diagonal(values: Array, axis: Axis) -> Array:
    """[copies, size] of [n]."""
    return values.reshape(-1, axis.size, axis.inner).swapaxes(1, 2).reshape(-1, axis.size)


def _conditional(described: Described) -> Array:
    """C_jj² [n]."""
    order, lower = described.visited
    return np.square(np.diag(lower))[np.argsort(order)]


def _promise(described: Described, axes: Sequence[Axis]) -> float:
    """Bits that the principal axes of all parts together would save at high rate, less what they cost."""
    covariance, saved = described.covariance, 0.0
    for axis in axes:
        parts = _parts(covariance, axis)
        sizes = np.trace(parts, axis1=1, axis2=2)
        turn = np.linalg.eigh((parts / np.maximum(sizes, 1e-30)[:, None, None]).mean(axis=0))[1].T
        saved += described.rows * _log_energies(parts, turn) - _angle_bits(axis)
        if axis is not axes[-1]:
            for _ in range(2):  # T S, then that of its transpose
                laid = covariance.reshape(-1, axis.size, axis.inner * described.size)
                covariance = (turn @ laid).reshape(covariance.shape).T
    return saved


def _angle_bits(axis: Axis) -> float:
    """What the angles of a rotation cost at least."""
    return PRICE * axis.size * (axis.size - 1) / 2


def _log_energies(parts: Array, axes: Array) -> float:
    """½ Σ log₂ of energies along the own axes, less that along others; [count, size, size] both."""
    turned = ((axes @ parts) * axes).sum(axis=-1)
    own = np.diagonal(parts, axis1=-2, axis2=-1)
    return float(0.5 * np.log2(np.maximum(own, 1e-30) / np.maximum(turned, 1e-30)).sum())


def _nearest(axes: Array) -> Array:
    """The same axes in the order and with the signs that come nearest to the identity: both are free."""
    from scipy.optimize import linear_sum_assignment

    _, order = linear_sum_assignment(-np.abs(axes.T))
    found = axes[order]
    return found * np.where(np.diag(found) < 0, -1.0, 1.0)[:, None]


def _angles(axes: Array) -> Array:
    """Angles of the planes of rotations [count, size, size], whose rows are axes: [size · (size − 1) / 2, count]."""
    left, size, angles = axes.swapaxes(1, 2).copy(), axes.shape[1], []
    for i in range(size):
        for j in range(i + 1, size):
            angle = np.arctan2(left[:, j, i], left[:, i, i])
            angle -= np.pi * np.sign(angle) * (np.abs(angle) > np.pi / 2)  # a sign of an axis is free
            cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
            left[:, i], left[:, j] = cosine * left[:, i] + sine * left[:, j], cosine * left[:, j] - sine * left[:, i]
            angles.append(angle)
    return np.array(angles)


def _as_planes(axis: Axis, axes: Array, bits: int) -> Planes:
    """Rotations of neighbouring groups as planes that decode in the reverse of the elimination."""
    count, size, _ = axes.shape
    codes = np.rint(np.tan(_angles(axes) / 2) * (1 << bits)).astype(np.int64).T
    starts = size * np.arange(count)[:, None]
    first, second = ((starts + places).ravel()[::-1] for places in np.triu_indices(size, 1))
    return Planes(axis, bits, first, second, codes.ravel()[::-1])


def _mirrored_bits(covariance: Array, vectors: Array, worth: float) -> Array:
    """Σ log₂(1 + 17 u) after each of the reflections along unit vectors [k, n]."""
    crossed = vectors @ covariance
    inside = (vectors * crossed).sum(axis=1, keepdims=True)
    energies = np.diag(covariance) - 4 * vectors * crossed + 4 * np.square(vectors) * inside
    return np.log2(1 + STEP_ENERGY * worth * np.maximum(energies, 0)).sum(axis=1)


def _descended(covariance: Array, starts: Array, worth: float, steps: int) -> Array:
    """Unit vectors [k, n] of mirrors, all of them improved on `_mirrored_bits`."""
    import torch

    moment, free = torch.from_numpy(covariance).float(), torch.from_numpy(starts).float().requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=RATE / np.sqrt(len(covariance)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        vectors = free / free.norm(dim=1, keepdim=True)
        crossed = vectors @ moment
        inside = (vectors * crossed).sum(dim=1, keepdim=True)
        energies = moment.diagonal() - 4 * vectors * crossed + 4 * vectors.square() * inside
        bits = torch.log2(1 + STEP_ENERGY * worth * energies.clamp_min(0)).sum()
        optimizer.zero_grad()
        bits.backward()
        optimizer.step()
        schedule.step()
    found = free.detach().double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)
