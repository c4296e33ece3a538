"""Stages: the types a recipe is made of, one dataclass each, with their settings.

    recipe.json ─▶ type of every stage ─▶ the function of that stage which the type picks

A setting that another module reads is a field here; what it means is said where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layerwise:
    """Metric: the error of each layer's own output, layers weighed against each other by sensitivity."""


@dataclass(frozen=True)
class Fisher:
    """Metric: what errors do to the model's predictions, to second order; see align/loss.py."""


@dataclass(frozen=True)
class Identity:
    """Align: keep the checkpoint's own axes."""


AXES = ("off", "best", "identity", "random", "hadamard", "pca-weights", "pca-metric", "pca-joint", "joint")


@dataclass(frozen=True)
class Gauge:
    """Align: the network's own symmetries, each space in its axes; see align/symmetry.py.

    Attributes:
        residual: Axes of the residual stream, one of `AXES`.
        heads: Axes between values and output of each key-value head.
        planes: "best" turns the rotary planes of queries and keys.
        order: "best" sorts attention heads by energy.
        channels: "best" sorts the hidden channels of MLPs by energy.
    """

    residual: str = "best"
    heads: str = "best"
    planes: str = "best"
    order: str = "best"
    channels: str = "best"


@dataclass(frozen=True)
class Learned(Gauge):
    """Align: gauges as in `Gauge`, then turned by gradient descent on rate + λ·distortion; see align/learned.py.

    Attributes:
        residual, heads, planes, channels: Of the axes at the start.
        proxy: Differentiable rate: "noise" (code length under uniform noise) or "sparsity" (Σ log₂(1 + |w|/Δ)).
        distortion: "metric" (D of the statistics) or "kl" (KL on calibration text, rounding straight through).
        steps: Of the optimizer.
    """

    proxy: str = "noise"
    distortion: str = "metric"
    steps: int = 60


@dataclass(frozen=True)
class NoFunction:
    """Function: f = 0, the residual is the weight."""


@dataclass(frozen=True)
class LowRank:
    """Function: every linear layer is the product of two factors, by SVD in its metric; see function/lowrank.py."""


@dataclass(frozen=True)
class Selected:
    """Function: of every matrix the f of least total description length, or none; see function/select.py."""


@dataclass(frozen=True)
class NoTransform:
    """Transform: matrices are coded in the axes that alignment left them in."""


@dataclass(frozen=True)
class Structured:
    """Transform: of every matrix the stored rotation that pays for its bytes, or none; see align/structured.py."""


@dataclass(frozen=True)
class Effort:
    """What a name of an effort stands for.

    Attributes:
        states: Of the trellis: 1 (the scalar quantizer) or a power of two from 4 to 256.
        learning_passes: Passes after which the tables that quantize stay as they are.
        taught: Passes that must have taught those tables before a file that fits is good enough.
    """

    states: int
    learning_passes: int
    taught: int

    @property
    def trellis(self) -> int:
        """Trellis identifier of the file format."""
        return self.states.bit_length() - 2 if self.states > 1 else 0


EFFORTS = {
    "scalar": Effort(1, 2, 1),
    "fast": Effort(8, 2, 1),
    "default": Effort(64, 2, 1),
    "best": Effort(256, 5, 5),
}


@dataclass(frozen=True)
class Feedback:
    """Quantize: noise feedback, lowest energy first, steps c / C_jj, a trellis down each column, coded centroids.

    Attributes:
        effort: Name in `EFFORTS`: states of the trellis and passes.
        damping: First δ added to H as δ · mean(diag H) · I; escalates until the factorization succeeds.
        rate_weight: λ of error² + λ · bits in units of the scalar step squared per bit; 0 ignores the rate.
        row_exponent: a of the row weights ρ^a that steps follow, 0 to 1; see `quantize.plan.tempered`.
    """

    effort: str = "default"
    damping: float = 1e-3
    rate_weight: float = 0.045
    row_exponent: float = 0.7


@dataclass(frozen=True)
class RoundToNearest:
    """Quantize: one step per row from its largest magnitude, nearest rounding, no metric."""


@dataclass(frozen=True)
class Gptq:
    """Quantize: GPTQ (arXiv:2210.17323) as people run it: act order, min-max steps per row and static group.

    Attributes:
        damping: Share of the mean diagonal added to H.
        group: Columns per group, in the original order.
    """

    damping: float = 0.01
    group: int = 128


