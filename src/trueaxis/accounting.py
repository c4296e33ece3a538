"""Accounting: what each tensor cost and lost, measured on the written file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from trueaxis.metric.metric import distance, fold_norm, limit_bits
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.transforms import undone
from trueaxis.types import Aligned, Array, Metric, TensorReport, Weight


def tensor_reports(
    decoder: Decoder,
    checkpoint: Checkpoint,
    matrices: Sequence[tuple[Weight, Aligned, Metric]],
    tensor_bytes: Mapping[str, float],
) -> tuple[TensorReport, ...]:
    """A row for every tensor of the file; one of several slices has their sums, and the mean of their limits.

    Args:
        decoder: Of the written file: distortion is that of what a reader will get, rounding to its dtype included.
        checkpoint: The original.
        matrices: (weight, the same in its coordinates, metric in the original coordinates).
        tensor_bytes: Bytes of each tensor.

    Returns:
        In the order of the file. A tensor that lost nothing, as an exact one, is reported at its own rate with a gap
        of 0: the limit of a continuous source has no finite value there.
    """
    members: dict[str, list[tuple[Weight, Aligned, Metric]]] = {}
    for row in matrices:
        members.setdefault(row[0].tensor, []).append(row)
    rows = []
    for name, info in decoder.container.tensors.items():
        size = int(np.prod(info.shape, dtype=np.int64))
        bits = tensor_bytes[name] * 8 / max(size, 1)
        if name not in members:
            rows.append(TensorReport(name, info.shape, "exact", bits, 0.0, bits, 0.0))
            continue
        found = decoder.tensor(name)
        lost = energy = limit = 0.0
        for weight, aligned, metric in members[name]:
            original = checkpoint.matrix(weight).float().numpy()
            decoded = found if weight.slice is None else found[weight.slice]
            decoded = (decoded.T if weight.transposed else decoded).float().numpy()
            own = distance(undone(decoded, aligned.transforms) - aligned.weight, aligned.metric)
            lost, energy = lost + own, energy + distance(original, metric)
            limit += original_limit_bits(checkpoint, weight, original, metric, own) * weight.size / size
        limit = limit if math.isfinite(limit) else bits
        coordinates = members[name][0][1].coordinates
        rows.append(TensorReport(name, info.shape, coordinates, bits, lost / (energy or 1.0), limit, bits - limit))
    return tuple(rows)


def original_limit_bits(
    checkpoint: Checkpoint, weight: Weight, original: Array, metric: Metric, distortion: float
) -> float:
    """`limit_bits` of the original with its norm folded in, at the distortion achieved.

    A tied matrix is taken as it is: as an embedding it reads no norm, so none can be folded into both of its uses.
    """
    moment = metric.second_moment
    if moment is not None and weight.norm is not None and metric.embedding_weights is None:
        norm = checkpoint.tensor(weight.norm).float().numpy() + weight.norm_offset
        original, moment = fold_norm(original, moment, norm)
    return limit_bits(
        moment, original, distortion, row_weights=metric.row_weights, embedding_weights=metric.embedding_weights
    )
