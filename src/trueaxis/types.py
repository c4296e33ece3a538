"""The nouns passed between stages, the shape legend, and the errors.

    checkpoint ─▶ calibrate ─▶ align ─▶ function + residual ─▶ quantize ─▶ entropy-code ─▶ container

Every stage takes and returns the frozen dataclasses below; no stage keeps state.

Shape legend, used in every docstring of the project:
    m  outputs (rows of a weight)          W  [m, n]   weight, y = W x
    n  inputs (columns of a weight)        H  [n, n]   input metric, E[x xᵀ]
    d  width of the residual stream        G  [m, m]   output metric, E[g gᵀ], g = ∂loss/∂y
    T  tokens                              C  [n, n]   lower Cholesky factor, H = C Cᵀ
    k  integer index of a weight           u  index on the fine grid of the trellis (2k, or 2k − sgn k)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, Protocol

import numpy as np

Array = np.ndarray


class TrueaxisError(Exception):
    """Any failure that is the input's, not the program's. The message names the tensor or file."""


class CheckpointError(TrueaxisError):
    """The checkpoint to compress is missing something, damaged, or of an unknown architecture."""


class CalibrationError(TrueaxisError):
    """The calibration text or the statistics file does not serve this checkpoint."""


class TargetError(TrueaxisError):
    """No file is as small as was asked for; the message says the smallest."""


class FormatError(TrueaxisError):
    """A compressed file is damaged, truncated, or written by a newer version."""


Role = Literal["linear", "embedding", "head", "tied", "exact"]


@dataclass(frozen=True)
class Place:
    """Where a matrix lies in the running model.

    Attributes:
        parameter: Name of the parameter, as the class with a head has it.
        expert: Index into a 3-D parameter, or None.
        part: (i, of): the i-th of equal parts of the rows, where the model joins what the checkpoint keeps apart.
        transposed: Whether the parameter holds [n, m].
    """

    parameter: str
    expert: int | None = None
    part: tuple[int, int] = (0, 1)
    transposed: bool = False

    @property
    def module(self) -> str:
        """Name of the module that has the parameter."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Weight:
    """One matrix of a checkpoint, or a tensor kept exactly, and its place in the network.

    A matrix is a view of a stored tensor: the tensor itself, one slice of a 3-D tensor, or either of them transposed.

    Attributes:
        name: Name of the stored tensor; NAME[e] for slice e of it.
        shape: [m, n] with y = W x; of an exact tensor, as stored.
        dtype: safetensors name of the dtype: "F32", "F16" or "BF16" for weights.
        role: "linear" (has an input metric), "embedding" (rows looked up), "head", "tied" (embedding and
            head in one matrix), or "exact" (norms, biases, anything not quantized).
        space: Name of the input space of a linear or head; weights with the same space share one metric.
        norm: Name of the normalization weight whose output the matrix reads, or None.
        norm_offset: What the model adds to that weight before it multiplies.
        stored: Name of the stored tensor where it is not `name`.
        slice: First index into the stored tensor, or None.
        transposed: Whether the tensor (or slice) is stored [n, m].
        place: Where the running model has it; None if that is not known.
        writes: What its output is; see model/families.py.
        bias: Name of the bias that is added to its output, or None.
        pool: For an expert, the space of all experts of its layer; see metric.py.
        group: Weights of one group have one sensitivity, stored under this name; None for one of its own.
        factor: "left" or "right" for a factor of the matrix, `name` then ends in #left or #right; "" for the matrix.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    space: str | None = None
    norm: str | None = None
    norm_offset: float = 0.0
    stored: str | None = None
    slice: int | None = None
    transposed: bool = False
    place: Place | None = None
    writes: str = "other"
    bias: str | None = None
    pool: str | None = None
    group: str | None = None
    factor: Literal["", "left", "right"] = ""

    @property
    def tensor(self) -> str:
        """Name of the stored tensor."""
        return self.stored or self.name

    @property
    def size(self) -> int:
        """Number of parameters."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Metric:
    """What matters about one matrix: D = g · Σᵢ ρᵢ (eᵢ H eᵢᵀ) for an error E with rows eᵢ.

    Attributes:
        second_moment: H [n, n] float64, mean of x xᵀ; None means the identity.
        row_weights: ρ [m] float64, or None for ones.
        sensitivity: g, rise of the model's KL in nats per unit of the layer's own D.
        embedding_weights: For a tied matrix, the weights [m] of its rows as an embedding: a second term
            Σᵢ εᵢ (eᵢ K eᵢᵀ) is added to D. None otherwise.
        embedding_moment: K [n, n] of that term; None means the identity.
    """

    second_moment: Array | None
    row_weights: Array | None = None
    sensitivity: float = 1.0
    embedding_weights: Array | None = None
    embedding_moment: Array | None = None