@dataclass(frozen=True)
class GptqUniform:
    """Quantize: GPTQ's feedback in act order with one step per matrix, proportional to its RMS."""

    damping: float = 0.01


@dataclass(frozen=True)
class WaterSic:
    """Quantize: WaterSIC (arXiv:2603.04956), layer by layer at equal rates.

    Noise feedback in the checkpoint's column order, steps c / C_jj, nearest rounding, a least-squares gain per column
    inside the loop, row and column rescalers after it. Its correction for drift between layers is a stage of its own.

    Attributes:
        damping: First δ added to H as δ · mean(diag H) · I.
    """

    damping: float = 1e-3


@dataclass(frozen=True)
class WaterSicCore:
    """Quantize: `WaterSic` without gains and rescalers.

    Attributes:
        damping: First δ added to H as δ · mean(diag H) · I.
    """

    damping: float = 1e-3


CPU_CHAIN, GPU_CHAIN = 1 << 20, 1 << 16  # a GPU wants streams by the thousand; a lane pays three bytes in each


@dataclass(frozen=True)
class Rans:
    """Entropy-code: interleaved rANS with classed tables.

    Attributes:
        lanes: Columns decoded side by side, 1 to 32.
        chain: Weights a stream should at least hold before the next one starts.
    """

    lanes: int = 32
    chain: int = CPU_CHAIN


@dataclass(frozen=True)
class RansPooled:
    """Entropy-code: interleaved rANS with one table for a whole linear layer, as entropies are usually quoted.

    Attributes:
        lanes, chain: As in `Rans`.
    """

    lanes: int = 32
    chain: int = CPU_CHAIN


@dataclass(frozen=True)
class NoDrift:
    """Drift: every matrix aims at itself, whatever the matrices before it lost."""


@dataclass(frozen=True)
class InTurn:
    """Drift: matrices are quantized again in the order of the forward pass, each against its drifted inputs.

    Attributes:
        tokens: Calibration tokens that both models read.
        damping: δ added to E[x̃ x̃ᵀ] as δ · mean of its diagonal · I.
        stream: Share of the residual stream's error that what is added to the stream makes up for.
    """

    tokens: int = 32_768
    damping: float = 0.01
    stream: float = 0.5


@dataclass(frozen=True)
class NoTuning:
    """Tune: nothing; the file is what the search found."""


@dataclass(frozen=True)
class Gains:
    """Tune: a gain for every column of every matrix, trained by the KL from the original on calibration text.

    Attributes:
        tokens: Tokens to read; text is read again where there is less of it.
        rate: Largest move per step, in octaves per relative error of a column.
    """

    tokens: int = 65_536
    rate: float = 0.02


STAGES: dict[str, dict[str, type]] = {
    "metric": {"layerwise": Layerwise, "fisher": Fisher},
    "align": {"identity": Identity, "gauge": Gauge, "learned": Learned},
    "transform": {"none": NoTransform, "structured": Structured},
    "function": {"none": NoFunction, "lowrank": LowRank, "selected": Selected},
    "quantize": {
        "feedback": Feedback,
        "rtn": RoundToNearest,
        "gptq": Gptq,
        "gptq-uniform": GptqUniform,
        "watersic": WaterSic,
        "watersic-core": WaterSicCore,
    },
    "entropy": {"rans": Rans, "rans-pooled": RansPooled},
    "drift": {"none": NoDrift, "in-turn": InTurn},
    "tune": {"none": NoTuning, "gains": Gains},
}
Quantizer = Feedback | RoundToNearest | Gptq | GptqUniform | WaterSic | WaterSicCore
Coder = Rans | RansPooled

CHOICES = {
    "effort": tuple(EFFORTS),
    **dict.fromkeys(("residual", "heads"), AXES),
    **dict.fromkeys(("planes", "order", "channels"), ("best", "off")),
    "proxy": ("noise", "sparsity"),
    "distortion": ("metric", "kl"),
}
RANGES = {
    "steps": (0, 1 << 20),
    "damping": (0.0, 1.0),
    "rate_weight": (0.0, 10.0),
    "row_exponent": (0.0, 1.0),
    "group": (1, 1 << 30),
    "lanes": (1, 32),
    "chain": (1, 1 << 40),
    "tokens": (1, 1 << 40),
    "rate": (0.0, 1.0),
    "stream": (0.0, 1.0),
}
