"""Weigh matrices against each other by noise: how much the model's output moves per unit of each matrix's own D.

    weight ─▶ noise E of D = 1 % of the weight's own energy ─▶ KL(model ‖ model with W ± E) ─▶ g = KL / D

The noise is white in the coordinates in which D is a plain sum of squares (E = Z C⁻¹, H = C Cᵀ), which is how an
optimal quantizer's error is spread at high rate. Averaging over +E and −E removes
the odd terms, so that a small D suffices. A tied matrix gets two numbers, one per use; the experts of a layer share one
per kind of matrix, for which all of them get noise at once.

Gradients tell the same for most matrices at once (whitening.py). What is left are embeddings, all matrices of a model
whose router chooses experts, and models without a KL.

What cannot be measured is taken to matter as the others do, the same share of its energy costs as much: where
transformers cannot run the model or has the matrix in another form, and where noise leaves the output as it is to the
last bit, as for the vision part of a model that reads text here.

A model without logits over a vocabulary (an encoder, a classifier) has no KL: there g is the relative squared error of
the final hidden states, plus that of every other output (such as the pooled state).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from trueaxis.journal import NO_JOURNAL, NoJournal
from trueaxis.likelihood import Prediction
from trueaxis.metric.calibrate import Progress, check_tokens, split_sequences
from trueaxis.metric.metric import damped_cholesky, distance, embedding_key, head_key, metric_for, row_probabilities
from trueaxis.metric.running import Resumption, load_model, untie
from trueaxis.metric.statistics import Statistics
from trueaxis.model.architecture import locate, parameter
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import Route, route
from trueaxis.parallel import default_threads, one_thread, ordered_map
from trueaxis.scratch import NoScratch
from trueaxis.types import Array, CalibrationError, Metric, Weight

NOISE_SHARE = 0.01
TOKEN_LIMIT = 2048
BATCH_TOKENS = 512  # that one thread runs at once
RELATIVE_FLOOR = 1e-6


def measure_sensitivities(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    statistics: Statistics,
    tokens: Array,
    seed: int,
    *,
    known: Mapping[str, float] = MappingProxyType({}),
    noise_share: float = NOISE_SHARE,
    progress: Progress | None = None,
    device: str = "cpu",
    journal: NoJournal = NO_JOURNAL,
) -> dict[str, float]:
    """Measure g of every matrix that is quantized and not known: mean KL per token, in nats, per unit of D.

    Args:
        checkpoint: The model, run in float32.
        weights: From `trace`; exact tensors are skipped.
        statistics: Of the same checkpoint.
        tokens: Calibration tokens, integers [sequences, length]; the first 2,048 or so are used.
        seed: Of the noise; each weight has a stream of its own, whatever the others are.
        known: Sensitivities that gradients told, in the same unit: these are not measured.
        noise_share: D of the noise over D of setting the weight to zero.
        progress: Called after every measurement.
        device: Where the whole model runs.
        journal: Knows what an earlier run measured.

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
    uses = _uses([weight for weight in weights if weight.place is not None])
    unknown = {key: members for key, members in uses.items() if key not in known}
    rises = dict(known)
    with torch.inference_mode(), one_thread():
        trial = functools.cache(lambda: _trial(checkpoint, sample, device))  # made once it is needed
        noises = _Noises(statistics, noise_share, seed)
        for index, (key, members) in enumerate(unknown.items()):
            found = journal.recall(f"sensitivity {key}")
            rises[key] = trial().rise(members, noises) if found is None else found.facts
            if not np.isfinite(rises[key]):
                raise CalibrationError(f"{key}: noise of {noise_share:.1%} makes the model's output infinite")
            if found is None:
                journal.keep(f"sensitivity {key}", {}, rises[key])
            if progress is not None:
                progress(index + 1, len(unknown), key)
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


def _trial(checkpoint: Checkpoint, sample: Array, device: str) -> _Trial:
    """The model on a device, and what it says of some calibration tokens [sequences, length]."""
    places = route(checkpoint)
    model = load_model(checkpoint).to(device)
    untie(model, places)
    batches = [ids.to(device) for ids in split_sequences(sample, BATCH_TOKENS)]
    return _Trial(model, places, batches, 1 if device != "cpu" else default_threads(), checkpoint.scratch)


class _Use(NamedTuple):
    """One way the model uses a weight; `key` names its noise."""

    key: str
    weight: Weight
    side: Literal["embedding", "head", "linear"]

    def metric(self, statistics: Statistics) -> Metric:
        """What errors of it cost in this use."""
        if self.side == "embedding":
            return Metric(None, row_probabilities(statistics))
        return Metric(metric_for(self.weight, statistics).second_moment)


class _Disturbance(NamedTuple):
    """What is added to a parameter, a view [m, n] in the running model, and the D of that."""

    parameter: torch.Tensor
    error: torch.Tensor
    distance: float


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


