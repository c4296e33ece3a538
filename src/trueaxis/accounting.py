"""Accounting: what each tensor cost and lost, measured on the written file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from trueaxis.metric.metric import distance, fold_norm, limit_bits
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.runtime.decode import Decoder
from trueaxis.types import Array, Metric, TensorReport, Weight


def tensor_reports(
    decoder: Decoder,
    checkpoint: Checkpoint,
    matrices: Sequence[tuple[Weight, str, Metric]],
    tensor_bytes: Mapping[str, float],
) -> tuple[TensorReport, ...]:
    """A row for every tensor of the file.

    Args:
        decoder: Of the written file: distortion is that of what a reader will get, rounding to its dtype included.
        checkpoint: The original.
        matrices: (weight, name of its coordinates, metric in the original coordinates).
        tensor_bytes: Bytes of each tensor.

    Returns:
        In the order of the file. A tensor that lost nothing, as an exact one, is reported at its own rate with a gap
        of 0: the limit of a continuous source has no finite value there.
    """
    known = {weight.name: (weight, coordinates, metric) for weight, coordinates, metric in matrices}
    rows = []
    for name, info in decoder.container.tensors.items():
        size = int(np.prod(info.shape, dtype=np.int64))
        bits = tensor_bytes[name] * 8 / max(size, 1)
        if name not in known:
            rows.append(TensorReport(name, info.shape, "exact", bits, 0.0, bits, 0.0))
            continue
        weight, coordinates, metric = known[name]
        original = checkpoint.tensor(name).float().numpy()
        lost = distance(decoder.tensor(name).float().numpy() - original, metric)
        relative = lost / (distance(original, metric) or 1.0)
        limit = original_limit_bits(checkpoint, weight, original, metric, lost)
        limit = limit if math.isfinite(limit) else bits
        rows.append(TensorReport(name, info.shape, coordinates, bits, relative, limit, bits - limit))
    return tuple(rows)


def original_limit_bits(
    checkpoint: Checkpoint, weight: Weight, original: Array, metric: Metric, distortion: float
) -> float:
    """`limit_bits` of the original with its norm folded in, at the distortion achieved.

    A tied matrix is taken as it is: as an embedding it reads no norm, so none can be folded into both of its uses.
    """
    moment = metric.second_moment
    if moment is not None and weight.norm is not None and metric.embedding_weights is None:
        norm = checkpoint.tensor(weight.norm).float().numpy()
        original, moment = fold_norm(original, moment, norm)
    return limit_bits(
        moment, original, distortion, row_weights=metric.row_weights, embedding_weights=metric.embedding_weights
    )
