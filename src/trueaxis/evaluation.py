"""Evaluate: how well a model predicts text, and how far a compressed one is from its original.

    text ─▶ tokens ─▶ was it calibrated on? ─▶ logits of model and reference ─▶ sums per sequence ─▶ Evaluation

Both models run in float32 on the weights their directories hold. KL is paired: both read the same tokens, and the
interval is that of the mean over sequences drawn again with replacement.

References: Efron & Tibshirani 1993, An Introduction to the Bootstrap (percentile intervals).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueaxis.container import Container, is_compressed
from trueaxis.likelihood import kl_nats, same_choice, target_nats
from trueaxis.metric.calibrate import check_ids, load_model, load_tokens, split_sequences, tokenize
from trueaxis.metric.sketch import overlap, sketch
from trueaxis.metric.source import read_tokens, text_length
from trueaxis.metric.statistics import Statistics, load_statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.progress import Progress, silent
from trueaxis.runtime.load import built, load
from trueaxis.runtime.resident import InScratch
from trueaxis.scratch import NO_SCRATCH, NoScratch, scratch_in
from trueaxis.types import Array, CalibrationError, Evaluation, TrueaxisError

SKETCH_LIMIT = 0.05
STATISTICS_LIMIT = 0.01
BATCH_LOGITS = 1 << 25
RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class SequenceScores:
    """Sums over the predicted tokens of each sequence, float64 [sequences]; `predicted` tokens in each.

    `kl_nats` and `agreed` are None without a reference.
    """

    predicted: int
    nats: Array
    kl_nats: Array | None
    agreed: Array | None


def evaluate(
    path: str | Path,
    *,
    text: Sequence[str | Path] = (),
    tokens: str | Path | Array | None = None,
    reference: str | Path | None = None,
    base: str | Path | None = None,
    statistics: str | Path | None = None,
    allow_overlap: bool = False,
    device: str = "cpu",
    memory: int | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measures perplexity on text, and KL(reference ‖ model) per token.

    Args:
        path: Compressed directory or original checkpoint of a causal language model.
        text: Text files, read with the model's own tokenizer; or
        tokens: token ids, integers [sequences, length], or an .npy file of them. Exactly one of the two.
        reference: Directory of the model to compare with, usually the original.
        base: As of `trueaxis.load`, for `path` where it is compressed beside one.
        statistics: Statistics file of the calibration, which knows more of its text than the compressed file.
        allow_overlap: Evaluate on text that was calibrated on; the result says how much.
        device: Torch device that runs the models.
        memory: Bytes to keep to; all that the machine has by default. Weights that do not fit lie in files in the
            folder for temporary files, mapped into memory. The numbers do not depend on it.
        progress: Told after every batch.

    Returns:
        An Evaluation.

    Raises:
        CalibrationError: The tokens do not fit the model, or more than 5 % of them (1 % by `statistics`) were
            calibrated on.
        FormatError, CheckpointError: A directory cannot be loaded.

    Example:
        >>> trueaxis.evaluate("llama-3bit", text=["test.txt"], reference="llama").kl_nats   # doctest: +SKIP
        0.0312
    """
    ids = read_ids(path, text, tokens)
    share = _check_overlap(path, ids, statistics, allow_overlap)
    scratch = scratch_in(Path(tempfile.gettempdir()), memory)
    if reference is not None:
        return Comparison(reference, ids, device, progress, scratch)(path, share, base)
    return _evaluated(load_causal(path, device, base, scratch), path, None, ids, share, progress)


class Comparison:
    """Any number of models against one reference on one text.

    Args:
        reference: Directory of the model to compare with, usually the original.
        tokens: Token ids, integers [sequences, length].
        device: Torch device that runs the models.
        progress: Told after every batch.
        scratch: Holds weights.
    """

    def __init__(
        self,
        reference: str | Path,
        tokens: Array,
        device: str,
        progress: Progress = silent,
        scratch: NoScratch = NO_SCRATCH,
    ) -> None:
        self._reference, self._tokens = load_causal(reference, device, scratch=scratch), tokens
        self._device, self._progress, self._scratch = device, progress, scratch

    def __call__(self, path: str | Path, share: float | None = None, base: str | Path | None = None) -> Evaluation:
        """The model of a directory; `share` is the estimated overlap of the text with its calibration text.

        Raises:
            CalibrationError: The tokens do not fit the model.
            FormatError, CheckpointError: The directory cannot be loaded.
        """
        model = load_causal(path, self._device, base, self._scratch)
        return _evaluated(model, path, self._reference, self._tokens, share, self._progress)


