"""What the model's own predictions make of errors: second moments of gradients, by sampling from the true Fisher.

    tokens ─▶ logits ─▶ labels drawn from the model ─▶ −ln p(label) ─▶ backward ─▶ Σ g gᵀ per linear layer, g = ∂/∂y
                  └▶ Σ p (1 − p) per row of the head                        └▶ Σ g gᵀ of what the embedding looks up

To second order KL(model ‖ disturbed) = ½ δᵀ F δ, and F is the mean of gradient times gradient over labels drawn from
the model itself. With F ≈ H ⊗ G this is ½ tr(G E H Eᵀ) nats per token for an error E of one matrix: one unit for all
of them. For a head F needs no gradient: p and its diagonal are known.

Memory: the whole model, and the activations of at most 1,024 tokens. Parameters have no gradients.

References: Martens 2020, New Insights and Perspectives on the Natural Gradient Method (true Fisher against empirical);
YAQA (arXiv:2505.22988) for the two factors of a linear layer under the KL of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from trueaxis.metric.calibrate import Progress, split_sequences
from trueaxis.metric.listening import Sum
from trueaxis.metric.metric import embedding_key, head_key
from trueaxis.metric.running import forward, load_model
from trueaxis.metric.sensitivity import Output
from trueaxis.model.architecture import submodule
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import Route, route
from trueaxis.parallel import one_thread
from trueaxis.scratch import NoScratch
from trueaxis.types import Array, Weight

TOKEN_LIMIT = 16_384
BATCH_TOKENS = 1024
LARGEST_RATIO = 10.0


class Gradients(NamedTuple):
    """Sums over tokens.

    Attributes:
        sums: Keys of the sensitivities → Σ g gᵀ float64 [m, m] of a linear layer's outputs; of an embedding [d, d];
            Σ p (1 − p) [m] of a head. Matrices that the model does not call as modules, such as experts, are left out.
        tokens: Tokens summed over.
    """

    sums: dict[str, Array]
    tokens: int


def measure_gradients(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    tokens: Array,
    seed: int,
    *,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Gradients:
    """Sum outer products of output gradients over calibration text.

    Args:
        checkpoint: The model, run in float32.
        weights: From `trace`.
        tokens: Calibration tokens, integers [sequences, length]; the first 16,384 or so are used.
        seed: Of the labels.
        progress: Called after every batch.
        device: Where the whole model runs.

    Returns:
        The sums; none for a model without logits over a vocabulary, which has no KL.
    """
    sample = tokens[: max(1, TOKEN_LIMIT // tokens.shape[1]), :TOKEN_LIMIT]
    batches = list(split_sequences(sample, BATCH_TOKENS))
    places = route(checkpoint)
    if places.head is None or places.embedding is None:
        return Gradients({}, 0)
    model = load_model(checkpoint).to(device)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Sum] = {}
    uncertainty = torch.zeros(0, dtype=torch.float64)
    with torch.enable_grad(), one_thread(), _listening(model, weights, places, sums, checkpoint.scratch):
        for number, ids in enumerate(batches):
            logits = Output.of(model, forward(model, ids.to(device))).logits
            if logits is None:
                return Gradients({}, 0)
            logits = logits.reshape(-1, logits.shape[-1])
            shares = logits.detach().softmax(-1)
            labels = torch.multinomial(shares.cpu(), 1, generator=generator).to(device)
            (-logits.log_softmax(-1).gather(1, labels).sum()).backward()
            spread = (shares * (1 - shares)).sum(0, dtype=torch.float64).cpu()
            uncertainty = spread if number == 0 else uncertainty + spread
            if progress is not None:
                progress(number + 1, len(batches), "backward")
    found = {key: total.outer.cpu().numpy() for key, total in sums.items()}
    for weight in weights:
        if weight.role in ("head", "tied"):
            found[head_key(weight.name) if weight.role == "tied" else weight.name] = uncertainty.numpy()
    return Gradients(found, int(sum(ids.numel() for ids in batches)))


@contextmanager
def _listening(
    model: Any, weights: Sequence[Weight], places: Route, sums: dict[str, Sum], scratch: NoScratch
) -> Iterator[None]:
    """While the context lasts, every backward pass adds the gradients of what modules put out.

    The output of the embedding is where differentiation begins.
    """
    handles = []
    for weight in weights:
        if weight.role == "linear" and weight.place is not None and weight.place.expert is None:
            module, key, part = weight.place.module, weight.name, weight.place.part
        elif weight.role in ("embedding", "tied"):
            tied = weight.role == "tied"
            module, part = str(places.embedding), (0, 1)
            key = embedding_key(weight.name) if tied else weight.name
        else:
            continue
        handles.append(submodule(model, module).register_forward_hook(_hook(key, part, sums, scratch)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    key: str, part: tuple[int, int], sums: dict[str, Sum], scratch: NoScratch
) -> Callable[..., torch.Tensor | None]:
    def keep(_module: Any, _args: Any, output: Any) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor):
            return None

        def add(gradient: torch.Tensor) -> None:
            width = gradient.shape[-1] // part[1]
            sums.setdefault(key, Sum(scratch)).add(_bounded(gradient[..., part[0] * width : (part[0] + 1) * width]))

        leaf = None if output.requires_grad else output.requires_grad_()
        output.register_hook(add)
        return leaf

    return keep


def _bounded(gradient: torch.Tensor) -> torch.Tensor:
    """Gradients [..., m] of at most `LARGEST_RATIO` times the median length.

    Where a norm reads a vector close to zero, such as that of a padding token, its derivative is as large as 1/√ε and
    holds for no error of any size that occurs; one such token would outweigh all others.
    """
    lengths = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    limit = LARGEST_RATIO * lengths.median()
    return gradient * (limit / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)).clamp(max=1)