class Transform(Protocol):
    """One step between the coordinates that a matrix is coded in and those of the tensor."""

    @property
    def payload(self) -> bytes:
        """Of its record."""
        ...

    def decoded(self, values: Array) -> Array:
        """Values [rows, columns] one step nearer to the tensor; dtype as it came."""
        ...

    def undone(self, values: Array) -> Array:
        """Inverse of `decoded`, but for rounding."""
        ...


@dataclass(frozen=True, eq=False)
class Aligned:
    """A matrix in its coordinates.

    Attributes:
        coordinates: Name of the coordinate system, for reports.
        weight: W [m, n] float32 there.
        metric: Transformed with it, so that D is the same number as in the original coordinates.
        transforms: What leads back from these coordinates, in the order of their records; see runtime/transforms.py.
    """

    coordinates: str
    weight: Array
    metric: Metric
    transforms: tuple[Transform, ...] = ()


@dataclass(frozen=True)
class Space:
    """A space of the network, the axes it got, and what they are estimated to save per weight that touches it."""

    name: str
    axes: str
    estimated_saved_bits: float


@dataclass(frozen=True)
class Function:
    """The f of a matrix W = f + r.

    Attributes:
        name: Of the matrix.
        candidate: Which kind of f was chosen.
        function_bits: Of its record, shared matrices that lie in it included.
        estimated_saved_bits: By coding W and W − f with a scalar quantizer, those bits counted; of a matrix whose
            record holds what others share, less than nothing as a rule.
    """

    name: str
    candidate: str
    function_bits: int
    estimated_saved_bits: float


@dataclass(frozen=True)
class Stored:
    """The transforms that are stored with a matrix.

    Attributes:
        name: Of the matrix.
        factors: Kinds of factors, in the order of their records.
        transform_bits: Of those records.
        estimated_saved_bits: By coding the matrix both ways with a scalar quantizer, those bits counted.
    """

    name: str
    factors: str
    transform_bits: int
    estimated_saved_bits: float


@dataclass(frozen=True)
class Learning:
    """How axes were learned.

    Attributes:
        proxy, distortion: What was minimized, as in the recipe.
        curve: Of one step each: number, estimated bits per weight by both proxies ("noise", "sparsity"), and the
            distortion in bits per weight, λ·D.
        held_out: Bits per weight + λ·D of the quantizer itself on statistics that were not learned from, for the axes
            at the start and for those that were learned.
        kept: "learned" or "start".
    """

    proxy: str
    distortion: str
    curve: tuple[dict[str, float], ...]
    held_out: dict[str, float]
    kept: str


@dataclass(frozen=True, eq=False)
class Coded:
    """What is quantized of a matrix: the whole of it, or a factor.

    Attributes:
        weight: The matrix, or the factor with a name and shape of its own.
        values: float32, of that shape.
        metric: What errors of it cost, in units of the matrix's own D.
    """

    weight: Weight
    values: Array
    metric: Metric


