"""Weigh matrices against each other: how much the model's output moves per unit of each matrix's own D.

    weight ─▶ noise E of D = 1 % of the weight's own energy ─▶ KL(model ‖ model with W ± E) ─▶ g = KL / D

The noise is white in the coordinates in which D is a plain sum of squares (E = Z C⁻¹, H = C Cᵀ), which is how an
optimal quantizer's error is spread at high rate. Averaging over +E and −E removes
the odd terms, so that a small D suffices. A tied matrix gets two numbers, one per use.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from trueaxis.likelihood import kl_nats
from trueaxis.metric.calibrate import Progress, check_tokens, load_model, split_sequences
from trueaxis.metric.metric import (
    damped_cholesky,
    distance,
    embedding_key,
    head_key,
    row_probabilities,
)
from trueaxis.metric.statistics import Statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import Route, route
from trueaxis.types import Array, CalibrationError, Metric, Weight

NOISE_SHARE = 0.01
TOKEN_LIMIT = 2048
RELATIVE_FLOOR = 1e-6


def measure_sensitivities(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    statistics: Statistics,
    tokens: Array,
    seed: int,
    *,
    noise_share: float = NOISE_SHARE,
    progress: Progress | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Measure g of every matrix that is quantized: mean KL per token, in nats, per unit of D.

    Args:
        checkpoint: The model, run in float32.
        weights: From `trace`; exact tensors and matrices without a space are skipped.
        statistics: Of the same checkpoint.
        tokens: Calibration tokens, integers [sequences, length]; the first 2,048 or so are used.
        seed: Of the noise; each weight has a stream of its own, whatever the others are.
        noise_share: D of the noise over D of setting the weight to zero.
        progress: Called after every measurement.
        device: Where the whole model runs.

    Returns:
        Name of the weight → g, positive and finite; a tied matrix appears as NAME#embedding and NAME#head.
        Put it into the statistics with `dataclasses.replace(statistics, sensitivities=...)`.

    Raises:
        CalibrationError: Tokens or statistics do not fit the checkpoint, or the noised output is not finite.
    """
    statistics.require(checkpoint)
    check_tokens(checkpoint, tokens)
    sample = tokens[: max(1, TOKEN_LIMIT // tokens.shape[1]), :TOKEN_LIMIT]
    places = route(checkpoint)
    uses = [use for weight in weights for use in _uses(weight, places, statistics)]
    rises: dict[str, float] = {}
    with torch.inference_mode():
        model = load_model(checkpoint).to(device)
        _untie(model, places)
        reference = [model(ids.to(device), use_cache=False).logits for ids in split_sequences(sample)]
        for index, (key, module, metric) in enumerate(uses):
            parameter = model.get_submodule(module).weight
            error, error_distance = _noise(parameter.double().cpu().numpy(), metric, noise_share, (seed, key))
            rises[key] = _rise(model, parameter, error, sample, reference) / error_distance if error_distance else 0.0
            if not np.isfinite(rises[key]):
                raise CalibrationError(f"{key}: noise of {noise_share:.1%} makes the model's output infinite")
            if progress is not None:
                progress(index + 1, len(uses), key)
    return _floored(rises)


def _uses(weight: Weight, places: Route, statistics: Statistics) -> Iterator[tuple[str, str, Metric]]:
    """Yield (key, module, metric) of each way the model uses a weight; a tied one is used twice."""
    rows = Metric(None, row_probabilities(statistics.token_counts))
    if weight.role == "embedding":
        yield weight.name, places.embedding, rows
    elif weight.role == "tied" and weight.space is not None:
        yield embedding_key(weight.name), places.embedding, rows
        yield head_key(weight.name), places.head, Metric(statistics.second_moment(weight.space))
    elif weight.role in ("linear", "head") and weight.space is not None:
        yield weight.name, weight.name.removesuffix(".weight"), Metric(statistics.second_moment(weight.space))


def _untie(model: Any, places: Route) -> None:
    """Give the head a copy of its own, so that one use can be disturbed without the other."""
    head = model.get_submodule(places.head)
    if head.weight is model.get_submodule(places.embedding).weight:
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)


def _noise(weight: Array, metric: Metric, share: float, stream: tuple[int, str]) -> tuple[Array, float]:
    """Noise E [m, n] with D(E) = share · D(W), and that D; rounded to float32, as it will be added."""
    generator = np.random.default_rng([stream[0], zlib.crc32(stream[1].encode())])
    error = generator.standard_normal(weight.shape)
    if metric.second_moment is not None:
        factor, _ = damped_cholesky(metric.second_moment)
        solved = torch.linalg.solve_triangular(
            torch.from_numpy(factor), torch.from_numpy(error), upper=False, left=False
        )
        error = solved.numpy()
    if metric.row_weights is not None:
        error = error / np.sqrt(metric.row_weights)[:, None]
    energy, target = distance(error, metric), share * distance(weight, metric)
    if energy <= 0 or target <= 0:
        return np.zeros(weight.shape, np.float32), 0.0
    scaled = (error * np.sqrt(target / energy)).astype(np.float32)
    return scaled, distance(scaled, metric)


def _rise(model: Any, parameter: torch.Tensor, error: Array, sample: Array, reference: Sequence[torch.Tensor]) -> float:
    """Mean of KL(model ‖ model with W ± E) over both signs and all tokens, in nats."""
    total = 0.0
    for sign in (1, -1):
        with _disturbed(parameter, sign * torch.from_numpy(error).to(parameter.device)):
            for ids, expected in zip(split_sequences(sample), reference, strict=True):
                found = model(ids.to(parameter.device), use_cache=False).logits
                total += float(kl_nats(expected, found, torch.float64).sum())
    return total / (2 * sample.size)


@contextmanager
def _disturbed(parameter: torch.Tensor, error: torch.Tensor) -> Iterator[None]:
    """Add an error to a parameter in place; afterwards it is what it was, to the last bit."""
    original = parameter.clone()
    parameter += error
    try:
        yield
    finally:
        parameter.copy_(original)


def _floored(rises: Mapping[str, float]) -> dict[str, float]:
    """Lift every g to 10⁻⁶ of the median (of the positive ones), so that no matrix is free."""
    positive = [rise for rise in rises.values() if rise > 0]
    floor = RELATIVE_FLOOR * float(np.median(positive)) if positive else 1.0
    return {name: max(rise, floor) for name, rise in rises.items()}
