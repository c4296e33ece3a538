"""Loss: what errors of a matrix cost the model's own predictions, in the coordinates of the file.

    layerwise   D = g · ‖E x‖² of each layer by itself, g measured with noise
    fisher      D = g · Σᵢ ρᵢ (eᵢ H eᵢᵀ) with ρ ∝ diag G; of an embedding H is the G of what it puts out

The scale g stays the sensitivity: G is of single tokens and misses what errors of neighbours do together, as where
attention averages values. An output that turns takes its G along: G′ = S G Sᵀ for orthogonal S. A matrix whose
gradients were not heard stays layerwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from trueaxis.align.maps import Map, moment
from trueaxis.align.network import Change
from trueaxis.metric.metric import embedding_key, head_key
from trueaxis.metric.statistics import Statistics
from trueaxis.stages import Fisher, Layerwise
from trueaxis.types import Array, CalibrationError, Metric, Weight

ISOTROPIC = 0.05  # share of every metric of outputs that is the identity: where gradients are flattest they promise
# what holds for small errors only, and errors that feedback moves there would pile up
NO_ENERGY = 1e-12  # of gradients, relative to the mean: such rows reach nothing, and take no bits


def layerwise(
    stage: Layerwise, weight: Weight, metric: Metric, change: Change | None, statistics: Statistics
) -> Metric:
    """The metric as alignment left it."""
    return metric


def fisher(stage: Fisher, weight: Weight, metric: Metric, change: Change | None, statistics: Statistics) -> Metric:
    """The metric with directions that follow gradients of the model's predictions; its scale stays the sensitivity.

    Args:
        weight: Which matrix.
        metric: In the coordinates of the file, layerwise.
        change: How its coordinates changed, or None.
        statistics: With gradients in the original coordinates.

    Raises:
        CalibrationError: Gradients do not fit the weight's shape.
    """
    reads, writes = (change.reads, change.writes) if change else ((), ())
    outputs, columns = weight.shape
    if weight.role in ("embedding", "tied"):
        key = embedding_key(weight.name) if weight.role == "tied" else weight.name
        looked_up = _fitting(statistics, key, (columns, columns))
        if weight.role == "embedding":
            return metric if looked_up is None else replace(metric, second_moment=_relative_moment(reads, looked_up))
        rows = _fitting(statistics, head_key(weight.name), (outputs,))
        if rows is None or looked_up is None or metric.second_moment is None:
            return metric
        return replace(metric, row_weights=_relative(rows), embedding_moment=_relative_moment(reads, looked_up))
    found = _fitting(statistics, weight.name, (outputs,), (outputs, outputs))
    if found is None:
        return metric
    rows = found if found.ndim == 1 else np.diag(moment(writes, found))
    weights = _relative(rows)
    if weight.role == "linear" and rows.any():  # logits of tokens that never come have no gradient, and still matter
        weights = weights * (rows > NO_ENERGY * rows.mean())
    return replace(metric, row_weights=weights)


def _fitting(statistics: Statistics, key: str, *shapes: tuple[int, ...]) -> Array | None:
    """The moment of what a weight puts out, of one of these shapes; None where nothing was heard."""
    found = statistics.output_moment(key)
    if found is not None and found.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise CalibrationError(
            f"{key}: expected gradients {expected}, found {list(found.shape)}; calibrate with the same model"
        )
    return found


def _relative(rows: Array) -> Array:
    """Row weights of mean 1, none of them close to zero."""
    return rows * ((1 - ISOTROPIC) / (float(rows.mean()) or 1.0)) + ISOTROPIC


def _relative_moment(steps: Map, found: Array) -> Array:
    """A moment in new coordinates with a diagonal of mean 1, no direction of which is free."""
    turned = moment(steps, found)
    scaled = turned * ((1 - ISOTROPIC) / (float(np.diag(turned).mean()) or 1.0))
    return scaled + ISOTROPIC * np.eye(len(scaled))


LOSSES: dict[type, Callable[[Any, Weight, Metric, Change | None, Statistics], Metric]] = {
    Layerwise: layerwise,
    Fisher: fisher,
}
