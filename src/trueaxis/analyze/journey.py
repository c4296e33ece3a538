"""Analyze: every claim on one checkpoint and one text.

checkpoint, text ─▶ Subject ─▶ claims, one after the other ─▶ Analysis
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trueaxis.analyze.claim import Finding
from trueaxis.analyze.halves import GROUPS
from trueaxis.evaluation import load_causal
from trueaxis.metric.calibrate import check_tokens, minimum_tokens
from trueaxis.metric.sample import sample_tokens
from trueaxis.metric.source import read_tokens
from trueaxis.model.checkpoint import Checkpoint, check_finite
from trueaxis.model.graph import trace
from trueaxis.progress import Progress, silent
from trueaxis.types import Array, CalibrationError, CheckpointError, TrueaxisError

FORMAT, VERSION = "trueaxis-analysis", 1
LENGTH = 256
SHORTEST = 32
TOKENS = 16_384  # read at most, spread over the text
SAMPLING_WORK = 2**41  # parameters times tokens


@dataclass(frozen=True)
class Analysis:
    """What the claims of the theory come to on one checkpoint; the schema is in docs/analysis.md.

    Attributes:
        format, version: "trueaxis-analysis" and 1.
        model: Name of its directory.
        parameters: Of the checkpoint.
        source: "text" that was given, or "sampled" from the model.
        tokens, loss_tokens: Read for activations, and for losses.
        seconds: The whole run.
        matrices: Those whose coordinates were measured.
        aligned: The coordinates of the fewest estimated bits.
        coordinates: A row of figures per coordinate system.
        claims: Judged.
    """

    format: str
    version: int
    model: str
    parameters: int
    source: str
    tokens: int
    loss_tokens: int
    seconds: float
    matrices: tuple[str, ...]
    aligned: str
    coordinates: tuple[dict[str, Any], ...]
    claims: tuple[Finding, ...]


def analyze(
    model: str | Path, *, text: Sequence[str | Path] = (), seed: int = 0, progress: Progress = silent
) -> Analysis:
    """Measures every claim on a checkpoint.

    Args:
        model: Directory of a Hugging Face checkpoint of a causal language model.
        text: Text files, or .npy files of token ids; without any, text sampled from the model.
        seed: Of sampled text.
        progress: Told after every claim, and within the long ones.

    Raises:
        CalibrationError: Too little text, or tokens that do not fit the model.
        CheckpointError: A tensor holds NaN or Inf.
        TrueaxisError: scikit-learn is missing, or the model is no causal language model.

    Example:
        >>> trueaxis.analyze("llama", text=["text.txt"]).claims[0].verdict   # doctest: +SKIP
        'undecided'
    """
    if find_spec("sklearn") is None:
        raise TrueaxisError("analyzing needs scikit-learn; install it with: pip install 'trueaxis[analyze]'")
    from threadpoolctl import threadpool_limits

    from trueaxis.analyze import alignment, damage, hessian, outliers, rank, tangent
    from trueaxis.analyze.claim import judge
    from trueaxis.analyze.subject import Subject

    begun = time.perf_counter()
    checkpoint = Checkpoint.open(model)
    for name in checkpoint.entries:
        check_finite(name, checkpoint.tensor(name))
    tokens = _tokens(checkpoint, text, seed, progress)
    subject = Subject(checkpoint, load_causal(checkpoint.path, "cpu"), tokens, progress)
    if not subject.weights:
        raise CheckpointError(f"{checkpoint.path}: no linear layer has an input that can be listened to")
    claims = [claim for module in (rank, tangent, damage, hessian, alignment, outliers) for claim in module.CLAIMS]
    findings = []
    with threadpool_limits(1, user_api="blas"):  # matrices are worked on side by side instead
        for number, claim in enumerate(claims):
            progress("claims", number, len(claims))
            findings.append(judge(claim, claim.measure(subject)))
        progress("claims", len(claims), len(claims))
    return Analysis(
        FORMAT, VERSION, checkpoint.path.resolve().name, checkpoint.parameters, "text" if text else "sampled",
        int(tokens.size), int(subject.loss_tokens.numel()), time.perf_counter() - begun,
        tuple(weight.name for weight in subject.sampled), subject.table.aligned, tuple(subject.table.summary()),
        tuple(findings),
    )  # fmt: skip


def _tokens(checkpoint: Checkpoint, text: Sequence[str | Path], seed: int, progress: Progress) -> Array:
    """int64 [sequences, length], 14 at least: spread evenly over the text, cut to 256 tokens each."""
    weights = trace(checkpoint)
    needed = 2 * minimum_tokens(weights)
    if not text:
        return sample_tokens(
            checkpoint, needed, seed=seed, tokens=max(TOKENS, needed), most_work=SAMPLING_WORK,
            progress=lambda done, total: progress("sample", done, total),
        ).astype(np.int64)  # fmt: skip
    pieces = [_cut(part) for part in read_tokens(checkpoint.path, text)]
    if len({piece.shape[1] for piece in pieces}) != 1:
        raise CalibrationError("give text files, or .npy files of token ids of one sequence length")
    tokens = np.concatenate(pieces).astype(np.int64)
    check_tokens(checkpoint, tokens)
    count = max(GROUPS, min(tokens.shape[0], max(TOKENS, needed) // tokens.shape[1]))
    if tokens.shape[0] < GROUPS or count * tokens.shape[1] < needed:
        raise CalibrationError(
            f"too little text: {tokens.shape[0]} sequences of {tokens.shape[1]} tokens; at least {GROUPS} sequences "
            f"and {needed} tokens are needed, so that each half of the text serves alone"
        )
    return tokens[np.linspace(0, tokens.shape[0] - 1, count).round().astype(int)]


def _cut(tokens: Array) -> Array:
    """Sequences of at most 256 tokens, shorter where that makes 14 of them; the rest of a longer one is dropped."""
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise CalibrationError(f"token ids: expected shape [sequences, length], found {list(tokens.shape)}")
    length = min(tokens.shape[1], LENGTH)
    while length > SHORTEST and tokens.shape[0] * (tokens.shape[1] // length) < GROUPS:
        length //= 2
    return tokens[:, : tokens.shape[1] // length * length].reshape(-1, length)
