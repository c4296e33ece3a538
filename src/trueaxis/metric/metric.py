"""Compute with metrics: damp and factor them, carry them through a change of axes, and bound the rate.

    Statistics ─▶ metric_for ─▶ Metric ─▶ distance, damped_cholesky      what an error costs
                                   └────▶ limit_bits                     the bits that cost is worth

Everything is NumPy float64. D = Σᵢ ρᵢ (eᵢ H eᵢᵀ) + Σᵢ εᵢ (eᵢ K eᵢᵀ), the metric of `types.Metric` without g.

References: Cover & Thomas, Elements of Information Theory, 10.3.3 (reverse water-filling);
WaterSIC, arXiv 2603.04956 (the same limit for a linear layer under E[x xᵀ]);
Ledoit & Wolf 2004 (shrinkage of a covariance toward a multiple of the identity).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.metric.statistics import Statistics
from trueaxis.types import Array, CalibrationError, Metric, TrueaxisError, Weight

if TYPE_CHECKING:
    import torch

DISTANCE_BLOCK, FACTOR_BLOCK = 256, 256  # columns
ZERO_METRIC_DAMPING = 1e-12  # what stands in for H = 0, where no scale is given


def embedding_key(name: str) -> str:
    """Key of the sensitivity of a tied matrix in its use as an embedding."""
    return f"{name}#embedding"


def head_key(name: str) -> str:
    """Key of the sensitivity of a tied matrix in its use as a head."""
    return f"{name}#head"


def row_probabilities(statistics: Statistics) -> Array:
    """How often an embedding's rows are looked up, float64 [m]: the mean of counts and of what the model predicts.

    Counts of rare tokens are mostly noise; predictions, given what came before, have the same mean and far less of it
    (Rao–Blackwell). Tokens that a model reads but never says, such as one that starts a text, have their counts. Half
    a count more for each, so that none is free.
    """
    counts, said = statistics.token_counts.astype(np.float64), statistics.predictions
    if said.size == counts.size:
        counts = (counts + said * (counts.sum() / said.sum())) / 2
    smoothed = counts + 0.5
    return smoothed / smoothed.sum()


def metric_for(weight: Weight, statistics: Statistics) -> Metric:
    """The metric of one matrix.

    A linear layer or head takes H of its space; an embedding weighs its rows by how often they are looked up; a
    tied matrix takes both, with the embedding's term in units of the head's sensitivity. A sensitivity that was
    not measured is 1. An expert e of a layer takes (Σₑ + n·P) / (R + n), where Σₑ are its sums, P is the mean of
    the layer's pool, and R the pool's tokens: n tokens of the pool stand for what it has not seen.

    Args:
        weight: Any matrix that is quantized; one whose space is unknown or was not heard gets H = I.

    Raises:
        CalibrationError: The statistics lack the weight's space, or do not fit its shape.
    """
    sensitivities = statistics.sensitivities
    if weight.role == "exact":
        raise TrueaxisError(f"{weight.name}: is kept exactly and has no metric")
    if weight.role == "embedding":
        return Metric(None, _rows_of(weight, statistics), sensitivities.get(weight.name, 1.0))
    key = weight.group or weight.name
    if weight.space is None or weight.space in statistics.unheard:
        rows = _rows_of(weight, statistics) if weight.role == "tied" else None
        return Metric(None, None, sensitivities.get(key, 1.0), rows)
    second_moment = _second_moment(weight, weight.space, statistics)
    if second_moment.shape[0] != weight.shape[1]:
        raise CalibrationError(
            f"{weight.name}: metric is {list(second_moment.shape)} but the weight has {weight.shape[1]} inputs; "
            "calibrate with the same model"
        )
    if weight.role != "tied":
        return Metric(second_moment, None, sensitivities.get(key, 1.0))
    as_head = sensitivities.get(head_key(weight.name), 1.0)
    as_embedding = sensitivities.get(embedding_key(weight.name), 1.0)
    return Metric(second_moment, None, as_head, _rows_of(weight, statistics) * (as_embedding / as_head))


def blind_spots(weights: Sequence[Weight], statistics: Statistics) -> tuple[str, ...]:
    """Sentences on what calibration did not see: a model that did not run, matrices without a metric, and experts
    that lean on their layer's pool because they saw fewer tokens than they have inputs."""
    if statistics.unrun:
        return (
            f"the model was not run ({statistics.unrun}): every metric is the identity, "
            "and every matrix is to lose the same share of its energy",
        )
    matrices = [weight for weight in weights if weight.role not in ("exact", "embedding")]
    found = [
        f"{weight.name}: calibration cannot listen to its input; its metric is the identity"
        for weight in matrices
        if weight.space is None or weight.space in statistics.unheard
    ]
    seen: set[str] = set()
    for weight in matrices:
        if weight.pool is None or weight.space is None or weight.space in statistics.unheard:
            continue
        tokens, inputs = statistics.tokens[weight.space], weight.shape[1]
        if tokens < inputs and weight.space not in seen:
            seen.add(weight.space)
            found.append(f"{weight.space}: {tokens} tokens for {inputs} inputs; its metric leans on the other experts'")
    return tuple(found)