@dataclass(frozen=True, eq=False)
class Grid:
    """Steps of a matrix, as integers: Δᵢⱼ = 2^(column_codesⱼ / resolution) · 2^(row_codesᵢ,ⱼ / resolution).

    Attributes:
        column_codes: int32 [n].
        row_codes: int32 [m, groups]; groups = 1 unless the grid has a step per row and group of columns.
        resolution: Codes per octave, a divisor of 32.
        group: Columns per group in the original order; n where there is one group.
    """

    column_codes: Array
    row_codes: Array
    resolution: int
    group: int


@dataclass(frozen=True, eq=False)
class Contexts:
    """Integer scale model of one matrix: class of (i, j) = clamp((row_codesᵢ + column_codesⱼ) >> shift).

    Attributes:
        row_codes: int32 [m].
        column_codes: int32 [n].
        shift: 0 to 7.
    """

    row_codes: Array
    column_codes: Array
    shift: int


@dataclass(frozen=True, eq=False)
class Quantized:
    """One matrix as integers. Decoding needs nothing else but the model's tables.

    Attributes:
        indices: k, int32 [n, m]: columns of W are contiguous rows here.
        grid: The steps.
        contexts: The coder's scale model.
        trellis: Trellis identifier; 0 is the scalar quantizer.
        centroids: Whether values are reconstructed at the coded centroids of their class.
    """

    indices: Array
    grid: Grid
    contexts: Contexts
    trellis: int = 0
    centroids: bool = True


@dataclass(frozen=True)
class TensorReport:
    """What one tensor cost and lost; `bits_per_weight` counts its share of tables and shared streams."""

    name: str
    shape: tuple[int, ...]
    coordinates: str
    bits_per_weight: float
    relative_distortion: float
    limit_bits: float
    gap_bits: float


@dataclass(frozen=True)
class CompressionReport:
    """Result of one compression; `file_bytes` is real: every *.safetensors file and their index,
    plus the growth of config.json. `header_bytes` of it belong to no tensor. `calibration` says what was calibrated
    on: "source" ("text" or "sampled" from the model) and "tokens". `notes` are sentences on what calibration could not
    see: modules without a metric, experts without tokens. `evaluation` is there where a divergence was the target.
    `inputs` are digests of the model, texts and statistics, the recipe, the target and the seed it was made with.
    `spaces` says which axes each space of the network got, `learning` how those of the recipe `learned` came about,
    `functions` which matrices have an f, `transforms` which were turned by transforms of their own."""

    file_bytes: int
    header_bytes: int
    copied_bytes: int
    parameters: int
    bits_per_param: float
    seconds: float
    peak_memory_bytes: int
    recipe: dict[str, Any]
    recipe_hash: str
    calibration: dict[str, Any]
    tensors: tuple[TensorReport, ...] = field(default_factory=tuple)
    notes: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    spaces: tuple[Space, ...] = ()
    learning: Learning | None = None
    functions: tuple[Function, ...] = ()
    transforms: tuple[Stored, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def limit_bits_per_param(self) -> float:
        """Bits that the limits of all tensors add up to, over all parameters; exact ones count as they are stored."""
        bits = sum(row.limit_bits * prod(row.shape) for row in self.tensors)
        return bits / self.parameters


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text, and how far it is from a reference.

    Attributes:
        perplexity: exp(nats_per_token).
        nats_per_token: Mean of −ln probability of the next token.
        kl_nats: Mean KL(reference ‖ model) per token; None without a reference, like the next two.
        kl_interval: 95 % interval of kl_nats over the choice of sequences; None also for a single sequence.
        top1_agreement: Share of tokens after which both models find the same next token likeliest.
        tokens: Number of tokens predicted: all but the first of each sequence.
        overlap: Estimated share of the text that was calibrated on; None where there is nothing to compare with.
        fingerprint: `Container.fingerprint` of the compressed model; None of an original.
    """

    perplexity: float
    nats_per_token: float
    kl_nats: float | None
    kl_interval: tuple[float, float] | None
    top1_agreement: float | None
    tokens: int
    overlap: float | None
    fingerprint: str | None = None
