"""Hessian: the ends of the spectrum of ∂²loss/∂W², of all linear layers of the blocks, by Lanczos.

    loss on one sequence per group ─▶ Hessian–vector products ─▶ eigsh, both ends at once ─▶ λ_max, λ_min, trace

At a minimum nothing curves downward: −λ_min / λ_max is small. On halves of the text the outermost eigenvectors are kept
and their Rayleigh quotients measured again, exact to first order.

References: Pearlmutter 1994 (Hessian–vector products); Ghorbani, Krishnan & Xiao 2019 (spectra of networks);
Hutchinson 1989 (trace).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from trueaxis.analyze.claim import Claim, Measured
from trueaxis.analyze.halves import GROUPS
from trueaxis.metric.running import forward
from trueaxis.model.architecture import parameter
from trueaxis.types import Array

if TYPE_CHECKING:
    from trueaxis.analyze.subject import Subject

LENGTH = 64
EIGENVALUES = 4  # two at either end
LANCZOS_VECTORS = 12
TOLERANCE = 0.1
RESTARTS = 3
PROBES = 2
TINY = 1e-30


class Curvature:
    """Products with the Hessian of the mean loss on some sequences; one graph serves them all. A context manager: the
    model's parameters ask for gradients while it lasts.

    Args:
        subject: Whose model; its linear layers are what is differentiated by.
        ids: int64 [sequences, length].
    """

    def __init__(self, subject: Subject, ids: torch.Tensor) -> None:
        names = dict.fromkeys(weight.place.parameter for weight in subject.weights if weight.place is not None)
        self._parameters = [parameter(subject.model, name) for name in names]
        self.size = sum(one.numel() for one in self._parameters)
        for one in self._parameters:
            one.requires_grad_(True)
        # attention by its plain formula: the fused kernels have no second derivative
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            logits = forward(subject.model, ids).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            self._gradients = torch.autograd.grad(loss, self._parameters, create_graph=True)

    def __enter__(self) -> Curvature:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._parameters:
            one.requires_grad_(False)

    def product(self, vector: Array) -> Array:
        """H v, float32 [parameters]."""
        parts, start = [], 0
        flat = torch.from_numpy(np.ascontiguousarray(vector, np.float32).ravel())
        for one in self._parameters:
            parts.append(flat[start : start + one.numel()].view(one.shape))
            start += one.numel()
        found = torch.autograd.grad(self._gradients, self._parameters, parts, retain_graph=True, allow_unused=True)
        zeros = (torch.zeros_like(one) for one in self._parameters)
        return torch.cat([(z if f is None else f).flatten() for f, z in zip(found, zeros, strict=True)]).numpy()


def flat_minimum(subject: Subject) -> Measured:
    """−λ_min / λ_max of the Hessian of the loss."""
    ids = subject.loss_tokens[:, :LENGTH]
    with Curvature(subject, ids) as whole:
        values, vectors = _extremes(whole)
        trace, square = _hutchinson(whole)
        size = whole.size
    if values.size < 2:
        return Measured(None, {}, "Lanczos found fewer than two eigenvalues")
    groups = np.array([_quotients(subject, ids[group : group + 1], vectors) for group in range(GROUPS)])
    bottom, top = (subject.by_half(groups[:, end]) for end in (0, 1))
    details = {
        "eigenvalues": values.tolist(), "trace": trace, "squared_norm": square, "parameters": size,
        "participating_directions": trace**2 / max(square, TINY),
    }  # fmt: skip
    return Measured(np.where(top > 0, -bottom / np.maximum(top, TINY), np.inf), details)


def _extremes(curvature: Curvature) -> tuple[Array, Array]:
    """Eigenvalues at both ends, ascending, and the outermost two eigenvectors [2, parameters]."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    operator = LinearOperator((curvature.size,) * 2, matvec=curvature.product, dtype=np.float32)  # type: ignore[call-arg]
    start = np.random.default_rng(0).normal(size=curvature.size).astype(np.float32)
    try:
        values, vectors = eigsh(
            operator,
            k=EIGENVALUES,
            which="BE",
            ncv=LANCZOS_VECTORS,
            tol=TOLERANCE,  # type: ignore[arg-type]
            maxiter=RESTARTS,
            v0=start,
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    order = np.argsort(values)
    return values[order], vectors[:, order][:, [0, -1]].T if order.size else vectors


def _hutchinson(curvature: Curvature) -> tuple[float, float]:
    """Estimates of tr H and tr H² from random signs."""
    generator, traces, squares = np.random.default_rng(1), [], []
    for _ in range(PROBES):
        signs = generator.choice(np.array([-1, 1], np.float32), curvature.size)
        product = curvature.product(signs)
        traces.append(float(signs @ product))
        squares.append(float(product @ product))
    return float(np.mean(traces)), float(np.mean(squares))


def _quotients(subject: Subject, ids: torch.Tensor, vectors: Array) -> list[float]:
    with Curvature(subject, ids) as curvature:
        return [float(vector @ curvature.product(vector)) for vector in vectors]


CLAIMS = (
    Claim("minimum", "loss", "The weights lie at a minimum: no direction curves down as the steepest curves up.",
          "−λ_min / λ_max", 0.25, 0.5, flat_minimum),
)  # fmt: skip