def _second_moment(weight: Weight, space: str, statistics: Statistics) -> Array:
    if weight.pool is None:
        return statistics.second_moment(space)
    pooled = statistics.second_moment(weight.pool)
    columns = pooled.shape[0]
    return (statistics.sums[space] + columns * pooled) / (statistics.tokens[weight.pool] + columns)


def _rows_of(weight: Weight, statistics: Statistics) -> Array:
    if statistics.token_counts.shape[0] != weight.shape[0]:
        raise CalibrationError(
            f"{weight.name}: statistics count {statistics.token_counts.shape[0]} tokens but the weight has "
            f"{weight.shape[0]} rows; calibrate with the same model"
        )
    return row_probabilities(statistics)


def distance(error: Array, metric: Metric) -> float:
    """D of an error E [m, n], without the sensitivity factor; products in the error's own dtype, sums in float64.

    Example:
        >>> distance(np.ones((2, 3)), Metric(2 * np.eye(3)))
        12.0
    """

    def rows(moment: Array | None) -> Array:
        if moment is None:
            return np.einsum("ij,ij->i", error, error, dtype=np.float64)
        return _row_distances(error, moment)

    found = rows(metric.second_moment)
    total = found.sum() if metric.row_weights is None else found @ metric.row_weights
    if metric.embedding_weights is not None:
        total += rows(metric.embedding_moment) @ metric.embedding_weights
    return float(total)


def _row_distances(error: Array, moment: Array) -> Array:
    """e H eᵀ of every row e, float64 [m]: of the two halves of a symmetric H one product is enough."""
    import torch  # minds the number of threads; the BLAS of NumPy does not

    errors, moments = torch.from_numpy(error), torch.from_numpy(moment.astype(error.dtype, copy=False))
    rows = np.zeros(error.shape[0])
    for start in range(0, error.shape[1], DISTANCE_BLOCK):
        block = slice(start, start + DISTANCE_BLOCK)
        moved = errors[:, block] @ moments[block, block]
        moved.addmm_(errors[:, :start], moments[:start, block], alpha=2)
        rows += np.einsum("ij,ij->i", moved.numpy(), error[:, block], dtype=np.float64)
    return rows


