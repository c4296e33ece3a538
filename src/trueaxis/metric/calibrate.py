"""Run a checkpoint over text and sum what its matrices read.

    tokens ─▶ embed ─▶ block 0 ─▶ block 1 ─▶ … ─▶ final norm ─▶ head
                        Σ x xᵀ, Σ x per input space, at every step

The inputs of the first block are caught for all chunks; then each block runs over all of them while hooks on
its linears sum. Only one block is at work at a time. Products are float32 over at most 4,096 tokens, the sums over
those float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueaxis.metric.sketch import keep_smallest, shingle_hashes
from trueaxis.metric.statistics import Chunk, Statistics
from trueaxis.model.checkpoint import Checkpoint, check_finite
from trueaxis.model.graph import HEAD_SPACE, Route, route, trace
from trueaxis.progress import hidden_bars
from trueaxis.types import Array, CalibrationError, CheckpointError

Progress = Callable[[int, int, str], None]  # (steps done, steps in all, what was done)

CHUNK_TOKENS = 4096
MINIMUM_TOKENS = 1024
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def calibrate(
    checkpoint: Checkpoint,
    tokens: Array,
    *,
    seed: int,
    progress: Progress | None = None,
    sequences: range | None = None,
    device: str = "cpu",
) -> Statistics:
    """Sum the activations of a checkpoint over calibration text.

    Args:
        checkpoint: The model to run, in float32.
        tokens: Token ids, integers [sequences, length].
        seed: For models that draw random numbers as they run; the global generator is left as it was.
        progress: Called after every block.
        sequences: Part of `tokens` to read, so that several machines share a text; all of it by default.
            Statistics of separate parts merge.
        device: Where blocks run, one at a time; hidden states of the whole text stay there between blocks.

    Returns:
        Statistics without sensitivities.

    Raises:
        CalibrationError: The tokens do not fit the model or are too few.
        CheckpointError: The checkpoint cannot be run, or its activations are not finite.
    """
    part = _checked_part(checkpoint, tokens, sequences)
    for name in checkpoint.entries:
        check_finite(name, checkpoint.tensor(name))
    places = route(checkpoint)
    sums: dict[str, _Sum] = {}
    random_devices = [] if device == "cpu" else [device]
    with torch.random.fork_rng(random_devices), torch.inference_mode():
        torch.manual_seed(seed)
        model = load_model(checkpoint)
        steps = len(places.blocks) + 1
        states, contexts = _first_inputs(model, places, tokens[part.start : part.stop], device)
        for index, block in enumerate(places.blocks):
            with _listening(model, places.readers[index], sums):
                _run_block(model.get_submodule(block), states, contexts, device)
            _check_sums(checkpoint, places.readers[index], sums)
            if progress is not None:
                progress(index + 1, steps, block)
        sums[HEAD_SPACE] = _Sum()
        final_norm = model.get_submodule(places.final_norm).to(device)
        for state in states:
            sums[HEAD_SPACE].add(final_norm(state))
        _check_sums(checkpoint, (HEAD_SPACE,), sums)
    if progress is not None:
        progress(steps, steps, HEAD_SPACE)
    return _as_statistics(checkpoint, tokens, part, sums)


def _as_statistics(checkpoint: Checkpoint, tokens: Array, part: range, sums: dict[str, _Sum]) -> Statistics:
    read = tokens[part.start : part.stop]
    chunk = Chunk(hash_tokens(tokens), part.start, part.stop - 1, tokens.shape[1])
    return Statistics(
        {space: total.outer.cpu().numpy() for space, total in sums.items()},
        {space: total.linear.cpu().numpy() for space, total in sums.items()},
        {space: total.tokens for space, total in sums.items()},
        np.bincount(read.ravel().astype(np.int64), minlength=_vocabulary(checkpoint)).astype(np.int64),
        checkpoint.fingerprint,
        (chunk,),
        keep_smallest(shingle_hashes(read)),
    )


class _Sum:
    """Σ x xᵀ, Σ x and the number of tokens of one space, taken over chunks."""

    outer: torch.Tensor
    linear: torch.Tensor

    def __init__(self) -> None:
        self.tokens = 0

    def add(self, activations: torch.Tensor) -> None:
        for rows in activations.detach().reshape(-1, activations.shape[-1]).split(CHUNK_TOKENS):
            outer, linear = (rows.T @ rows).double(), rows.sum(dim=0, dtype=torch.float64)
            if self.tokens:
                self.outer += outer
                self.linear += linear
            else:
                self.outer, self.linear = outer, linear
            self.tokens += rows.shape[0]


class _CaughtError(Exception):
    """Stops a forward pass once the inputs of the first block are known."""


def _first_inputs(
    model: Any, places: Route, tokens: Array, device: str
) -> tuple[list[torch.Tensor], list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Inputs of the first block per chunk: hidden states [sequences, length, d], and the other arguments."""
    states: list[torch.Tensor] = []
    contexts: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        states.append(state.to(device))
        contexts.append(_moved((rest, kwargs), device))
        raise _CaughtError

    handle = model.get_submodule(places.blocks[0]).register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for ids in split_sequences(tokens):
            try:
                model(ids, use_cache=False)
            except _CaughtError:
                continue
    finally:
        handle.remove()
    return states, contexts


