"""A uniform against a Lloyd–Max scalar quantizer on one sample, at a fixed number of levels and behind an ideal coder.

    entries at unit column scale ─▶ four levels each ─▶ bits that the uniform one loses

References: Max 1960; Lloyd 1982; Gish & Pierce 1968 (with entropy coding, uniform is near optimal).
"""

from __future__ import annotations

import numpy as np

from trueaxis.types import Array

LEVELS = 4
ENTRIES = 2048
SPACINGS = 2.0 ** (np.arange(-16, 25) / 8)  # of uniform levels that are tried, in standard deviations
ITERATIONS = 40
TINY = 1e-9


def uniform_losses(values: Array) -> dict[str, float]:
    """Bits that a uniform quantizer loses against Lloyd–Max at equal distortion.

    Without a coder both have four levels, and loss is ½ log₂ of the ratio of their errors. With an ideal coder the
    uniform one has as many levels as it needs to reach the error of Lloyd–Max, and loss is the difference of entropies.

    Args:
        values: Entries of unit variance, any shape; at most 2,048 of them are looked at.

    Returns:
        uniform_loss_bits and coded_uniform_loss_bits.

    Example:
        >>> found = uniform_losses(np.random.default_rng(0).normal(size=4096))
        >>> found["uniform_loss_bits"] < 0.1, found["coded_uniform_loss_bits"] < 0
        (True, True)
    """
    sample = _thinned(values)
    error, entropy = _lloyd_max(sample)
    uniform = min(float(np.square(sample - _clipped(sample, spacing)).mean()) for spacing in SPACINGS)
    error = max(error, TINY)
    return {
        "uniform_loss_bits": float(0.5 * np.log2(max(uniform, TINY) / error)),
        "coded_uniform_loss_bits": _coded_entropy(sample, error) - entropy,
    }


def _thinned(values: Array) -> Array:
    flat = np.sort(values, axis=None)
    return flat if flat.size <= ENTRIES else flat[np.linspace(0, flat.size - 1, ENTRIES).round().astype(int)]


def _lloyd_max(sample: Array) -> tuple[float, float]:
    """Mean squared error and entropy of the best codebook of `LEVELS` values for a sorted sample, of two starts."""
    starts = np.quantile(sample, (np.arange(LEVELS) + 0.5) / LEVELS), np.linspace(sample[0], sample[-1], LEVELS)
    sums = np.concatenate([[0.0], np.cumsum(sample)])
    found = []
    for levels in starts:
        for _ in range(ITERATIONS):
            edges = np.searchsorted(sample, (levels[1:] + levels[:-1]) / 2)
            ends = np.concatenate([[0], edges, [sample.size]])
            counts = np.diff(ends)
            levels = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), levels)
        labels = np.searchsorted((levels[1:] + levels[:-1]) / 2, sample)
        found.append((float(np.square(sample - levels[labels]).mean()), _entropy(labels)))
    return min(found)


def _clipped(sample: Array, spacing: float) -> Array:
    """Nearest of four levels ± spacing / 2, ± 3 spacing / 2."""
    edge = LEVELS // 2 - 0.5
    return np.clip(np.floor(sample / spacing) + 0.5, -edge, edge) * spacing


def _coded_entropy(sample: Array, error: float) -> float:
    """Entropy of a uniform quantizer without end, reconstructing at grid points, whose step just reaches the error."""
    low, high = -20.0, 6.0
    for _ in range(30):
        middle = (low + high) / 2
        step = 2.0**middle
        reached = np.square(sample - np.rint(sample / step) * step).mean() <= error
        low, high = (middle, high) if reached else (low, middle)
    return _entropy(np.rint(sample / 2.0**low))


def _entropy(labels: Array) -> float:
    """Bits of a label, from their own frequencies."""
    _, counts = np.unique(labels, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares @ np.log2(shares)))