def damped_cholesky(second_moment: Array, start: float = 1e-6) -> tuple[Array, float]:
    """Factor H + δI = C Cᵀ with the smallest δ of a ×10 ladder that lets the factorization succeed.

    Args:
        second_moment: H [n, n], symmetric up to rounding; need not be positive definite, may be zero.
        start: First rung of the ladder, relative to the mean of H's diagonal.

    Returns:
        C [n, n] lower triangular with a positive diagonal, and the δ that was added.

    Raises:
        CalibrationError: H holds NaN or Inf.

    Example:
        >>> factor, damping = damped_cholesky(np.ones((3, 3)))
        >>> np.allclose(factor @ factor.T, np.ones((3, 3)) + damping * np.eye(3))
        True
    """
    import torch

    matrix = torch.from_numpy(second_moment).double()
    if not math.isfinite(float(matrix.sum())):
        raise CalibrationError(f"metric {list(second_moment.shape)} holds NaN or Inf; calibrate again")
    diagonal = matrix.diagonal()
    scale = float(diagonal.abs().mean()) or float(matrix.abs().max())
    if scale < np.finfo(np.float64).tiny:
        return math.sqrt(ZERO_METRIC_DAMPING) * np.eye(matrix.shape[0]), ZERO_METRIC_DAMPING
    relative = start
    while True:  # ends: a multiple of I above the spectral radius, at most n · max |H|, is reached
        factor = matrix.clone()
        factor.diagonal().add_(relative * scale)
        if _factorize(factor) and bool(torch.isfinite(factor.diagonal()).all()):
            return factor.numpy(), relative * scale
        relative = max(relative * 10, 1e-12)


def _factorize(matrix: torch.Tensor) -> bool:
    """Lower Cholesky factor in place, block column by block column; whether there is one.

    The library's own function takes longer: it clears the other triangle against the grain of memory.
    """
    import torch

    for start in range(0, matrix.shape[0], FACTOR_BLOCK):
        block = slice(start, start + FACTOR_BLOCK)
        panel = matrix[start:, block]
        panel.addmm_(matrix[start:, :start], matrix[block, :start].T, alpha=-1)
        factor, failure = torch.linalg.cholesky_ex(panel[:FACTOR_BLOCK])
        if int(failure):
            return False
        panel[:FACTOR_BLOCK] = factor
        panel[FACTOR_BLOCK:] = torch.linalg.solve_triangular(factor.T, panel[FACTOR_BLOCK:], upper=True, left=False)
    matrix.tril_()
    return True


def transform(second_moment: Array, matrix: Array) -> Array:
    """Metric of x′ = T x: H′ = T H Tᵀ. With W′ = W T⁻¹, D stays the same number."""
    moved = matrix @ second_moment @ matrix.T
    return (moved + moved.T) / 2


def transform_output(output_metric: Array, matrix: Array) -> Array:
    """Metric of y′ = S y: G′ = S⁻ᵀ G S⁻¹. With W′ = S W, D stays the same number."""
    half = np.linalg.solve(matrix.T, output_metric)
    moved = np.linalg.solve(matrix.T, half.T)
    return (moved + moved.T) / 2


def fold_norm(weight: Array, second_moment: Array, norm_weight: Array) -> tuple[Array, Array]:
    """Move a norm's weight γ into the matrix that reads it: W·diag(γ), diag(1/γ)·H·diag(1/γ).

    Where γ is 0 the input is 0 whatever the norm says: that column and its row and column of H become 0.

    Returns:
        The folded W [m, n] and H [n, n]; arguments are left as they are.
    """
    gamma = np.asarray(norm_weight, np.float64)
    inverse = np.divide(1.0, gamma, out=np.zeros_like(gamma), where=gamma != 0)
    return np.asarray(weight, np.float64) * gamma, second_moment * np.outer(inverse, inverse)