class _Noises:
    """Makes the noise of matrices; the factor of a metric is kept for the next one that reads the same space."""

    def __init__(self, statistics: Statistics, share: float, seed: int) -> None:
        self._statistics, self._share, self._seed = statistics, share, seed
        self._factor: tuple[str, torch.Tensor, float] | None = None

    def noise(self, weight: Array, use: _Use) -> tuple[Array, float]:
        """Noise E [m, n] float32 with D(E) = share · D(W), and that D."""
        metric = use.metric(self._statistics)
        generator = np.random.default_rng([self._seed, zlib.crc32(use.key.encode())])
        error = white = generator.standard_normal(weight.shape)
        energy = float(white.ravel() @ white.ravel())
        if metric.second_moment is not None:
            factor, damping = self._factored(use.weight, metric.second_moment)
            error = torch.linalg.solve_triangular(factor, torch.from_numpy(white), upper=False, left=False).numpy()
            energy -= damping * float(error.ravel() @ error.ravel())  # |Z|² = D(E) + δ|E|²
        if metric.row_weights is not None:
            error = error / np.sqrt(metric.row_weights)[:, None]
        target = self._share * distance(weight, metric)
        if energy <= 0 or target <= 0:
            return np.zeros(weight.shape, np.float32), 0.0
        return (error * np.sqrt(target / energy)).astype(np.float32), target

    def _factored(self, weight: Weight, second_moment: Array) -> tuple[torch.Tensor, float]:
        space = weight.space or weight.name
        if self._factor is None or self._factor[0] != space:
            factor, damping = damped_cholesky(second_moment)
            self._factor = space, torch.from_numpy(factor), damping
        return self._factor[1:]


class _Trial:
    """The model and what it says undisturbed; a disturbed one runs from the block of the disturbed matrix on.

    Args:
        model: In evaluation mode, head untied.
        places: Where its matrices are.
        batches: Token ids [sequences, length].
        threads: Batches side by side.
        scratch: Holds what the undisturbed model says, and the states in it.
    """

    def __init__(
        self, model: Any, places: Route, batches: Sequence[torch.Tensor], threads: int, scratch: NoScratch
    ) -> None:
        self._model, self._places, self._batches, self._threads = model, places, batches, threads
        self._scratch = scratch
        self._resumption = Resumption(model, places.blocks)
        self._reference = ordered_map(self._record, batches, 1)  # hooks listen to one pass at a time

    def rise(self, members: Sequence[_Use], noises: _Noises) -> float:
        """Mean change of the output per token, over both signs, per unit of the noise's D; 0 for no noise."""
        noise = [self._disturbance(use, noises) for use in members]
        distance_sum = sum(one.distance for one in noise)
        if not distance_sum:
            return 0.0
        total = 0.0
        with self._resumption.starting_at(min(map(self._start, members))) as resume:

            def change(pair: tuple[torch.Tensor, Reference]) -> float:
                with torch.inference_mode():  # of this thread
                    return pair[1].change(Output.of(self._model, resume(pair[0], pair[1].states)))

            for sign in (1, -1):
                with ExitStack() as stack:
                    for one in noise:
                        stack.enter_context(_disturbed(one.parameter, sign * one.error))
                    pairs = list(zip(self._batches, self._reference, strict=True))
                    total += sum(ordered_map(change, pairs, self._threads))
        return total / (2 * sum(ids.numel() for ids in self._batches)) / distance_sum

    def _record(self, ids: torch.Tensor) -> Reference:
        with torch.inference_mode():
            output, states = self._resumption.record(ids)
            return Reference(Output.of(self._model, output), list(map(self._scratch.tensor, states)), ids.numel())

    def _start(self, use: _Use) -> int:
        """The first block that a change of a matrix is felt in."""
        if use.side == "head":
            return len(self._places.blocks)
        name = use.weight.place.parameter if use.side == "linear" and use.weight.place else ""
        return next((i for i, block in enumerate(self._places.blocks) if name.startswith(f"{block}.")), 0)

    def _disturbance(self, use: _Use, noises: _Noises) -> _Disturbance:
        if use.side == "linear" and use.weight.place is not None:
            view = locate(self._model, use.weight.place)
        else:
            module = self._places.embedding if use.side == "embedding" else self._places.head
            view = parameter(self._model, f"{module}.weight")
        error, error_distance = noises.noise(view.double().cpu().numpy(), use)
        return _Disturbance(view, torch.from_numpy(error).to(view.device), error_distance)


class Output(NamedTuple):
    """Output for one batch: logits over the vocabulary, or hidden states and whatever else there is instead."""

    logits: torch.Tensor | None
    states: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, model: Any, output: Any) -> Output:
        """What counts of an output of the model."""
        logits = getattr(output, "logits", None)
        logits = getattr(output, "prediction_logits", None) if logits is None else logits
        vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
        if logits is not None and logits.ndim == 3 and logits.shape[-1] == vocabulary:
            return cls(logits, ())
        tensors = [value for value in dict(output).values() if isinstance(value, torch.Tensor)]
        return cls(None, tuple(value for value in tensors if value.is_floating_point()))


class Reference:
    """Undisturbed output of one batch, and the states that entered its blocks."""

    def __init__(self, output: Output, states: list[torch.Tensor], tokens: int) -> None:
        self.states = states
        self._output, self._tokens = output, tokens
        self._prediction = None if output.logits is None else Prediction(output.logits)

    def change(self, found: Output) -> float:
        """Σ over tokens of the KL in nats; without logits, tokens · Σ over outputs of |found − own|² / |own|²."""
        if self._prediction is not None and found.logits is not None:
            return float(self._prediction.kl_nats(found.logits).sum())
        relative = 0.0
        for one, other in zip(self._output.states, found.states, strict=True):
            energy = float(one.double().square().sum())
            relative += float((other.double() - one.double()).square().sum()) / (energy or 1.0)
        return relative * self._tokens


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