def _evaluated(
    model: Any, path: str | Path, reference: Any | None, ids: Array, share: float | None, progress: Progress
) -> Evaluation:
    """A directory's model on tokens, beside a loaded reference where there is one."""
    most = getattr(model.config, "max_position_embeddings", None)
    check_ids(ids, model.get_input_embeddings().weight.shape[0], most, path)
    fingerprint = Container(path).fingerprint if is_compressed(path) else None
    return replace(summarize(score_sequences(model, reference, ids, progress), share), fingerprint=fingerprint)


def score_sequences(model: Any, reference: Any | None, tokens: Array, progress: Progress = silent) -> SequenceScores:
    """Run one or two models over tokens.

    Args:
        model, reference: transformers causal language models on one device, with one vocabulary.
        tokens: Integers [sequences, length], length at least 2.
        progress: Told after every batch; a batch holds at most 2²⁵ logits, or one sequence.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]
    nats, divergences, agreed = [], [], []
    with torch.inference_mode():
        for ids in split_sequences(tokens, max(1, BATCH_LOGITS // vocabulary)):
            inputs, targets = ids.to(model.device), ids[:, 1:].to(model.device)
            logits = model(inputs, use_cache=False).logits[:, :-1]
            nats += target_nats(logits, targets).sum(-1).tolist()
            if reference is not None:
                expected = reference(inputs, use_cache=False).logits[:, :-1]
                if expected.shape != logits.shape:
                    raise TrueaxisError(
                        f"the reference has a vocabulary of {expected.shape[-1]} tokens, the model {logits.shape[-1]}; "
                        "give the model that was compressed"
                    )
                divergences += kl_nats(expected, logits).sum(-1).tolist()
                agreed += same_choice(expected, logits).sum(-1).tolist()
            progress("evaluate", len(nats), tokens.shape[0])
    paired = reference is not None
    return SequenceScores(
        tokens.shape[1] - 1,
        np.array(nats, np.float64),
        np.array(divergences, np.float64) if paired else None,
        np.array(agreed, np.float64) if paired else None,
    )


def summarize(scores: SequenceScores, share: float | None = None) -> Evaluation:
    """Means over tokens; `share` is the estimated overlap with the calibration text."""
    count = scores.nats.size * scores.predicted
    nats = float(scores.nats.sum()) / count
    divergence = interval = agreement = None
    if scores.kl_nats is not None and scores.agreed is not None:
        divergence, agreement = float(scores.kl_nats.sum()) / count, float(scores.agreed.sum()) / count
        interval = interval_of_mean(scores.kl_nats / scores.predicted)
    # A model that rules out what the text says has an infinite perplexity, which is an answer.
    perplexity = math.exp(nats) if nats < 709 else math.inf
    return Evaluation(perplexity, nats, divergence, interval, agreement, count, share)


def interval_of_mean(values: Array) -> tuple[float, float] | None:
    """95 % bootstrap interval of a mean over independent values; None for fewer than two.

    Args:
        values: float64 [sequences]; for the difference between two models, their differences per sequence.

    Example:
        >>> interval_of_mean(np.ones(10))
        (1.0, 1.0)
    """
    if values.size < 2:
        return None
    generator = np.random.default_rng(0)
    means = [values[generator.integers(0, values.size, values.size)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def read_ids(path: str | Path, text: Sequence[str | Path], tokens: str | Path | Array | None) -> Array:
    """Token ids [sequences, length] to evaluate on.

    Args:
        path: Directory of the model whose tokenizer reads the text.
        text, tokens: As in `evaluate`: one of the two.

    Raises:
        CalibrationError: Both or neither, or nothing to predict.
    """
    if bool(text) == (tokens is not None):
        raise CalibrationError("give what to evaluate on: either text files (--text) or token ids (--tokens), not both")
    if tokens is None:
        ids = tokenize(path, text, text_length(path))
    else:
        ids = tokens if isinstance(tokens, np.ndarray) else load_tokens(tokens)
    if ids.ndim == 2 and ids.shape[1] < 2:
        raise CalibrationError(f"token ids: sequences of {ids.shape[1]} tokens predict nothing; give at least 2")
    return ids


def read_evaluation(directory: str | Path, files: Sequence[str | Path]) -> Array:
    """Token ids [sequences, length] of text files, or of .npy files of one length.

    Args:
        directory: Of the model whose tokenizer reads the text.
        files: As of `--evaluation`.

    Raises:
        CalibrationError: Arrays of several lengths, or nothing to predict.
    """
    parts = read_tokens(directory, files)
    if len(parts) != 1:
        raise CalibrationError(
            "give evaluation text as text files, or as .npy files of token ids of one length (--evaluation)"
        )
    return read_ids(directory, (), parts[0])


def require_unseen(tokens: Array, statistics: Statistics) -> None:
    """Refuses text to evaluate on of which more than 1 % was calibrated on.

    Raises:
        CalibrationError: Says how much of it.
    """
    share = overlap(tokens, statistics.shingles)
    if share > STATISTICS_LIMIT:
        raise CalibrationError(
            f"about {share:.1%} of the evaluation text was calibrated on, at most {STATISTICS_LIMIT:.0%} may be; "
            "evaluate on other text"
        )


def _check_overlap(path: str | Path, ids: Array, statistics: str | Path | None, allowed: bool) -> float | None:
    """Share of the text that was calibrated on, as far as the directory or the statistics tell."""
    stored = _stored_sketch(path) if is_compressed(path) else None
    seen, limit = stored, SKETCH_LIMIT
    if statistics is not None:
        seen, limit = load_statistics(statistics).shingles, STATISTICS_LIMIT
        if stored is not None and not np.array_equal(sketch(seen), stored):
            raise CalibrationError(f"{statistics}: {path} was calibrated on other text than these statistics")
    if seen is None:
        return None
    share = overlap(ids, seen)
    if share > limit and not allowed:
        raise CalibrationError(
            f"{path}: about {share:.1%} of this text was calibrated on, at most {limit:.0%} may be; "
            "evaluate on other text, or pass --allow-overlap"
        )
    return share


def _stored_sketch(path: str | Path) -> Array:
    return np.cumsum(Container(path).header["sketch"], dtype=np.int64).astype(np.uint32)


def load_causal(
    path: str | Path, device: str = "cpu", base: str | Path | None = None, scratch: NoScratch = NO_SCRATCH
) -> Any:
    """The causal language model of a directory in float32, on the values that its own dtype holds.

    Args:
        path: Compressed directory or checkpoint.
        device: Where it runs.
        base: As of `trueaxis.load`.
        scratch: Holds the weights of one that runs on the CPU.

    Raises:
        TrueaxisError: It is no causal language model, or cannot be loaded.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    compressed = is_compressed(path)
    checkpoint = Container(path) if compressed else Checkpoint.open(path, scratch)
    names = checkpoint.config.get("architectures") or ["none"]
    if names[0] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise TrueaxisError(f"{path}: {names[0]} is no causal language model, which evaluation needs")
    if isinstance(checkpoint, Checkpoint):
        model: Any = load_model(checkpoint)
    elif scratch.has_room(4 * checkpoint.header["parameters"]):
        model = load(path, base=base).float()
    else:
        stored = checkpoint.config.get("dtype", checkpoint.config.get("torch_dtype"))
        residence = InScratch(scratch, getattr(torch, str(stored), None))
        model = built(path, residence, torch.device("cpu"), torch.float32, base)
    return model.requires_grad_(False).to(device)