def limit_bits(
    second_moment: Array | None,
    weight: Array,
    distortion: float,
    *,
    row_weights: Array | None = None,
    embedding_weights: Array | None = None,
) -> float:
    """Fewest bits per weight at which D is possible, if W's entries were i.i.d. N(0, σ²), σ² = mean(W²).

    With vᵢⱼ = σ² (ρᵢ λⱼ + εᵢ) and λ the eigenvalues of H,
        R(θ) = 1/(mn) Σᵢⱼ max(0, ½ log₂(vᵢⱼ/θ)),    D(θ) = Σᵢⱼ min(θ, vᵢⱼ).

    Args:
        second_moment: H [n, n], its eigenvalues [n], or None for the identity.
        weight: W [m, n], the original with its norm folded.
        distortion: D, summed over all rows, without the sensitivity factor.
        row_weights: ρ [m], or None for ones.
        embedding_weights: ε [m], or None for zeros.

    Returns:
        Bits per weight; 0 where D is no less than that of an all-zero matrix, inf for D = 0.

    Example:
        >>> round(limit_bits(np.eye(4), np.ones((8, 4)), 8 * 4 / 2**6), 9)
        3.0
    """
    rows, columns = weight.shape
    variance = float(np.mean(np.square(weight, dtype=np.float64)))
    eigenvalues = np.ones(columns) if second_moment is None else second_moment
    if eigenvalues.ndim == 2:
        eigenvalues = spectrum(eigenvalues)
    per_row = np.stack(
        [
            np.ones(rows) if row_weights is None else row_weights,
            np.zeros(rows) if embedding_weights is None else embedding_weights,
        ],
        axis=1,
    )
    # Rows with equal weights are one row taken several times: a vocabulary has few distinct counts.
    kinds, repeats = np.unique(per_row, axis=0, return_counts=True)
    variances = variance * (kinds[:, :1] * eigenvalues + kinds[:, 1:])
    return _waterfill_bits(variances.ravel(), np.repeat(repeats, columns), distortion)


def structured_limit_bits(second_moment: Array | None, weight: Array, distortion: float) -> float:
    """`limit_bits` for rows i.i.d. N(0, Σ_W): reverse water-filling on the eigenvalues of Σ_W H.

    Σ_W = (1 − s) WᵀW/m + s·t·I, t its mean diagonal, s = n/(n + m): the shrinkage fades as rows outnumber
    columns. Lower than `limit_bits` where the rows of W share directions that H does not cancel.
    """
    rows, columns = weight.shape
    weight = np.asarray(weight, np.float64)
    covariance = weight.T @ weight / rows
    shrinkage = columns / (columns + rows)
    covariance = (1 - shrinkage) * covariance + shrinkage * (np.trace(covariance) / columns) * np.eye(columns)
    if second_moment is not None:
        values, vectors = np.linalg.eigh((second_moment + second_moment.T) / 2)
        root = vectors * np.sqrt(np.maximum(values, 0))
        covariance = root.T @ covariance @ root  # same nonzero eigenvalues as Σ_W H, and symmetric
    return _waterfill_bits(spectrum(covariance), np.full(columns, rows), distortion)


def spectrum(matrix: Array) -> Array:
    """Eigenvalues [n] float64 of a metric [n, n], ascending, in its own precision; negative by rounding become 0."""
    import torch

    return torch.linalg.eigvalsh(torch.from_numpy(matrix)).clamp_(min=0).double().numpy()


def _waterfill_bits(variances: Array, repeats: Array, distortion: float) -> float:
    """Mean bits of independent Gaussians, variances[i] occurring repeats[i] times, by reverse water-filling."""
    if distortion <= 0:
        return math.inf if variances.max(initial=0) > 0 else 0.0
    level = water_level(variances, distortion, repeats)
    dry = variances > level
    return float(0.5 * (repeats[dry] @ np.log2(variances[dry] / level)) / repeats.sum())


def water_level(variances: Array, distortion: float, repeats: Array | None = None) -> float:
    """θ with Σ min(θ, varianceᵢ) = D, for independent Gaussians; inf where D is all their energy or more.

    D(θ) is piecewise linear between sorted variances: find the piece, solve it.

    Args:
        variances: float64 [k].
        distortion: D > 0.
        repeats: How often each occurs [k]; once by default.

    Example:
        >>> water_level(np.array([4.0, 1.0]), 1.0)
        0.5
    """
    order = np.argsort(variances)
    counts = np.ones(variances.size) if repeats is None else repeats[order].astype(np.float64)
    variances = variances[order]
    below = np.concatenate([[0.0], np.cumsum(counts * variances)])
    above = counts.sum() - np.concatenate([[0.0], np.cumsum(counts)])
    # reached[i] = D at θ = variances[i]: smaller ones are drowned, the others contribute θ each.
    reached = below[:-1] + above[:-1] * variances
    piece = int(np.searchsorted(reached, distortion))
    return math.inf if piece == variances.size else float((distortion - below[piece]) / above[piece])
