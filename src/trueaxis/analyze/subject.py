"""Subject: a checkpoint, a text, and everything that several claims look at, computed once.

    checkpoint, tokens ─▶ Σ x xᵀ per group of sequences ─▶ H of a half          (spaces that are sampled)
                       └▶ logits of one sequence per group ─▶ KL of an edited model, group by group

Matrices are the linear layers of the blocks, norms folded in. Experts are left out: they see too few tokens by halves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trueaxis.analyze.halves import GROUPS, Half, balanced_halves
from trueaxis.likelihood import kl_nats
from trueaxis.metric.listening import Hearing, Sum, listening
from trueaxis.metric.metric import fold_norm
from trueaxis.metric.running import forward
from trueaxis.model.architecture import locate
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import Listeners, trace
from trueaxis.parallel import default_threads
from trueaxis.progress import Progress, silent
from trueaxis.types import Array, Weight

if TYPE_CHECKING:
    from trueaxis.analyze.axes import Table

SPACES = 6  # input spaces whose coordinates are looked at, spread over the depth
LOSS_LENGTH = 128
LOSS_LOGITS = 1 << 25  # of the undisturbed model that are kept
BATCH = 8


@dataclass(frozen=True, eq=False)
class Subject:
    """What claims are about.

    Attributes:
        checkpoint: The original.
        model: The same in transformers, float32.
        tokens: int64 [sequences, length], at least 14 sequences; sequence i belongs to group i mod 14.
        progress: Told of long loops.
    """

    checkpoint: Checkpoint
    model: Any
    tokens: Array
    progress: Progress = silent
    halves: tuple[Half, ...] = field(default_factory=balanced_halves)

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Every linear layer of the blocks, experts left out."""
        return tuple(
            weight
            for weight in trace(self.checkpoint)
            if weight.role == "linear" and weight.space is not None and weight.pool is None and weight.place is not None
        )

    @cached_property
    def spaces(self) -> dict[str, tuple[Weight, ...]]:
        """Sampled input spaces, evenly spaced in the order of the forward pass, with their readers."""
        names = list(dict.fromkeys(str(weight.space) for weight in self.weights))
        chosen = np.unique(np.linspace(0, len(names) - 1, min(SPACES, len(names))).round().astype(int))
        return {names[i]: tuple(w for w in self.weights if w.space == names[i]) for i in chosen}

    @cached_property
    def sampled(self) -> tuple[Weight, ...]:
        """Readers of the sampled spaces."""
        return tuple(weight for readers in self.spaces.values() for weight in readers)

    def matrix(self, weight: Weight) -> Array:
        """W [m, n] float64, norm folded in."""
        return self.folded(weight, np.zeros((weight.shape[1],) * 2))[0]

    def folded(self, weight: Weight, moment: Array) -> tuple[Array, Array]:
        """W and H with the norm that is read moved into W."""
        matrix = self.checkpoint.matrix(weight).double().numpy()
        if weight.norm is None:
            return matrix, moment
        gamma = self.checkpoint.tensor(weight.norm).double().numpy() + weight.norm_offset
        return fold_norm(matrix, moment, gamma)

    def moment(self, space: str, groups: Array) -> Array:
        """H [n, n] of a sampled space on the groups [14] given."""
        chosen = [self._sums[group][space] for group in np.flatnonzero(groups)]
        outer = sum(one.outer for one in chosen)
        return (outer / sum(one.tokens for one in chosen)).numpy()  # type: ignore[union-attr]

    @cached_property
    def _sums(self) -> list[dict[str, Sum]]:
        found = []
        modules = {space: str(readers[0].place and readers[0].place.module) for space, readers in self.spaces.items()}
        for group in range(GROUPS):
            found.append(self._heard(Listeners(modules), torch.from_numpy(self.tokens[group::GROUPS]).split(BATCH)))
            self.progress("calibrate", group + 1, GROUPS)
        return found

    def _heard(self, listeners: Listeners, batches: Sequence[torch.Tensor]) -> dict[str, Sum]:
        hearing = Hearing()
        with torch.inference_mode(), listening(self.model, listeners, hearing):
            hearing.over(lambda number: forward(self.model, batches[number]), len(batches), self.threads)
        return hearing.sums

    @cached_property
    def loss_tokens(self) -> torch.Tensor:
        """int64 [14, length]: one sequence per group, cut where the logits would take too much memory."""
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        length = min(self.tokens.shape[1], LOSS_LENGTH, max(8, LOSS_LOGITS // (GROUPS * vocabulary)))
        return torch.from_numpy(self.tokens[:GROUPS, :length])

    @cached_property
    def _undisturbed(self) -> torch.Tensor:
        return self._logits()

    def _logits(self) -> torch.Tensor:
        batches = self.loss_tokens.split(BATCH)  # made outside: the Hessian reads the same tokens with gradients
        with torch.inference_mode():
            return torch.cat([forward(self.model, ids).logits for ids in batches])

    def divergence(self, edited: Mapping[str, Array]) -> Array:
        """KL(model ‖ edited model) per token, nats, float64 [14]: of every group.

        Args:
            edited: Name of a weight → what stands in its place [m, n], as the checkpoint has it.
        """
        expected = self._undisturbed
        with ExitStack() as stack:
            for weight in self.weights:
                if weight.name in edited:
                    stack.enter_context(_replaced(self.view(weight), edited[weight.name]))
            return kl_nats(expected, self._logits()).mean(dim=1).numpy()

    @cached_property
    def without_blocks(self) -> Array:
        """KL [14] of every group with all matrices zero."""
        return self.divergence({weight.name: np.zeros(weight.shape) for weight in self.weights})

    def view(self, weight: Weight) -> torch.Tensor:
        """The weight [m, n] in the running model."""
        assert weight.place is not None
        return locate(self.model, weight.place)

    def by_half(self, groups: Array) -> Array:
        """Means [8] over the fitted groups of every half, of numbers [14] per group."""
        return np.array([groups[half.fitted].mean() for half in self.halves])

    @cached_property
    def table(self) -> Table:
        """Every coordinate system measured on every half."""
        from trueaxis.analyze.axes import measure_axes

        return measure_axes(self)

    @property
    def threads(self) -> int:
        """Workers for independent matrices."""
        return default_threads()


@contextmanager
def _replaced(view: torch.Tensor, values: Array) -> Iterator[None]:
    """A parameter with other values; afterwards it is what it was, to the last bit."""
    original = view.clone()
    view.copy_(torch.from_numpy(values))
    try:
        yield
    finally:
        view.copy_(original)
