"""What the model's own predictions make of errors: second moments of gradients, by sampling from the true Fisher.

    tokens ─▶ logits ─▶ labels drawn from the model ─▶ −ln p(label) ─▶ backward ─▶ Σ g gᵀ per linear layer, g = ∂/∂y
                  └▶ Σ p (1 − p) per row of the head                        └▶ Σ g gᵀ of what the embedding looks up

To second order KL(model ‖ disturbed) = ½ δᵀ F δ, and F is the mean of gradient times gradient over labels drawn from
the model itself. With F ≈ H ⊗ G this is ½ tr(G E H Eᵀ) nats per token for an error E of one matrix: one unit for all
of them. For a head F needs no gradient: p and its diagonal are known.

Memory: one block at a time where they are known (backward.py), else the whole model and its activations, of at most
1,024 tokens per thread; one sum of a matrix per thread. Parameters have no gradients.

References: Martens 2020, New Insights and Perspectives on the Natural Gradient Method (true Fisher against empirical);
YAQA (arXiv:2505.22988) for the two factors of a linear layer under the KL of the whole model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from trueaxis.metric.backward import Text, backward_by_blocks, backward_whole, separable
from trueaxis.metric.calibrate import Progress, split_sequences
from trueaxis.metric.listening import Sum
from trueaxis.metric.metric import embedding_key, head_key
from trueaxis.metric.running import load_model
from trueaxis.metric.sensitivity import Output
from trueaxis.model.architecture import submodule
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import Route, route
from trueaxis.parallel import default_threads, one_thread, ordered_map
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
    threads: int | None = None,
) -> Gradients:
    """Sum outer products of output gradients over calibration text.

    Args:
        checkpoint: The model, run in float32.
        weights: From `trace`.
        tokens: Calibration tokens, integers [sequences, length]; the first 16,384 or so are used.
        seed: Of the labels.
        progress: Called after every step.
        device: Where blocks run, one at a time.
        threads: Batches side by side, on a CPU; all processors by default. The sums do not depend on it.

    Returns:
        The sums; none for a model without logits over a vocabulary, which has no KL.
    """
    sample = tokens[: max(1, TOKEN_LIMIT // tokens.shape[1]), :TOKEN_LIMIT]
    batches = list(split_sequences(sample, BATCH_TOKENS))
    places = route(checkpoint)
    if places.head is None or places.embedding is None:
        return Gradients({}, 0)
    model = load_model(checkpoint)
    labels = _Labels(model, seed)
    heard = _Heard(len(batches), checkpoint.scratch, 1 if device != "cpu" else threads or default_threads())

    def done(steps: int, count: int) -> None:
        if progress is not None:
            progress(steps, count, "backward")

    text = Text(model, batches, labels.loss, heard.over, device, done)
    with one_thread(), _listening(model, weights, places, heard):
        if separable(text, places.blocks):
            known = backward_by_blocks(text, places.blocks, checkpoint.scratch)
        else:
            model.to(device)
            known = backward_whole(text)
    if not known:
        return Gradients({}, 0)
    found = {key: total.outer.cpu().numpy() for key, total in heard.sums.items()}
    for weight in weights:
        if weight.role in ("head", "tied"):
            found[head_key(weight.name) if weight.role == "tied" else weight.name] = labels.uncertainty.numpy()
    return Gradients(found, int(sum(ids.numel() for ids in batches)))


class _Labels:
    """Labels drawn from the model's own predictions, and how uncertain these were.

    Attributes:
        uncertainty: Σ p (1 − p) of every row of the head over the tokens so far, float64 [m].
    """

    def __init__(self, model: Any, seed: int) -> None:
        self._model, self._generator = model, torch.Generator().manual_seed(seed)
        self.uncertainty = torch.zeros((), dtype=torch.float64)

    def loss(self, output: Any) -> torch.Tensor | None:
        """−Σ ln p(label) of a batch; None for a model without logits over a vocabulary."""
        logits = Output.of(self._model, output).logits
        if logits is None:
            return None
        logits = logits.reshape(-1, logits.shape[-1])
        shares = logits.detach().softmax(-1)
        labels = torch.multinomial(shares.cpu(), 1, generator=self._generator).to(logits.device)
        self.uncertainty = self.uncertainty + (shares * (1 - shares)).sum(0, dtype=torch.float64).cpu()
        return -logits.log_softmax(-1).gather(1, labels).sum()


class _Heard:
    """Gradients of what modules put out: what batches heard is added in their order, matrices side by side.

    Attributes:
        sums: Key → its sum over all batches so far.
    """

    def __init__(self, batches: int, scratch: NoScratch, threads: int) -> None:
        self.sums: dict[str, Sum] = {}
        self._batches, self._scratch, self._threads = batches, scratch, threads
        self._now = threading.local()

    def over(self, work: Callable[[int], Any], *, side_by_side: bool = True) -> list[Any]:
        """As `Batches` of backward.py."""

        def run(number: int) -> tuple[Any, dict[str, list[torch.Tensor]]]:
            self._now.heard = {}
            with torch.enable_grad():  # of this thread
                return work(number), self._now.heard

        results, threads = [], self._threads if side_by_side else 1
        for start in range(0, self._batches, threads):
            found = ordered_map(run, range(start, min(start + threads, self._batches)), threads)
            results += [result for result, _ in found]
            self._add([heard for _, heard in found])
        return results

    def hook(self, key: str, part: tuple[int, int]) -> Callable[..., torch.Tensor | None]:
        """Of a module's forward pass: hears the gradients of a part (which, of how many) of what it puts out."""

        def keep(_module: Any, _args: Any, output: Any) -> torch.Tensor | None:
            if not isinstance(output, torch.Tensor) or not torch.is_grad_enabled():
                return None
            heard = getattr(self._now, "heard", {})  # on a GPU the backward pass is another thread's

            def add(gradient: torch.Tensor) -> None:
                width = gradient.shape[-1] // part[1]
                heard.setdefault(key, []).append(_bounded(gradient[..., part[0] * width : (part[0] + 1) * width]))

            leaf = None if output.requires_grad else output.requires_grad_()
            output.register_hook(add)
            return leaf

        return keep

    def _add(self, found: Sequence[dict[str, list[torch.Tensor]]]) -> None:
        keys = list(dict.fromkeys(key for heard in found for key in heard))
        for key in keys:
            self.sums.setdefault(key, Sum(self._scratch))

        def add(key: str) -> None:
            for heard in found:
                for gradient in heard.get(key, ()):
                    self.sums[key].add(gradient)

        ordered_map(add, keys, self._threads)


@contextmanager
def _listening(model: Any, weights: Sequence[Weight], places: Route, heard: _Heard) -> Iterator[None]:
    """While the context lasts, every backward pass hears the gradients of what modules put out.

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
        handles.append(submodule(model, module).register_forward_hook(heard.hook(key, part)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bounded(gradient: torch.Tensor) -> torch.Tensor:
    """Gradients [..., m] of at most `LARGEST_RATIO` times the median length.

    Where a norm reads a vector close to zero, such as that of a padding token, its derivative is as large as 1/√ε and
    holds for no error of any size that occurs; one such token would outweigh all others.
    """
    lengths = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    limit = LARGEST_RATIO * lengths.median()
    return gradient * (limit / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)).clamp(max=1)
