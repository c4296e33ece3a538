"""Calibration text from the model itself, for when none is given: what it says is what it was trained on, roughly.

    start tokens ─▶ next-token distribution at temperature 1 ─▶ one token per sequence ─▶ … ─▶ ids [sequences, length]
                        └── keys and values of earlier tokens are kept ──┘

Every batch has random numbers of its own, so that a shorter text is the beginning of a longer one. How long it is
depends on the size of the model alone, never on the speed of the machine: the same model gives the same text anywhere.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trueaxis.metric.calibrate import load_model
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.parallel import default_threads, one_thread, ordered_stream
from trueaxis.types import Array, CalibrationError, CheckpointError

TOKENS = 65_536
LENGTH = 256
BATCH = 64
CONTINUED = 8  # sequences at a time beside statistics: their keys and values have to fit into what `--memory` leaves
TIMED_STEPS = 8
MOST_WORK = 2**44  # parameters times tokens: 2¹⁴ tokens of a billion parameters, minutes on two processors
_STARTS = 1024  # tokens whose successors stand for the model's unigram distribution

_CACHES = {"cache", "past_key_values"}  # newer transformers say `cache`

_log = logging.getLogger(__name__)


def sample_tokens(
    checkpoint: Checkpoint,
    minimum: int,
    *,
    seed: int,
    tokens: int | None = None,
    most_work: int = MOST_WORK,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Samples token ids from a checkpoint at temperature 1; the log says how many and for how long beforehand.

    Sequences begin with the model's own start token, or where it has none with tokens drawn from the mean of its
    next-token distributions. They run on past an end token.

    Args:
        checkpoint: The model to run, in float32.
        minimum: Tokens that are sampled however long that takes.
        seed: Of every draw.
        tokens: Tokens wanted, by default 65,536; rounded up to whole batches.
        most_work: Parameters times tokens above which fewer than `tokens` have to do.
        device: Where the model runs.
        threads: Batches side by side, on a CPU; all processors by default. The tokens do not depend on it.
        progress: Called with (batches done, batches in all).

    Returns:
        int64 [sequences, length]; length is 256, or the model's longest where that is shorter.

    Raises:
        CheckpointError: The model's logits are not finite.
        CalibrationError: The model writes no text, or keeps nothing of what it has read.

    Example:
        >>> sample_tokens(checkpoint, 1024, seed=0).shape   # doctest: +SKIP
        (256, 256)
    """
    tokens = TOKENS if tokens is None else tokens
    side_by_side = 1 if device != "cpu" else threads or default_threads()
    with torch.inference_mode(), one_thread():
        model = _writer(checkpoint, device)
        length = min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH)
        starts = _start_distribution(model)
        batch = max(1, min(BATCH, -(-tokens // length)))
        wanted = _batches(tokens, minimum, batch * length, most_work // max(checkpoint.parameters, 1))
        seconds = _seconds_per_batch(model, starts, batch, length) / min(side_by_side, wanted)
        _log.warning(
            "sampling %s tokens from the model itself, about %.0f s; calibration text of your own use (--calibration "
            "FILE), or more of it, serves better",
            f"{wanted * batch * length:,}", wanted * seconds,
        )  # fmt: skip

        def sampled(number: int) -> Array:
            return _sample_batch(model, starts, batch, length, np.random.SeedSequence([seed, number]))

        parts: list[Array] = []
        for number, part in enumerate(ordered_stream(sampled, range(wanted), side_by_side)):
            parts.append(part)
            if progress is not None:
                progress(number + 1, wanted)
    return np.concatenate(parts)


def continue_text(checkpoint: Checkpoint, tokens: Array, sequences: int, threads: int) -> Array:
    """More text: the model goes on from the first quarter of sequences, at temperature 1.

    Args:
        checkpoint: The model to run, in float32 on the CPU.
        tokens: Token ids [sequences, length] of real text.
        sequences: Wanted; at most as many as there are, and no more than `MOST_WORK` allows.
        threads: Batches side by side; the tokens do not depend on it.

    Returns:
        int64 [sequences, length]; none of a model that does not go on from what it has read.

    Raises:
        CheckpointError: The model's logits are not finite.

    Example:
        >>> continue_text(checkpoint, tokens, 16, threads=2).shape   # doctest: +SKIP
        (16, 256)
    """
    length = tokens.shape[1]
    wanted = min(sequences, len(tokens), MOST_WORK // max(checkpoint.parameters * length, 1))
    with one_thread():
        model = load_model(checkpoint) if wanted > 0 and length > 1 else None
        if model is None or not _goes_on(model):
            return np.empty((0, length), np.int64)
        begun = torch.from_numpy(tokens[:wanted, : max(1, length // 4)].astype(np.int64)).split(CONTINUED)

        def continued(number: int) -> Array:
            return _grown(model, begun[number], length, _generator(np.random.SeedSequence([length, number])))

        return np.concatenate(list(ordered_stream(continued, range(len(begun)), threads)))


def _writer(checkpoint: Checkpoint, device: str) -> Any:
    """The model, if it writes text."""
    model = load_model(checkpoint).to(device)
    if not _goes_on(model):
        raise CalibrationError(
            f"{checkpoint.path}: no calibration text, and {type(model).__name__} cannot be sampled from: it writes "
            "no text, or does not keep what it has read of it; give text or token ids (--calibration FILE)"
        )
    return model


def _goes_on(model: Any) -> bool:
    """Whether a model writes text and keeps what it has read of it; some take a cache and hand none back."""
    taken = inspect.signature(model.forward).parameters
    if not model.can_generate() or getattr(model.config, "is_encoder_decoder", False) or "use_cache" not in taken:
        return False
    if not taken.keys() & _CACHES:
        return False
    with torch.inference_mode():
        told = model(torch.zeros((1, 1), dtype=torch.int64, device=model.device), use_cache=True)
    return "logits" in told and bool(told.keys() & _CACHES)


def _batches(tokens: int, minimum: int, size: int, most_tokens: int) -> int:
    """Batches of `size` tokens: as many as are wanted, fewer for a large model, never less than the minimum."""
    wanted, needed = -(-tokens // size), -(-minimum // size)
    return max(needed, min(wanted, most_tokens // size))


def _start_distribution(model: Any) -> torch.Tensor:
    """Probabilities of a sequence's first token, float64 [vocabulary]."""
    vocabulary = model.get_input_embeddings().num_embeddings
    start = model.config.bos_token_id
    if isinstance(start, int) and 0 <= start < vocabulary:
        return torch.nn.functional.one_hot(torch.tensor(start), vocabulary).double()
    contexts = torch.linspace(0, vocabulary - 1, min(vocabulary, _STARTS)).long()
    found = [_next(model, part[:, None], None)[0].mean(0) for part in contexts.to(model.device).split(BATCH)]
    return torch.stack(found).mean(0)


def _next(model: Any, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """(probabilities of the token after `ids` [sequences, new], float64 [sequences, vocabulary]; the longer cache)."""
    named = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    output = model(ids, use_cache=True, **{named: cache})
    logits = output.logits[:, -1].double().cpu()
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError(f"{model.name_or_path}: the model's logits are not finite; it cannot be calibrated")
    return logits.softmax(-1), output["cache" if "cache" in output else "past_key_values"]


def _sample_batch(model: Any, starts: torch.Tensor, batch: int, length: int, seed: np.random.SeedSequence) -> Array:
    """int64 [batch, length]: start tokens and what the model makes of them."""
    generator = _generator(seed)
    begun = torch.multinomial(starts, batch, replacement=True, generator=generator)[:, None]
    return _grown(model, begun, length, generator)


def _generator(seed: np.random.SeedSequence) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed.generate_state(1)[0]))


def _grown(model: Any, begun: torch.Tensor, length: int, generator: torch.Generator) -> Array:
    """int64 [sequences, length]: ids [sequences, given] and what the model makes of them."""
    ids, cache = [begun], None
    with torch.inference_mode():  # of this thread
        for _ in range(begun.shape[1], length):
            probabilities, cache = _next(model, ids[-1].to(model.device), cache)
            ids.append(torch.multinomial(probabilities, 1, generator=generator))
    return torch.cat(ids, dim=1).numpy()


def _seconds_per_batch(model: Any, starts: torch.Tensor, batch: int, length: int) -> float:
    """Estimate from a few steps; the first run, which pays for starting up, is not counted."""
    seconds = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        _sample_batch(model, starts, batch, min(length, TIMED_STEPS), np.random.SeedSequence(0))
        seconds = time.perf_counter() - begun
    return seconds * length / min(length, TIMED_STEPS)
