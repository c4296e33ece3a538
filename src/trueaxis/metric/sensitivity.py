"""Weigh matrices against each other: how much the model's output moves per unit of each matrix's own D.

    weight ─▶ noise E of D = 1 % of the weight's own energy ─▶ KL(model ‖ model with W ± E) ─▶ g = KL / D

The noise is white in the coordinates in which D is a plain sum of squares (E = Z C⁻¹, H = C Cᵀ), which is how an
optimal quantizer's error is spread at high rate. Averaging over +E and −E removes
the odd terms, so that a small D suffices. A tied matrix gets two numbers, one per use; the experts of a layer share one
per kind of matrix, for which all of them get noise at once.

What cannot be measured is taken to matter as the others do, the same share of its energy costs as much: where
transformers cannot run the model or has the matrix in another form, and where noise leaves the output as it is to the
last bit, as for the vision part of a model that reads text here.

A model without logits over a vocabulary (an encoder, a classifier) has no KL: there g is the relative squared error of
the final hidden states, plus that of every other output (such as the pooled state).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from trueaxis.likelihood import kl_nats
from trueaxis.metric.calibrate import Progress, check_tokens, split_sequences
from trueaxis.metric.metric import damped_cholesky, distance, embedding_key, head_key, metric_for, row_probabilities
from trueaxis.metric.running import forward, load_model
from trueaxis.metric.statistics import Statistics
from trueaxis.model.architecture import locate, parameter, submodule
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
        weights: From `trace`; exact tensors are skipped.
        statistics: Of the same checkpoint.
        tokens: Calibration tokens, integers [sequences, length]; the first 2,048 or so are used.
        seed: Of the noise; each weight has a stream of its own, whatever the others are.
        noise_share: D of the noise over D of setting the weight to zero.
        progress: Called after every measurement.
        device: Where the whole model runs.

    Returns:
        Name of the weight → g, positive and finite; a tied matrix appears as NAME#embedding and NAME#head, experts
        under their group.
        Put it into the statistics with `dataclasses.replace(statistics, sensitivities=...)`.

    Raises:
        CalibrationError: Tokens or statistics do not fit the checkpoint, or the noised output is not finite.
    """
    statistics.require(checkpoint)
    check_tokens(checkpoint, tokens)
    sample = tokens[: max(1, TOKEN_LIMIT // tokens.shape[1]), :TOKEN_LIMIT]
    places = route(checkpoint)
    uses = _uses([weight for weight in weights if weight.place is not None])
    rises: dict[str, float] = {}
    with torch.inference_mode():
        model = load_model(checkpoint).to(device)
        _untie(model, places)
        batches = [ids.to(device) for ids in split_sequences(sample)]
        reference = [read_output(model, ids) for ids in batches]
        for index, (key, members) in enumerate(uses.items()):
            noise = [_disturbance(model, places, use, use.metric(statistics), noise_share, seed) for use in members]
            rises[key] = _rise(model, noise, batches, reference)
            if not np.isfinite(rises[key]):
                raise CalibrationError(f"{key}: noise of {noise_share:.1%} makes the model's output infinite")
            if progress is not None:
                progress(index + 1, len(uses), key)
    measured = _floored({key: rise for key, rise in rises.items() if rise != 0})
    if measured.keys() == _uses(weights).keys():
        return measured
    assumed = assume_sensitivities(checkpoint, weights, statistics)
    typical = float(np.median([measured[key] / assumed[key] for key in measured])) if measured else 1.0
    return {**{key: typical * value for key, value in assumed.items()}, **measured}


def assume_sensitivities(checkpoint: Checkpoint, weights: Sequence[Weight], statistics: Statistics) -> dict[str, float]:
    """What stands in for measurements that cannot be made: every matrix is to lose the same share of its own energy.

    Returns:
        The keys of `measure_sensitivities` → number of weights / D of setting them to zero.
    """
    assumed: dict[str, float] = {}
    for key, members in _uses(weights).items():
        size = sum(use.weight.size for use in members)
        energy = sum(
            distance(checkpoint.matrix(use.weight).double().numpy(), use.metric(statistics)) for use in members
        )
        assumed[key] = size / energy if energy > 0 else 1.0
    return assumed


class _Use(NamedTuple):
    """One way the model uses a weight; `key` names its noise."""

    key: str
    weight: Weight
    side: Literal["embedding", "head", "linear"]

    def metric(self, statistics: Statistics) -> Metric:
        """What errors of it cost in this use."""
        if self.side == "embedding":
            return Metric(None, row_probabilities(statistics.token_counts))
        return Metric(metric_for(self.weight, statistics).second_moment)


class _Disturbance(NamedTuple):
    """What is added to a parameter, a view [m, n] in the running model, and the D of that."""

    parameter: torch.Tensor
    error: torch.Tensor
    distance: float


class Output(NamedTuple):
    """What a model says of one batch: logits over the vocabulary, or hidden states and all else there is instead."""

    logits: torch.Tensor | None
    states: tuple[torch.Tensor, ...]


def _uses(weights: Sequence[Weight]) -> dict[str, list[_Use]]:
    """Uses by the key of their sensitivity: one each, two keys for a tied weight, one key for a group of experts."""
    uses: dict[str, list[_Use]] = {}
    for weight in weights:
        if weight.role == "exact":
            continue
        if weight.role == "tied":
            found = [_Use(embedding_key(weight.name), weight, "embedding"), _Use(head_key(weight.name), weight, "head")]
        else:
            found = [_Use(weight.name, weight, weight.role)]
        for use in found:
            uses.setdefault(weight.group or use.key, []).append(use)
    return uses


def _untie(model: Any, places: Route) -> None:
    """Give the head a copy of its own, so that one use can be disturbed without the other."""
    if places.head is None or places.embedding is None:
        return
    head: Any = submodule(model, places.head)
    if head.weight is submodule(model, places.embedding).weight:
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)


def _disturbance(model: Any, places: Route, use: _Use, metric: Metric, share: float, seed: int) -> _Disturbance:
    if use.side == "linear" and use.weight.place is not None:
        view = locate(model, use.weight.place)
    else:
        module = places.embedding if use.side == "embedding" else places.head
        view = parameter(model, f"{module}.weight")
    error, error_distance = _noise(view.double().cpu().numpy(), metric, share, (seed, use.key))
    return _Disturbance(view, torch.from_numpy(error).to(view.device), error_distance)


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


def _rise(
    model: Any, noise: Sequence[_Disturbance], batches: Sequence[torch.Tensor], reference: Sequence[Output]
) -> float:
    """Mean change of the output per token, over both signs, per unit of the noise's D; 0 for no noise."""
    distance_sum = sum(one.distance for one in noise)
    if not distance_sum:
        return 0.0
    total = 0.0
    for sign in (1, -1):
        with ExitStack() as stack:
            for one in noise:
                stack.enter_context(_disturbed(one.parameter, sign * one.error))
            for ids, expected in zip(batches, reference, strict=True):
                total += change_of(expected, read_output(model, ids), ids.numel())
    return total / (2 * sum(ids.numel() for ids in batches)) / distance_sum


def read_output(model: Any, ids: torch.Tensor) -> Output:
    """Output of the whole model for ids [sequences, length]."""
    output = forward(model, ids)
    logits = getattr(output, "logits", None)
    logits = getattr(output, "prediction_logits", None) if logits is None else logits
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    if logits is not None and logits.ndim == 3 and logits.shape[-1] == vocabulary:
        return Output(logits, ())
    found = [value for value in dict(output).values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return Output(None, tuple(found))


def change_of(expected: Output, found: Output, tokens: int) -> float:
    """Σ over tokens of the KL in nats; without logits, tokens · Σ over outputs of |found − expected|² / |expected|²."""
    if expected.logits is not None and found.logits is not None:
        return float(kl_nats(expected.logits, found.logits, torch.float64).sum())
    relative = 0.0
    for one, other in zip(expected.states, found.states, strict=True):
        energy = float(one.double().square().sum())
        relative += float((other.double() - one.double()).square().sum()) / (energy or 1.0)
    return relative * tokens


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
