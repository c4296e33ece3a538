"""Workload: what a compression will do, counted from shapes alone: units of work and bytes held, stage by stage.

    tensors, tokens, recipe ─▶ extent ─▶ Work per stage        how often each unit is done
                                      └▶ bytes held per stage  what a run needs again, and what it works on

Nothing here depends on a machine. How long a unit takes is measured (units.py); what a machine makes of both is in
forecast.py. Stages are named as progress names them. The search is taken to make `PASSES` passes and the correction of
drift one round, which is what they make of most models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

from trueaxis.align.residual import DEPTH_GROUPS
from trueaxis.drift import BATCH_TOKENS as DRIFT_BATCH
from trueaxis.drift import KEPT_TOKENS
from trueaxis.metric.gradient import BATCH_TOKENS as GRADIENT_BATCH
from trueaxis.metric.gradient import TOKEN_LIMIT as GRADIENT_TOKENS
from trueaxis.metric.listening import CHUNK_TOKENS
from trueaxis.metric.sample import MOST_WORK
from trueaxis.metric.sensitivity import BATCH_TOKENS as SENSITIVITY_BATCH
from trueaxis.metric.sensitivity import TOKEN_LIMIT as SENSITIVITY_TOKENS
from trueaxis.metric.source import TEXT_LENGTH
from trueaxis.pilot import ENOUGH_WEIGHTS
from trueaxis.recipe import Recipe
from trueaxis.stages import Fisher, Identity, InTurn
from trueaxis.types import Weight

PASSES = 3
PILOTS = 3
POINTS = 10  # axes of one space that are judged until none are better
SPECTRA = 9.0  # n³ of the principal axes that the search starts from: three, with their vectors
EXPERT_SOLVES = 5  # [n, n] that a shift of an expert costs as much as: three solves, and products of its halves
EXPERT_SUMS = 10  # [n, n] in float64 while an expert's drift is corrected: two halves, what each and both say
CHOSEN = 2  # experts that a token is taken to go to
STAGES = ("calibrate", "gradients", "sensitivity", "prepare", "search", "drift", "write, verify")


class Matrix(NamedTuple):
    """A matrix [m, n], how often it occurs, and the share of tokens that it reads: experts read a few."""

    m: int
    n: int
    count: int = 1
    share: float = 1.0
    role: str = "linear"


class Space(NamedTuple):
    """An input space of width n, and the share of tokens that it sees."""

    n: int
    share: float = 1.0


@dataclass(frozen=True)
class Extent:
    """What of a model costs time and memory.

    Attributes:
        matrices: Of all blocks, embedding and head.
        spaces: Input spaces, each as often as it occurs.
        blocks: How many there are.
        width: Of the residual stream.
        vocabulary: Rows of the head; 0 for none.
        exact: Weights of the tensors that are not quantized.
        groups: Of experts that are measured together: a few in each block that has any.
        heads: Key-value heads of all blocks, each with axes of its own; 0 where they are not known.
    """

    matrices: tuple[Matrix, ...]
    spaces: tuple[Space, ...]
    blocks: int
    width: int
    vocabulary: int
    exact: int = 0
    groups: int = 0
    heads: int = 0

    @property
    def weights(self) -> int:
        """Of all matrices."""
        return sum(one.m * one.n * one.count for one in self.matrices)

    @property
    def active(self) -> float:
        """Weights that a token is multiplied by, the head left out."""
        return sum(one.m * one.n * one.count * one.share for one in self.matrices if one.role == "linear")

    @property
    def outputs(self) -> float:
        """Numbers that matrices put out for a token, the head left out."""
        return sum(one.m * one.count * one.share for one in self.matrices if one.role == "linear")

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.vocabulary * self.width

    @property
    def largest(self) -> int:
        """Weights of the largest matrix."""
        return max((one.m * one.n for one in self.matrices), default=0)

    @property
    def noised(self) -> int:
        """Measurements with noise: where a router chooses experts of all matrices, else of the embedding alone."""
        if not self.groups:
            return sum(1 for one in self.matrices if one.role in ("embedding", "tied"))
        return self.groups + sum(one.count for one in self.matrices if one.share == 1.0)


def extent_of(weights: Iterable[Weight], blocks: int, heads: int = 0) -> Extent:
    """The extent of a checkpoint; every expert counts as reading its share of the tokens alone.

    Args:
        weights: From `trace`.
        blocks: Of the model; 0 where they are not known.
        heads: Key-value heads of a block.
    """
    known = list(weights)
    coded = [weight for weight in known if weight.role != "exact"]
    experts = sum(1 for weight in coded if weight.pool is not None) / max(len({w.group for w in coded if w.pool}), 1)
    share = CHOSEN / max(experts, CHOSEN)
    matrices = tuple(
        Matrix(*weight.shape, share=1.0 if weight.pool is None else share, role=weight.role) for weight in coded
    )
    spaces = {
        weight.space: Space(weight.shape[1], 1.0 if weight.pool is None else share)
        for weight in coded
        if weight.space is not None
    }
    outer = next((weight for weight in coded if weight.role in ("head", "tied", "embedding")), None)
    exact = sum(weight.size for weight in known if weight.role == "exact")
    width = outer.shape[1] if outer else max((one.n for one in matrices), default=0)
    groups = len({weight.group for weight in coded if weight.group is not None})
    vocabulary = outer.shape[0] if outer else 0
    return Extent(matrices, tuple(spaces.values()), blocks, width, vocabulary, exact, groups, blocks * heads)


@dataclass(frozen=True)
class Work:
    """How often a stage does what.

    Attributes:
        products: Multiplications and additions in products of float32 matrices.
        doubles: Of float64 in products and solves.
        factors: In Cholesky factors of float64.
        spectra: Σ n³ over eigenvalues of [n, n] in float64.
        logits: Logits made into probabilities and compared.
        drawn: Logits that labels are drawn from, and differentiated.
        passed: Numbers that go through activations, norms and sums.
        attended: Multiplications and additions between queries, keys and values.
        turned: Searches for axes of a single head.
        rounded: Weights rounded along a trellis, without the products of the feedback.
        coded: Weights entropy-coded or decoded.
        read: Bytes of the checkpoint read and widened.
    """

    products: float = 0.0
    doubles: float = 0.0
    factors: float = 0.0
    spectra: float = 0.0
    logits: float = 0.0
    drawn: float = 0.0
    passed: float = 0.0
    attended: float = 0.0
    turned: float = 0.0
    rounded: float = 0.0
    coded: float = 0.0
    read: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Work)))

    def __rmul__(self, times: float) -> Work:
        return Work(*(times * getattr(self, one.name) for one in fields(Work)))


class _Token(NamedTuple):
    """Work of one token: forward through the blocks, back through them to their inputs, and through the head."""

    forward: Work
    back: Work
    head: Work


def work_of(extent: Extent, recipe: Recipe, tokens: int, length: int = TEXT_LENGTH) -> dict[str, Work]:
    """Work of every stage that a recipe has.

    Args:
        extent: Of the model.
        recipe: Its stages.
        tokens: Of calibration text.
        length: Of its sequences.
    """
    reading, token = Work(read=4.0 * extent.weights), _token(extent, min(length, tokens))
    seen_n2 = sum(space.share * space.n**2 for space in extent.spaces)
    found = {"calibrate": reading + tokens * (token.forward + Work(2.0 * seen_n2))}
    if isinstance(recipe.metric, Fisher) or extent.vocabulary:
        found["gradients"] = reading + _gradients(extent, token, seen_n2, min(tokens, GRADIENT_TOKENS), length)
    found["sensitivity"] = reading + _sensitivities(extent, token, min(tokens, SENSITIVITY_TOKENS))
    found["prepare"] = reading + _preparation(extent, recipe)
    found["search"] = _search(extent)
    if isinstance(recipe.drift, InTurn) and extent.blocks:
        found["drift"] = reading + _drift(extent, recipe.drift, token, seen_n2, tokens)
    spectra = sum(float(space.n) ** 3 for space in extent.spaces)
    found["write, verify"] = reading + Work(doubles=2 * _wide(extent), spectra=spectra, coded=2.0 * extent.weights)
    return found


def _token(extent: Extent, length: int) -> _Token:
    attended = 4.0 * length * extent.width * extent.blocks
    forward = Work(2.0 * extent.active, passed=extent.outputs, attended=attended)
    back = Work(2.0 * extent.active, passed=2.0 * extent.outputs, attended=2.5 * attended)
    return _Token(forward, back, Work(2.0 * extent.head))


def _wide(extent: Extent) -> float:
    """Σ m n²: matrices times metrics."""
    return sum(float(one.count) * one.m * one.n**2 for one in extent.matrices)


def _gradients(extent: Extent, token: _Token, seen_n2: float, tokens: int, length: int) -> Work:
    """Forward twice and back, Σ g gᵀ, and unless a router chooses experts what was read, whitened and compared."""
    m2 = sum(one.count * one.m**2 for one in extent.matrices if one.role == "linear" and one.share == 1.0)
    n3 = sum(float(space.n) ** 3 for space in extent.spaces)
    through = 2.0 * token.forward + token.back + 2.0 * token.head + Work(2.0 * m2, drawn=extent.vocabulary)
    if extent.groups:
        return tokens * through
    told = Work(2.0 * seen_n2 + _compared(extent, length))
    return tokens * (through + told) + Work(factors=n3 / 3, doubles=n3)


def _sensitivities(extent: Extent, token: _Token, tokens: int) -> Work:
    """The model as it is, then with noise of both signs, from the disturbed block on: half of them, on average."""
    half = 0.5 if extent.groups else 1.0
    passes, through = 2 * extent.noised, token.head + Work(logits=extent.vocabulary)
    found = tokens * ((1 + passes * half) * token.forward + (1.0 + passes) * through)
    if not extent.groups:
        return found
    n3 = sum(float(space.n) ** 3 for space in extent.spaces)
    return found + Work(doubles=2 * _wide(extent), factors=n3 / 3)


def _preparation(extent: Extent, recipe: Recipe) -> Work:
    """Factors of metrics; axes of the residual stream and of heads, and everything in them."""
    factors = Work(factors=sum(float(space.n) ** 3 for space in extent.spaces) / 3)
    if isinstance(recipe.align, Identity):
        return factors
    cube, merged = float(extent.width) ** 3, min(1.0, DEPTH_GROUPS / max(extent.blocks, 1))  # of blocks that are alike
    readers = sum(1 for space in extent.spaces if space.n == extent.width)
    terms = sum(one.count for one in extent.matrices if extent.width in (one.m, one.n))
    judged = POINTS * merged * (2.0 * terms + 10.0 * readers) * cube
    small = (merged * readers + 1) / 2  # judging many moments takes as long as of so many heads, however narrow
    covariances, moved = 1.0 * extent.weights * extent.width, 2.0 * extent.weights * extent.width + 4.0 * readers * cube
    return factors + Work(judged + covariances, doubles=moved, spectra=SPECTRA * cube, turned=extent.heads + small)


def _search(extent: Extent) -> Work:
    size = extent.weights
    pilots = PILOTS if size >= 2 * ENOUGH_WEIGHTS else 0
    rounds = PASSES * size + pilots * min(ENOUGH_WEIGHTS, size)
    return Work(_wide(extent) * rounds / size, rounded=rounds, coded=rounds)


def _drift(extent: Extent, stage: InTurn, token: _Token, seen_n2: float, tokens: int) -> Work:
    """Both models over the text, H̃ and C of every space, solves, one more rounding, and what came of it, twice."""
    read, kept = _read_by_drift(extent, stage, tokens), min(tokens // 8, KEPT_TOKENS)
    a_word = 2.0 * (token.forward + token.head) + Work(drawn=extent.vocabulary)  # thin products: half as fast
    written = max(0, read - tokens) * a_word
    n3 = sum(float(space.n) ** 3 * (1 if space.share == 1.0 else EXPERT_SOLVES) for space in extent.spaces)
    walked = read * (2.0 * token.forward + Work(5.0 * seen_n2))
    judged = kept * (4.0 * (token.forward + token.head) + Work(logits=2.0 * extent.vocabulary))
    size, wide = extent.weights, _wide(extent)
    solved = Work(wide, doubles=2 * wide + 3.0 * n3, rounded=size, coded=size)
    return written + walked + judged + solved


def _read_by_drift(extent: Extent, stage: InTurn, tokens: int) -> int:
    """Tokens of the text, and of what the model adds to it where that is short."""
    return min(tokens + min(tokens, MOST_WORK // max(extent.weights, 1)), stage.tokens)


def _compared(extent: Extent, length: int) -> float:
    """Multiplications and additions per token that gradients of sequences take with what was read."""
    known = [one for one in extent.matrices if one.role != "embedding"]
    return sum(2.0 * one.count * min(one.m * one.n, length * (one.m + one.n)) for one in known)


def side_by_side(extent: Extent, tokens: int) -> dict[str, int]:
    """Units of every stage that can be done at the same time: batches of text, spaces, or matrices."""
    matrices = sum(one.count for one in extent.matrices)

    def batches(limit: int, size: int) -> int:
        return math.ceil(min(tokens, limit) / size)

    return {
        "calibrate": batches(tokens, CHUNK_TOKENS),
        "sensitivity": batches(SENSITIVITY_TOKENS, SENSITIVITY_BATCH),
        "gradients": batches(GRADIENT_TOKENS, GRADIENT_BATCH),
        "prepare": max(len(extent.spaces), 1),
        "search": matrices,
        "drift": math.ceil(_read_by_drift(extent, InTurn(), tokens) / DRIFT_BATCH),
        "write, verify": matrices,
    }


@dataclass(frozen=True)
class Holding:
    """Bytes of a stage.

    Attributes:
        held: What is needed again, in memory while there is room there and else in files.
        worked: What is worked on, which has to be in memory.
    """

    held: float
    worked: float


def holding_of(extent: Extent, recipe: Recipe, tokens: int, threads: int, target: int) -> dict[str, Holding]:
    """Bytes of every stage.

    Args:
        extent, recipe, tokens: As in `work_of`.
        threads: Workers.
        target: Bytes of the output.
    """
    n2, size, d = sum(space.n**2 for space in extent.spaces), extent.weights, extent.width
    model = 4.0 * (size + extent.exact)
    blocks = max(extent.blocks, 1)
    outputs = extent.outputs / blocks
    sums, block_sums = 8.0 * n2, 8.0 * n2 / blocks
    m2 = sum(one.count * one.m**2 for one in extent.matrices if one.role == "linear" and one.share == 1.0)
    largest_sum = 12.0 * max((max(one.m, one.n) ** 2 for one in extent.matrices if one.role == "linear"), default=0)
    matrix = 8.0 * extent.largest

    def ran(batch: int, vocabulary: int, backward: bool) -> float:
        """Activations of one batch inside one block, and its logits."""
        inside = 4.0 * batch * (outputs + 4 * d) * (2 if backward else 1)
        return max(inside, 4.0 * batch * vocabulary * (4 if backward else 2))

    seen = min(tokens, SENSITIVITY_TOKENS)
    read = min(tokens, GRADIENT_TOKENS)
    found = {
        "calibrate": Holding(
            model + sums + 4.0 * tokens * d,
            threads * (ran(min(CHUNK_TOKENS, tokens), 0, False) + block_sums) + block_sums,
        ),
        "sensitivity": Holding(
            model + sums + 4.0 * seen * d * (blocks + 1) + 4.0 * extent.head,
            8.0 * seen * extent.vocabulary + threads * ran(SENSITIVITY_BATCH, extent.vocabulary, False) + 3 * matrix,
        ),
        "gradients": Holding(
            model + sums * (1.0 if extent.groups else 1.5) + 8.0 * m2 + 4.0 * read * d * (blocks + 2),
            threads * (ran(GRADIENT_BATCH, 0, True) + 2 * largest_sum) + ran(GRADIENT_BATCH, extent.vocabulary, True),
        ),
    }
    kept = sums + 8.0 * m2
    planned = kept + model + 2 * sums + sums / 2  # in their coordinates; metrics there and before; factors
    found["prepare"] = Holding(planned, threads * 3 * matrix + largest_sum)
    rounded = planned + 8.0 * size + 2.0 * target  # indices and files of two passes
    found["search"] = Holding(rounded, threads * 2.5 * matrix)
    if isinstance(recipe.drift, InTurn) and extent.blocks:
        read = _read_by_drift(extent, recipe.drift, tokens)
        heard = 4.0 * read * sum(space.n * space.share for space in extent.spaces) / blocks
        expert = EXPERT_SUMS * 8.0 * max((space.n**2 for space in extent.spaces if space.share < 1), default=0)
        compared = max((space.n * (2.0 * space.n + d) for space in extent.spaces if space.share == 1), default=0.0)
        found["drift"] = Holding(
            rounded + 2 * model + 2 * 4.0 * read * d + heard,
            threads * max(ran(DRIFT_BATCH, 0, False) + 4.0 * compared, expert) + max(16.0 * compared, 3 * matrix),
        )
    found["write, verify"] = Holding(rounded, threads * 3 * matrix + largest_sum)
    return found


def spread(extent: Extent, count: int) -> list[Matrix]:
    """Up to so many shapes of matrices that stand for all: to be timed."""
    shapes = sorted({(one.m, one.n): one for one in extent.matrices}.values(), key=lambda one: one.m * one.n)
    step = max(1, len(shapes) // count)
    return list(itertools.islice(shapes, step // 2, None, step))[:count]
