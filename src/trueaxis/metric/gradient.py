"""What the model's own predictions make of errors: second moments of gradients, by sampling from the true Fisher.

    tokens ─▶ logits ─▶ labels drawn from the model ─▶ −ln p(label) ─▶ backward ─▶ Σ g gᵀ per linear layer, g = ∂/∂y
                  └▶ Σ p, and Σ p (1 − p) per row of the head               ├▶ Σ g gᵀ of what the embedding looks up
                                                                            └▶ |Σ g xᵀ|² of sequences: sensitivities

To second order KL(model ‖ disturbed) = ½ δᵀ F δ, and F is the mean of gradient times gradient over labels drawn from
the model itself. With F ≈ H ⊗ G this is ½ tr(G E H Eᵀ) nats per token for an error E of one matrix. G gives directions;
how much the matrix matters as a whole is what whitened gradients say (whitening.py), which know of errors that several
tokens share. For the rows of a head F needs no gradient: p and its diagonal are known.

Memory: one block at a time where they are known (backward.py), else the whole model and its activations, of at most
1,024 tokens per thread; one sum of a matrix per thread. Parameters have no gradients.

References: Martens 2020, New Insights and Perspectives on the Natural Gradient Method (true Fisher against empirical);
YAQA (arXiv:2505.22988) for the two factors of a linear layer under the KL of the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from trueaxis.journal import NO_JOURNAL, Entry, NoJournal
from trueaxis.metric.backward import Text, backward_by_blocks, backward_whole, separable
from trueaxis.metric.calibrate import Progress, split_sequences
from trueaxis.metric.response import Heard, Listener, listeners_of, listening_back
from trueaxis.metric.running import load_model
from trueaxis.metric.sensitivity import Output
from trueaxis.metric.statistics import Statistics
from trueaxis.metric.whitening import Whitening
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import route
from trueaxis.parallel import default_threads, one_thread
from trueaxis.scratch import NoScratch
from trueaxis.types import Array, CheckpointError, Weight

TOKEN_LIMIT = 16_384
BATCH_TOKENS = 1024


class Gradients(NamedTuple):
    """Sums over tokens.

    Attributes:
        sums: Keys of the sensitivities → Σ g gᵀ float64 [m, m] of a linear layer's outputs; of an embedding [d, d];
            Σ p (1 − p) [m] of a head. Matrices that the model does not call as modules, such as experts, are left out.
        tokens: Tokens summed over.
        sensitivities: Keys of linear layers and heads → KL in nats per token and unit of D, for small errors that are
            white in D. None where a router chooses experts.
        predictions: Σ p float64 [vocabulary]: how often each token is said to come next.
    """

    sums: dict[str, Array]
    tokens: int
    sensitivities: dict[str, float]
    predictions: Array

    @classmethod
    def of(cls, entry: Entry) -> Gradients:
        """What a journal kept of `entry`."""
        sums, (tokens, sensitivities) = dict(entry.arrays), entry.facts
        return cls(sums, tokens, sensitivities, predictions=sums.pop(_PREDICTIONS))

    @property
    def entry(self) -> Entry:
        """For a journal."""
        return Entry({**self.sums, _PREDICTIONS: self.predictions}, [self.tokens, self.sensitivities])


NONE = Gradients({}, 0, {}, np.zeros(0))
_PREDICTIONS = "predictions"  # in the journal, beside the keys of matrices


def measure_gradients(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    statistics: Statistics,
    tokens: Array,
    seed: int,
    *,
    progress: Progress | None = None,
    device: str = "cpu",
    threads: int | None = None,
    journal: NoJournal = NO_JOURNAL,
) -> Gradients:
    """Sum outer products of output gradients over calibration text, and see what errors of each matrix do.

    Args:
        checkpoint: The model, run in float32.
        weights: From `trace`.
        statistics: Of the same checkpoint.
        tokens: Calibration tokens, integers [sequences, length]; the first 16,384 or so are used.
        seed: Of the labels.
        progress: Called after every step.
        device: Where blocks run, one at a time.
        threads: Batches side by side, on a CPU; all processors by default. The sums do not depend on it.
        journal: Knows blocks that an earlier run went back through, or all that it found.

    Returns:
        The sums; none for a model without logits over a vocabulary, which has no KL.

    Raises:
        CheckpointError: Gradients are not finite.
    """
    if (entry := journal.recall("gradients")) is not None:
        return Gradients.of(entry)
    places = route(checkpoint)
    if places.head is None or places.embedding is None:
        return NONE
    sample = tokens[: max(1, TOKEN_LIMIT // tokens.shape[1]), :TOKEN_LIMIT]
    batches = list(split_sequences(sample, BATCH_TOKENS))
    threads = threads or default_threads()
    listeners = listeners_of(weights, places)
    whitening = Whitening(statistics, _told(weights), threads)
    model = load_model(checkpoint)
    labels = _Labels(model, seed)
    heard = Heard(batches, checkpoint.scratch, 1 if device != "cpu" else threads)

    def done(steps: int, count: int) -> None:
        if progress is not None:
            progress(steps, count, "backward")

    recalled = _Recalled(journal, heard, labels)
    text = Text(model, batches, labels.loss, heard.over, device, done, recalled)
    with one_thread(), listening_back(model, listeners, whitening, heard):
        if not _backward(text, places.blocks, checkpoint.scratch):
            return NONE
    count = int(sum(ids.numel() for ids in batches))
    told = _sensitivities(listeners, whitening, heard, count)
    gradients = Gradients(_sums(listeners, heard, labels), count, told, labels.predictions.numpy())
    _check_range(checkpoint, gradients)
    journal.keep("gradients", *gradients.entry)
    recalled.forget()
    return gradients


def _backward(text: Text, blocks: Sequence[str], scratch: NoScratch) -> bool:
    """Goes back through the model, block by block where it can be taken apart; whether there is a loss."""
    if separable(text, blocks):
        return backward_by_blocks(text, blocks, scratch)
    text.model.to(text.device)
    return backward_whole(text)


def _told(weights: Sequence[Weight]) -> list[Weight]:
    """Matrices of which gradients tell how much they matter: none where a router chooses experts.

    Its choices jump, and gradients do not see that: noise in whatever is before a router may matter ten times as much
    as they say. An embedding's rows are rare tokens for the most part, whose noise is not small beside them.
    """
    if any(weight.pool is not None for weight in weights):
        return []
    return [weight for weight in weights if weight.role in ("linear", "head", "tied") and weight.group is None]


def _sums(listeners: Sequence[Listener], heard: Heard, labels: _Labels) -> dict[str, Array]:
    """Second moments by key, of a head its diagonal, which needs no gradients."""
    found = {key: total.outer.cpu().numpy() for key, total in heard.sums.items()}
    return found | {one.key: labels.uncertainty.numpy() for one in listeners if one.use == "head"}


def _sensitivities(listeners: Sequence[Listener], whitening: Whitening, heard: Heard, tokens: int) -> dict[str, float]:
    """Mean KL per token of noise with D = 1, by key; without what reached nothing, or was not told."""
    return {
        one.key: heard.energies[one.key] / (2 * tokens * whitening.freedom(one.weight))
        for one in listeners
        if heard.energies.get(one.key) and whitening.freedom(one.weight)  # inputs whose squares vanish have none
    }


def _check_range(checkpoint: Checkpoint, gradients: Gradients) -> None:
    """Refuses matrices so large or small against those around them that gradients do not tell what they matter."""
    for key, found in (*gradients.sensitivities.items(), *gradients.sums.items()):
        if not np.isfinite(found).all():
            raise CheckpointError(
                f"{key}: gradients of {checkpoint.path} are not finite in float32; bring its weights, and those of the "
                "layers next to it, to ordinary sizes"
            )


class _Recalled:
    """What a journal knows of blocks that an earlier run went back through."""

    def __init__(self, journal: NoJournal, heard: Heard, labels: _Labels) -> None:
        self._journal, self._heard, self._labels = journal, heard, labels
        self._steps: list[str] = []

    def resume(self, blocks: int) -> tuple[int, list[torch.Tensor]] | None:
        """Blocks that are left, and the gradients of every batch behind them; sums of the others are put in place."""
        for left in range(blocks + 1):
            behind = self._journal.recall(f"behind {left}")
            sums = [self._journal.recall(f"back {index}") for index in range(blocks, left - 1, -1)]
            if behind is None or None in sums:
                continue
            for index, entry in zip(range(blocks, left - 1, -1), sums, strict=True):
                assert entry is not None
                self._heard.restore(entry.arrays, entry.facts)
                self._steps.append(f"back {index}")
            self._labels.uncertainty = torch.from_numpy(behind.arrays["uncertainty"])
            self._labels.predictions = torch.from_numpy(behind.arrays[_PREDICTIONS])
            return left, [torch.from_numpy(behind.arrays[str(number)]) for number in range(len(behind.arrays) - 2)]
        return None

    def keep(self, left: int, gradients: Sequence[torch.Tensor]) -> None:
        """Sums of the step that has just ended, and gradients behind the blocks that are left."""
        if self._journal is NO_JOURNAL:
            return
        self._journal.keep(f"back {left}", *self._heard.news())
        behind = {str(number): gradient.cpu().numpy() for number, gradient in enumerate(gradients)}
        behind |= {"uncertainty": self._labels.uncertainty.numpy(), _PREDICTIONS: self._labels.predictions.numpy()}
        self._journal.keep(f"behind {left}", behind)
        self._journal.forget(f"behind {left + 1}")
        self._steps += [f"back {left}", f"behind {left}"]

    def forget(self) -> None:
        """All of it, once the whole is kept."""
        for key in self._steps:
            self._journal.forget(key)


class _Labels:
    """Labels drawn from the model's own predictions, and how uncertain these were.

    Attributes:
        uncertainty: Σ p (1 − p) of every row of the head over the tokens so far, float64 [m].
        predictions: Σ p of the same.
    """

    def __init__(self, model: Any, seed: int) -> None:
        self._model, self._generator = model, torch.Generator().manual_seed(seed)
        self.uncertainty = self.predictions = torch.zeros((), dtype=torch.float64)

    def loss(self, output: Any) -> torch.Tensor | None:
        """−Σ ln p(label) of a batch; None for a model without logits over a vocabulary."""
        logits = Output.of(self._model, output).logits
        if logits is None:
            return None
        logits = logits.reshape(-1, logits.shape[-1])
        shares = logits.detach().softmax(-1)
        labels = torch.multinomial(shares.cpu(), 1, generator=self._generator).to(logits.device)
        self.predictions = self.predictions + shares.sum(0, dtype=torch.float64).cpu()
        self.uncertainty = self.uncertainty + (shares * (1 - shares)).sum(0, dtype=torch.float64).cpu()
        return -logits.log_softmax(-1).gather(1, labels).sum()