def _moved(value: Any, device: str) -> Any:
    """The same nest of tuples, lists and dicts with its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value


def _run_block(
    block: torch.nn.Module,
    states: list[torch.Tensor],
    contexts: list[tuple[tuple[Any, ...], dict[str, Any]]],
    device: str,
) -> None:
    """Replace the hidden states of every chunk by the block's output, in place."""
    block.to(device)
    for index, (args, kwargs) in enumerate(contexts):
        output = block(states[index], *args, **kwargs)
        states[index] = output[0] if isinstance(output, tuple) else output
    block.to("cpu")


@contextmanager
def _listening(model: Any, readers: Any, sums: dict[str, _Sum]) -> Iterator[None]:
    """While the context lasts, what enters each reader is added to the sum of its space."""
    handles = []
    for space, module in readers.items():
        total = sums[space] = _Sum()

        def add(_module: torch.nn.Module, args: tuple[Any, ...], total: _Sum = total) -> None:
            total.add(args[0])

        handles.append(model.get_submodule(module).register_forward_pre_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_sums(checkpoint: Checkpoint, spaces: Any, sums: dict[str, _Sum]) -> None:
    for space in spaces:
        if not bool(torch.isfinite(sums[space].outer).all()):
            raise CheckpointError(f"{space}: activations of {checkpoint.path} are not finite in float32")


def load_model(checkpoint: Checkpoint) -> Any:
    """The checkpoint as a transformers model: float32, evaluation mode, from local safetensors, no foreign code.

    Raises:
        CheckpointError: transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with hidden_bars():
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint.path, dtype=torch.float32, local_files_only=True, use_safetensors=True,
                trust_remote_code=False,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.path}: transformers cannot load it ({error})") from error
    return model.eval().requires_grad_(False)


def split_sequences(tokens: Array, limit: int = CHUNK_TOKENS) -> Iterator[torch.Tensor]:
    """Yield int64 [sequences, length] pieces of at most `limit` tokens, or one sequence where that is longer."""
    count = max(1, limit // tokens.shape[1])
    for start in range(0, tokens.shape[0], count):
        yield torch.from_numpy(tokens[start : start + count].astype(np.int64))


def check_tokens(checkpoint: Checkpoint, tokens: Array) -> None:
    """Raise CalibrationError unless tokens are integers [sequences, length] of the model's vocabulary."""
    check_ids(tokens, _vocabulary(checkpoint), checkpoint.path)


def check_ids(tokens: Array, vocabulary: int, model: str | Path) -> None:
    """Raise CalibrationError unless tokens are integers [sequences, length] from 0 to vocabulary − 1."""
    if not np.issubdtype(tokens.dtype, np.integer):
        raise CalibrationError(f"token ids: expected integers, found {tokens.dtype}; give ids, not embeddings or text")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise CalibrationError(f"token ids: expected shape [sequences, length], found {list(tokens.shape)}")
    smallest, largest = int(tokens.min()), int(tokens.max())
    if smallest < 0 or largest >= vocabulary:
        raise CalibrationError(
            f"token ids: found {smallest if smallest < 0 else largest}, but the vocabulary of {model} has "
            f"{vocabulary} tokens; use its own tokenizer"
        )


def hash_tokens(tokens: Array) -> str:
    """Hash of a token array, the same for every integer dtype: 32 hex digits."""
    digest = hashlib.blake2b(repr(tokens.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(tokens, "<i8").data)
    return digest.hexdigest()


def _checked_part(checkpoint: Checkpoint, tokens: Array, sequences: range | None) -> range:
    check_tokens(checkpoint, tokens)
    part = range(tokens.shape[0]) if sequences is None else sequences
    if part.step != 1 or part.start < 0 or part.stop > tokens.shape[0]:
        raise CalibrationError(f"sequences: expected a range within 0 to {tokens.shape[0]}, found {part}")
    spaced = [weight.shape[1] for weight in trace(checkpoint) if weight.space is not None]
    # Below two tokens per input, more than a few directions of H rest on no data at all.
    minimum = max(MINIMUM_TOKENS, 2 * max(spaced))
    if len(part) * tokens.shape[1] < minimum:
        raise CalibrationError(
            f"too little calibration text: {len(part) * tokens.shape[1]} tokens, at least {minimum}; give more text"
        )
    return part


def _vocabulary(checkpoint: Checkpoint) -> int:
    return checkpoint.entries[f"{route(checkpoint).embedding}.weight"].shape[0]


def load_tokens(path: str | Path) -> Array:
    """Read token ids [sequences, length] from an .npy file of integers.

    Raises:
        CalibrationError: The file is missing, damaged, pickled, or holds something else.
    """
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(f"{path}: expected an .npy file of token ids, which cannot be read ({error})") from error
    if not isinstance(tokens, np.ndarray) or not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim != 2:
        found = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, np.ndarray) else "an archive"
        raise CalibrationError(f"{path}: expected integer token ids [sequences, length], found {found}")
    return tokens


def tokenize(checkpoint_dir: str | Path, texts: Sequence[str | Path], length: int) -> Array:
    """Cut text files into sequences with the checkpoint's own tokenizer.

    The files are strung together; a last piece shorter than `length` is dropped. A tokenizer that starts text
    with a token of its own gets that token at the start of every sequence, as the model is used to.

    Returns:
        int64 [sequences, length].

    Raises:
        CalibrationError: There is no tokenizer, a file is not UTF-8 text, or the text is shorter than `length`.
    """
    from transformers import AutoTokenizer

    directory = Path(checkpoint_dir)
    if not any((directory / file).is_file() for file in _TOKENIZER_FILES):
        raise CalibrationError(f"{directory}: the checkpoint has no tokenizer; give token ids (.npy)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a tokenizer file can break in transformers, the remedy is the same
        raise CalibrationError(
            f"{directory}: the tokenizer cannot be loaded ({error}); give token ids (.npy)"
        ) from error
    ids: list[int] = []
    for file in texts:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(f"{file}: expected a UTF-8 text file ({error})") from error
        ids.extend(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    opening = tokenizer("")["input_ids"][:1]
    prefix = opening if tokenizer.bos_token_id is not None and opening == [tokenizer.bos_token_id] else []
    body = length - len(prefix)
    count = len(ids) // body if body > 0 else 0
    if count == 0:
        raise CalibrationError(f"too little text: {len(ids)} tokens make no sequence of {length}; give more text")
    pieces = np.asarray(ids[: count * body], np.int64).reshape(count, body)
    return np.concatenate([np.tile(np.asarray(prefix, np.int64), (count, 1)), pieces], axis=1)
